"""Learned post-processing: what is found is what was planted, and nothing is found in noise."""

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.labels import REGIONS, Label, LabelMap
from runtime.model_card import PostprocessRule
from train.thresholds import Labelled, learn_rule

ISO = (1.0, 1.0, 1.0)


def _tumour(shape: tuple[int, int, int] = (40, 40, 40)) -> LabelMap:
    labels = np.zeros(shape, np.uint8)
    labels[8:28, 8:28, 8:28] = Label.ED
    labels[12:24, 12:24, 12:24] = Label.NCR
    labels[14:20, 14:20, 14:20] = Label.ET
    return labels


def _case(labels: LabelMap, truth: LabelMap, name: str = "one") -> Labelled:
    return Labelled.cropped(name, labels, truth, ISO)


def test_specks_are_removed_and_no_more_than_needed() -> None:
    truth = _tumour()
    speckled = truth.copy()
    # Components of 180 and of 3 mm3, far from the tumour.
    speckled[31:37, 31:36, 31:37] = Label.ET
    speckled[2:3, 2:5, 2:3] = Label.ED
    learned = learn_rule([_case(speckled, truth), _case(truth, truth, "two")])
    # 180 lies between 100 and 250; every larger threshold is as good, and dangerous.
    assert learned.rule == PostprocessRule(min_component_mm3=250.0)
    assert learned.with_rule.dice == learned.with_rule.lesion_dice == dict.fromkeys(REGIONS, 1.0)
    # A tumour found and a speck that is none: half of it, and all of the other case.
    assert learned.without.lesion_dice["ET"] == pytest.approx((1 / 2 + 1) / 2)
    assert learned.without.lesion_dice["WT"] == pytest.approx((1 / 3 + 1) / 2)
    assert learned.without.dice["ET"] == pytest.approx((2 * 216 / (2 * 216 + 180) + 1) / 2)
    sentence = learned.sentence()
    assert sentence.startswith("Post-processing: components below 250 mm3 become background; mean")
    assert "mean lesion-wise Dice WT 1.000 (0.667 without)" in sentence


def test_a_little_enhancement_where_there_is_none_becomes_ncr() -> None:
    truth = _tumour()
    truth[truth == Label.ET] = Label.NCR
    called = truth.copy()
    called[14:17, 14:17, 14:17] = Label.ET
    learned = learn_rule([_case(called, truth), _case(_tumour(), _tumour(), "two")])
    assert learned.rule == PostprocessRule(min_et_mm3=50.0)
    assert learned.with_rule.dice["ET"] == 1.0
    assert learned.without.dice["ET"] == learned.without.lesion_dice["ET"] == 0.5


def test_nothing_is_learned_where_nothing_is_gained() -> None:
    small = np.zeros((30, 30, 30), np.uint8)
    small[3:6, 3:6, 3:6] = Label.ET
    learned = learn_rule([_case(small, small), _case(_tumour(), _tumour(), "two")])
    assert learned.rule == PostprocessRule()
    assert learned.without == learned.with_rule
    assert learned.sentence().startswith("No post-processing")


def test_a_case_is_whole_again_after_cropping() -> None:
    labels, truth = _tumour(), np.zeros((40, 40, 40), np.uint8)
    truth[30:39, 1:3, 20] = Label.ET
    case = _case(labels, truth)
    assert case.labels.size < labels.size
    np.testing.assert_array_equal(case.whole()[0], labels)
    np.testing.assert_array_equal(case.whole()[1], truth)
    nothing = _case(np.zeros_like(labels), np.zeros_like(labels))
    assert nothing.whole()[0].shape == labels.shape


def test_json_holds_both_figures(tmp_path: Path) -> None:
    value = learn_rule([_case(_tumour(), _tumour())]).to_json()
    assert json.loads(json.dumps(value)) == {
        "min_component_mm3": 0.0,
        "min_et_mm3": 0.0,
        "learned_on": ["one"],
        "dice_without": {"WT": 1.0, "TC": 1.0, "ET": 1.0},
        "dice_with": {"WT": 1.0, "TC": 1.0, "ET": 1.0},
        "lesion_dice_without": {"WT": 1.0, "TC": 1.0, "ET": 1.0},
        "lesion_dice_with": {"WT": 1.0, "TC": 1.0, "ET": 1.0},
    }


def test_a_speck_too_small_for_whole_volumes_is_found_by_its_lesion() -> None:
    """Three voxels beside 8,000 cost no Dice to speak of, and half of the lesions."""
    truth = _tumour()
    speckled = truth.copy()
    speckled[33:36, 33, 33] = Label.ED
    learned = learn_rule([_case(speckled, truth)])
    assert learned.without.dice["WT"] > 0.9995
    assert learned.without.lesion_dice["WT"] == pytest.approx(0.5)
    assert learned.rule == PostprocessRule(min_component_mm3=50.0)


def test_many_cases_are_thinned_evenly() -> None:
    cases = [_case(_tumour(), _tumour(), f"{number:03d}") for number in range(49)]
    assert learn_rule(cases).cases == tuple(f"{number:03d}" for number in range(0, 49, 3))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_thresholds_are_volumes(spacing: tuple[float, float, float]) -> None:
    truth = _tumour()
    speckled = truth.copy()
    speckled[31:37, 31:36, 31:37] = Label.ET
    case = Labelled.cropped("one", speckled, truth, spacing)
    # Both spacings have voxels of 1 mm3.
    assert learn_rule([case]).rule.min_component_mm3 == 250.0
