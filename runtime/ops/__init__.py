"""The few array operations that a case needs between its voxels and its labels, on the host or on a
device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = Any
"""An array of the ops' device: numpy.ndarray for `NumpyOps`, cupy.ndarray for `CupyOps`."""

Mark = Any
"""A point in the device's order of work; see `ArrayOps.mark`."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Statistics:
    """Of the voxels of one modality: how many, their mean and population standard deviation."""

    count: int
    mean: float
    std: float


class ArrayOps(Protocol):
    """Operations on arrays of one device.

    Views (slices, transposes, flips) of device arrays are made with plain indexing, so that one
    code path serves every device; whatever reads or writes voxels is a method. A device works its
    methods off in order on one stream and need not be done when a method returns; what a method
    returns to the host (`download`, `extent`, `statistics`, `seconds`) is complete.

    Attributes:
        on_host: whether the device is the host; its methods may then be called by several threads
            at a time, on arrays of their own.
    """

    on_host: bool

    def upload(self, array: npt.NDArray[Any]) -> Array:
        """Copy a contiguous host array (C or Fortran order, which is kept) to the device; the array
        itself where the device is the host.
        """

    def download(self, array: Array) -> npt.NDArray[Any]:
        """Copy a contiguous device array to the host, order kept; the array itself where the device
        is the host.
        """

    def zeros(
        self, shape: tuple[int, ...], dtype: type[np.generic], fortran: bool = False
    ) -> Array:
        """A zeroed array; Fortran order keeps a volume in file order."""

    def extent(self, volumes: Sequence[Array]) -> Box | None:
        """Bounding box of the voxels that are non-zero in any of the (X, Y, Z) volumes; None if
        there are none.
        """

    def statistics(self, volumes: Sequence[Array], nonzero_only: bool) -> list[Statistics]:
        """Mean and population standard deviation of each (X, Y, Z) volume in float64; exact sums
        where the voxels are integers of at most 16 bits.

        The result does not depend on the dtype in which the same values are stored.
        """

    def normalise(
        self, voxels: Array, statistics: Statistics, nonzero_only: bool, out: Array
    ) -> None:
        """out = (voxels - mean) / std, computed in float64; with ``nonzero_only`` zeros stay 0.

        Args:
            voxels: (x, y, z), any strides.
            out: float32, C order, no smaller than ``voxels`` on any axis: what lies beyond them
                at the high ends becomes what a voxel of 0 would.
        """

    def gather(self, volume: Array, starts: npt.NDArray[np.int64], out: Array) -> None:
        """Copy windows of a volume into a batch.

        Args:
            volume: float32 (C, X, Y, Z), C order.
            starts: (n, 3), first voxel of each window.
            out: (n, C, *patch), float32 or float16, any strides: a backend may lay its input
                out channels last.
        """

    def accumulate(
        self,
        total: Array,
        values: Array,
        importance: Array,
        starts: npt.NDArray[np.int64],
        non_finite: Array,
    ) -> None:
        """Add weighted windows to their places, window after window, each product rounded before
        it is added: the same bits on every device.

        Args:
            total: float32 (K, X, Y, Z), C order; += values * importance.
            values: float32 (n, K, *patch), C order.
            importance: float32 (*patch), C order.
            starts: (n, 3), first voxel of each window.
            non_finite: uint64 (1,); += how many of ``values`` are NaN or infinite.
        """

    def argmax(self, total: Array, out: Array) -> None:
        """out = index of the largest of K along the first axis; the lowest index wins a tie.

        Args:
            total: float32 (K, X, Y, Z), C order.
            out: uint8 (x, y, z), any strides, no larger than ``total``: what it lacks at the
                high ends is left out.
        """

    def divide(self, total: Array, weight: Array) -> None:
        """total (K, X, Y, Z) /= weight (X, Y, Z); float32, C order, in place."""

    def mark(self) -> Mark:
        """The point in time at which the device has done what was asked of it so far."""

    def seconds(self, first: Mark, last: Mark) -> float:
        """Seconds between two marks; waits for the last one."""
