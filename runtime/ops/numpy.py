"""`ArrayOps` on the host with NumPy.

Voxels are worked on in parts that stay in the cache, several threads at a time: NumPy lets go of
the interpreter lock. No bit of a result depends on the number of threads.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, product
from threading import Lock
from time import perf_counter
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from runtime.ops import Box, Statistics
from runtime.ops.moments import statistics_of
from runtime.threads import Threads

FloatArray = npt.NDArray[np.float32]
_T = TypeVar("_T")

# Rows of y of a box, or planes of x of a window, that are worked on at a time: half a megabyte of
# float32 as BraTS has them.
_ROWS: Final = 8
_PLANES: Final = 16
_NOT_FINITE: Final = 0x7F800000
# More only wait for the memory, and for each other.
_MOST_THREADS: Final = 8


class NumpyOps:
    """Array operations on the host; see `runtime.ops.ArrayOps`.

    Its threads start with the first call that has work for several, and end with `close` or with
    the object.
    """

    on_host = True

    def __init__(self, threads: int | None = 1) -> None:
        """
        Args:
            threads: how many work at a time, the calling one among them; None means one per core.
                More than 8 are not used.
        """
        self._threads = min(threads or len(_cores()), _MOST_THREADS)
        self._pool: Threads | None = None
        self._lock = Lock()

    def close(self) -> None:
        """End the threads; the next call would start new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _shared(self, size: int, work: Callable[[int, int], _T]) -> list[_T]:
        """work(first, last) over parts of ``size``, one per thread, in order."""
        count = min(self._threads, size)
        if count <= 1:
            return [work(0, size)]
        parts = list(pairwise(size * part // count for part in range(count + 1)))
        with self._lock:
            pool = self._pool = self._pool or Threads(self._threads - 1, "brats-numpy")
        # Nobody writes to the caller's arrays once this has returned, or raised.
        return pool.share([partial(work, *part) for part in parts])

    def upload(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def download(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def zeros(
        self, shape: tuple[int, ...], dtype: type[np.generic], fortran: bool = False
    ) -> npt.NDArray[Any]:
        return np.zeros(shape, dtype, order="F" if fortran else "C")

    def extent(self, volumes: Sequence[npt.NDArray[Any]]) -> Box | None:
        # The axis that varies slowest in memory first: planes across it lie in one piece.
        axes = sorted(range(3), key=lambda axis: -abs(volumes[0].strides[axis]))
        views = [volume.transpose(axes) for volume in volumes]

        def look(first: int, last: int) -> tuple[list[bool], npt.NDArray[np.bool_]]:
            hits, shadow = [], np.zeros(views[0].shape[1:], np.bool_)
            for index in range(first, last):
                some = views[0][index] != 0
                for view in views[1:]:
                    some |= view[index] != 0
                shadow |= some
                hits.append(bool(some.any()))
            return hits, shadow

        parts = self._shared(len(views[0]), look)
        shadow = np.any([part[1] for part in parts], axis=0)
        slices = [slice(0)] * 3
        for axis, hits in zip(
            axes, ([hit for part in parts for hit in part[0]], shadow.any(1), shadow.any(0)),
            strict=True,
        ):  # fmt: skip
            found = np.flatnonzero(hits)
            if found.size == 0:
                return None
            slices[axis] = slice(int(found[0]), int(found[-1]) + 1)
        return (slices[0], slices[1], slices[2])

    def statistics(
        self, volumes: Sequence[npt.NDArray[Any]], nonzero_only: bool
    ) -> list[Statistics]:
        parts = self._shared(
            len(volumes),
            lambda first, last: [
                statistics_of(volume, nonzero_only) for volume in volumes[first:last]
            ],
        )
        return [found for part in parts for found in part]

    def normalise(
        self,
        voxels: npt.NDArray[Any],
        statistics: Statistics,
        nonzero_only: bool,
        out: FloatArray,
    ) -> None:
        if out.shape != voxels.shape:
            out[...] = 0.0 if nonzero_only else -statistics.mean / statistics.std
        inner = out[tuple(slice(size) for size in voxels.shape)]
        short = voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2
        if short:
            # Few different values are worked out once each; negative ones stand behind the others.
            codes = voxels.view(f"u{voxels.dtype.itemsize}")
            every = np.arange(256**voxels.dtype.itemsize, dtype=codes.dtype)
            table = _normal(every.view(voxels.dtype), statistics, nonzero_only).astype(np.float32)

        def work(first: int, last: int) -> None:
            # Of a volume in file order, which is read across the order of what is written, all
            # cache lines of a part fit into the cache.
            for low in range(first, last, _ROWS):
                rows = (slice(None), slice(low, min(low + _ROWS, last)))
                inner[rows] = (
                    table.take(codes[rows], mode="clip")
                    if short
                    else _normal(voxels[rows], statistics, nonzero_only)
                )

        self._shared(voxels.shape[1], work)

    def gather(self, volume: FloatArray, starts: npt.NDArray[np.int64], out: FloatArray) -> None:
        in_rows = out.dtype == volume.dtype and out.strides[-1] == out.itemsize
        row = _row(out)

        def work(first: int, last: int) -> None:
            for window, start in zip(out, starts, strict=True):
                source = volume[:, *_box(start, window.shape[1:])][:, first:last]
                target = window[:, first:last]
                if in_rows:
                    source, target = source.view(row), target.view(row)
                target[...] = source

        self._shared(out.shape[2], work)

    def accumulate(
        self,
        total: FloatArray,
        values: FloatArray,
        importance: FloatArray,
        starts: npt.NDArray[np.int64],
        non_finite: npt.NDArray[np.uint64],
    ) -> None:
        planes = len(importance)
        row = _row(importance)

        def work(first: int, last: int) -> int:
            bad = 0
            weighted, sums = np.empty((2, min(_PLANES, planes), *importance.shape[1:]), np.float32)
            with np.errstate(invalid="ignore", over="ignore"):
                for window, start in zip(values, starts, strict=True):
                    target = total[:, *_box(start, importance.shape)].view(row)
                    for index, low in product(range(first, last), range(0, planes, _PLANES)):
                        part = slice(low, min(low + _PLANES, planes))
                        product_, sum_ = (one[: part.stop - low] for one in (weighted, sums))
                        np.multiply(window[index, part], importance[part], out=product_)
                        # Short rows are copied faster than they are added to.
                        sum_.view(row)[...] = target[index, part]
                        sum_ += product_
                        target[index, part] = sum_.view(row)
                        # The bits of NaN and of what is infinite, and of anything below 0.
                        if product_.view(np.uint32).max() >= _NOT_FINITE:
                            bad += int(np.count_nonzero(~np.isfinite(window[index, part])))
            return bad

        # By class: windows of a batch overlap, and each sum is to be made in their order.
        non_finite += np.uint64(sum(self._shared(len(total), work)))

    def argmax(self, total: FloatArray, out: npt.NDArray[np.uint8]) -> None:
        inner = total[:, *(slice(size) for size in out.shape)]

        def work(first: int, last: int) -> None:
            for low in range(first, last, _ROWS):
                rows = (slice(None), slice(low, min(low + _ROWS, last)))
                best = inner[0][rows].copy()
                labels = np.zeros(best.shape, np.uint8)
                for index in range(1, len(inner)):
                    larger = inner[index][rows] > best
                    # No earlier label is as large as this one.
                    np.maximum(labels, larger * np.uint8(index), out=labels)
                    np.maximum(best, inner[index][rows], out=best)
                out[rows] = labels

        self._shared(out.shape[1], work)

    def divide(self, total: FloatArray, weight: FloatArray) -> None:
        total /= weight

    def mark(self) -> float:
        return perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first


def _normal(
    voxels: npt.NDArray[Any], statistics: Statistics, nonzero_only: bool
) -> npt.NDArray[np.float64]:
    values = voxels.astype(np.float64, order="C")
    normal = values - statistics.mean
    normal /= statistics.std
    if nonzero_only:
        normal *= values != 0
    return normal


def _row(array: npt.NDArray[Any]) -> str:
    """A dtype that takes a row along z for one value, which NumPy copies without looking at it."""
    return f"V{array.shape[-1] * array.itemsize}"


def _cores() -> Sequence[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _box(start: npt.NDArray[np.int64], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(int(first), int(first) + size) for first, size in zip(start, shape, strict=True)
    )
