"""How far a cohort is, how fast it goes, and what it waits for."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from runtime.cohort import Outcome
from runtime.pipeline import Clock, Limits


def core_seconds() -> float:
    """What this process has taken of the cores so far, and those that it began and that ended."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


@dataclass
class Pace:
    """Counts cases as they end.

    Attributes:
        total: cases in all.
        clock: how long each stage has been at work.
        limits: how many threads of a process read and write.
        processes: how many there are.
        now, worked: seconds of the wall and of the cores.
        done, kept, failed: cases that have ended so.
    """

    total: int
    clock: Clock = field(default_factory=Clock)
    limits: Limits = field(default_factory=Limits)
    processes: int = 1
    now: Callable[[], float] = perf_counter
    worked: Callable[[], float] = core_seconds
    done: int = 0
    kept: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self._begun, self._worked = self.now(), self.worked()

    def restart(self) -> None:
        """Begin to count time anew: loading a model is no part of the pace."""
        self._begun, self._worked = self.now(), self.worked()
        self.clock.restart()

    def ended(self, outcome: Outcome) -> None:
        """Take in a case."""
        if outcome.error is not None:
            self.failed += 1
        elif outcome.kept:
            self.kept += 1
        else:
            self.done += 1

    def problem(self) -> None:
        """Take in a case that could not be put together from its files."""
        self.failed += 1

    @property
    def left(self) -> int:
        """Cases that have not ended."""
        return self.total - self.done - self.kept - self.failed

    @property
    def wall_s(self) -> float:
        """Seconds since the start."""
        return self.now() - self._begun

    @property
    def cpu_s(self) -> float:
        """Core seconds since the start; those of other processes once they have ended."""
        return self.worked() - self._worked

    @property
    def per_minute(self) -> float | None:
        """Cases done a minute; those that were kept cost next to nothing and count for nothing."""
        seconds = self.wall_s
        return 60 * self.done / seconds if self.done and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """What those that are left will take at that pace."""
        rate = self.per_minute
        return None if rate is None else 60 * self.left / rate

    def busy(self) -> dict[str, float]:
        """Part of the time, 0 to 1, in which a reader, the network and a writer were at work."""
        wall = self.clock.wall * self.processes
        if wall <= 0:
            return {"read": 0.0, "run": 0.0, "write": 0.0}
        return {
            "read": self.clock.read / wall / self.limits.readers,
            "run": self.clock.run / wall,
            "write": self.clock.write / wall / self.limits.writers,
        }

    def to_json(self) -> dict[str, Any]:
        """For a log event; figures rounded, None where there is none yet."""
        rate, left = self.per_minute, self.seconds_left
        return {
            "of": self.total,
            "done": self.done,
            "kept": self.kept,
            "failed": self.failed,
            "cases_per_min": None if rate is None else round(rate, 2),
            "eta_s": None if left is None else round(left),
            "busy": {name: round(part, 3) for name, part in self.busy().items()},
        }

    def words(self) -> str:
        """For a line of text: 12.3 cases/min, 4 min left."""
        rate, left = self.per_minute, self.seconds_left
        if rate is None or left is None:
            return ""
        return f"{rate:.1f} cases/min, {duration(left)} left"


def duration(seconds: float) -> str:
    """42 s, 7 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
