"""When a run validates, ends and is evaluated: by its epochs and, under a time limit, the clock."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from time import monotonic
from typing import Any, Final

from runtime.case import Case
from runtime.model_card import Shape3
from runtime.windows import plan_windows
from train.config import Config
from train.display import duration
from train.distributed import World
from train.schedule import TimeBudget

# Parts of a limited time that one validation and the evaluation may take; all of the validations
# together stay below a quarter.
_SHARE_OF_BUDGET: Final = 0.1
_SHARE_OF_TRAINING: Final = 0.15
_SECONDS_PER_CASE: Final = 1.5
# Thresholds are tried on lesions as well.
_SECONDS_TO_SCORE: Final = 12.0
# What is kept for the evaluation, over what it should take: windows are measured when a run begins.
_SLACK: Final = 1.25


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
        self._ended = False
        self._step_seconds = 0.0
        self._validated_at = 0.0
        self._seconds_to_validate = 0.0
        # Seconds of a case, as foreseen; a validation shows how much slower it really is.
        self._validation = self._evaluation = 0.0
        self._slower = 1.0

    def state(self) -> dict[str, float] | None:
        """What `go_on` needs; None without a limit."""
        state = self._budget.state()
        return None if state is None else {**state, "ended": float(self._ended)}

    def go_on(self, state: Mapping[str, float]) -> bool:
        """Keep the time limit of a run that is resumed, unless it is given a new one.

        Returns:
            Whether there is time left to train.
        """
        if self._budget.limited:
            return True
        self._budget.go_on(state)
        # By what was decided then: what was kept for the end is not known yet, and is not for
        # training.
        return not state.get("ended")

    @property
    def limited(self) -> bool:
        """Whether there is a time limit."""
        return self._budget.limited

    def overdue(self, to_score: int = 0) -> bool:
        """Whether all of the time is used up, but for what it takes to score so many cases."""
        return self._budget.left() < to_score * _SECONDS_TO_SCORE

    def begin(
        self,
        cases: Sequence[Case],
        boxes: Sequence[Shape3],
        seconds_per_window: Callable[[], tuple[float, float]],
        resumed: bool = False,
    ) -> tuple[tuple[Case, ...], str]:
        """Choose the cases that validation watches, and begin to count.

        Args:
            cases: those that may be watched; all of them are to be evaluated at the end.
            boxes: (x, y, z) of prepared cases, by which a case's windows are counted.
            seconds_per_window: measures a window as validation runs it, and as the evaluation does;
                called only under a time limit.
            resumed: whether an epoch may be the best whose validation is not at hand any more.

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
        here = [
            self._windows(boxes, overlap) * seconds + _SECONDS_PER_CASE
            for overlap, seconds in zip(
                (config.validation.overlap, config.model.overlap),
                seconds_per_window(),
                strict=True,
            )
        ]
        self._validation, self._evaluation = self._world.share(lambda: here)
        room = max(1, int(_SHARE_OF_BUDGET * budget.seconds / self._validation))
        watched = watched[:room]
        self._seconds_to_validate = len(watched) * self._validation
        afterwards = _SLACK * self._seconds_to_evaluate(len(cases))
        evaluated = "all"
        if afterwards > _SHARE_OF_BUDGET * budget.seconds:
            again = self._seconds_to_validate if resumed else 0.0
            afterwards = again + len(watched) * _SECONDS_TO_SCORE
            evaluated = "these"
        reserve = self._seconds_to_validate + afterwards
        budget.begin_training(reserve)
        return watched, (
            f"time limit {budget.seconds / 60:g} min: validates on {len(watched)} of "
            f"{len(cases)} cases, keeps {reserve:.0f} s for it and for evaluating {evaluated}"
        )

    def _windows(self, boxes: Sequence[Shape3], overlap: float) -> float:
        """How many a case has, on average."""
        patch = self._config.model.patch
        return fmean(len(plan_windows(box, patch, overlap)) for box in boxes)

    def _seconds_to_evaluate(self, cases: int) -> float:
        return cases * (self._slower * self._evaluation + _SECONDS_TO_SCORE)

    def shortage(self, cases: int) -> str:
        """Why so many cases cannot all be evaluated in the time that is left; empty if they can."""
        left, needed = self._budget.left(), self._seconds_to_evaluate(cases)
        if left >= needed:
            return ""
        return (
            f"{duration(max(0.0, left))} of the time limit were left, and all {cases} cases with "
            f"overlap {self._config.model.overlap:g} take about {duration(needed)}"
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
        self._ended = bool(self._leaders(lambda: self._budget.exhausted(self._step_seconds)))
        return self._ended or epoch >= self._config.train.epochs

    def validates(self, epoch: int, last: bool) -> bool:
        """Whether to validate after this epoch."""
        if last:
            return True
        if epoch % self._config.validation.every:
            return False
        since = monotonic() - self._validated_at
        return not self._leaders(lambda: self._seconds_to_validate > _SHARE_OF_TRAINING * since)

    def validated(self, cases: int, seconds: float) -> None:
        """A validation has ended, of so many cases in so many seconds."""
        self._validated_at = monotonic()
        if cases and self._validation:
            self._slower = max(1.0, seconds / (cases * self._validation))

    def seconds_left(self, history: Sequence[Mapping[str, Any]]) -> float:
        """By the epochs so far, or by the clock where that ends the run earlier."""
        left = self._config.train.epochs - len(history)
        return min(left * fmean(row["seconds"] for row in history), self._budget.left())

    def _leaders(self, read: Callable[[], float]) -> float:
        """What the leader's clock says; 0 without a limit."""
        return float(self._world.share(read)) if self._budget.limited else 0.0
