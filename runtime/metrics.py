"""Dice, HD95 and their companions for one case by named scoring profile; their summary over many.

HD95 as the BraTS challenges of 2018 to 2021 define it: the 95th percentile of the surface distances
in both directions, pooled. Surfaces are voxel sets, so that distances are between voxel centres.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from runtime.errors import InputError
from runtime.labels import REGIONS, Label, LabelMap

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Profile:
    """What a challenge prescribes where the formula alone does not.

    Attributes:
        name: of the profile.
        dice_both_empty: Dice where neither has a voxel.
        hd95_both_empty: HD95 in mm where neither has a voxel.
        hd95_one_empty: HD95 in mm where only one has; Dice is 0 there.
        hd95_percentile: of the pooled surface distances, interpolated linearly as numpy does.
    """

    name: str
    dice_both_empty: float = 1.0
    hd95_both_empty: float = 0.0
    hd95_one_empty: float = 373.12866
    hd95_percentile: float = 95.0


PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    # 373.12866 is the diagonal of 240x240x155 voxels of 1 mm, in float32.
    {"brats2020": Profile("brats2020")}
)


@dataclass(frozen=True)
class Scores:
    """One mask of one case against its truth.

    Attributes:
        dice: 2|P and T| / (|P| + |T|).
        hd95: mm.
        sensitivity: share of the truth that is predicted; 1 where the truth is empty.
        specificity: share of the rest that is not predicted; 1 where there is no rest.
        volume_ml_predicted, volume_ml_truth: ml.
    """

    dice: float
    hd95: float
    sensitivity: float
    specificity: float
    volume_ml_predicted: float
    volume_ml_truth: float


METRICS: Final = tuple(Scores.__dataclass_fields__)
"""The names of the figures in `Scores`, in order."""

SCORED: Final = (*REGIONS, *(label.name for label in Label if label and label is not Label.ET))
"""What is scored: the regions WT, TC, ET and the labels NCR, ED (the label ET is the region ET)."""


def dice(a: Mask, b: Mask, profile: Profile) -> float:
    """Dice coefficient of two boolean masks of one shape (any number of axes).

    Raises:
        InputError: the shapes differ.
    """
    _check_shapes(a, b)
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    if total == 0:
        return profile.dice_both_empty
    return 2 * int(np.count_nonzero(a & b)) / total


def hd95(a: Mask, b: Mask, spacing: Spacing, profile: Profile) -> float:
    """95th percentile of the distances between two surfaces, both directions pooled.

    The surface of a mask is what an erosion by the 6-neighbourhood removes; what lies beyond the
    volume counts as background.

    Args:
        a, b: boolean (X, Y, Z).
        spacing: mm along X, Y, Z.
        profile: values for empty masks, and the percentile.

    Returns:
        mm; the same for (a, b) as for (b, a).

    Raises:
        InputError: the shapes differ.
    """
    _check_shapes(a, b)
    union = a | b
    if not union.any():
        return profile.hd95_both_empty
    if not a.any() or not b.any():
        return profile.hd95_one_empty
    box = _bounding_box(union)
    surface_a, surface_b = (_surface(mask[box]) for mask in (a, b))
    pooled = np.concatenate(
        [
            ndimage.distance_transform_edt(~there, sampling=spacing)[here]
            for here, there in ((surface_a, surface_b), (surface_b, surface_a))
        ]
    )
    return float(np.percentile(pooled, profile.hd95_percentile))


def score_case(
    prediction: LabelMap, truth: LabelMap, spacing: Spacing, profile: Profile
) -> dict[str, Scores]:
    """Score one case.

    Args:
        prediction, truth: uint8 (X, Y, Z), network labels as in `runtime.labels.Label`.
        spacing: mm along X, Y, Z.
        profile: see `PROFILES`.

    Returns:
        Scores of each of `SCORED`.

    Raises:
        InputError: the shapes differ.
    """
    _check_shapes(prediction, truth)
    full_size = prediction.size
    # Outside the box of either there are true negatives only, which specificity alone counts.
    union = (prediction != 0) | (truth != 0)
    if union.any():
        box = _bounding_box(union)
        prediction, truth = prediction[box], truth[box]
    voxel_ml = float(np.prod(spacing)) / 1000
    scores = {}
    for name in SCORED:
        members = REGIONS.get(name) or (Label[name],)
        p, t = np.isin(prediction, members), np.isin(truth, members)
        called, true, hit = (int(np.count_nonzero(mask)) for mask in (p, t, p & t))
        rest = full_size - true
        scores[name] = Scores(
            dice=dice(p, t, profile),
            hd95=hd95(p, t, spacing, profile),
            sensitivity=hit / true if true else 1.0,
            specificity=(rest - (called - hit)) / rest if rest else 1.0,
            volume_ml_predicted=called * voxel_ml,
            volume_ml_truth=true * voxel_ml,
        )
    return scores


def summarise(cases: Mapping[str, Mapping[str, Scores]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, median and standard deviation over cases.

    Args:
        cases: case id to what `score_case` gave.

    Returns:
        ``{scored: {metric: {"mean", "median", "std"}}}``; std is the population's. Empty without
        cases.
    """
    if not cases:
        return {}
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name in SCORED:
        summary[name] = {}
        for metric in METRICS:
            values = np.array([getattr(scores[name], metric) for scores in cases.values()])
            summary[name][metric] = {
                "mean": float(values.mean()),
                "median": float(np.median(values)),
                "std": float(values.std()),
            }
    return summary


def to_json(profile: Profile, cases: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """What `brats-eval --json` writes: ``{profile, cases{id:{region:{dice, ...}}}, summary}``."""
    return {
        "profile": profile.name,
        "cases": {
            case_id: {name: asdict(one) for name, one in scores.items()}
            for case_id, scores in cases.items()
        },
        "summary": summarise(cases),
    }


def _check_shapes(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise InputError(
            "the prediction",
            found=f"shape {'x'.join(map(str, a.shape))}",
            expected=f"{'x'.join(map(str, b.shape))} as the truth has",
            remedy="score a label map on the grid of its own case",
        )


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    box: tuple[slice, ...] = ndimage.find_objects(mask.view(np.uint8))[0]
    return box


def _surface(mask: Mask) -> Mask:
    # Beyond the array counts as background: the border of a crop, and of the volume, is a surface.
    surface: Mask = mask & ~ndimage.binary_erosion(mask, border_value=0)
    return surface
