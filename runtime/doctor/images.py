"""One image by itself: what is in the file, and what is odd about its intensities."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes

from runtime.case import Source
from runtime.doctor.findings import Finding, error, warning
from runtime.errors import ComputeError, InputError
from runtime.grid import Grid
from runtime.nifti import read_image
from runtime.preprocess import MAX_BRAIN

Mask = npt.NDArray[np.bool_]

# A background that is not 0 is one value, in all corners and in a good part of the volume.
_BACKGROUND: Final = 0.2
# Scans have thousands of grey values, all of them positive. How "z-score" is meant differs (over
# the brain, over the volume, with outliers cut off), so that the bounds are wide.
_CENTRED: Final = 0.35
_UNIT: Final = (0.5, 2.0)
# The coarsest of 100 real images of BraTS 2018 has 214 grey values in this sample, and the largest
# value of that one is 266.
_FEW_VALUES: Final = 128
_BYTE: Final = 255
# Beyond this, every other voxel on each axis tells as much about a distribution.
_SAMPLED_ABOVE: Final = 1 << 21


@dataclass(frozen=True)
class Facts:
    """What is in an image; small enough to be kept for every case of a data set.

    Attributes:
        file: its name.
        channel: index on the last axis of a 4D file; None for a 3D one.
        sha256: of the file's bytes.
        grid: where its voxels lie.
        dtype: in which they are stored.
        minimum, maximum: over all voxels.
        nonzero: part of the voxels that are not 0.
        mean, std: over those, the population's standard deviation; 0 where there are none.
        background: value of what lies around the brain.
        brain: part of the voxels that are something else.
    """

    file: str
    channel: int | None
    sha256: str
    grid: Grid
    dtype: str
    minimum: float
    maximum: float
    nonzero: float
    mean: float
    std: float
    background: float
    brain: float

    @property
    def axes(self) -> str:
        """Directions of the file's axes, such as LPS."""
        return "".join(code or "?" for code in aff2axcodes(self.grid.affine))

    def voxel_key(self) -> tuple[object, ...]:
        """Equal for equal voxels, however they are compressed or stored; else hardly ever."""
        figures = (self.minimum, self.maximum, self.nonzero, self.mean, self.std)
        return (self.grid.shape, *(f"{figure:.9g}" for figure in figures))


@dataclass(frozen=True)
class Look:
    """One image as long as its case is looked at.

    Attributes:
        facts: what is in it.
        brain: (X, Y, Z) what is not background.
        sample: (x, y, z) z-scores over the brain, float32: of every voxel, or of every other one on
            each axis where there are many.
        step: on each axis, of the sample.
        findings: about this image alone.
    """

    facts: Facts
    brain: Mask
    sample: npt.NDArray[np.float32]
    step: int
    findings: tuple[Finding, ...]


def look_at(modality: str, source: Source) -> Look | Finding:
    """Read one image and judge it by itself.

    Returns:
        What it holds, or why it cannot be read.
    """
    try:
        image, grid = read_image(source)
    except InputError as refused:
        return error("unreadable", str(refused), modality)
    except ComputeError as refused:
        return error("memory", str(refused), modality)
    voxels = image.voxels
    background = _background(voxels)
    brain = voxels != background
    # Figures over what is not 0 are those that the models' own normalisation would find.
    counted = voxels[brain if background == 0 else voxels != 0]
    mean, std = _moments(counted)
    facts = Facts(
        file=source.path.name,
        channel=source.channel,
        sha256=image.sha256,
        grid=grid,
        dtype=str(voxels.dtype),
        minimum=float(voxels.min()),
        maximum=float(voxels.max()),
        nonzero=counted.size / voxels.size,
        mean=mean,
        std=std,
        background=background,
        brain=float(np.count_nonzero(brain)) / voxels.size,
    )
    step = 2 if voxels.size > _SAMPLED_ABOVE else 1
    thin = (slice(None, None, step),) * 3
    sampled, inside = voxels[thin], brain[thin]
    centre, spread = (mean, std) if background == 0 else _moments(voxels[brain])
    findings = [warning("corrected", f"{modality}: {text}", modality) for text in image.warnings]
    # What `preprocess.prepare` adds up: deviations from the mean, those of the zeros among them.
    zeros = voxels.size - counted.size
    if not math.isfinite(counted.size * std * std + zeros * mean * mean):
        text = f"{modality} has intensities too large to be added up; export it again"
        findings.append(error("too-large", text, modality))
    findings += _intensities(modality, facts, sampled[inside], centre, spread)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (sampled - centre) / (spread or 1.0)
    sample = np.where(inside, scores, 0).astype(np.float32)
    return Look(facts, brain, sample, step, tuple(findings))


