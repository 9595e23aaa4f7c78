"""The figures of one case by named scoring profile: overlap, surfaces, volumes, lesions.

Each is given for the regions WT, TC and ET and for the labels NCR and ED; the label ET is the
region ET. Surfaces are those of `runtime.surface`, lesions those of `runtime.lesions`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.labels import REGIONS, Convention, Label, LabelMap
from runtime.lesions import LesionRule, LesionScores, score_lesions
from runtime.surface import Mask, Spacing, bounding_box, surface_distances


class Missing(StrEnum):
    """What a case of the truth without a prediction counts as."""

    EMPTY = "empty"  # a prediction without a voxel
    LEAVE_OUT = "leave-out"  # nothing
    REFUSE = "refuse"  # bad input


@dataclass(frozen=True)
class Profile:
    """What a challenge prescribes where the formula alone does not.

    Attributes:
        name: of the profile.
        dice_both_empty: Dice where neither has a voxel; 0 where only one has.
        hd95_both_empty: HD95 in mm where neither has a voxel.
        hd95_one_empty: HD95 in mm where only one has.
        hd95_percentile: of the pooled surface distances, interpolated linearly as numpy does.
        nsd_tolerance_mm: surfaces that lie this close agree.
        nsd_both_empty: NSD where neither has a voxel; 0 where only one has.
        sensitivity_no_truth: sensitivity where only the prediction has a voxel; 1 where neither.
        lesions: how lesions are scored, in the regions; None where they are not.
        missing: what a case without prediction counts as.
        convention: numbering of label maps where neither names nor flags tell it; None asks.
    """

    name: str
    dice_both_empty: float = 1.0
    hd95_both_empty: float = 0.0
    hd95_one_empty: float = 373.12866
    hd95_percentile: float = 95.0
    nsd_tolerance_mm: float = 1.0
    nsd_both_empty: float = 1.0
    sensitivity_no_truth: float = 1.0
    lesions: LesionRule | None = None
    missing: Missing = Missing.EMPTY
    convention: Convention | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all figures that this profile gives for a region, in order."""
        return METRICS if self.lesions is None else (*METRICS, *LESION_METRICS)


PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        # 373.12866 is the diagonal of 240x240x155 voxels of 1 mm, in float32.
        "brats2020": Profile("brats2020"),
        # The challenge's code writes 374 wherever a distance is infinite, for whole volumes too.
        "brats2023": Profile(
            "brats2023",
            hd95_one_empty=374.0,
            sensitivity_no_truth=0.0,
            lesions=LesionRule(),
            convention=Convention.BRATS2023,
        ),
    }
)


@dataclass(frozen=True)
class Scores:
    """One mask of one case against its truth.

    Attributes:
        dice: 2|P and T| / (|P| + |T|).
        hd95: mm.
        nsd: share of both surfaces that lies within the profile's tolerance of the other.
        sensitivity: share of the truth that is predicted.
        specificity: share of the rest that is not predicted; 1 where there is no rest.
        volume_ml_predicted, volume_ml_truth: ml.
        volume_difference_ml: predicted less true, ml.
        volume_difference_percent: the same in percent of the truth; 0 where both are empty, None
            where only the truth is, as nothing can be said in percent of it.
        lesions: lesion by lesion; None where the profile does not score lesions, and for labels.
    """

    dice: float
    hd95: float
    nsd: float
    sensitivity: float
    specificity: float
    volume_ml_predicted: float
    volume_ml_truth: float
    volume_difference_ml: float
    volume_difference_percent: float | None
    lesions: LesionScores | None = None

    def figures(self) -> dict[str, float | None]:
        """All figures by name: `METRICS`, then `LESION_METRICS` where lesions are scored."""
        made = {name: getattr(self, name) for name in METRICS}
        if self.lesions is not None:
            made |= zip(LESION_METRICS, asdict(self.lesions).values(), strict=True)
        return made


