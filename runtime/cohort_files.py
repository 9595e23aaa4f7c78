"""The files of a whole cohort beside those of its cases: tables, a page, and what vouches for them.

``cohort.csv`` and ``cohort.json`` hold every case; ``failures.csv`` is there where some failed;
``cohort.html`` shows the distribution and what to look at first. ``cohort.json`` comes last and
names the hashes of the others, and of what else is in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Final

from runtime import DISCLAIMER, __version__
from runtime.atomic import as_json, remove, together
from runtime.cohort_record import STAGES, STRUCTURES, Entry, Record, spread, to_look_at
from runtime.model_dir import sha256_of
from runtime.printable import cell, csv_text

_SCHEMA: Final = 1
_KIND: Final = "cohort of predictions"
COLUMNS: Final = (
    "case_id", "status", "labels", *(f"{name}_ml" for name in STRUCTURES),
    *(f"{stage}_s" for stage in STAGES), "total_s", "backend", "device", "precision", "warnings",
)  # fmt: skip
FAILURES: Final = ("case_id", "kind", "where", "found", "expected", "remedy")
OPENING: Final = f'{{\n  "schema": {_SCHEMA},\n  "kind": "{_KIND}",'.encode()


@dataclass(frozen=True)
class Names:
    """Where a cohort's own files lie.

    Attributes:
        directory: the output folder.
        part: "-2-of-8" where this run takes only a part of the cases; else empty.
    """

    directory: Path
    part: str = ""

    @property
    def table(self) -> Path:
        return self.directory / f"cohort{self.part}.csv"

    @property
    def record(self) -> Path:
        return self.directory / f"cohort{self.part}.json"

    @property
    def page(self) -> Path:
        return self.directory / f"cohort{self.part}.html"

    @property
    def failures(self) -> Path:
        return self.directory / f"failures{self.part}.csv"

    def all(self) -> tuple[Path, ...]:
        return (self.table, self.failures, self.page, self.record)


@dataclass(frozen=True)
class Facts:
    """What is told of a run beside its cases.

    Attributes:
        model: name and SHA-256 of what ran.
        settings: the options that shape the results.
        wall_s: seconds since the first case was begun.
        busy: part of that time in which readers, the network and writers were at work, per thread.
        cpu_s: core seconds of this process and those it has begun; None where a cluster did the
            work.
    """

    model: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    busy: Mapping[str, float] = field(default_factory=dict)
    cpu_s: float | None = None


def seal_of(told: Mapping[str, Any]) -> str:
    """The hash by which a record vouches for itself, of all that is in it beside."""
    return sha256_of(as_json(told))


def write_cohort(names: Names, record: Record, facts: Facts) -> None:
    """Write all of them, an earlier run's replaced; `failures.csv` goes where nothing failed.

    Raises:
        OutputError: they cannot be written.
    """
    from runtime.cohort_page import cohort_page  # no business of a single case

    results, failed = record.of("done", "kept"), record.of("failed")
    told = _told(record, results, failed, facts)
    pages = {
        names.table: _table(results, failed),
        names.page: cohort_page(record, told),
    }
    if failed:
        pages[names.failures] = csv_text(FAILURES, map(_failure, failed))
    contents = {path: text.encode() for path, text in pages.items()}
    told["files"] = {path.name: sha256_of(data) for path, data in contents.items()}
    told["sha256"] = seal_of(told)
    with together() as files, together() as last:
        for path, data in contents.items():
            files.write(path, data)
        last.write(names.record, as_json(told))
        # An earlier one would vouch for what is no longer there.
        remove(names.record)
        if not failed:
            remove(names.failures)
        files.place()
        last.place()


def _told(
    record: Record, results: Sequence[Entry], failed: Sequence[Entry], facts: Facts
) -> dict[str, Any]:
    done = record.count("done")
    return {
        "schema": _SCHEMA,
        "kind": _KIND,
        "research_use": DISCLAIMER,
        "version": __version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **asdict(facts),
        "cases": {
            "all": record.total,
            **{status: record.count(status) for status in ("done", "kept", "failed")},
            "not_begun": record.total - len(record.entries),
        },
        "cases_per_min": 60 * done / facts.wall_s if done and facts.wall_s else None,
        "volumes_ml": {
            name: spread([entry.volume(name) for entry in results])
            for name in STRUCTURES
            if results
        },
        "seconds": _seconds(record.of("done")),
        "look_at_first": [
            {"case_id": reason.case.case_id, "why": reason.text} for reason in to_look_at(results)
        ],
        "results": {entry.case_id: _result(entry) for entry in results},
        "failures": [dict(zip(FAILURES, _parts(entry), strict=True)) for entry in failed],
    }


def _seconds(done: Sequence[Entry]) -> dict[str, dict[str, float]]:
    columns = {
        stage: [entry.seconds[at] for entry in done if isfinite(entry.seconds[at])]
        for at, stage in enumerate(STAGES)
    }
    columns["total"] = [entry.total_s for entry in done]
    return {stage: spread(values) for stage, values in columns.items() if values}


def _result(entry: Entry) -> dict[str, Any]:
    return {
        "status": entry.status,
        "labels": entry.labels,
        "volumes_ml": dict(zip(STRUCTURES, entry.volumes_ml, strict=True)),
        "seconds": {
            stage: value
            for stage, value in zip(STAGES, entry.seconds, strict=True)
            if isfinite(value)
        },
        "backend": dict(zip(("name", "device", "precision"), entry.backend, strict=True)),
        "warnings": list(entry.warnings),
    }


def _table(results: Sequence[Entry], failed: Sequence[Entry]) -> str:
    rows = [
        (
            cell(entry.case_id),
            entry.status,
            cell(entry.labels),
            *(f"{value:.6g}" for value in entry.volumes_ml),
            *(f"{value:.4f}" if isfinite(value) else "" for value in entry.seconds),
            f"{entry.total_s:.4f}",
            *map(cell, entry.backend),
            cell("; ".join(entry.warnings)),
        )
        for entry in results
    ]
    empty = ("",) * (len(COLUMNS) - 3)
    rows += [(cell(entry.case_id), entry.status, *empty, _why(entry)) for entry in failed]
    return csv_text(COLUMNS, rows)


def _why(entry: Entry) -> str:
    return cell(str(entry.error)) if entry.error is not None else ""


def _failure(entry: Entry) -> tuple[str, ...]:
    return tuple(map(cell, _parts(entry)))


def _parts(entry: Entry) -> tuple[str, ...]:
    error = entry.error
    if error is None:
        return (entry.case_id, "", "", "", "", "")
    told = (error.where, error.found, error.expected, error.remedy)
    return (entry.case_id, type(error).__name__, *told)
