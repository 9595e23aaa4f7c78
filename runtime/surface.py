"""Distances in mm between the surfaces of two masks, measured once for every figure made of them.

A surface is the set of a mask's voxels that an erosion by the 6-neighbourhood removes; what lies
beyond the volume counts as background. Distances are between voxel centres.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

_ROUNDING_MM: Final = 1e-4
"""Headers hold spacings in float32: without it, a voxel at 1.0000001 mm would be beyond 1 mm."""


@dataclass(frozen=True)
class SurfaceDistances:
    """From each voxel of one surface to the nearest voxel of the other.

    Attributes:
        forth: float64 (voxels of a's surface,), mm to the nearest voxel of b's surface.
        back: float64 (voxels of b's surface,), mm to the nearest voxel of a's surface.
    """

    forth: npt.NDArray[np.float64]
    back: npt.NDArray[np.float64]

    def percentile(self, percent: float) -> float:
        """Percentile in mm of both directions pooled, interpolated linearly as numpy does.

        95 gives HD95 as the BraTS challenges of 2018 to 2021 define it, and as medpy's hd95.
        """
        return float(np.percentile(np.concatenate((self.forth, self.back)), percent))

    def share_within(self, tolerance_mm: float) -> float:
        """The share of both surfaces' voxels that lie within a tolerance of the other surface.

        The normalised surface distance (NSD, surface Dice) of Nikolov et al. 2018
        (arXiv:1809.04430), with surface voxels for surface area, as MONAI's SurfaceDiceMetric
        counts without its subvoxels. A ten-thousandth of a mm beyond is within.
        """
        reach = tolerance_mm + _ROUNDING_MM
        near = sum(int(np.count_nonzero(way <= reach)) for way in (self.forth, self.back))
        return near / (self.forth.size + self.back.size)


def surface_distances(a: Mask, b: Mask, spacing: Spacing) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Args:
        a, b: boolean (X, Y, Z) of one shape, each with at least one voxel.
        spacing: mm along X, Y, Z.
    """
    box = bounding_box(a | b)
    one, other = (_surface(mask[box]) for mask in (a, b))
    return SurfaceDistances(_between(one, other, spacing), _between(other, one, spacing))


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds all voxels of ``mask``, which has at least one."""
    box: tuple[slice, ...] = ndimage.find_objects(mask.view(np.uint8))[0]
    return box


def _between(here: Mask, there: Mask, spacing: Spacing) -> npt.NDArray[np.float64]:
    distances: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~there, sampling=spacing)
    return distances[here]


def _surface(mask: Mask) -> Mask:
    # Beyond the array counts as background: the border of a crop, and of the volume, is a surface.
    surface: Mask = mask & ~ndimage.binary_erosion(mask, border_value=0)
    return surface