METRICS: Final = tuple(name for name in Scores.__dataclass_fields__ if name != "lesions")
"""The names of the figures of whole volumes, in order."""

LESION_METRICS: Final = (
    "lesion_dice",
    "lesion_hd95",
    "lesion_count",
    "lesion_tp",
    "lesion_fn",
    "lesion_fp",
)
"""The names of the figures of lesions, in the order of `runtime.lesions.LesionScores`."""

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

    Args:
        a, b: boolean (X, Y, Z).
        spacing: mm along X, Y, Z.
        profile: values for empty masks, and the percentile.

    Returns:
        mm; the same for (a, b) as for (b, a).

    Raises:
        InputError: the shapes differ.
    """
    return _surface_figures(a, b, spacing, profile)[0]


def nsd(a: Mask, b: Mask, spacing: Spacing, profile: Profile) -> float:
    """Normalised surface distance: `runtime.surface.SurfaceDistances.share_within` the
    profile's tolerance.

    Args:
        a, b: boolean (X, Y, Z).
        spacing: mm along X, Y, Z.
        profile: values for empty masks, and the tolerance.

    Returns:
        0 to 1; the same for (a, b) as for (b, a).

    Raises:
        InputError: the shapes differ.
    """
    return _surface_figures(a, b, spacing, profile)[1]


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
        box = bounding_box(union)
        prediction, truth = prediction[box], truth[box]
    scores = {}
    for name in SCORED:
        members = REGIONS.get(name) or (Label[name],)
        p, t = (mask_of(labels, members) for labels in (prediction, truth))
        lesions = None
        if profile.lesions is not None and name in REGIONS:
            lesions = score_lesions(p, t, spacing, profile.lesions)
        scores[name] = _score_mask(p, t, full_size, spacing, profile, lesions)
    return scores


def _score_mask(
    p: Mask,
    t: Mask,
    full_size: int,
    spacing: Spacing,
    profile: Profile,
    lesions: LesionScores | None,
) -> Scores:
    called, true, hit = (int(np.count_nonzero(mask)) for mask in (p, t, p & t))
    rest = full_size - true
    distance, surface_share = _surface_figures(p, t, spacing, profile)
    percent: float | None
    if true:
        sensitivity, percent = hit / true, 100 * (called - true) / true
    elif called:
        sensitivity, percent = profile.sensitivity_no_truth, None
    else:
        sensitivity, percent = 1.0, 0.0
    voxel_ml = float(np.prod(spacing)) / 1000
    return Scores(
        dice=dice(p, t, profile),
        hd95=distance,
        nsd=surface_share,
        sensitivity=sensitivity,
        specificity=(rest - (called - hit)) / rest if rest else 1.0,
        volume_ml_predicted=called * voxel_ml,
        volume_ml_truth=true * voxel_ml,
        volume_difference_ml=(called - true) * voxel_ml,
        volume_difference_percent=percent,
        lesions=lesions,
    )


def _surface_figures(a: Mask, b: Mask, spacing: Spacing, profile: Profile) -> tuple[float, float]:
    """HD95 in mm and NSD."""
    _check_shapes(a, b)
    if not a.any() or not b.any():
        if a.any() or b.any():
            return profile.hd95_one_empty, 0.0
        return profile.hd95_both_empty, profile.nsd_both_empty
    distances = surface_distances(a, b, spacing)
    return (
        distances.percentile(profile.hd95_percentile),
        distances.share_within(profile.nsd_tolerance_mm),
    )


def mask_of(labels: LabelMap, members: Sequence[Label]) -> Mask:
    """Where a label map (uint8, any shape) has one of ``members``: boolean, of the same shape."""
    found: Mask = labels == members[0]
    for member in members[1:]:
        found |= labels == member
    return found


def _check_shapes(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise InputError(
            "the prediction",
            found=f"shape {'x'.join(map(str, a.shape))}",
            expected=f"{'x'.join(map(str, b.shape))} as the truth has",
            remedy="score a label map on the grid of its own case",
        )
