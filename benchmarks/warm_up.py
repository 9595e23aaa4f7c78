"""What comes before a peer is timed: it is run on its first batch, and its rounds are chosen."""

from collections.abc import Sequence
from time import perf_counter
from typing import Final

import numpy as np

from benchmarks.peers import Peer, Segment, Voxels
from runtime.model_card import Shape3
from runtime.windows import plan_windows

CHEAP_S: Final = 20.0
"""A peer that takes less runs in at least `CHEAP_ROUNDS` rounds: two tell little of the noise."""
CHEAP_ROUNDS: Final = 3


def rounds_of(once: bool, usual: int, estimate: float, chosen: int | None = None) -> int:
    """How often a peer is timed.

    Args:
        once: in one round unless --rounds is given, and then in two: a round takes minutes.
        usual: of --rounds, or of the scale.
        estimate: seconds that it is expected to take.
        chosen: --rounds, if it is given.
    """
    if once:
        return 1 if chosen is None else min(2, chosen)
    return max(CHEAP_ROUNDS, usual) if estimate < CHEAP_S else usual


def windows(shape: Shape3, patch: Shape3) -> int:
    """How many windows MONAI lays at overlap 0.5; the other peers lay about as many."""
    return len(plan_windows(shape, patch, 0.5, "stride"))


def first_batch(shape: Shape3, patch: Shape3, batch: int) -> Shape3:
    """Size of the corner of a volume that holds ``batch`` windows or a few more, and of all of it
    where it has fewer.

    Args:
        shape: of the volume, in each direction at least the patch.
        patch: of a window.
        batch: windows that a peer runs at once.
    """
    corner = list(patch)
    for axis in (2, 1, 0):
        while windows(_shape(corner), patch) < batch and corner[axis] < shape[axis]:
            corner[axis] = min(shape[axis], corner[axis] + patch[axis] // 2)
    return _shape(corner)


def _shape(sizes: Sequence[int]) -> Shape3:
    x, y, z = sizes
    return (x, y, z)


class WarmUp:
    """Runs peers on their first batch.

    What is done once, and memory that is asked for first, is not what is compared. What a process
    has run once is warm for all peers of a kind, on whatever they are timed.
    """

    def __init__(self) -> None:
        self._seconds_a_window: dict[str, float] = {}

    def estimate(self, peer: Peer, segment: Segment, patch: Shape3, voxels: Voxels) -> float:
        """Warm up, unless that was done, and say how many seconds all of ``voxels`` should take.

        Args:
            peer: is to be timed.
            segment: made by it; the very function that will be timed.
            patch: of its windows.
            voxels: float32 (C, X, Y, Z).
        """
        shape = _shape(voxels.shape[1:])
        if peer.kind not in self._seconds_a_window or not peer.kind:
            x, y, z = corner = first_batch(shape, patch, peer.batch)
            first = np.ascontiguousarray(voxels[:, :x, :y, :z])
            start = perf_counter()
            segment(first)
            self._seconds_a_window[peer.kind] = (perf_counter() - start) / windows(corner, patch)
        return self._seconds_a_window[peer.kind] * windows(shape, patch)
