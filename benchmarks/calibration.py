"""A fixed piece of work, timed beside every benchmark: how fast the machine was just then.

A matrix product and a pass over memory, which are what segmenting a case is made of, by PyTorch and
NumPy, in which nothing of ours can be faster or slower. Both work in place, in memory that is
touched before: what allocates pays for fresh pages or not, as the heap of the process happens to
be, and then its first runs take twice as long as the same ones do later.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch

from benchmarks.figures import spread

WORK: Final = "product and pass, in place"
"""Stands beside the seconds: those of other work are not comparable."""
STEADY: Final = 0.025
"""Spread of three runs in a row that have warmed up."""
_MOST_WARM: Final = 10
_SIDE: Final = 768


def calibrate(times: int = 5) -> list[float]:
    """Seconds of each of ``times`` runs, taken once runs have become steady, or after 10 of them on
    a machine that never is.
    """
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn((_SIDE, _SIDE), generator=generator) for _ in range(2))
    product, memory = torch.zeros((_SIDE, _SIDE)), np.ones(1 << 23, np.float32)

    def work() -> None:
        torch.mm(one, other, out=product)
        np.multiply(memory, np.float32(1.0), out=memory)

    with torch.inference_mode():
        return steady(lambda: _timed(work), times)


def steady(timed: Callable[[], float], times: int) -> list[float]:
    """Seconds of ``times`` runs after those that warm up.

    Args:
        timed: does the work once and says how long it took.
        times: runs that count.
    """
    warm: list[float] = []
    while len(warm) < _MOST_WARM:
        warm.append(timed())
        if len(warm) >= 3 and (spread(warm[-3:]) or 0.0) <= STEADY:
            break
    return [timed() for _ in range(times)]


def _timed(work: Callable[[], None]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


@dataclass(frozen=True)
class Clock:
    """How fast the machine was beside one benchmark.

    Attributes:
        seconds: of the fixed work.
        noise: of them, relative; how far the machine became faster or slower meanwhile included.
        work: which work it was.
    """

    seconds: float
    noise: float
    work: str


def clock_of(record: Mapping[str, Any]) -> Clock | None:
    """What was calibrated before and after a benchmark; None where nothing was.

    The work of earlier versions allocated, and took twice as long in a process that had done
    nothing else yet: where its first half is the slower one, that is left out.

    Args:
        record: the benchmark's, with ``calibration_s`` and, but for earlier versions,
            ``calibration``.
    """
    seconds = record.get("calibration_s", [])
    halves = seconds[: len(seconds) // 2], seconds[len(seconds) // 2 :]
    if not halves[0]:
        return None
    before, after = median(halves[0]), median(halves[1])
    noise = [spread(half) or 0.0 for half in halves]
    work = record.get("calibration", "convolution")
    if work != WORK and before > after:
        return Clock(after, noise[1], work)
    drift = abs(before - after) / (before + after)
    return Clock((before + after) / 2, max(drift, *noise), work)
