"""The few array operations that a case needs between its voxels and its labels, on the host or on a
device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = Any
"""An array of the ops' device: numpy.ndarray for `NumpyOps`."""

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
    code path serves every device; what must be fast is a method.
    """

    def upload(self, array: npt.NDArray[Any]) -> Array:
        """Copy a host array to the device, strides kept; the array itself where the device is the
        host.
        """

    def download(self, array: Array) -> npt.NDArray[Any]:
        """Copy a device array to the host; the array itself where the device is the host."""

    def zeros(
        self, shape: tuple[int, ...], dtype: type[np.generic], fortran: bool = False
    ) -> Array:
        """A zeroed array; Fortran order keeps a volume in file order."""

    def extent(self, volumes: Sequence[Array]) -> Box | None:
        """Bounding box of the voxels that are non-zero in any of the (X, Y, Z) volumes; None if
        there are none.
        """

    def statistics(self, voxels: Array, nonzero_only: bool) -> Statistics:
        """Mean and population standard deviation in float64; exact sums where the voxels are
        integers.

        The result does not depend on the dtype in which the same values are stored.
        """

    def normalise(
        self, voxels: Array, statistics: Statistics, nonzero_only: bool, out: Array
    ) -> None:
        """out (float32) = (voxels - mean) / std; with ``nonzero_only`` zeros stay 0."""

    def gather(self, volume: Array, starts: npt.NDArray[np.int64], out: Array) -> None:
        """Copy the windows of ``volume`` (C, X, Y, Z) at ``starts`` (n, 3) into ``out`` (n, C,
        *patch).
        """

    def accumulate(
        self, total: Array, values: Array, importance: Array, starts: npt.NDArray[np.int64]
    ) -> None:
        """total (K, X, Y, Z) += values (n, K, *patch) * importance (*patch) at ``starts`` (n, 3),
        in order.
        """

    def argmax(self, total: Array) -> Array:
        """Index of the largest of K along the first axis, uint8 (X, Y, Z); the lowest index wins a
        tie.
        """

    def all_finite(self, array: Array) -> bool:
        """Whether no value is NaN or infinite."""
