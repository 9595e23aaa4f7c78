"""Volumes as a radiologist sees them: three planes, the patient's right on the left of the screen.

Arrays come in file order, whatever that is. `to_lps` turns one so that its axes run to the
patient's Left, Posterior and Superior; `slice_of` then shows it:

| plane | rows, downwards | columns, to the right | slices, upwards from 0 |
|---|---|---|---|
| axial | anterior to posterior | right to left | inferior (feet) to superior |
| coronal | superior to inferior | right to left | anterior (front) to posterior |
| sagittal | superior to inferior | anterior to posterior | right to left |

All of these are views: numpy changes strides, no voxel is copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar, get_args

import nibabel.orientations as orientations
import numpy as np
import numpy.typing as npt

from runtime.grid import Grid
from runtime.model_card import Shape3
from runtime.surface import Spacing

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: Final[tuple[Plane, ...]] = get_args(Plane)

_Voxel = TypeVar("_Voxel", bound=np.generic)


class Sides(NamedTuple):
    """Which side of the patient lies on which side of the screen, as the usual letters."""

    left: str
    right: str
    top: str
    bottom: str


SIDES: Final[Mapping[Plane, Sides]] = MappingProxyType(
    {
        "axial": Sides("R", "L", "A", "P"),
        "coronal": Sides("R", "L", "S", "I"),
        "sagittal": Sides("A", "P", "S", "I"),
    }
)

# Per plane: the axes of an LPS array that become (slices, rows, columns), and whether rows turn.
_AXES: Final[Mapping[Plane, tuple[int, int, int]]] = {
    "axial": (2, 1, 0),
    "coronal": (1, 2, 0),
    "sagittal": (0, 2, 1),
}
_ROWS_TURN: Final[Mapping[Plane, bool]] = {"axial": False, "coronal": True, "sagittal": True}


def _turn(affine: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    turn: npt.NDArray[Any] = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(("L", "P", "S"))
    )
    return turn


def to_lps(array: npt.NDArray[_Voxel], affine: npt.NDArray[np.float64]) -> npt.NDArray[_Voxel]:
    """An array of file order as one whose axes run to the patient's left, posterior, superior.

    Args:
        array: (X, Y, Z, ...) in file order, any dtype; axes after the third stay where they are.
        affine: (4, 4) voxel index to RAS+ mm. Where it is oblique, each axis counts as the
            direction that it is nearest to.

    Returns:
        A view (L, P, S, ...): writing to it writes to ``array``.
    """
    turned: npt.NDArray[_Voxel] = orientations.apply_orientation(array, _turn(affine))
    return turned


def lps_spacing(grid: Grid) -> Spacing:
    """Voxel size in mm along the axes of `to_lps`: right-left, front-back, down-up."""
    left, posterior, superior = np.argsort(_turn(grid.affine)[:, 0])
    return (grid.spacing[left], grid.spacing[posterior], grid.spacing[superior])


def stack_of(array: npt.NDArray[_Voxel], plane: Plane) -> npt.NDArray[_Voxel]:
    """All slices of a plane, as displayed.

    Args:
        array: (L, P, S, ...), as `to_lps` gives it.
        plane: which of the three.

    Returns:
        A view (slices, rows, columns, ...); see the table at the top.
    """
    stack: npt.NDArray[_Voxel] = array.transpose(*_AXES[plane], *range(3, array.ndim))
    turned: npt.NDArray[_Voxel] = stack[:, ::-1] if _ROWS_TURN[plane] else stack
    return turned


def slice_of(array: npt.NDArray[_Voxel], plane: Plane, index: int) -> npt.NDArray[_Voxel]:
    """One slice as displayed.

    Args:
        array: (L, P, S, ...), as `to_lps` gives it.
        plane: which of the three.
        index: 0 is the lowest axial, the foremost coronal, the rightmost sagittal slice.

    Returns:
        A view (rows, columns, ...).

    Raises:
        IndexError: there is no such slice; negative numbers do not count from the end.
    """
    count = slice_count((array.shape[0], array.shape[1], array.shape[2]), plane)
    if not 0 <= index < count:
        raise IndexError(f"{plane} slice {index} of {count}")
    shown: npt.NDArray[_Voxel] = stack_of(array, plane)[index]
    return shown


def slice_axis(plane: Plane) -> int:
    """The axis of an LPS array along which the slices of a plane are numbered, upwards from 0."""
    return _AXES[plane][0]


def slice_count(shape: Shape3, plane: Plane) -> int:
    """How many slices a volume of (L, P, S) voxels has in a plane."""
    return shape[slice_axis(plane)]


def pixel_spacing(spacing: Spacing, plane: Plane) -> tuple[float, float]:
    """Height and width in mm of a pixel of `slice_of`.

    Args:
        spacing: mm along L, P, S, as `lps_spacing` gives it.
        plane: which of the three.
    """
    _, row, column = _AXES[plane]
    return spacing[row], spacing[column]


def fullest_slice(plane: Plane, *masks: npt.NDArray[Any] | None) -> int:
    """The slice with most voxels of the first mask that has any.

    Args:
        plane: which of the three.
        masks: (L, P, S) of one shape, where it is not 0; None is passed over.

    Returns:
        Index for `slice_of`; the lowest of equals, the middle where no mask has a voxel.
    """
    shape: Shape3 = (1, 1, 1)
    for mask in masks:
        if mask is None:
            continue
        counts = np.count_nonzero(stack_of(mask, plane), axis=(1, 2))
        if counts.any():
            return int(counts.argmax())
        shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    return slice_count(shape, plane) // 2


@dataclass(frozen=True)
class Contrast:
    """Which values of a modality are shown as black and as white.

    Attributes:
        low, high: the brain's 1st and 99.5th percentile: a few bright vessels do not darken it.
    """

    low: float
    high: float

    @classmethod
    def of(cls, voxels: npt.NDArray[Any]) -> Self:
        """The contrast of a modality.

        Args:
            voxels: any shape and dtype; 0 is background and does not count. Give the whole
                volume, and keep the result: it is the same for every slice.
        """
        inside = voxels[voxels != 0]
        low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0.0, 1.0)
        return cls(float(low), float(high))

    def apply(self, voxels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Greys: uint8 of the same shape, 0 for background only, 12 to 255 for the brain."""
        # A brain voxel at the low end stays lighter than the background.
        scaled = 12 + 243 * (voxels.astype(np.float64) - self.low) / max(self.high - self.low, 1e-9)
        return np.where(voxels != 0, np.clip(scaled, 12, 255), 0).astype(np.uint8)
