"""How far a run is, by steps and by the clock, and what the learning rate is there."""

from collections.abc import Callable, Mapping
from math import cos, inf, pi
from time import monotonic

from train.config import TrainConfig

_FLOOR = 0.01
_POLY_POWER = 0.9


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The learning rate at ``progress`` in [0, 1] of the run.

    Linear warm-up from 1% of the peak, then constant, half a cosine or a polynomial of power 0.9,
    the last two down to 1% again.
    """
    if progress < config.warm_up:
        return config.lr * (_FLOOR + (1 - _FLOOR) * progress / config.warm_up)
    if config.schedule == "constant":
        return config.lr
    rest = min(1.0, (progress - config.warm_up) / max(1e-9, 1 - config.warm_up))
    shape = (1 + cos(pi * rest)) / 2 if config.schedule == "cosine" else (1 - rest) ** _POLY_POWER
    return config.lr * (_FLOOR + (1 - _FLOOR) * shape)


class TimeBudget:
    """The time a run may take, validation and evaluation at its end included.

    Args:
        seconds: in all, from now on; None: no limit.
        clock: seconds, monotonic.

    Attributes:
        reserve: seconds kept for what follows training.
    """

    def __init__(
        self, seconds: float | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self.seconds = seconds
        self.reserve = 0.0
        self._clock = clock
        self._start = clock()
        self._training: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.seconds is not None

    def elapsed(self) -> float:
        """Seconds since this budget was made."""
        return self._clock() - self._start

    def begin_training(self, reserve: float) -> None:
        """Count the training's part from here: preparing data is no progress."""
        self.reserve = reserve
        if self._training is None:
            self._training = self.elapsed()

    def state(self) -> dict[str, float] | None:
        """What `go_on` needs; None without a limit."""
        if self.seconds is None or self._training is None:
            return None
        return {"seconds": self.seconds, "elapsed": self.elapsed(), "training": self._training}

    def go_on(self, state: Mapping[str, float]) -> None:
        """Go on where `state` was asked for: what was trained since then is trained again."""
        self.seconds = state["seconds"]
        self._start = self._clock() - state["elapsed"]
        self._training = state["training"]

    def fraction(self) -> float:
        """Part of the training's time that is used up, in [0, 1]; 0 without a limit."""
        if self.seconds is None:
            return 0.0
        began = self._training or 0.0
        available = self.seconds - self.reserve - began
        return min(1.0, (self.elapsed() - began) / available) if available > 0 else 1.0

    def exhausted(self, next_step: float = 0.0) -> bool:
        """Whether another step of ``next_step`` seconds does not fit."""
        if self.seconds is None:
            return False
        return self.elapsed() + next_step > self.seconds - self.reserve

    def left(self) -> float:
        """Seconds until all of the time is used up, the reserve included; without a limit infinite,
        beyond it negative.
        """
        return inf if self.seconds is None else self.seconds - self.elapsed()
