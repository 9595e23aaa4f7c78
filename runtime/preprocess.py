"""From raw voxels to the network's input and back: orient, brain box, normalise; and the exact
inverse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from runtime.errors import InputError
from runtime.grid import Grid
from runtime.model_card import ModelCard, Shape3
from runtime.nifti import Volume
from runtime.ops import Array, ArrayOps, Box, Statistics
from runtime.windows import Patch

SPACING_TOLERANCE: Final = 0.05
"""Relative deviation from the card's spacing that is still taken as the same."""
MAX_BRAIN: Final = 0.6
"""Part of a volume that a skull-stripped brain does not exceed; 0.13 to 0.20 in BraTS, and about
half of a box that fits it tightly.
"""
MIN_MEAN: Final = 0.2
"""Standard deviations that the mean of a brain's intensities exceeds; 1.7 to 7.3 in BraTS."""
LARGEST_BOX: Final = 1 << 23
"""Voxels of the largest box that is run in one window: 2.3 times a brain's, and some 4 GB of
activations on a CPU.
"""
# Below this part of the mean a standard deviation is the rounding of a constant image's sums.
_CONSTANT: Final = 1e-6


@dataclass(frozen=True)
class BoxPlacement:
    """Where the box that the network sees lies in the file's grid.

    Attributes:
        file_shape: (X, Y, Z) of the file.
        flips: per file axis, whether it runs against the model's.
        axes: file axis that becomes the model's first, second, third.
        box: slices in the model's orientation.
        padding: background voxels appended at the high end of each axis, where the volume
            itself is too small.
    """

    file_shape: Shape3
    flips: tuple[bool, bool, bool]
    axes: tuple[int, int, int]
    box: Box
    padding: Shape3

    @property
    def shape(self) -> Shape3:
        """(X, Y, Z) of the box with its padding."""
        x, y, z = (
            part.stop - part.start + extra
            for part, extra in zip(self.box, self.padding, strict=True)
        )
        return (x, y, z)

    def oriented(self, array: Array) -> Array:
        """A view of an (X, Y, Z, ...) array in file order, in the model's orientation."""
        view = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]
        return view.transpose(*self.axes, *range(3, array.ndim))

    def boxed(self, array: Array) -> Array:
        """A view of the box, without its padding, of an (X, Y, Z, ...) array in file order."""
        return self.oriented(array)[self.box]

    def inner(self, array: Array) -> Array:
        """A view of the part of an (..., x, y, z) box array that lies in the volume: its padding
        cut off.
        """
        x, y, z = (part.stop - part.start for part in self.box)
        return array[..., :x, :y, :z]


