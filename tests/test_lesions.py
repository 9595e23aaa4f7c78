"""Lesion-wise scores against worked-out cases, properties, and a second way of writing them."""

import itertools
import math
from dataclasses import astuple, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.lesions import LesionRule, score_lesions
from runtime.metrics import PROFILES, dice, hd95
from tests.scores_by_hand import lesions_by_hand

Mask = npt.NDArray[np.bool_]
RULE = LesionRule()
ISO = (1.0, 1.0, 1.0)
SHAPE = (40, 30, 30)


def boxes(*corners: tuple[tuple[int, int, int], tuple[int, int, int]]) -> Mask:
    """A mask of boxes, each by its first voxel and its size."""
    mask = np.zeros(SHAPE, np.bool_)
    for start, size in corners:
        mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


BIG = ((4, 4, 4), (8, 8, 8))
FAR = ((25, 15, 15), (6, 6, 6))


@st.composite
def foci(draw: st.DrawFn) -> Mask:
    """Up to five small boxes, near each other and apart."""
    mask = np.zeros((22, 16, 12), np.bool_)
    for _ in range(draw(st.integers(0, 5))):
        start = [draw(st.integers(0, n - 1)) for n in mask.shape]
        size = [draw(st.integers(1, 5)) for _ in range(3)]
        mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


rules = st.builds(
    LesionRule,
    dilations=st.integers(0, 3),
    dropped_mm3=st.sampled_from((0.0, 8.0, 12.0, 50.0)),
)
spacings = st.tuples(*[st.sampled_from((0.5, 1.0, 1.7))] * 3)


@settings(deadline=None, max_examples=120)
@given(foci(), foci(), spacings, rules)
def test_agrees_with_a_second_way_of_writing_it(
    prediction: Mask, truth: Mask, spacing: tuple[float, float, float], rule: LesionRule
) -> None:
    ours = score_lesions(prediction, truth, spacing, rule)
    theirs = lesions_by_hand(
        prediction, truth, spacing, rule.dilations, rule.dropped_mm3, rule.penalty_mm
    )
    assert astuple(ours) == pytest.approx(astuple(theirs), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(foci(), foci(), st.sampled_from(tuple(itertools.product((False, True), repeat=3))))
def test_mirrored_axes_change_nothing(
    prediction: Mask, truth: Mask, mirrored: tuple[bool, ...]
) -> None:
    step = tuple(slice(None, None, -1 if turn else 1) for turn in mirrored)
    ours = score_lesions(prediction, truth, ISO, RULE)
    turned = score_lesions(prediction[step], truth[step], ISO, RULE)
    assert astuple(turned) == pytest.approx(astuple(ours), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(foci(), foci(), st.tuples(*[st.integers(0, 9)] * 3))
def test_where_in_the_volume_they_lie_changes_nothing(
    prediction: Mask, truth: Mask, before: tuple[int, int, int]
) -> None:
    ours = score_lesions(prediction, truth, ISO, RULE)
    pads = [(n, 5) for n in before]
    moved = score_lesions(np.pad(prediction, pads), np.pad(truth, pads), ISO, RULE)
    assert astuple(moved) == astuple(ours)


@settings(deadline=None, max_examples=60)
@given(foci(), foci())
def test_another_false_positive_only_costs(prediction: Mask, truth: Mask) -> None:
    room = [(0, 12), (0, 0), (0, 0)]
    prediction, truth = np.pad(prediction, room), np.pad(truth, room)
    more = prediction.copy()
    more[-1, 0, 0] = True  # further than three dilations from all there is
    before, after = (score_lesions(one, truth, ISO, RULE) for one in (prediction, more))
    scored = before.lesions + before.false_positives
    assert after.false_positives == before.false_positives + 1
    assert after.found == before.found
    assert after.dice == pytest.approx(before.dice * scored / (scored + 1))
    expected = (before.hd95 * scored + RULE.penalty_mm) / (scored + 1)
    assert after.hd95 == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(-2, 2)] * 3),
    st.tuples(*[st.integers(4, 8)] * 3),
    st.tuples(*[st.integers(4, 8)] * 3),
)
def test_one_compact_lesion_scores_as_the_whole_volume(
    shift: tuple[int, int, int], size: tuple[int, int, int], predicted: tuple[int, int, int]
) -> None:
    truth = boxes(((10, 10, 10), size))
    x, y, z = (10 + s for s in shift)
    prediction = boxes(((x, y, z), predicted))
    profile = PROFILES["brats2023"]
    ours = score_lesions(prediction, truth, ISO, RULE)
    assert (ours.lesions, ours.found, ours.missed, ours.false_positives) == (1, 1, 0, 0)
    assert ours.dice == pytest.approx(dice(prediction, truth, profile))
    assert ours.hd95 == pytest.approx(hd95(prediction, truth, ISO, profile))


def test_a_missed_lesion_and_a_false_positive_count_nothing_and_the_penalty() -> None:
    ours = score_lesions(boxes(BIG, ((30, 2, 2), (1, 1, 1))), boxes(BIG, FAR), ISO, RULE)
    assert (ours.lesions, ours.found, ours.missed, ours.false_positives) == (2, 1, 1, 1)
    assert ours.dice == pytest.approx(1 / 3)
    assert ours.hd95 == pytest.approx(2 * 374 / 3)


