"""Synthetic BraTS-shaped cases, for tests, benchmarks and a first run without any data.

A phantom is a skull-stripped head on BraTS's own grid: grey and white matter, CSF, ventricles, and
a glioma whose label means follow those of real cases after z-scoring, beside bright structures that
each imitate it in one modality only. All lengths below are mm of the full-size brain; a smaller
shape holds the same brain, shrunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from runtime.atomic import sweep
from runtime.errors import UsageError
from runtime.grid import Grid
from runtime.labels import MODALITIES, Convention, Label, LabelMap, to_convention
from runtime.model_card import Shape3
from runtime.nifti_writer import write_image
from runtime.phantom_brain import (
    BRATS_SHAPE,
    CSF,
    GREY,
    WHITE,
    Anatomy,
    Field,
    Mask,
    Space,
    make_anatomy,
)

PHANTOM_MARK: Final = "brats-phantom"
"""In the headers of phantoms, by which they are known as files that may be made anew."""
_MIN_SIDE: Final = 32

# Mean z-score (flair, t1, t1ce, t2) over the brain, as averaged over real cases of BraTS 2018.
_TISSUE_MEAN: Final[Mapping[int, tuple[float, float, float, float]]] = {
    CSF: (-1.95, -2.6, -1.9, 3.3),
    GREY: (0.02, -0.35, -0.1, 0.05),
    WHITE: (-0.3, 0.75, 0.25, -0.75),
}
# The same for the tumour: mean, its spread between cases, and the spread within one case.
_TUMOUR_MEAN: Final[Mapping[Label, tuple[float, float, float, float]]] = {
    Label.NCR: (1.6, -0.5, -0.3, 1.6),
    Label.ED: (1.2, 0.0, -0.1, 0.8),
    Label.ET: (1.25, 0.0, 2.6, 0.75),
}
_BETWEEN_CASES: Final[Mapping[Label, tuple[float, float, float, float]]] = {
    Label.NCR: (0.9, 0.4, 0.3, 0.5),
    Label.ED: (0.4, 0.25, 0.2, 0.35),
    Label.ET: (0.6, 0.3, 0.45, 0.35),
}
_WITHIN_CASE: Final[Mapping[Label, tuple[float, float, float, float]]] = {
    Label.NCR: (1.2, 0.4, 0.5, 1.1),
    Label.ED: (0.8, 0.4, 0.3, 0.75),
    Label.ET: (1.3, 0.4, 1.5, 0.85),
}
# Raw brain mean and the ratio of standard deviation to mean, per modality.
_RAW_MEAN: Final = (195.0, 350.0, 390.0, 450.0)
_RAW_VARIATION: Final = (0.40, 0.27, 0.31, 0.45)


class Enhancement(StrEnum):
    """How much of the tumour takes up contrast agent."""

    NONE = "none"
    TINY = "tiny"
    RIM = "rim"


@dataclass(frozen=True)
class Phantom:
    """A synthetic case.

    Attributes:
        images: modality to int16 (X, Y, Z); background exactly 0, brain positive in every modality.
        labels: uint8 (X, Y, Z), network labels as in `runtime.labels.Label`.
        grid: 1 mm, BraTS's orientation (LPS) and origin.
    """

    images: dict[str, npt.NDArray[np.int16]]
    labels: LabelMap
    grid: Grid


def phantom_case(
    seed: int,
    case: int = 1,
    shape: Shape3 = BRATS_SHAPE,
    enhancement: Enhancement | None = None,
) -> Phantom:
    """Make one synthetic case.

    Args:
        seed: of the whole series.
        case: number within the series, from 1; each has its own generator and depends on no other.
        shape: (X, Y, Z) voxels; the brain fills the same part of every shape.
        enhancement: of the tumour; by default drawn: mostly a rim, else tiny or none.

    Returns:
        The same voxels for the same arguments.

    Raises:
        UsageError: a side shorter than 32 voxels.
    """
    if min(shape) < _MIN_SIDE:
        raise UsageError(
            "the phantom's shape",
            found="x".join(map(str, shape)),
            expected=f"at least {_MIN_SIDE} voxels a side",
            remedy="choose a larger shape",
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, case]))
    drawn = rng.choice(list(Enhancement), p=[0.07, 0.07, 0.86])
    enhancement = Enhancement(drawn) if enhancement is None else enhancement
    space = Space.of(shape)
    anatomy = make_anatomy(rng, space)
    labels = np.zeros(anatomy.tissue.shape, np.uint8)
    radius = float(np.clip(rng.lognormal(np.log(25.0), 0.16), 16, 34))
    _add_focus(rng, space, anatomy, labels, radius, enhancement)
    if rng.random() < 0.25:
        _add_focus(rng, space, anatomy, labels, 0.45 * radius, enhancement)

    clean = _z_scores(rng, space, anatomy, labels)
    images: dict[str, npt.NDArray[np.int16]] = {}
    for channel, modality in enumerate(MODALITIES):
        images[modality] = np.zeros(shape, np.int16, order="F")
        images[modality][space.box] = _acquire(rng, space, clean[channel], anatomy.brain, channel)
    whole = np.zeros(shape, np.uint8, order="F")
    whole[space.box] = labels
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1
    return Phantom(images, whole, Grid.from_affine(shape, affine))


def write_phantoms(
    out: Path,
    cases: int,
    seed: int = 0,
    shape: Shape3 = BRATS_SHAPE,
    enhancement: Enhancement | None = None,
) -> list[Path]:
    """Write ``cases`` phantoms as BraTS 2018-2021 names them, truth in the convention brats2020.

    Args:
        out: parent of the case folders ``BraTSPhantom_0001``, ...
        cases: how many.
        seed, shape, enhancement: as for `phantom_case`.

    Returns:
        The case folders, in order.

    Raises:
        UsageError: as for `phantom_case`.
        OutputError: a file cannot be written.
    """
    return [write_phantom(out, case, seed, shape, enhancement) for case in range(1, cases + 1)]


def write_phantom(
    out: Path,
    case: int,
    seed: int = 0,
    shape: Shape3 = BRATS_SHAPE,
    enhancement: Enhancement | None = None,
) -> Path:
    """Write the phantom ``case`` of a series; see `write_phantoms`. Returns its folder."""
    files = phantom_files(out, case)
    phantom = phantom_case(seed, case, shape, enhancement)
    truth = to_convention(phantom.labels, Convention.BRATS2020)
    parts: dict[str, npt.NDArray[Any]] = {**phantom.images, "seg": truth}
    if files["seg"].parent.is_dir():
        sweep(files["seg"].parent)  # of what a killed run left there
    for name, voxels in parts.items():
        # Truth is not a prediction of ours, so that it goes without that mark.
        write_image(files[name], voxels, phantom.grid, PHANTOM_MARK)
    return files["seg"].parent


def phantom_files(out: Path, case: int) -> dict[str, Path]:
    """What `write_phantom` writes: modality, or "seg" for the truth, to file."""
    name = f"BraTSPhantom_{case:04d}"
    return {part: out / name / f"{name}_{part}.nii.gz" for part in (*MODALITIES, "seg")}


def _add_focus(
    rng: np.random.Generator,
    space: Space,
    anatomy: Anatomy,
    labels: LabelMap,
    radius: float,
    enhancement: Enhancement,
) -> None:
    """Grow one focus into ``labels``: core, enhancing rim, and edema that prefers white matter."""
    x, _, z = space.grids()
    allowed = (anatomy.tissue == WHITE) & (anatomy.depth > 11) & (labels == 0)
    allowed &= (np.abs(x) > 14) & (z > -32)
    places = np.flatnonzero(allowed)
    index = np.unravel_index(int(places[rng.integers(places.size)]), allowed.shape)
    centre = np.array([axis[i] for axis, i in zip(space.axes, index, strict=True)], np.float64)
    near, cut = space.around(centre, 1.8 * radius)
    brain = anatomy.brain[cut] & (anatomy.ventricle[cut] > 1)

    stretch = rng.uniform(0.85, 1.2, 3)
    p, q, r = near.grids()
    square = sum(
        ((axis - c) * s) ** 2 for axis, c, s in zip((p, q, r), centre, stretch, strict=True)
    )
    reach = np.sqrt(square).astype(np.float32) / np.float32(radius)

    rough = near.noise(rng, 0.5 * radius)
    fine = near.noise(rng, 0.2 * radius)
    part = float(rng.uniform(0.55, 0.75))
    core_reach = reach / np.float32(part) + 0.2 * rough + 0.11 * fine
    core = (core_reach < 1) & brain
    thickness = float(rng.uniform(0.28, 0.5))
    rim = core_reach > 1 - thickness * (1 + 0.5 * near.noise(rng, 0.3 * radius))
    if enhancement is Enhancement.RIM:
        enhancing = core & (rim | (fine > 1.5))
    elif enhancement is Enhancement.TINY:
        enhancing = core & (np.hypot(core_reach - 0.5, 0.5 * rough) < 0.12)
    else:
        enhancing = np.zeros_like(core)

    edema_reach = reach + 0.2 * near.noise(rng, 0.55 * radius) + 0.11 * near.noise(rng, 5.0)
    edema_reach += np.float32(0.22) * (anatomy.tissue[cut] == GREY)
    edema_reach += np.float32(0.4) * np.clip(p * -np.sign(centre[0]) / 8, 0, 1, dtype=np.float32)
    # The core keeps a layer of edema around it wherever there is brain.
    whole = ((edema_reach < 1) & (anatomy.tissue[cut] != CSF)) | ndimage.binary_dilation(core)
    grown = np.zeros(core.shape, np.uint8)
    grown[whole & brain] = Label.ED
    grown[core] = Label.NCR
    grown[enhancing] = Label.ET
    # A second focus may touch the first; the core of either wins over the edema of the other.
    target = labels[cut]
    np.copyto(target, grown, where=(grown != 0) & ((target == 0) | (target == Label.ED)))


def _z_scores(
    rng: np.random.Generator, space: Space, anatomy: Anatomy, labels: LabelMap
) -> list[Field]:
    """Noise-free z-scores of each modality, with the structures that imitate a tumour."""
    imitations = _imitations(rng, space, anatomy, labels)
    coarse, fine = space.noise(rng, 8.0), space.noise(rng, 2.5)
    tumour = labels != 0
    found = ndimage.find_objects(tumour.astype(np.uint8))[0]
    images = []
    for channel in range(len(MODALITIES)):
        table = np.zeros(4, np.float32)
        for tissue, means in _TISSUE_MEAN.items():
            table[tissue] = means[channel]
        image = table[anatomy.tissue]
        for mask, value in imitations[channel]:
            image[mask] = value
        mean, spread = np.zeros(4, np.float32), np.zeros(4, np.float32)
        for label in _TUMOUR_MEAN:
            between = _BETWEEN_CASES[label][channel]
            shift = np.clip(rng.normal(0, between), -2 * between, 2 * between)
            mean[label] = _TUMOUR_MEAN[label][channel] + shift
            spread[label] = _WITHIN_CASE[label][channel]
        inside, lab = tumour[found], labels[found]
        mix = rng.uniform(0.4, 0.8)
        texture = mix * coarse[found] + (1 - mix) * fine[found]
        painted = mean[lab] + spread[lab] * texture + np.float32(0.2) * image[found]
        np.copyto(image[found], painted.astype(np.float32), where=inside)
        image += np.float32(0.2) * (coarse if channel % 2 else fine)
        images.append(image)
    return images


def _imitations(
    rng: np.random.Generator, space: Space, anatomy: Anatomy, labels: LabelMap
) -> list[list[tuple[Mask, float]]]:
    """Per modality, structures outside the tumour that look like a part of it; their z-scores."""
    x, y, z = space.grids()
    depth, ventricle = anatomy.depth, anatomy.ventricle
    healthy = anatomy.brain & (labels == 0)
    winding = space.noise(rng, 11.0)
    # Vessels: thin tubes where two noise fields vanish together, mostly near the surface.
    vessels = anatomy.folds**2 + winding**2 < 0.035 - depth * 0.0009
    sinus = (np.abs(x) < 3.5) & (depth < 6) & ((z > 20) | (y > 55))
    dura = (depth < 2.2) & (winding > 0.9)
    plexus = (ventricle < 0.75) & (y > 5) & (y < 26) & (winding > -0.4)
    caps = (ventricle < 1.25) & (ventricle > 1) & (np.abs(y + 5) > 18)
    rims = (depth < 3) & (winding < -1.4)
    lesions = [_blobs(rng, space, 5, reach) & healthy for reach in (4.0, 5.0, 7.0, 5.0)]
    cyst = _blobs(rng, space, 3, 9.0) & healthy
    per_modality: list[list[tuple[Mask, float]]] = [
        [(caps, 1.8), (rims, 1.7), (lesions[0], 2.3), (cyst, -2.0)],
        [(lesions[1], 2.3), (cyst, -2.6)],
        [(dura, 3.5), (plexus, 2.6), (vessels, 4.0), (sinus, 6.0), (lesions[2], 2.4), (cyst, -1.9)],
        [(lesions[3], 2.4), (cyst, 3.4)],
    ]
    return [[(mask & healthy, value) for mask, value in one] for one in per_modality]


def _blobs(rng: np.random.Generator, space: Space, count: int, reach: float) -> Mask:
    """Up to ``count`` balls of radius up to ``reach`` mm at random places in the cerebrum."""
    mask = np.zeros([axis.size for axis in space.axes], np.bool_)
    for _ in range(int(rng.integers(1, count + 1))):
        centre = rng.uniform((-50, -60, -20), (50, 60, 50))
        radius = float(rng.uniform(0.5, 1.0)) * reach
        near, cut = space.around(centre, radius + 2)
        p, q, r = near.grids()
        distance = np.sqrt((p - centre[0]) ** 2 + (q - centre[1]) ** 2 + (r - centre[2]) ** 2)
        mask[cut] |= distance < radius * (1 + 0.25 * near.noise(rng, 0.8 * radius))
    return mask


def _acquire(
    rng: np.random.Generator, space: Space, z: Field, brain: Mask, channel: int
) -> npt.NDArray[np.int16]:
    """What a scanner would store of ``z``: point spread, bias field, Rician noise, gain."""
    image = 1 + np.float32(_RAW_VARIATION[channel]) * z
    for axis in range(3):
        ndimage.correlate1d(image, (0.16, 0.68, 0.16), axis, output=image, mode="nearest")
    bias = space.noise(rng, 60.0)
    np.exp(np.float32(rng.uniform(0.02, 0.06)) * bias, out=bias)
    signal = np.maximum(image[brain], np.float32(0.05)) * bias[brain]
    sigma = np.float32(rng.uniform(0.15, 0.25) * _RAW_VARIATION[channel])
    real = rng.standard_normal(signal.size, np.float32)
    imaginary = rng.standard_normal(signal.size, np.float32)
    real *= sigma
    real += signal
    imaginary *= sigma
    gain = _RAW_MEAN[channel] * float(np.exp(np.clip(rng.normal(0, 0.35), -0.8, 0.8)))
    stored = np.zeros(brain.shape, np.int16)
    # A brain voxel is never 0: zero means background.
    stored[brain] = np.clip(np.rint(np.hypot(real, imaginary) * np.float32(gain)), 1, 32767)
    return stored
