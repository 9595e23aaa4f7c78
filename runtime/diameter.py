"""The largest diameter of a mask: how far two points of its surface lie apart.

A point of the surface is the middle of a face between a voxel inside and one outside; beyond the
volume is outside. A single voxel of 1 mm is 1 mm wide. These are the vertices of the mesh that
marching cubes makes at half level, so that `largest_diameter` is what PyRadiomics calls
Maximum3DDiameter.
"""

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from runtime.surface import Mask, Spacing


def largest_diameter(mask: Mask, spacing: Spacing) -> float:
    """The largest distance between two points of the surface.

    Args:
        mask: boolean (X, Y, Z).
        spacing: mm along X, Y, Z.

    Returns:
        mm; 0 where the mask is empty.
    """
    return _widest(mask, np.array(spacing)) if mask.any() else 0.0


def largest_axial_diameter(mask: Mask, spacing: Spacing) -> float:
    """The largest distance between two points of the surface that lie in one slice along Z.

    Args:
        mask: boolean (X, Y, Z), Z from slice to slice.
        spacing: mm along X, Y, Z.

    Returns:
        mm; 0 where the mask is empty.
    """
    steps = np.array(spacing[:2])
    # No slice is wider than the diagonal of its box: most need no closer look.
    reach = np.zeros(mask.shape[2])
    for axis, step in enumerate(steps):
        columns: Mask = np.any(mask, axis=1 - axis)
        length = columns.shape[0] - columns.argmax(axis=0) - columns[::-1].argmax(axis=0)
        reach += np.where(columns.any(axis=0), length * step, 0.0) ** 2
    widest = 0.0
    for level in np.argsort(-reach, kind="stable"):
        # A little more than the bound, so that rounding skips no slice.
        if np.sqrt(reach[level]) * (1 + 1e-9) <= widest or not reach[level]:
            break
        widest = max(widest, _widest(mask[:, :, level], steps))
    return widest


def _widest(mask: Mask, steps: npt.NDArray[np.float64]) -> float:
    """The largest diameter of a mask of two or three axes that has a voxel."""
    points = _outermost_faces(mask)
    # The farthest two are corners of the convex hull. It is made of whole numbers, half voxels,
    # where it is exact; the corners stay the same when the axes are stretched to mm. One voxel has
    # faces on all sides already, so that the hull is never flat.
    corners = points[ConvexHull(points).vertices]
    return float(pdist(corners * (steps / 2)).max())


def _outermost_faces(mask: Mask) -> npt.NDArray[np.float64]:
    """(points, axes): in half voxels, the first and the last face of each line along each axis.

    What lies between two faces of one line cannot be farther from anything than both of them.
    """
    points = []
    for axis in range(mask.ndim):
        lines = np.moveaxis(mask, axis, -1)
        where = np.argwhere(lines.any(axis=-1))
        inside = lines[tuple(where.T)]
        first = inside.argmax(axis=1)
        last = inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
        for face in (2 * first - 1, 2 * last + 1):
            points.append(np.insert(2 * where, axis, face, axis=1))
    return np.concatenate(points).astype(np.float64)