def test_neither_has_a_lesion() -> None:
    nothing = np.zeros(SHAPE, np.bool_)
    assert astuple(score_lesions(nothing, nothing, ISO, RULE)) == (1, 0, 0, 0, 0, 0)


def test_only_one_has_a_lesion() -> None:
    nothing, one = np.zeros(SHAPE, np.bool_), boxes(BIG)
    assert astuple(score_lesions(nothing, one, ISO, RULE)) == (0, 374, 1, 0, 1, 0)
    assert astuple(score_lesions(one, nothing, ISO, RULE)) == (0, 374, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("size", "spacing", "counted"),
    [
        ((5, 5, 2), ISO, False),  # 50 mm3
        ((17, 3, 1), ISO, True),  # 51 mm3
        ((5, 5, 4), (1.0, 1.0, 0.5), False),
        ((5, 5, 2), (1.0, 1.0, 1.1), True),
    ],
)
def test_lesions_of_50_mm3_and_less_are_dropped(
    size: tuple[int, int, int], spacing: tuple[float, float, float], counted: bool
) -> None:
    truth = boxes(((5, 5, 5), size))
    missed = score_lesions(np.zeros(SHAPE, np.bool_), truth, spacing, RULE)
    assert (missed.lesions, missed.missed) == ((1, 1) if counted else (0, 0))
    assert missed.dice == (0 if counted else 1)
    # Found, it is no false positive, whether it counts or not.
    found = score_lesions(truth, truth, spacing, RULE)
    assert (found.found, found.false_positives, found.dice) == (int(counted), 0, 1)


def test_the_smallest_false_positive_counts() -> None:
    ours = score_lesions(boxes(BIG, ((30, 20, 20), (1, 1, 1))), boxes(BIG), ISO, RULE)
    assert (ours.false_positives, ours.dice) == (1, 0.5)


@pytest.mark.parametrize(("gap", "lesions"), [(6, 1), (7, 2)])
def test_lesions_whose_dilations_touch_are_one(gap: int, lesions: int) -> None:
    # Each grows by three voxels along an axis: a gap of six is filled, one of seven is not.
    first, second = ((4, 4, 4), (5, 5, 5)), ((9 + gap, 4, 4), (5, 5, 5))
    ours = score_lesions(boxes(first), boxes(first, second), ISO, RULE)
    assert ours.lesions == lesions
    assert ours.dice == pytest.approx(2 * 125 / 375 if lesions == 1 else 0.5)


@pytest.mark.parametrize(
    ("step", "reached"),
    [
        ((3, 0, 0), True),
        ((4, 0, 0), False),
        ((3, 3, 0), True),  # across edges: the 18-neighbourhood, which the 6-neighbourhood misses
        ((2, 2, 2), True),
        ((3, 3, 3), False),  # across corners: only the 26-neighbourhood would reach it
    ],
)
def test_what_three_dilations_reach(step: tuple[int, int, int], reached: bool) -> None:
    truth = boxes(((10, 10, 10), (4, 4, 4)))
    x, y, z = (13 + s for s in step)
    ours = score_lesions(boxes(((x, y, z), (1, 1, 1))), truth, ISO, RULE)
    assert (ours.found, ours.false_positives) == ((1, 0) if reached else (0, 1))


def test_foci_that_touch_by_a_corner_are_one() -> None:
    corner = ((20, 20, 20), (1, 1, 1)), ((21, 21, 21), (1, 1, 1))
    ours = score_lesions(boxes(*corner), np.zeros(SHAPE, np.bool_), ISO, RULE)
    assert ours.false_positives == 1


def test_all_components_that_touch_a_lesion_are_united_whole() -> None:
    truth = boxes(((10, 10, 10), (6, 6, 6)))
    # Two of them overlap it, and one lies beside it; 72 + 36 + 4 voxels, of which 108 hit.
    parts = ((10, 10, 10), (2, 6, 6)), ((15, 10, 10), (1, 6, 6)), ((18, 10, 10), (4, 1, 1))
    ours = score_lesions(boxes(*parts), truth, ISO, RULE)
    assert ours.false_positives == 0
    assert ours.dice == pytest.approx(2 * 108 / (112 + 216))


def test_a_component_that_touches_two_lesions_counts_whole_for_both() -> None:
    first, second = ((2, 10, 10), (6, 4, 4)), ((26, 10, 10), (6, 4, 4))
    bridge = ((2, 10, 10), (30, 4, 4))
    ours = score_lesions(boxes(bridge), boxes(first, second), ISO, RULE)
    assert (ours.lesions, ours.found, ours.false_positives) == (2, 2, 0)
    assert ours.dice == pytest.approx(2 * 96 / (480 + 96))


def test_hd95_of_a_pair_pools_both_directions() -> None:
    # Two voxels 9 mm apart against one of them: distances 0, 0 and 9 mm, a directed one would be 9.
    truth, prediction = boxes(((3, 3, 3), (1, 1, 1))), boxes(((3, 3, 3), (1, 1, 1)))
    truth[12, 3, 3] = True
    ours = score_lesions(prediction, truth, ISO, replace(RULE, dilations=5, dropped_mm3=0))
    assert ours.hd95 == pytest.approx(0.9 * 9)


def test_the_penalty_is_above_every_distance_in_a_brats_volume() -> None:
    assert math.hypot(239, 239, 154) < RULE.penalty_mm
