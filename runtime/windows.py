"""Where windows lie in a volume, how their overlaps are weighted, and how they are put together
again.

The window plan and the importance map follow MONAI's sliding_window_inference (`placement="stride"`
is identical to it); `placement="fitted"` spreads the same number of windows evenly, so that no
window repeats its neighbour.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from runtime.errors import UsageError
from runtime.model_card import Shape3
from runtime.ops import Array, ArrayOps

Placement = Literal["fitted", "stride"]
Patch = Shape3 | Literal["box"]
"""Shape of a window, or one window over the whole brain box, rounded up to the network's divisor.
"""

SIGMA: Final = 0.125
"""Standard deviation of the importance map, as a fraction of the patch."""
IMPORTANCE_FLOOR: Final = 1e-3


@dataclass(frozen=True)
class WindowPlan:
    """Every placement of a patch in a volume.

    Attributes:
        starts: (n, 3) int64, first voxel of each window, x slowest.
        patch: (X, Y, Z) window shape.
        stride: (X, Y, Z) voxels; nominal for `fitted` placement.
        placement: how the starts were chosen.
        shape: of the volume that is covered.
    """

    starts: npt.NDArray[np.int64]
    patch: Shape3
    stride: Shape3
    placement: Placement
    shape: Shape3

    def __len__(self) -> int:
        return len(self.starts)


def stride_of(patch: Shape3, overlap: float) -> Shape3:
    """Stride in voxels of an overlap fraction: max(1, int(P * (1 - overlap))) per axis."""
    x, y, z = (max(1, int(size * (1 - overlap))) for size in patch)
    return (x, y, z)


def plan_windows(
    shape: Shape3,
    patch: Shape3,
    overlap: float | Shape3 = 0.5,
    placement: Placement = "fitted",
) -> WindowPlan:
    """Place windows so that they cover a volume.

    Per axis of length L and patch P there are n = ceil((L - P) / stride) + 1 windows. `fitted`
    starts them at round(i * (L - P) / (n - 1)), half to even; `stride` at i * stride, the last one
    flush with the end.

    Args:
        shape: (X, Y, Z) of the volume, at least ``patch`` on every axis.
        patch: (X, Y, Z) of a window.
        overlap: fraction in [0, 1), or the stride in voxels per axis.
        placement: "fitted" or "stride".

    Raises:
        UsageError: overlap outside [0, 1), stride outside 1..patch, or an unknown placement.
        ValueError: the volume is smaller than the patch (`preprocess.prepare` extends it first).
    """
    if placement not in get_args(Placement):
        raise UsageError(
            "--placement", found=placement, expected="fitted or stride", remedy="choose one of them"
        )
    if isinstance(overlap, tuple):
        stride = overlap
        if any(not 1 <= step <= size for step, size in zip(stride, patch, strict=True)):
            raise UsageError(
                "--stride",
                found=",".join(map(str, stride)),
                expected=f"1 to the patch ({','.join(map(str, patch))}) on each axis",
                remedy="choose a smaller stride, so that no voxel is left out",
            )
    elif 0 <= overlap < 1:
        stride = stride_of(patch, overlap)
    else:
        raise UsageError(
            "--overlap", found=f"{overlap:g}", expected="0 <= overlap < 1", remedy="0.5 is usual"
        )
    if any(length < size for length, size in zip(shape, patch, strict=True)):
        raise ValueError(f"volume {shape} is smaller than the patch {patch}")
    axes = [
        _starts(length, size, step, placement)
        for length, size, step in zip(shape, patch, stride, strict=True)
    ]
    grid = np.meshgrid(*axes, indexing="ij")
    starts = np.stack([axis.ravel() for axis in grid], axis=1)
    return WindowPlan(starts, patch, stride, placement, shape)


def _starts(length: int, size: int, step: int, placement: Placement) -> npt.NDArray[np.int64]:
    room = length - size
    count = ceil(room / step) + 1
    if placement == "stride" or count == 1:
        starts = [min(i * step, room) for i in range(count)]
    else:
        starts = [_round_half_even(i * room, count - 1) for i in range(count)]
    return np.array(starts, np.int64)


def _round_half_even(numerator: int, denominator: int) -> int:
    """round(numerator / denominator) in integers, so that no machine rounds a half its own way."""
    whole, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole % 2):
        whole += 1
    return whole


@lru_cache(maxsize=8)
def importance_map(patch: Shape3) -> npt.NDArray[np.float32]:
    """Gaussian blending weights of a patch, float32 (X, Y, Z), read-only.

    Separable, centred at (P - 1) / 2, sigma 0.125 * P, 1 at the centre, floored at 1e-3 (nnU-Net,
    Isensee et al. 2021, in MONAI's form).
    """
    axes = []
    for size in patch:
        offset = np.arange(size, dtype=np.float64) - (size - 1) / 2
        axes.append(np.exp(-(offset**2) / (2 * (SIGMA * size) ** 2)))
    product = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    weights: npt.NDArray[np.float32] = np.maximum(product, IMPORTANCE_FLOOR).astype(np.float32)
    weights.flags.writeable = False
    return weights


class Stitcher:
    """Weighted sum of window probabilities over a volume; owns its accumulator.

    Use `add` for consecutive windows of the plan, then `labels` or `probabilities` once all are in.
    """

    def __init__(
        self, plan: WindowPlan, classes: int, ops: ArrayOps, importance: Array | None = None
    ) -> None:
        """
        Args:
            plan: the windows.
            classes: of the probabilities.
            ops: of their device.
            importance: `importance_map` of the plan's patch on that device, where it is there
                already from an earlier case.
        """
        self._plan = plan
        self._ops = ops
        self._importance = (
            ops.upload(importance_map(plan.patch)) if importance is None else importance
        )
        self._total = ops.zeros((classes, *plan.shape), np.float32)
        self._non_finite = ops.zeros((1,), np.uint64)

    def add(self, first: int, last: int, probabilities: Array) -> None:
        """Add windows ``first`` to ``last`` (exclusive).

        Args:
            probabilities: float32 (last - first, classes, X, Y, Z) array of the ops' device.
        """
        self._ops.accumulate(
            self._total,
            probabilities,
            self._importance,
            self._plan.starts[first:last],
            self._non_finite,
        )

    def labels(self, out: Array) -> None:
        """Write the argmax over classes to ``out``; the weights cancel out.

        Args:
            out: uint8 (x, y, z) array of the ops' device, any strides, such as a view into the
                file's grid; no larger than the plan's volume.
        """
        self._ops.argmax(self._total, out)

    def count_non_finite(self) -> int:
        """How many of the values that were added are NaN or infinite; waits for the device."""
        return int(self._ops.download(self._non_finite)[0])

    def probabilities(self) -> Array:
        """Blended probabilities, float32 (classes, X, Y, Z); ends the accumulation."""
        self._ops.divide(self._total, self._weight()[0])
        return self._total

    def _weight(self) -> Array:
        """Sum of the importance maps of all windows, float32 (1, X, Y, Z)."""
        weight = self._ops.zeros((1, *self._plan.shape), np.float32)
        ones = self._ops.upload(np.ones((1, 1, *self._plan.patch), np.float32))
        for start in self._plan.starts:
            self._ops.accumulate(weight, ones, self._importance, start[None], self._non_finite)
        return weight
