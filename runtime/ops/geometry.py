"""How `kernels.cu` is told of arrays and windows: its structs as NumPy dtypes, filled from arrays
of any kind, and the shape of its launches.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# As in kernels.cu.
LANES: Final = 32
ROWS: Final = 8
THREADS: Final = LANES * ROWS
MAX_WINDOWS: Final = 64
MAX_CHANNELS_LAST: Final = 8
# Blocks that keep the largest device busy. Not asked of the device: a sum's rounding depends on it.
_FILL: Final = 1024
_LEAST_VOXELS: Final = 1024
VOLUME: Final = np.dtype([("shape", np.int32, 3), ("stride", np.int64, 3)], align=True)
BATCH: Final = np.dtype([("shape", np.int32, 5), ("stride", np.int64, 5)], align=True)
CHANNELS: Final = np.dtype([("shape", np.int32, 4)], align=True)
WINDOWS: Final = np.dtype(
    [
        ("count", np.int32),
        ("patch", np.int32, 3),
        ("low", np.int32, 3),
        ("size", np.int32, 3),
        ("first", np.int32, (MAX_WINDOWS, 3)),
    ],
    align=True,
)


def blocks_for(voxels: int) -> int:
    """Blocks that share out as many voxels, enough for each."""
    return min(max(-(-voxels // _LEAST_VOXELS), 1), _FILL)


def by_speed(array: Any) -> list[int]:
    """Axes of an (X, Y, Z) array, the one that varies fastest in memory first; axes of a single
    voxel last, whatever their strides say.
    """
    return sorted(range(3), key=lambda axis: (array.shape[axis] == 1, abs(array.strides[axis])))


def slowest_first(array: Any) -> list[int]:
    return by_speed(array)[::-1]


def tiles_of(array: Any) -> tuple[np.int32, np.int32]:
    """The axis that tiles span besides z, and whether z is the array's fastest axis."""
    fastest = by_speed(array)[0]
    return np.int32(1 if fastest == 2 else fastest), np.int32(fastest == 2)


def volume_of(array: Any, axes: Sequence[int] = (0, 1, 2)) -> npt.NDArray[Any]:
    """The kernels' Volume of an (X, Y, Z) array, its axes taken in another order."""
    geometry = np.zeros((), VOLUME)
    geometry["shape"] = [array.shape[axis] for axis in axes]
    geometry["stride"] = [array.strides[axis] // array.itemsize for axis in axes]
    if array.size == 0:
        # No row, and no division by a row count of 0.
        geometry["shape"] = (0, 1, 1)
    return geometry


def batch_of(array: Any) -> npt.NDArray[Any]:
    geometry = np.zeros((), BATCH)
    geometry["shape"] = array.shape
    geometry["stride"] = [stride // array.itemsize for stride in array.strides]
    return geometry


def channels_of(array: Any) -> npt.NDArray[Any]:
    geometry = np.zeros((), CHANNELS)
    geometry["shape"] = array.shape
    return geometry


def launches_of(
    starts: npt.NDArray[np.int64], batch: tuple[int, ...], volume: tuple[int, ...]
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The kernels' Windows for as many launches as a batch needs, each with its first window.

    They are parameters of the launch: no copy to the device, and none to wait for.
    """
    count, channels, *patch = batch
    if len(starts) != count or volume[0] != channels:
        raise ValueError(f"{len(starts)} windows of {volume} do not make a batch {batch}")
    if (starts < 0).any() or (starts + patch > volume[1:]).any():
        raise ValueError(f"a window of {patch} reaches beyond the volume {volume[1:]}")
    for first in range(0, count, MAX_WINDOWS):
        part = starts[first : first + MAX_WINDOWS]
        windows = np.zeros((), WINDOWS)
        windows["count"] = len(part)
        windows["patch"] = patch
        windows["low"] = part.min(axis=0)
        windows["size"] = part.max(axis=0) + patch - part.min(axis=0)
        windows["first"][: len(part)] = part
        yield first, windows


def widest_store(out: Any) -> int:
    """Bytes of one store for all channels of a voxel: 16 or 8, or 0 where they go one by one."""
    size = out.shape[1] * out.itemsize
    apart = (stride for axis, stride in enumerate(out.strides) if axis != 1)
    aligned = out.data.ptr % size == 0 and all(stride % size == 0 for stride in apart)
    return size if size in (8, 16) and aligned else 0
