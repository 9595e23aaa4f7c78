"""Is this run slower, larger or worse than an earlier one, by more than its own noise?

Ratios against a peer that ran in turn with ours are compared as they are. Single times are not
comparable between two hours of one machine: each is divided by a calibration (`benchmarks.
calibration`) that was timed before and after it in its own run. The noise of a figure is the spread
of its rounds, at least the usual one of its unit in that run, and that of the calibration, by which
the machine became faster or slower meanwhile, and a third of what it corrects, for no two pieces of
work slow down alike. Beyond three times the noise of both runs, and beyond 5% and 15 ms, worse is
worse. What an artefact segments is no matter of noise: 0.002 of Dice less, twice the changed labels
(and 1e-4 more), or a verdict that was better is worse.

What it sees: on a machine that is left alone, a time of over 30 ms that becomes 1.5 times as
long wherever its rounds agree within 5%; most often a fifth more. What it cannot see: a stage of a
few milliseconds; a time on a machine that is busy with other work, where a calibration that
wavered by a third allows twice the time (the summary counts such figures: take the run again); and
what slows the calibration down as well. It sees that a figure or a benchmark is gone, and fails.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, log
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.calibration import Clock, clock_of
from benchmarks.figures import HIGHER, middle, spread

LEAST: Final = 0.05
"""Relative worsening that is never called one."""
TIMES_NOISE: Final = 3.0
LEAST_SECONDS: Final = 0.015
"""Two turns of a scheduler beside other work: a stage of a millisecond may lose them by chance."""
LEAST_DICE: Final = 0.002
"""Absolute: Dice is no matter of chance on one machine, but of the last digits on two versions."""
LEAST_CHANGED: Final = 1e-4
"""Absolute, of changed labels: what an artefact in fp32 may change. More of them may double."""
ABSOLUTE: Final = {"Dice": ".4f", "changed": ".1e", "verdict": ".1f"}
"""Units that are judged by what is lost of them, not by its share; and how that is written."""
MACHINE: Final = ("processor", "cpus", "threads", "scale")
NOISY: Final = 0.5
"""Allowed worsening from which a figure says little."""
SUBJECT: Final = (
    *("case", "case_sha256", "scored_cases", "cohort"),
    *("weights_sha256", "patch", "backend", "device"),
)


class IncomparableError(Exception):
    """Two runs that say nothing of each other, in a sentence."""


@dataclass(frozen=True)
class Row:
    """One figure in both runs.

    Attributes:
        benchmark, name, unit: which.
        old, new: medians; ``new`` as it would have been at the old run's speed of the machine.
        change: worsening, relative (of units in `ABSOLUTE` absolute); negative is better.
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

    @property
    def noisy(self) -> bool:
        """Whether noise, and no fixed least, allows half as much again."""
        least = LEAST_SECONDS / self.old if self.unit == "s" and self.old > 0 else 0.0
        return self.unit not in ABSOLUTE and self.allowed > max(NOISY, least)


@dataclass(frozen=True)
class Missing:
    """A figure of the earlier run, or a whole benchmark, that is not compared.

    Attributes:
        what: the benchmark, or the benchmark and its figure.
        why: the reason.
        lost: it should have been there, so that the run fails; otherwise it was not asked for.
    """

    what: str
    why: str
    lost: bool


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
    """Every figure that both runs have, of the same graphs.

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
            if _other_graph(before[name], now):
                continue
            rows += _rows(name, before[name], now, usual)
    if not rows:
        both = missing(old, new, collected=(), whole=False)
        whys = [f"{one.what} {one.why}" for one in both if one.lost] or ["no benchmark is in both"]
        raise IncomparableError(f"the two runs have no figure in common: {'; '.join(whys[:3])}")
    return rows


def _check_subject(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in SUBJECT:
        if old.get(key) != new.get(key):
            raise IncomparableError(
                f"{name}: the earlier run had {key} {old.get(key)}, this one has {new.get(key)}"
            )


def _other_graph(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Why figures of two graphs say nothing of each other; None if they do. What both runs exported
    from the same weights is compared: the export is a part of what was changed.
    """
    if old.get("exported_here") and new.get("exported_here"):
        return None
    before, after = (one.get("model_sha256", {}) for one in (old, new))
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            return f"was of another {name} ({before[name][:10]}, now {after[name][:10]})"
    return None


def _rows(
    benchmark: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    usual: tuple[Mapping[str, float], Mapping[str, float]],
) -> Iterator[Row]:
    clocks = [clock_of(one) for one in (old, new)]
    for name, found in new.get("figures", {}).items():
        was = old.get("figures", {}).get(name)
        if was is None or _why_not(was, found, clocks):
            continue
        unit, then, now = found["unit"], middle(was), middle(found)
        if unit in ABSOLUTE:
            worsening = then - now if unit in HIGHER else now - then
            yield Row(benchmark, name, unit, then, now, worsening, _loss(unit, then))
            continue
        noise = [
            max(spread(one["values"]) or 0.0, usual_of.get(unit, 0.0))
            for one, usual_of in zip((was, found), usual, strict=True)
        ]
        timed = unit in ("s", "1/s")
        if timed and clocks[0] and clocks[1]:
            speed = clocks[0].seconds / clocks[1].seconds
            now = now * speed if unit == "s" else now / speed
            noise.append(abs(log(speed)) / 3)
        alone = any(len(one["values"]) < 2 for one in (was, found))
        if timed or (alone and unit == "ratio"):
            noise += [clock.noise for clock in clocks if clock]
        allowed = max(LEAST, TIMES_NOISE * hypot(*noise))
        if unit == "s" and then > 0:
            allowed = max(allowed, LEAST_SECONDS / then)
        worse, better = (then, now) if unit in HIGHER else (now, then)
        yield Row(benchmark, name, unit, then, now, _worsening(worse, better), allowed)


