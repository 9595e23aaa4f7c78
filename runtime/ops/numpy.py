"""`ArrayOps` on the host with NumPy."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.ops import Box, Statistics

FloatArray = npt.NDArray[np.float32]


class NumpyOps:
    """Array operations on the host; see `runtime.ops.ArrayOps`. Holds no state."""

    def upload(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def download(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def zeros(
        self, shape: tuple[int, ...], dtype: type[np.generic], fortran: bool = False
    ) -> npt.NDArray[Any]:
        return np.zeros(shape, dtype, order="F" if fortran else "C")

    def extent(self, volumes: Sequence[npt.NDArray[Any]]) -> Box | None:
        some = volumes[0] != 0
        for volume in volumes[1:]:
            some |= volume != 0
        # The axis that varies slowest in memory first: the other two then look at the slab that is
        # left.
        slices = [slice(0, size) for size in some.shape]
        for axis in np.argsort(some.strides)[::-1]:
            others = tuple(other for other in range(3) if other != axis)
            hits = np.flatnonzero(some[tuple(slices)].any(axis=others))
            if hits.size == 0:
                return None
            slices[axis] = slice(int(hits[0]), int(hits[-1]) + 1)
        return (slices[0], slices[1], slices[2])

    def statistics(
        self, volumes: Sequence[npt.NDArray[Any]], nonzero_only: bool
    ) -> list[Statistics]:
        return [_statistics(volume, nonzero_only) for volume in volumes]

    def normalise(
        self,
        voxels: npt.NDArray[Any],
        statistics: Statistics,
        nonzero_only: bool,
        out: FloatArray,
    ) -> None:
        if out.shape != voxels.shape:
            out[...] = 0.0 if nonzero_only else -statistics.mean / statistics.std
        values = voxels.astype(np.float64, order="C")
        normal = values - statistics.mean
        normal /= statistics.std
        if nonzero_only:
            normal *= values != 0
        out[tuple(slice(size) for size in voxels.shape)] = normal

    def gather(self, volume: FloatArray, starts: npt.NDArray[np.int64], out: FloatArray) -> None:
        for window, start in zip(out, starts, strict=True):
            window[...] = volume[:, *_box(start, window.shape[1:])]

    def accumulate(
        self,
        total: FloatArray,
        values: FloatArray,
        importance: FloatArray,
        starts: npt.NDArray[np.int64],
        non_finite: npt.NDArray[np.uint64],
    ) -> None:
        scratch = np.empty(importance.shape, np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for window, start in zip(values, starts, strict=True):
                target = total[:, *_box(start, importance.shape)]
                for class_values, class_target in zip(window, target, strict=True):
                    np.multiply(class_values, importance, out=scratch)
                    class_target += scratch
                    # A sum is NaN or infinite if any term is; only then is it worth counting.
                    if not np.isfinite(scratch.sum()):
                        non_finite += np.uint64(np.count_nonzero(~np.isfinite(class_values)))

    def argmax(self, total: FloatArray, out: npt.NDArray[np.uint8]) -> None:
        inner = total[:, *(slice(size) for size in out.shape)]
        best = inner[0].copy()
        labels = np.zeros(best.shape, np.uint8)
        for index in range(1, len(inner)):
            larger = inner[index] > best
            labels[larger] = index
            np.maximum(best, inner[index], out=best)
        out[...] = labels

    def divide(self, total: FloatArray, weight: FloatArray) -> None:
        total /= weight

    def mark(self) -> float:
        return perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first


def _statistics(voxels: npt.NDArray[Any], nonzero_only: bool) -> Statistics:
    values = voxels.astype(np.float64, order="C").ravel()
    count = int(np.count_nonzero(values)) if nonzero_only else values.size
    if count == 0:
        return Statistics(0, 0.0, 0.0)
    # What is too large for a sum becomes infinite, and `prepare` refuses it.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(values.sum()) / count
        deviation = values - mean
        squares = float(np.einsum("i,i->", deviation, deviation))
    if nonzero_only:
        squares -= (values.size - count) * mean * mean
    return Statistics(count, mean, float(np.sqrt(max(squares, 0.0) / count)))


def _box(start: npt.NDArray[np.int64], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(int(first), int(first) + size) for first, size in zip(start, shape, strict=True)
    )
