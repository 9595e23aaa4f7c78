"""A phantom's brain: grey and white matter, CSF and ventricles, in mm of the full-size grid."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.model_card import Shape3

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

BRATS_SHAPE: Final[Shape3] = (240, 240, 155)
# The middle of the brain on the full-size grid, and the half sides of a box that surely holds it.
_CENTRE: Final = (119.5, 129.5, 71.0)
_HALF_BOX: Final = (76.0, 93.0, 75.0)

CSF, GREY, WHITE = 1, 2, 3
"""Tissues of a phantom; 0 is outside the brain."""


@dataclass(frozen=True)
class Space:
    """The box of voxels that holds the brain.

    Attributes:
        box: its place in the whole volume.
        axes: 1-D coordinates of its voxels from the brain's middle, along x (to the left), y (to
            the back) and z (up).
    """

    box: tuple[slice, slice, slice]
    axes: tuple[Field, Field, Field]

    @classmethod
    def of(cls, shape: Shape3) -> "Space":
        box, axes = [], []
        for size, full, centre, half in zip(shape, BRATS_SHAPE, _CENTRE, _HALF_BOX, strict=True):
            scale = size / full
            at = ((np.arange(size) + 0.5) / scale - centre).astype(np.float32)
            inside = np.flatnonzero(np.abs(at) <= half)
            box.append(slice(int(inside[0]), int(inside[-1]) + 1))
            axes.append(at[box[-1]])
        return cls((box[0], box[1], box[2]), (axes[0], axes[1], axes[2]))

    def grids(self) -> tuple[Field, Field, Field]:
        """The axes, shaped to broadcast as (X, Y, Z)."""
        x, y, z = self.axes
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def around(self, centre: npt.NDArray[np.float64], reach: float) -> tuple["Space", Any]:
        """The part within ``reach`` mm of ``centre``, and its slices in this box."""
        distances = (np.abs(axis - at) for axis, at in zip(self.axes, centre, strict=True))
        inside = [np.flatnonzero(distance <= reach) for distance in distances]
        cut = tuple(slice(int(i[0]), int(i[-1]) + 1) for i in inside)
        x, y, z = (axis[s] for axis, s in zip(self.axes, cut, strict=True))
        return Space(self.box, (x, y, z)), cut

    def noise(self, rng: np.random.Generator, wavelength: float) -> Field:
        """Smooth noise (X, Y, Z), unit variance: a random lattice every ``wavelength`` mm, blended.

        Quadratic B-splines: two points per axis would be faster and show the lattice as blocks.
        No matrix products: their rounding depends on the machine.
        """
        places = [(axis - axis[0]) / wavelength + rng.random() for axis in self.axes]
        field = rng.standard_normal([int(place[-1]) + 3 for place in places], np.float32)
        # Last axis first: the large steps then copy whole slabs.
        for axis in (2, 1, 0):
            below = places[axis].astype(np.intp)
            part = (places[axis] - below).astype(np.float32)
            part = part.reshape([-1 if a == axis else 1 for a in range(3)])
            blended = field.take(below, axis)
            blended *= 0.5 * (1 - part) ** 2
            for step, weight in ((1, 0.75 - (part - 0.5) ** 2), (2, 0.5 * part**2)):
                term = field.take(below + step, axis)
                term *= weight
                blended += term
            field = blended
        # The squared weights sum to 11/20 on average, along each axis.
        field *= np.float32((20 / 11) ** 1.5)
        return field


@dataclass(frozen=True)
class Anatomy:
    """A brain without a tumour; every array is (X, Y, Z) over the box of its `Space`."""

    brain: Mask
    tissue: npt.NDArray[np.uint8]  # 0 outside, CSF, GREY, WHITE
    depth: Field  # mm below the surface, roughly; negative outside
    ventricle: Field  # 1 at the ventricles' wall, less inside
    folds: Field  # 0 in the sulci's middle


def ellipsoid(space: Space, centre: tuple[float, ...], radii: tuple[float, ...]) -> Field:
    """Distance from ``centre`` in units of ``radii``; both hemispheres at once, by |x|."""
    x, y, z = space.grids()
    a, b, c = ((p - q) / r for p, q, r in zip((np.abs(x), y, z), centre, radii, strict=True))
    distance: Field = np.sqrt(a * a + b * b + c * c)
    return distance


def make_anatomy(rng: np.random.Generator, space: Space) -> Anatomy:
    """Draw a brain: hemispheres, cerebellum and stem, folded cortex, nuclei and ventricles."""
    size = float(rng.uniform(0.95, 1.03))
    x, y, z = space.grids()
    # The forehead is narrower than the back of the head.
    across = x * (1 - y / 800)
    square = (across / 66) ** 2 + (y / 83) ** 2 + ((z - 11) / 57) ** 2
    depth: Field = (np.float32(size) - np.sqrt(square)) * np.float32(60)
    lower = ellipsoid(space, (18.0, 44.0, -40.0), (32.0, 34.0, 26.0))
    np.maximum(depth, (size - lower) * 30, out=depth)
    stem = ellipsoid(space, (0.0, 14.0, -48.0), (14.0, 15.0, 26.0))
    np.maximum(depth, (size - stem) * 15, out=depth)
    depth += 1.3 * space.noise(rng, 15.0)
    brain = depth > 0

    folds = space.noise(rng, 12.0)
    folds += 0.5 * space.noise(rng, 6.0)
    np.abs(folds, out=folds)
    # Sulci, and the cortex lining them, follow the folds' zero surfaces and thin out with depth.
    grey = folds < 0.8 - depth / 38
    grey |= depth < 3
    grey |= ellipsoid(space, (13.0, 8.0, 2.0), (8.0, 14.0, 9.0)) < 1  # thalamus
    grey |= ellipsoid(space, (25.0, -8.0, 2.0), (6.0, 15.0, 9.0)) < 1  # putamen
    tissue = np.where(grey, np.uint8(GREY), np.uint8(WHITE))
    atrophy = float(rng.uniform(0.10, 0.20))
    tissue[folds < atrophy - depth * (atrophy / 24)] = CSF
    fissure = (np.abs(x) < 1.3) & (depth < 30) & (z > -10)
    tissue[fissure] = CSF

    bend = (y + 5) ** 2
    width = float(rng.uniform(0.8, 1.35))
    horns = ((np.abs(x) - 7 - 0.006 * bend) / 5) ** 2
    horns = horns + ((y + 5) / 36) ** 2 + ((z - 14 + 0.006 * bend) / 7) ** 2
    third = ellipsoid(space, (0.0, 4.0, -2.0), (2.2, 14.0, 10.0)) ** 2
    ventricle = np.sqrt(np.minimum(horns, third)) / width
    ventricle += 0.12 * space.noise(rng, 9.0)
    tissue[ventricle < 1] = CSF
    tissue[~brain] = 0
    return Anatomy(brain, tissue, depth, ventricle, folds)
