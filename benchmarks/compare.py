"""Is this run slower, larger or worse than an earlier one, by more than its own noise?

Ratios against a peer that ran in turn with ours are compared as they are. Single times are not
comparable between two hours of one machine: each is divided by a calibration (`benchmarks.
calibration`) that was timed beside it in its own run. The noise of a figure is the spread of its
rounds, at least the usual one of its unit in that run, and that of the calibration; beyond three
times the noise of both runs, and beyond 5% and 15 ms, worse is worse.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.figures import HIGHER, middle, spread

LEAST: Final = 0.05
"""Relative worsening that is never called one."""
TIMES_NOISE: Final = 3.0
LEAST_SECONDS: Final = 0.015
"""Two turns of a scheduler beside other work: a stage of a millisecond may lose them by chance."""
LEAST_DICE: Final = 0.002
"""Absolute: Dice is no matter of chance on one machine, but of the last digits on two versions."""
MACHINE: Final = ("processor", "cpus", "threads", "scale")
SUBJECT: Final = ("case", "case_sha256", "weights_sha256", "patch", "backend", "device")


class IncomparableError(Exception):
    """Two runs that say nothing of each other, in a sentence."""


@dataclass(frozen=True)
class Row:
    """One figure in both runs.

    Attributes:
        benchmark, name, unit: which.
        old, new: medians; ``new`` as it would have been at the old run's speed of the machine.
        change: worsening, relative (of Dice absolute); negative is better.
        allowed: largest ``change`` that is no regression.
    """

    benchmark: str
    name: str
    unit: str
    old: float
    new: float
    change: float
    allowed: float

    @property
    def regressed(self) -> bool:
        return self.change > self.allowed


def read_run(path: Path) -> dict[str, Any]:
    """A run's JSON.

    Raises:
        IncomparableError: not one of `--benchmark-json` of these benchmarks.
    """
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise IncomparableError(f"{path}: cannot be read ({error})") from error
    if not isinstance(run, dict) or "settings" not in run.get("machine_info", {}):
        raise IncomparableError(
            f"{path}: not a run of these benchmarks; make one with --benchmark-json"
        )
    return run


def check_machine(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse runs of another machine, number of threads or scale.

    Args:
        old, new: ``machine_info["settings"]`` of two runs.

    Raises:
        IncomparableError: they differ in one of `MACHINE`.
    """
    for key in MACHINE:
        if old.get(key) != new.get(key):
            raise IncomparableError(
                f"the earlier run had {key} {old.get(key)}, this one has {new.get(key)}: "
                "their times say nothing of each other"
            )


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Row]:
    """Every figure that both runs have.

    Args:
        old, new: runs as `--benchmark-json` writes them.

    Raises:
        IncomparableError: another machine, threads, scale, case or weights, or nothing in both.
    """
    check_machine(old["machine_info"]["settings"], new["machine_info"]["settings"])
    before = {one["fullname"]: one["extra_info"] for one in old["benchmarks"]}
    usual = (_usual(old), _usual(new))
    rows: list[Row] = []
    for one in new["benchmarks"]:
        name, now = one["fullname"], one["extra_info"]
        if name in before:
            _check_subject(name, before[name], now)
            rows += _rows(name, before[name], now, usual)
    if not rows:
        raise IncomparableError("the two runs have no figure in common")
    return rows


def _check_subject(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in SUBJECT:
        if old.get(key) != new.get(key):
            raise IncomparableError(
                f"{name}: the earlier run had {key} {old.get(key)}, this one has {new.get(key)}"
            )


def _rows(
    benchmark: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    usual: tuple[Mapping[str, float], Mapping[str, float]],
) -> Iterator[Row]:
    clocks = [one.get("calibration_s", ()) for one in (old, new)]
    for name, found in new.get("figures", {}).items():
        was = old.get("figures", {}).get(name)
        if was is None or was["unit"] != found["unit"]:
            continue
        unit, then, now = found["unit"], middle(was), middle(found)
        if unit == "Dice":
            yield Row(benchmark, name, unit, then, now, then - now, LEAST_DICE)
            continue
        timed = unit in ("s", "1/s")
        if timed:
            if not all(clocks):
                continue
            speed = median(clocks[0]) / median(clocks[1])
            now = now * speed if unit == "s" else now / speed
        noise = [
            max(spread(one["values"]) or 0.0, usual_of.get(unit, 0.0))
            for one, usual_of in zip((was, found), usual, strict=True)
        ]
        alone = any(len(one["values"]) < 2 for one in (was, found))
        if timed or (alone and unit == "ratio"):
            noise += [spread(clock) or 0.0 for clock in clocks]
        allowed = max(LEAST, TIMES_NOISE * hypot(*noise))
        if unit == "s" and then > 0:
            allowed = max(allowed, LEAST_SECONDS / then)
        worse, better = (then, now) if unit in HIGHER else (now, then)
        yield Row(benchmark, name, unit, then, now, _worsening(worse, better), allowed)


def _worsening(worse: float, better: float) -> float:
    if better <= 0:
        return 0.0 if worse <= 0 else float("inf")
    return worse / better - 1


def _usual(run: Mapping[str, Any]) -> dict[str, float]:
    """Median spread of a run's figures by unit: two rounds that agree by chance are no proof that
    there is no noise.
    """
    spreads: dict[str, list[float]] = {}
    for one in run["benchmarks"]:
        for found in one["extra_info"].get("figures", {}).values():
            noise = spread(found["values"])
            if noise is not None:
                spreads.setdefault(found["unit"], []).append(noise)
    return {unit: float(median(values)) for unit, values in spreads.items()}


def shown(rows: Sequence[Row]) -> list[str]:
    """Lines of a table, the worst first, of what changed beyond its noise; and a summary."""
    moved = [row for row in rows if abs(row.change) > row.allowed]
    moved.sort(key=lambda row: -row.change)
    regressed = sum(row.regressed for row in rows)
    summary = (
        f"{len(rows)} figures compared: {regressed} regressed, {len(moved) - regressed} better, "
        f"{len(rows) - len(moved)} within their noise"
    )
    cells = [("", "figure", "before", "now", "worse by", "allowed")]
    cells += [
        (
            "REGRESSED" if row.regressed else "better",
            f"{row.benchmark.rpartition('/')[2]}: {row.name}",
            f"{row.old:.4g} {row.unit}",
            f"{row.new:.4g} {row.unit}",
            f"{row.change:+.4f}" if row.unit == "Dice" else f"{row.change:+.1%}",
            f"{row.allowed:.4f}" if row.unit == "Dice" else f"{row.allowed:.1%}",
        )
        for row in moved
    ]
    if not moved:
        return [summary]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return [*lines, summary]