def _moments(values: npt.NDArray[Any]) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


def _background(voxels: npt.NDArray[Any]) -> float:
    corners = voxels[:: max(1, voxels.shape[0] - 1), :: max(1, voxels.shape[1] - 1)]
    corners = corners[:, :, :: max(1, voxels.shape[2] - 1)]
    value = corners.flat[0]
    if value == 0 or not np.all(corners == value):
        return 0.0
    part = np.count_nonzero(voxels == value) / voxels.size
    return float(value) if _BACKGROUND <= part < 1 else 0.0


def _intensities(
    modality: str, facts: Facts, values: npt.NDArray[Any], centre: float, spread: float
) -> list[Finding]:
    """What is odd about the values of the brain.

    Args:
        modality: of the image.
        facts: of the image.
        values: those of the brain, or a sample of them.
        centre, spread: mean and standard deviation of the brain.
    """
    if facts.minimum == facts.maximum == 0:
        return [error("all-zero", f"{modality} is all zeros; export it again", modality)]
    if not spread > 1e-6 * abs(centre):
        text = f"{modality} is constant over the brain ({centre:.4g}); export it again"
        return [error("constant", text, modality)]
    found: list[Finding] = []
    around = f"the background is {facts.background:.3g}, not 0" if facts.background else ""
    if facts.minimum < 0 and (_is_standard(centre, spread) or _is_standard(facts.mean, facts.std)):
        text = (
            f"{modality} looks z-scored already (mean {round(centre, 2) + 0.0:.2f}, standard "
            f"deviation {spread:.2f}{' over the brain; ' + around if around else ''}); give it as "
            "it was before, with background 0"
        )
        found.append(warning("z-scored", text, modality))
    elif around:
        text = f"{modality}: {around}, so that the whole volume counts as brain; make it 0"
        found.append(warning("background", text, modality))
    elif facts.minimum < 0:
        text = (
            f"{modality} has negative values (down to {facts.minimum:.4g}); give it as it was "
            "before it was normalised or interpolated"
        )
        found.append(warning("negative", text, modality))
    if facts.brain > MAX_BRAIN:
        text = f"{modality}: {facts.brain:.0%} of the voxels are not 0; is the skull on? strip it"
        found.append(warning("skull", text, modality))
    found += _narrow(modality, facts, values)
    return found


def _is_standard(mean: float, std: float) -> bool:
    return abs(mean) < _CENTRED and _UNIT[0] < std < _UNIT[1]


def _narrow(modality: str, facts: Facts, values: npt.NDArray[Any]) -> list[Finding]:
    """Grey values that were squeezed into a byte, as for a screen."""
    if values.size < 10 * _FEW_VALUES or np.any(values != np.rint(values)):
        return []
    count = len(np.unique(values))
    byte = facts.dtype in ("uint8", "int8") or (facts.minimum >= 0 and facts.maximum == _BYTE)
    if count >= _FEW_VALUES and not byte:
        return []
    text = (
        f"{modality} has only {count} grey values from {facts.minimum:.4g} to {facts.maximum:.4g}; "
        "was it scaled to a byte? give the values of the scanner"
    )
    return [warning("narrow-range", text, modality)]