@dataclass(frozen=True)
class Prepared:
    """A case as the network sees it.

    Attributes:
        voxels: float32 (C, x, y, z), C-contiguous array of the ops' device: the brain box in
            the model's orientation, modalities in the card's order, normalised, no smaller than the
            patch.
        placement: where the box lies.
        warnings: what a person should know about this input.
    """

    voxels: Array
    placement: BoxPlacement
    warnings: tuple[str, ...]

    def to_box(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Bring an (X, Y, Z) host array in file order, such as a label map, to the box; padding is
        0.
        """
        out = np.zeros(self.placement.shape, array.dtype)
        self.placement.inner(out)[...] = self.placement.boxed(array)
        return out


def prepare(
    volume: Volume, card: ModelCard, ops: ArrayOps, patch: Patch, force_spacing: bool = False
) -> Prepared:
    """Orient, crop to the brain box and normalise.

    The box is the bounding box of voxels that are non-zero in any modality, extended to ``patch``
    where it is smaller: evenly on both sides into the volume (the odd voxel at the high end,
    shifted where the volume ends), then with background at the high end. "zscore-brain" uses mean
    and population standard deviation of each modality's own non-zero voxels and leaves background
    at 0; "zscore-volume" those of the whole array.

    Args:
        volume: raw voxels in file order.
        card: names the modalities, their order, orientation, spacing and normalisation.
        ops: the device.
        patch: (X, Y, Z) that the box must at least have; "box" rounds each axis of the box up to
            the card's divisor.
        force_spacing: run on a spacing that is not the card's, with a warning.

    Raises:
        InputError: a modality is missing or constant, the brain is empty, the spacing differs by
            more than 5%, or the box is too large for a single window.
    """
    warnings = [*volume.warnings]
    path = next(iter(volume.images.values())).path
    flips, axes = _orientation(path, volume.grid, card)
    warnings += check_spacing(path, volume.grid, card, force_spacing)
    present = [name for name in card.modalities if name in volume.images]
    missing = [name for name in card.modalities if name not in volume.images]
    needed = [name for name in missing if name not in card.tolerates_missing]
    if needed or not present:
        raise _missing(volume, needed or missing)
    warnings += [
        f"modality {name} is missing; the model was trained to do without it" for name in missing
    ]
    raw = {name: ops.upload(volume.images[name].voxels) for name in present}
    whole = BoxPlacement(
        volume.grid.shape, flips, axes, (slice(None), slice(None), slice(None)), (0, 0, 0)
    )
    extent = ops.extent([whole.oriented(voxels) for voxels in raw.values()])
    if extent is None:
        raise InputError(
            path,
            found="an empty brain: every voxel of every modality is 0",
            expected="skull-stripped images with background 0",
            remedy="check the preprocessing of this case",
        )
    if patch == "box":
        patch = _rounded(extent, card.divisor)
        _check_box(volume, patch)
    placement = _extended(whole, extent, patch)
    voxels = ops.zeros((len(card.modalities), *placement.shape), np.float32)
    brain_only = card.normalisation == "zscore-brain"
    # All non-zero voxels lie in the box, so that the whole array need be read only for
    # zscore-volume.
    views = {name: placement.boxed(voxels_of) for name, voxels_of in raw.items()}
    read = views if brain_only else {name: whole.oriented(raw[name]) for name in raw}
    statistics = dict(
        zip(present, ops.statistics([read[name] for name in present], brain_only), strict=True)
    )
    for channel, name in enumerate(card.modalities):
        if name not in raw:
            continue
        found = statistics[name]
        if not (math.isfinite(found.mean) and math.isfinite(found.std)):
            raise InputError(
                volume.images[name].path,
                found="intensities too large to be added up",
                expected="those of a scanner",
                remedy="check how the image was exported, or rescale it",
            )
        if not found.std > _CONSTANT * abs(found.mean):
            raise InputError(
                volume.images[name].path,
                found="a constant image" if found.count else "an image of zeros",
                expected="intensities that vary over the brain",
                remedy="check the preprocessing of this case",
            )
        if brain_only:
            warnings += _doubts(name, found, math.prod(volume.grid.shape))
        ops.normalise(views[name], found, brain_only, voxels[channel])
    return Prepared(voxels, placement, tuple(warnings))


def _doubts(name: str, brain: Statistics, voxels: int) -> list[str]:
    """What the non-zero voxels of a modality say against skull-stripped intensities."""
    told = []
    if brain.count > MAX_BRAIN * voxels:
        told.append(f"{name}: {brain.count / voxels:.0%} of the voxels are not 0; is the skull on?")
    if abs(brain.mean) < MIN_MEAN * brain.std:
        told.append(f"{name}: intensities of about mean 0; are they normalised already?")
    return told


def _orientation(
    path: Path, grid: Grid, card: ModelCard
) -> tuple[tuple[bool, bool, bool], tuple[int, int, int]]:
    """Flips per file axis, and the file axis for each of the model's axes."""
    found = io_orientation(grid.affine)
    if np.isnan(found).any():
        raise InputError(
            path,
            found="an affine that gives two voxel axes the same direction",
            expected="one voxel axis along each of left-right, back-front, foot-head",
            remedy="repair the header or resample the case",
        )
    # Rows are file axes: (the model axis it becomes, 1 or -1).
    transform = ornt_transform(found, axcodes2ornt(tuple(card.orientation)))
    flips = tuple(bool(sign < 0) for sign in transform[:, 1])
    axes = tuple(int(axis) for axis in np.argsort(transform[:, 0]))
    return (flips[0], flips[1], flips[2]), (axes[0], axes[1], axes[2])


def check_spacing(path: Path, grid: Grid, card: ModelCard, force: bool = False) -> list[str]:
    """Refuse an image whose voxels are not of the model's size.

    Args:
        path: of the image, for the error.
        grid: where its voxels lie.
        card: names the model's spacing and orientation.
        force: warn of it instead.

    Returns:
        Warnings: none where the spacing is the model's.

    Raises:
        InputError: it is not, by more than `SPACING_TOLERANCE`.
    """
    _, axes = _orientation(path, grid, card)
    found = [grid.spacing[axis] for axis in axes]
    if all(
        abs(size - wanted) <= SPACING_TOLERANCE * wanted
        for size, wanted in zip(found, card.spacing_mm, strict=True)
    ):
        return []
    shown = "x".join(f"{size:.3g}" for size in found)
    wanted = "x".join(f"{size:.3g}" for size in card.spacing_mm)
    if force:
        return [f"spacing {shown} mm is not the model's {wanted} mm; run all the same"]
    raise InputError(
        path,
        found=f"voxels of {shown} mm",
        expected=f"{wanted} mm, as the model was trained on",
        remedy="resample the case (BraTS preprocessing), or force it with --force-spacing",
    )


def _rounded(extent: Box, divisor: int) -> Shape3:
    x, y, z = (math.ceil((part.stop - part.start) / divisor) * divisor for part in extent)
    return (x, y, z)


def _check_box(volume: Volume, box: Shape3) -> None:
    if math.prod(box) > LARGEST_BOX:
        raise InputError(
            next(iter(volume.images.values())).path,
            found=f"a brain box of {'x'.join(map(str, box))}, too large for a single window",
            expected=f"skull-stripped images, with a box of {LARGEST_BOX} voxels at most",
            remedy="check the preprocessing of this case, or use --quality exact",
        )


def _extended(whole: BoxPlacement, extent: Box, patch: Shape3) -> BoxPlacement:
    slices, padding = [], []
    for axis, (part, size) in enumerate(zip(extent, patch, strict=True)):
        length = whole.file_shape[whole.axes[axis]]
        short = max(0, size - (part.stop - part.start))
        low = part.start - short // 2
        high = part.stop + short - short // 2
        if low < 0:
            low, high = 0, high - low
        if high > length:
            low, high = max(0, low - (high - length)), length
        slices.append(slice(low, high))
        padding.append(max(0, size - (high - low)))
    return BoxPlacement(
        whole.file_shape,
        whole.flips,
        whole.axes,
        (slices[0], slices[1], slices[2]),
        (padding[0], padding[1], padding[2]),
    )


def _missing(volume: Volume, names: Sequence[str]) -> InputError:
    return InputError(
        volume.case.folder,
        found=f"no {' and no '.join(names)} image (only {', '.join(volume.images)})",
        expected="all modalities of the model",
        remedy=f"add {' and '.join(names)}; aliases such as t1n, t1c, t2w, t2f are known",
    )
