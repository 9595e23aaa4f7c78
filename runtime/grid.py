"""Where the voxels of a volume lie in space."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError

TOLERANCE: Final = 0.05
"""Two headers describe one grid when no corner of the volume moves by more than this part of a
voxel.
"""


@dataclass(frozen=True)
class Grid:
    """Where a volume's voxels lie.

    Attributes:
        shape: (X, Y, Z) voxels, in file order.
        affine: (4, 4) float64, voxel index to RAS+ mm.
        qform, sform: (4, 4) float64 as stored, None where their code is 0.
        qform_code, sform_code: NIfTI transform codes.
        spacing: voxel size in mm along the file's axes.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    qform: npt.NDArray[np.float64] | None
    sform: npt.NDArray[np.float64] | None
    qform_code: int
    sform_code: int
    spacing: tuple[float, float, float]

    @classmethod
    def from_affine(cls, shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> "Grid":
        """A grid whose qform and sform (code 1, scanner) both say ``affine``."""
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        return cls(
            shape,
            affine,
            affine,
            affine,
            1,
            1,
            (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        )


def corner_distance(one: Grid, other: Grid) -> float:
    """The largest distance in mm between the same corner of two grids of equal shape."""
    corners = np.array(
        [
            [i, j, k, 1.0]
            for i in (0, one.shape[0] - 1)
            for j in (0, one.shape[1] - 1)
            for k in (0, one.shape[2] - 1)
        ]
    )
    moved = corners @ (one.affine - other.affine).T
    return float(np.sqrt((moved[:, :3] ** 2).sum(axis=1)).max())


def check_same_grid(
    path: Path, grid: Grid, reference_path: Path, reference: Grid, remedy: str
) -> None:
    """Refuse a file whose grid is not the reference's.

    Raises:
        InputError: another shape, or a corner moves by more than `TOLERANCE` of a voxel.
    """
    if grid.shape != reference.shape:
        raise InputError(
            path,
            found=f"shape {'x'.join(map(str, grid.shape))}",
            expected=f"{'x'.join(map(str, reference.shape))} as in {reference_path.name}",
            remedy=remedy,
        )
    moved = corner_distance(grid, reference)
    if moved > TOLERANCE * min(reference.spacing):
        raise InputError(
            path,
            found=f"an affine that moves a corner of the volume by {moved:.3g} mm",
            expected=f"the affine of {reference_path.name}",
            remedy=remedy,
        )


def check_one_grid(grids: Sequence[tuple[Path, Grid]], remedy: str) -> None:
    """Refuse files that do not share one grid, naming one that lies apart from most of the others.

    Args:
        grids: of each file, one at least; where no grid is that of most, the first counts.
        remedy: for the error.

    Raises:
        InputError: as for `check_same_grid`.
    """
    groups: list[list[tuple[Path, Grid]]] = []
    for one in grids:
        for group in groups:
            if _agree(one, group[0]):
                group.append(one)
                break
        else:
            groups.append([one])
    most = max(groups, key=len)
    for group in groups:
        if group is not most:
            check_same_grid(*group[0], *most[0], remedy)
    # A tolerance is of the reference's spacing, so that whose turn it is may decide.
    for one in grids:
        check_same_grid(*one, *grids[0], remedy)


def _agree(one: tuple[Path, Grid], other: tuple[Path, Grid]) -> bool:
    try:
        check_same_grid(*one, *other, "")
    except InputError:
        return False
    return True
