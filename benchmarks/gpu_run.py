"""How `gpu_check` gets through its rows: in the order of their worth, within its time, with what
was found on disk after each of them.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from runtime.atomic import write_text
from runtime.errors import BratsError


class LeftOutError(Exception):
    """A row that cannot be had here, which is no failure; its message says why."""


@dataclass(frozen=True)
class Row:
    """One thing to find out.

    Attributes:
        section: of the report.
        title: of the row in its section; "" makes the row the whole section.
        work: finds it out. What it returns goes into the report as JSON; a dict with the key
            "error" is a failure that has figures all the same. Raises LeftOutError where there is
            nothing to be found out here.
        expected_s: seconds that it is expected to take; a row of the same section that took longer
            counts instead.
        vital: whether without it nobody can say that everything agreed.
    """

    section: str
    title: str
    work: Callable[[], Any]
    expected_s: float
    vital: bool = False

    @property
    def name(self) -> str:
        return f"{self.section}: {self.title}" if self.title else self.section


@dataclass
class Budget:
    """Seconds that the whole check may take, counted from when this is made."""

    limit_s: float
    clock: Callable[[], float] = perf_counter

    def __post_init__(self) -> None:
        self._began = self.clock()

    def spent_s(self) -> float:
        return self.clock() - self._began

    def left_s(self) -> float:
        return self.limit_s - self.spent_s()


@dataclass
class Run:
    """The rows so far.

    Attributes:
        path: of the report, which is written after every row.
        budget: a row that is expected to take longer than what is left of it is left out.
        console: is told of every row.
        report: sections, by their names; under "rows" what became of every row, in their order.
    """

    path: Path
    budget: Budget
    console: Console
    report: dict[str, Any] = field(default_factory=dict)
    _longest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report["rows"] = []

    def take(self, rows: Iterable[Row]) -> None:
        """Go through ``rows``. One that fails takes no other with it: device time is dear."""
        for row in rows:
            expected = max(row.expected_s, self._longest.get(row.section, 0.0))
            left = self.budget.left_s()
            if expected > left:
                why = f"{max(left, 0):.0f} s were left, and about {expected:.0f} s are needed"
                self._note(row, "failed" if row.vital else "no time", 0.0, why)
                continue
            free_memory(failed=not self._take(row))

    def _take(self, row: Row) -> bool:
        """Whether it did not fail."""
        self.console.rule(row.name)
        began, status, why = self.budget.spent_s(), "ok", ""
        try:
            found = row.work()
        except LeftOutError as error:
            status, why = "left out", str(error)
            found = {"left_out": why}
        except Exception as error:
            found = {"error": sentence(error)}
            if not isinstance(error, BratsError):
                self.console.print_exception(max_frames=8)
        if isinstance(found, dict) and "error" in found:
            status, why = "failed", str(found["error"])
            self.console.print(why, style="red", markup=False, soft_wrap=True)
        if row.title:
            self.report.setdefault(row.section, {})[row.title] = found
        else:
            self.report[row.section] = found
        seconds = self.budget.spent_s() - began
        self._longest[row.section] = max(seconds, self._longest.get(row.section, 0.0))
        self._note(row, status, seconds, why)
        return status != "failed"

    def _note(self, row: Row, status: str, seconds: float, why: str) -> None:
        self.report["rows"].append(
            {"row": row.name, "status": status, "seconds": round(seconds, 2), "why": why}
        )
        write_text(self.path, json.dumps(self.report, indent=1, default=str) + "\n")


def sentence(error: BaseException) -> str:
    """An error in one line: its class, and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"


def free_memory(failed: bool) -> None:
    """Give back what a row left in PyTorch's pool. What the frames of an error hold, which may be
    an out-of-memory error, is only found by the garbage collector.
    """
    if failed:
        gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
