"""How far a run has come: its history and its best epoch; what resuming starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Changes with every epoch.

    Attributes:
        epoch: epochs behind us.
        history: a row an epoch; see `train.run_dir.COLUMNS`.
        best: highest mean Dice of a validation; None before the first, or without validation.
        best_epoch: when that was.
        watched: what that validation looked at, in words: scores of two are compared only where it
            is the same.
        since_best: validations since then.
        clock: of a time limit, as `train.schedule.TimeBudget.state` gives it; None without one.
    """

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    watched: tuple[str, ...] = ()
    since_best: int = 0
    clock: dict[str, float] | None = None

    def watch(self, watched: Sequence[str]) -> bool:
        """Say what validations look at from now on.

        Where that has changed, an earlier score says nothing about a later one: the next validation
        is the best so far.

        Returns:
            Whether there was a best epoch, and it is forgotten.
        """
        forgotten = self.best is not None and self.watched != tuple(watched)
        if forgotten:
            self.best, self.since_best = None, 0
        self.watched = tuple(watched)
        return forgotten

    def record(self, row: dict[str, Any], score: float | None, chooses: bool) -> bool:
        """Take in an epoch.

        Args:
            row: of the history; its Dice where there was a validation.
            score: of its validation; None where there was none, or one of fewer cases than others.
            chooses: whether validations choose the best epoch; else the newest is the best.

        Returns:
            Whether this is the best epoch so far.
        """
        self.epoch = int(row["epoch"])
        self.history.append(row)
        if chooses:
            if score is None:
                return False
            if self.best is not None and score <= self.best:
                self.since_best += 1
                return False
        self.best, self.best_epoch, self.since_best = score, self.epoch, 0
        return True

    def to_json(self) -> dict[str, Any]:
        """All but the epoch, which a checkpoint holds by itself."""
        return {
            "history": self.history,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "watched": list(self.watched),
            "since_best": self.since_best,
            "clock": self.clock,
        }

    @classmethod
    def from_json(cls, epoch: int, value: Mapping[str, Any]) -> "Progress":
        """Read back what `to_json` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        history: Sequence[dict[str, Any]] = value["history"]
        return cls(
            epoch,
            list(history),
            value["best"],
            int(value["best_epoch"]),
            # Unknown to older checkpoints.
            tuple(value.get("watched", ())),
            int(value["since_best"]),
            value["clock"],
        )
