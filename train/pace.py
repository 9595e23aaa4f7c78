"""When a run validates and when it ends: by its epochs and, under a time limit, by the clock."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from time import monotonic
from typing import Any, Final

from runtime.case import Case
from runtime.model_card import Shape3
from runtime.windows import plan_windows
from train.config import Config
from train.distributed import World
from train.schedule import TimeBudget

# Parts of a limited time that one validation may take; all of them together stay below a quarter.
_SHARE_OF_BUDGET: Final = 0.1
_SHARE_OF_TRAINING: Final = 0.15
_SECONDS_PER_CASE: Final = 1.5
# Thresholds are tried on lesions as well.
_SECONDS_TO_SCORE: Final = 12.0


class Pace:
    """Knows the time. Under a limit it is the leader's: processes that disagreed would deadlock.

    Args:
        config: epochs, and how often to validate.
        budget: the time limit, if there is one.
        world: the processes that train together.
    """

    def __init__(self, config: Config, budget: TimeBudget, world: World) -> None:
        self._config = config
        self._budget = budget
        self._world = world
        self._step_seconds = 0.0
        self._validated_at = 0.0
        self._seconds_to_validate = 0.0

    def state(self) -> dict[str, float] | None:
        """What `go_on` needs; None without a limit."""
        return self._budget.state()

    def go_on(self, state: Mapping[str, float]) -> bool:
        """Keep the time limit of a run that is resumed, unless it is given a new one.

        Returns:
            Whether there is time left to train.
        """
        if not self._budget.limited:
            self._budget.go_on(state)
        return not self._leaders(self._budget.exhausted)

    @property
    def limited(self) -> bool:
        """Whether there is a time limit."""
        return self._budget.limited

    def overdue(self) -> bool:
        """Whether all of the time is used up."""
        return self._budget.overdue()

    def begin(
        self,
        cases: Sequence[Case],
        boxes: Sequence[Shape3],
        seconds_per_window: Callable[[], float],
    ) -> tuple[tuple[Case, ...], str]:
        """Choose the cases that validation watches, and begin to count.

        Args:
            cases: those that may be watched.
            boxes: (x, y, z) of prepared cases, by which a case's windows are counted.
            seconds_per_window: measures a window; called only under a time limit.

        Returns:
            As many cases as the limit leaves room for, and a sentence about it; all of them and an
            empty one without a limit.
        """
        self._validated_at = monotonic()
        config, budget = self._config, self._budget
        watched = tuple(cases[: config.validation.limit or len(cases)])
        if budget.seconds is None or not watched:
            budget.begin_training(0.0)
            return watched, ""
        windows = [
            len(plan_windows(box, config.model.patch, config.validation.overlap)) for box in boxes
        ]
        here = fmean(windows) * seconds_per_window() + _SECONDS_PER_CASE
        seconds = self._world.share(lambda: here)
        room = max(1, int(_SHARE_OF_BUDGET * budget.seconds / seconds))
        watched = watched[:room]
        self._seconds_to_validate = len(watched) * seconds
        reserve = self._seconds_to_validate + len(watched) * _SECONDS_TO_SCORE
        budget.begin_training(reserve)
        return watched, (
            f"time limit {budget.seconds / 60:g} min: validates on {len(watched)} of "
            f"{len(cases)} cases, keeps {reserve:.0f} s for it"
        )

    def progress(self, epochs: float) -> float:
        """Part of the run that is behind us, in [0, 1], after so many epochs."""
        by_epochs = epochs / self._config.train.epochs
        return max(by_epochs, self._leaders(self._budget.fraction))

    def stepped(self, seconds: float) -> bool:
        """Take in how long a step took; whether there is no time for another."""
        self._step_seconds = seconds
        return bool(self._leaders(lambda: self._budget.exhausted(self._step_seconds)))

    def ends(self, epoch: int) -> bool:
        """Whether the run ends after so many epochs."""
        return epoch >= self._config.train.epochs or bool(
            self._leaders(lambda: self._budget.exhausted(self._step_seconds))
        )

    def validates(self, epoch: int, last: bool) -> bool:
        """Whether to validate after this epoch."""
        if last:
            return True
        if epoch % self._config.validation.every:
            return False
        since = monotonic() - self._validated_at
        return not self._leaders(lambda: self._seconds_to_validate > _SHARE_OF_TRAINING * since)

    def validated(self) -> None:
        """A validation has ended."""
        self._validated_at = monotonic()

    def seconds_left(self, history: Sequence[Mapping[str, Any]]) -> float:
        """By the epochs so far, or by the clock where that ends the run earlier."""
        left = self._config.train.epochs - len(history)
        by_epochs = left * fmean(row["seconds"] for row in history)
        if self._budget.seconds is None:
            return by_epochs
        return min(by_epochs, self._budget.seconds - self._budget.elapsed())

    def _leaders(self, read: Callable[[], float]) -> float:
        """What the leader's clock says; 0 without a limit."""
        return float(self._world.share(read)) if self._budget.limited else 0.0
