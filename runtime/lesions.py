"""Lesion-wise Dice and HD95, as the BraTS challenges of 2023 count them.

The rules are those of the challenge's own code (github.com/rachitsaluja/BraTS-2023-Metrics,
written anew here), for one mask, such as the enhancing tumour, of one case:

- The truth is dilated with the 18-neighbourhood. The 26-connected components of the dilated truth
  are the lesions: two foci whose dilations touch are one. A lesion's own voxels are those of the
  truth, not of the dilation.
- The prediction falls into 26-connected components. All that touch a dilated lesion are united,
  whole, and compared with it; one that touches two lesions counts in full for both.
- A lesion that no component touches is a false negative, Dice 0 and HD95 the penalty.
- A component that touches no lesion is a false positive, however small, Dice 0 and HD95 the
  penalty.
- Lesions up to the smallest counted volume are left out: neither found nor missed. A component
  that touches one is no false positive for that.
- The case's figures are means over the counted lesions and the false positives; where there is
  neither, Dice is 1 and HD95 is 0.

One thing differs: the challenge's HD95 of a pair weighs surface elements between voxel centres by
their area, and takes the larger of the two directions. Here it is the one of `runtime.surface`, the
same as for whole volumes, both directions pooled.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from runtime.surface import Mask, Spacing, bounding_box, surface_distances

_EIGHTEEN = ndimage.generate_binary_structure(3, 2)
_TWENTY_SIX = ndimage.generate_binary_structure(3, 3)
Components = npt.NDArray[np.int32]


@dataclass(frozen=True)
class LesionRule:
    """What a challenge prescribes for lesions.

    Attributes:
        dilations: of the truth, each by the 18-neighbourhood, before it falls into lesions.
        dropped_mm3: lesions of this volume and less are not counted.
        penalty_mm: HD95 of a missed lesion and of a false positive.
        percentile: of the pooled surface distances.
    """

    dilations: int = 3
    dropped_mm3: float = 50.0
    penalty_mm: float = 374.0
    percentile: float = 95.0


@dataclass(frozen=True)
class LesionScores:
    """One mask of one case against its truth, lesion by lesion.

    Attributes:
        dice: mean over counted lesions and false positives.
        hd95: mean over the same, mm.
        lesions: of the truth that are counted; ``found + missed``.
        found: lesions that some component of the prediction touches (true positives).
        missed: lesions that none touches (false negatives).
        false_positives: components of the prediction that touch no lesion, counted or not.
    """

    dice: float
    hd95: float
    lesions: int
    found: int
    missed: int
    false_positives: int


def score_lesions(
    prediction: Mask, truth: Mask, spacing: Spacing, rule: LesionRule
) -> LesionScores:
    """Score one mask lesion by lesion.

    Args:
        prediction, truth: boolean (X, Y, Z) of one shape.
        spacing: mm along X, Y, Z.
        rule: see `LesionRule`.
    """
    union = prediction | truth
    if not union.any():
        return LesionScores(1.0, 0.0, 0, 0, 0, 0)
    # No margin: what of a dilation lies outside of the box can be moved to the box's border, where
    # the same lesions' dilations have voxels too, so that none touch outside only.
    box = bounding_box(union)
    prediction, truth = prediction[box], truth[box]
    areas, count = _lesion_areas(truth, rule.dilations)
    components, found_components = _components(prediction)
    touching = _touching(areas, components)
    lesion_voxels = np.where(truth, areas, 0)
    sizes = _sizes_mm3(lesion_voxels, count, spacing)
    dices, distances, missed = [], [], 0
    for lesion in range(1, count + 1):
        if sizes[lesion] <= rule.dropped_mm3:
            continue
        own = touching[touching[:, 0] == lesion, 1]
        if own.size:
            one, pair_distance = _score_pair(
                np.isin(components, own), lesion_voxels == lesion, spacing, rule
            )
        else:
            missed += 1
            one, pair_distance = 0.0, rule.penalty_mm
        dices.append(one)
        distances.append(pair_distance)
    false_positives = found_components - np.unique(touching[:, 1]).size
    scored = len(dices) + false_positives
    return LesionScores(
        dice=sum(dices) / scored if scored else 1.0,
        hd95=(sum(distances) + false_positives * rule.penalty_mm) / scored if scored else 0.0,
        lesions=len(dices),
        found=len(dices) - missed,
        missed=missed,
        false_positives=false_positives,
    )


def count_lesions(mask: Mask, spacing: Spacing, rule: LesionRule | None = None) -> int:
    """How many lesions a mask has, by the rule that `score_lesions` counts those of a truth with.

    Args:
        mask: boolean (X, Y, Z).
        spacing: mm along X, Y, Z.
        rule: see `LesionRule`; None takes its defaults, those of BraTS 2023.
    """
    rule = rule or LesionRule()
    if not mask.any():
        return 0
    mask = mask[bounding_box(mask)]
    areas, count = _lesion_areas(mask, rule.dilations)
    sizes = _sizes_mm3(np.where(mask, areas, 0), count, spacing)
    return int(np.count_nonzero(sizes[1:] > rule.dropped_mm3))


def _sizes_mm3(lesion_voxels: Components, count: int, spacing: Spacing) -> npt.NDArray[np.float64]:
    """(count + 1,): volume of what is numbered 0, 1, ..., count."""
    voxels = np.bincount(lesion_voxels.ravel(), minlength=count + 1).astype(np.float64)
    return voxels * float(np.prod(spacing))


def _lesion_areas(truth: Mask, dilations: int) -> tuple[Components, int]:
    """The dilated truth's components, numbered from 1, and how many there are."""
    if dilations > 0 and truth.any():
        truth = ndimage.binary_dilation(truth, _EIGHTEEN, iterations=dilations)
    return _components(truth)


def _components(mask: Mask) -> tuple[Components, int]:
    numbered, count = ndimage.label(mask, _TWENTY_SIX)
    return numbered, int(count)


def _touching(areas: Components, components: Components) -> Components:
    """(pairs, 2): which lesion's area and which component share a voxel, each pair once."""
    both = (areas > 0) & (components > 0)
    return np.unique(np.stack((areas[both], components[both]), axis=1), axis=0)


def _score_pair(
    called: Mask, true: Mask, spacing: Spacing, rule: LesionRule
) -> tuple[float, float]:
    hit, total = (int(np.count_nonzero(mask)) for mask in (called & true, called))
    dice = 2 * hit / (total + int(np.count_nonzero(true)))
    return dice, surface_distances(called, true, spacing).percentile(rule.percentile)
