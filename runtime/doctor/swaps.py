"""Images that seem to lie under each other's names.

Both rules compare z-scores over the brain, voxel by voxel, and turn their sign when the two images
are exchanged. Contrast agent leaves a few voxels much brighter on T1CE than on T1 (vessels, sinus,
plexus, dura, the tumour's rim), and nothing much darker: the difference is skewed to the right.
Water is bright on T2 and suppressed on FLAIR. Measured on the 25 cases of BraTS 2018 at hand, on
every other voxel:

    T1CE - T1: skewness                 1.50 to  4.72    swapped: -4.72 to -1.50    said below -0.75
    T1CE - T1: log of the tails' ratio  0.67 to  2.02    swapped: -2.02 to -0.67    said below -0.25
    T1CE - T1: mean in the truth's ET   1.22 to  3.95    swapped: -3.95 to -1.22    said below -0.6
    T2 - FLAIR: skewness + mean of the
    4% that are darkest on T1           1.30 to  7.08    swapped: -7.08 to -1.30    said below -0.6

so that none of the 25 is accused, by a margin of at least 0.9, and all are found when exchanged.
Both statistics of the tails must say so; a truth with enhancing tumour decides alone where it is
clear. Phantoms, with and without enhancement: 1.89 to 3.32, 1.13 to 1.53, 1.65 to 3.41 and 5.5 to
6.9. Exchanges of T1 or T1CE with FLAIR or T2 have no rule: none was found that is as sure.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.doctor.findings import Finding, warning
from runtime.doctor.images import Look
from runtime.labels import Label, LabelMap

_SKEWNESS: Final = -0.75
_TAILS: Final = -0.25
_TAIL_PER_CENT: Final = 0.5
_ENHANCING: Final = -0.6
_ENHANCING_VOXELS: Final = 30
_WATER: Final = -0.6
_DARK_PER_CENT: Final = 4.0
# With the skull on, fat and air say more than the brain does.
_STRIPPED: Final = 0.6

Scores = npt.NDArray[np.float64]


def swapped(looks: Mapping[str, Look], truth: LabelMap | None) -> list[Finding]:
    """Pairs of modalities that are probably exchanged.

    Args:
        looks: of a case's images on one grid, by modality.
        truth: uint8 (X, Y, Z) labels of `Label` on that grid, if there are any.
    """
    usable = {
        name: look
        for name, look in looks.items()
        if 0 < look.facts.brain <= _STRIPPED and look.facts.minimum < look.facts.maximum
    }
    found: list[Finding] = []
    if usable.keys() >= {"t1", "t1ce"} and _t1_with_t1ce(usable["t1"], usable["t1ce"], truth):
        found.append(_told("t1", "t1ce", "contrast agent brightens the one called t1"))
    if usable.keys() >= {"flair", "t1", "t2"} and _flair_with_t2(usable):
        found.append(_told("flair", "t2", "water is bright on the one called flair"))
    return found


def _told(one: str, other: str, why: str) -> Finding:
    text = f"{one} and {other} are probably swapped: {why}; look at both, and rename them if so"
    return warning(f"swapped-{one}-{other}", text)


def _t1_with_t1ce(t1: Look, t1ce: Look, truth: LabelMap | None) -> bool:
    inside = _both(t1, t1ce)
    difference = t1ce.sample.astype(np.float64) - t1.sample
    if truth is not None:
        enhancing = inside & (truth[(slice(None, None, t1.step),) * 3] == Label.ET)
        if np.count_nonzero(enhancing) >= _ENHANCING_VOXELS:
            contrast = float(difference[enhancing].mean())
            if abs(contrast) > -_ENHANCING:
                return contrast < 0
    values = difference[inside]
    if values.size < 1000:
        return False
    low, middle, high = np.percentile(values, [_TAIL_PER_CENT, 50, 100 - _TAIL_PER_CENT])
    if not low < middle < high:
        return False
    tails = float(np.log((high - middle) / (middle - low)))
    return tails < _TAILS and _skewness(values) < _SKEWNESS


def _flair_with_t2(looks: Mapping[str, Look]) -> bool:
    flair, t1, t2 = looks["flair"], looks["t1"], looks["t2"]
    inside = _both(flair, t2) & _both(flair, t1)
    difference = (t2.sample.astype(np.float64) - flair.sample)[inside]
    if difference.size < 1000:
        return False
    plain = t1.sample[inside]
    water = difference[plain <= np.percentile(plain, _DARK_PER_CENT)]
    return float(water.mean()) + _skewness(difference) < _WATER


def _both(one: Look, other: Look) -> npt.NDArray[np.bool_]:
    thin = (slice(None, None, one.step),) * 3
    both: npt.NDArray[np.bool_] = one.brain[thin] & other.brain[thin]
    return both


def _skewness(values: Scores) -> float:
    centred = values - values.mean()
    spread = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean()) / spread**3 if spread > 0 else 0.0
