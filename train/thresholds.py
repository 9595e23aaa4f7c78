"""Learns what a card asks to be done after argmax: which components are too small to be tumour, and
how little enhancing tumour is none.

Both are chosen on the cases that chose the checkpoint, never on those that score a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final

import numpy as np
from scipy import ndimage

from runtime.labels import REGIONS, LabelMap, regions_from_labels
from runtime.lesions import LesionRule, score_lesions
from runtime.model_card import PostprocessRule
from runtime.postprocess import postprocess
from runtime.surface import Spacing
from train.validate import dice_of

COMPONENTS_MM3: Final = (0.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0)
"""What is tried for `PostprocessRule.min_component_mm3`."""
ENHANCING_MM3: Final = (0.0, 25.0, 50.0, 100.0, 200.0, 350.0, 500.0)
"""What is tried for `PostprocessRule.min_et_mm3`; challenges were won with values like these."""
# A rule that gains less than this over a few cases has been fitted to their noise.
_GAIN: Final = 1e-3
# Lesions take about half a second a case and threshold.
_MOST: Final = 24
_LESIONS: Final = LesionRule()


@dataclass(frozen=True)
class Labelled:
    """One case, kept as the part of it that holds tumour in prediction or truth.

    Attributes:
        case_id: of the case.
        labels: uint8 (x, y, z), the network's after argmax and nothing else.
        truth: uint8 (x, y, z).
        spacing: mm per voxel.
        box: where the part lies.
        shape: (X, Y, Z) of the whole.
    """

    case_id: str
    labels: LabelMap
    truth: LabelMap
    spacing: Spacing
    box: tuple[slice, ...]
    shape: tuple[int, ...]

    @classmethod
    def cropped(
        cls, case_id: str, labels: LabelMap, truth: LabelMap, spacing: Spacing
    ) -> "Labelled":
        """From uint8 (X, Y, Z) label maps, which are copied."""
        found = ndimage.find_objects(((labels != 0) | (truth != 0)).view(np.uint8))
        box = found[0] if found else (slice(0, 1),) * 3
        return cls(case_id, labels[box].copy(), truth[box].copy(), spacing, box, labels.shape)

    def changed(self, rule: PostprocessRule) -> "Labelled":
        """The case after post-processing."""
        return replace(self, labels=postprocess(self.labels, rule, self.spacing))

    def whole(self) -> tuple[LabelMap, LabelMap]:
        """Prediction and truth, uint8 (X, Y, Z)."""
        labels, truth = np.zeros(self.shape, np.uint8), np.zeros(self.shape, np.uint8)
        labels[self.box], truth[self.box] = self.labels, self.truth
        return labels, truth


@dataclass(frozen=True)
class Means:
    """Over cases, by region.

    Attributes:
        dice: of whole volumes.
        lesion_dice: lesion by lesion, as the challenges count since 2023.
    """

    dice: dict[str, float]
    lesion_dice: dict[str, float]

    def score(self) -> float:
        """What is maximised: the mean of all. Whole volumes hardly notice a false speck, lesions
        hardly a missing rim.
        """
        return fmean((*self.dice.values(), *self.lesion_dice.values()))


@dataclass(frozen=True)
class Learned:
    """A rule and what it does to the cases it was learned on.

    Attributes:
        rule: 0 for a threshold that gains nothing.
        without, with_rule: means over the cases.
        cases: their ids.
    """

    rule: PostprocessRule
    without: Means
    with_rule: Means
    cases: tuple[str, ...]

    def sentence(self) -> str:
        """For people."""
        if self.rule == PostprocessRule():
            return (
                f"No post-processing: no threshold raised Dice and lesion-wise Dice by {_GAIN:g}."
            )
        rules = []
        if self.rule.min_component_mm3:
            rules.append(f"components below {self.rule.min_component_mm3:g} mm3 become background")
        if self.rule.min_et_mm3:
            rules.append(f"enhancing tumour below {self.rule.min_et_mm3:g} mm3 becomes NCR")
        figures = "; ".join(
            f"mean {kind} "
            + ", ".join(f"{key} {after[key]:.3f} ({before[key]:.3f} without)" for key in REGIONS)
            for kind, after, before in (
                ("Dice", self.with_rule.dice, self.without.dice),
                ("lesion-wise Dice", self.with_rule.lesion_dice, self.without.lesion_dice),
            )
        )
        return f"Post-processing: {' and '.join(rules)}; {figures}."

    def to_json(self) -> dict[str, Any]:
        """As evaluation.json holds it."""
        return {
            "min_component_mm3": self.rule.min_component_mm3,
            "min_et_mm3": self.rule.min_et_mm3,
            "learned_on": list(self.cases),
            "dice_without": self.without.dice,
            "dice_with": self.with_rule.dice,
            "lesion_dice_without": self.without.lesion_dice,
            "lesion_dice_with": self.with_rule.lesion_dice,
        }


def learn_rule(cases: Sequence[Labelled]) -> Learned:
    """The thresholds of the best `Means.score`, components first.

    Of thresholds that are as good the smallest is taken, and none where it gains less than 0.001.

    Args:
        cases: one or more; of more than 24, as many spread evenly over them.
    """
    step = max(1, -(-len(cases) // _MOST))
    current = list(cases)[::step]
    ids = tuple(case.case_id for case in current)
    without = best = _means(current)
    chosen = PostprocessRule()
    for name, tried in (("min_component_mm3", COMPONENTS_MM3), ("min_et_mm3", ENHANCING_MM3)):
        outcomes = []
        for threshold in tried[1:]:
            rule = replace(PostprocessRule(), **{name: threshold})
            changed = [case.changed(rule) for case in current]
            outcomes.append((threshold, changed, _means(changed)))
        top = max(outcomes, key=lambda outcome: outcome[2].score())
        if top[2].score() >= best.score() + _GAIN:
            threshold, current, best = top
            chosen = replace(chosen, **{name: threshold})
    return Learned(chosen, without, best, ids)


def _means(cases: Sequence[Labelled]) -> Means:
    dice = [dice_of(case.labels, case.truth) for case in cases]
    lesions = [_lesion_dice(case) for case in cases]
    return Means(
        {region: fmean(one[region] for one in dice) for region in REGIONS},
        {region: fmean(one[region] for one in lesions) for region in REGIONS},
    )


def _lesion_dice(case: Labelled) -> dict[str, float]:
    called, true = (regions_from_labels(labels) for labels in (case.labels, case.truth))
    return {
        region: score_lesions(called[region], true[region], case.spacing, _LESIONS).dice
        for region in REGIONS
    }