def _loss(unit: str, then: float) -> float:
    """Most that is allowed to be lost of a unit in `ABSOLUTE`; nothing of a verdict."""
    if unit == "changed":
        return max(LEAST_CHANGED, then)
    return LEAST_DICE if unit == "Dice" else 0.0


def _worsening(worse: float, better: float) -> float:
    if better <= 0:
        return 0.0 if worse <= 0 else float("inf")
    return worse / better - 1


def _usual(run: Mapping[str, Any]) -> dict[str, float]:
    """Median spread of a run's figures by unit: two rounds that agree by chance are no proof that
    there is no noise. Times of a few milliseconds waver by more than longer ones, and are left out.
    """
    spreads: dict[str, list[float]] = {}
    for one in run["benchmarks"]:
        for found in one["extra_info"].get("figures", {}).values():
            noise = spread(found["values"])
            short = found["unit"] == "s" and middle(found) < 10 * LEAST_SECONDS
            if noise is not None and not short:
                spreads.setdefault(found["unit"], []).append(noise)
    return {unit: float(median(values)) for unit, values in spreads.items()}


def _why_not(
    was: Mapping[str, Any], found: Mapping[str, Any], clocks: Sequence[Clock | None]
) -> str | None:
    """Why two values of a figure cannot be compared; None if they can."""
    if was["unit"] != found["unit"]:
        return f"it was in {was['unit']} and is in {found['unit']}"
    if was["unit"] in ("s", "1/s"):
        works = {clock.work if clock else "none" for clock in clocks}
        if "none" in works or len(works) > 1:
            return "its time was calibrated otherwise: take the earlier run again"
    return None


def missing(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    collected: Collection[str] | None = None,
    whole: bool = True,
) -> list[Missing]:
    """What the earlier run has and `compare` says nothing of.

    Args:
        old, new: as for `compare`.
        collected: full names of the benchmarks that this run was to do; those that have figures
            where it is None.
        whole: all that there is was asked for, so that a benchmark which is not collected is gone.
    """
    after = {one["fullname"]: one["extra_info"] for one in new["benchmarks"]}
    asked = set(after) if collected is None else set(collected)
    found: list[Missing] = []
    for one in old["benchmarks"]:
        name, was = one["fullname"], one["extra_info"]
        if not was.get("figures"):
            continue
        if name not in after:
            lost = whole or name in asked
            why = "was skipped, or failed" if name in asked else "is not in this run"
            found.append(Missing(name, why, lost))
            continue
        now = after[name]
        other_graph = _other_graph(was, now)
        if other_graph:
            found.append(Missing(name, other_graph, lost=True))
            continue
        clocks = [clock_of(was), clock_of(now)]
        for figure, values in was["figures"].items():
            other = now.get("figures", {}).get(figure)
            why_not = "is gone" if other is None else _why_not(values, other, clocks)
            if why_not:
                found.append(Missing(f"{name}: {figure}", why_not, lost=True))
    return found


def shown(rows: Sequence[Row], absent: Sequence[Missing] = ()) -> list[str]:
    """Lines of a table, the worst first, of what changed beyond its noise; of what is missing; and
    a summary.
    """
    moved = [row for row in rows if abs(row.change) > row.allowed]
    moved.sort(key=lambda row: -row.change)
    regressed = sum(row.regressed for row in rows)
    summary = (
        f"{len(rows)} figures compared: {regressed} regressed, {len(moved) - regressed} better, "
        f"{len(rows) - len(moved)} within their noise"
    )
    lost = sum(one.lost for one in absent)
    if lost:
        summary += f"; {lost} lost"
    deaf = sum(row.noisy for row in rows)
    if deaf:
        summary += f"; {deaf} so noisy that half as much again would pass"
    gone = [
        f"{'LOST' if one.lost else 'not run'}  {one.what.rpartition('/')[2]}: {one.why}"
        for one in sorted(absent, key=lambda one: not one.lost)
    ]
    cells = [("", "figure", "before", "now", "worse by", "allowed")]
    cells += [
        (
            "REGRESSED" if row.regressed else "better",
            f"{row.benchmark.rpartition('/')[2]}: {row.name}",
            f"{row.old:.4g} {row.unit}",
            f"{row.new:.4g} {row.unit}",
            f"{row.change:+{ABSOLUTE.get(row.unit, '.1%')}}",
            f"{row.allowed:{ABSOLUTE.get(row.unit, '.1%')}}",
        )
        for row in moved
    ]
    if not moved:
        return [*gone, summary]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return [*lines, *gone, summary]
