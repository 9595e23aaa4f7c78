"""Mean and standard deviation of voxels on the host."""

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.ops import Statistics

# No more than BLAS leaves to the calling thread: to wait for its threads takes longer than the sum.
_PIECE: Final = 8192
# Of integers up to this one, sums of squares over a piece are exact in float64.
_SHORT: Final = 65535

_Piece = tuple[npt.NDArray[Any], npt.NDArray[np.float64]]


def statistics_of(voxels: npt.NDArray[Any], nonzero_only: bool) -> Statistics:
    """Count, mean and population standard deviation of an (X, Y, Z) array, any strides.

    Of integers up to 65535, in whichever dtype, the sums are exact, so that their order is of no
    account; of anything else they are made in float64, in C order.
    """
    sums = _exact_sums(voxels)
    if sums is None:
        return _of_floats(voxels, nonzero_only)
    nonzero, total, squares = sums
    count = nonzero if nonzero_only else voxels.size
    if count == 0:
        return Statistics(0, 0.0, 0.0)
    variance = (count * squares - total * total) / (count * count)
    return Statistics(count, total / count, math.sqrt(variance))


def _exact_sums(voxels: npt.NDArray[Any]) -> tuple[int, int, int] | None:
    """How many are not 0, sum, and sum of squares; None if not all are short integers."""
    short = voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2
    if short:
        voxels = voxels.transpose(sorted(range(3), key=lambda axis: -abs(voxels.strides[axis])))
    nonzero = total = squares = 0
    for piece, values in _pieces(voxels):
        if not short and not (
            np.array_equal(np.rint(values), values) and np.abs(values).max() <= _SHORT
        ):
            return None
        nonzero += int(np.count_nonzero(piece))
        total += int(values.sum())
        squares += int(values.dot(values))
    return nonzero, total, squares


def _of_floats(voxels: npt.NDArray[Any], nonzero_only: bool) -> Statistics:
    # What is too large for a sum becomes infinite, and `prepare` refuses it.
    with np.errstate(over="ignore", invalid="ignore"):
        nonzero, sums = 0, []
        for piece, values in _pieces(voxels):
            nonzero += int(np.count_nonzero(piece))
            sums.append(values.sum())
        count = nonzero if nonzero_only else voxels.size
        mean = float(np.sum(sums)) / count
        deviations = []
        for _, values in _pieces(voxels):
            values -= mean
            deviations.append(values.dot(values))
        squares = float(np.sum(deviations))
        if nonzero_only:
            squares -= (voxels.size - count) * mean * mean
    return Statistics(count, mean, float(np.sqrt(max(squares, 0.0) / count)))


def _pieces(voxels: npt.NDArray[Any]) -> Iterator[_Piece]:
    """Voxels in C order, a piece at a time: as they are, and as float64 in a buffer that the next
    piece takes.
    """
    buffer = np.empty(_PIECE, np.float64)
    for plane in voxels:
        flat = plane.ravel()
        for first in range(0, flat.size, _PIECE):
            piece = flat[first : first + _PIECE]
            values = buffer[: piece.size]
            values[...] = piece
            yield piece, values
