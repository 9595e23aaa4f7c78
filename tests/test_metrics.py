"""Scores against closed forms, brute force and MONAI."""

import itertools
import json
import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.errors import InputError
from runtime.labels import Label
from runtime.metrics import (
    METRICS,
    PROFILES,
    SCORED,
    dice,
    hd95,
    score_case,
    summarise,
    to_json,
)

BRATS = PROFILES["brats2020"]
ISO = (1.0, 1.0, 1.0)

Mask = npt.NDArray[np.bool_]
masks = hnp.arrays(np.bool_, (5, 4, 6))
spacings = st.tuples(*[st.sampled_from((0.5, 1.0, 1.7, 3.0))] * 3)


def cube(shape: tuple[int, ...], start: tuple[int, ...], side: int) -> Mask:
    mask = np.zeros(shape, np.bool_)
    mask[tuple(slice(s, s + side) for s in start)] = True
    return mask


def ball(radius: float, shape: tuple[int, ...], spacing: tuple[float, ...] = ISO) -> Mask:
    grids = np.meshgrid(
        *[(np.arange(n) - n // 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    return np.asarray(np.sqrt(sum(g**2 for g in grids)) <= radius)


def slow_hd95(a: Mask, b: Mask, spacing: tuple[float, ...]) -> float:
    """Every voxel against every voxel, and the percentile by its definition."""

    def surface(mask: Mask) -> list[tuple[int, ...]]:
        inside = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
        steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        return [
            voxel
            for voxel in inside
            if any(tuple(map(sum, zip(voxel, s, strict=True))) not in inside for s in steps)
        ]

    one, other = surface(a), surface(b)
    distances = []
    for here, there in ((one, other), (other, one)):
        for p in here:
            squares = (
                sum(((x - y) * step) ** 2 for x, y, step in zip(p, q, spacing, strict=True))
                for q in there
            )
            distances.append(math.sqrt(min(squares)))
    distances.sort()
    place = 0.95 * (len(distances) - 1)
    low = math.floor(place)
    high = min(low + 1, len(distances) - 1)
    return distances[low] + (place - low) * (distances[high] - distances[low])


@pytest.mark.parametrize("shift", range(6))
def test_dice_of_shifted_cubes(shift: int) -> None:
    a, b = cube((20, 20, 20), (4, 4, 4), 6), cube((20, 20, 20), (4 + shift, 4, 4), 6)
    assert dice(a, b, BRATS) == pytest.approx((6 - shift) / 6)


def test_hd95_of_two_plates_is_their_distance() -> None:
    a, b = np.zeros((2, 12, 9, 9), np.bool_)
    a[2], b[9] = True, True
    assert hd95(a, b, (1.5, 1.0, 1.0), BRATS) == pytest.approx(7 * 1.5)


def test_hd95_of_two_voxels_uses_the_spacing_of_each_axis() -> None:
    a, b = np.zeros((2, 9, 9, 9), np.bool_)
    a[1, 2, 3] = True
    b[4, 6, 8] = True
    expected = math.hypot(3 * 0.5, 4 * 1.0, 5 * 3.0)
    assert hd95(a, b, (0.5, 1.0, 3.0), BRATS) == pytest.approx(expected)


def test_hd95_of_concentric_spheres_is_the_difference_of_their_radii() -> None:
    a, b = ball(12, (41, 41, 41)), ball(17, (41, 41, 41))
    assert hd95(a, b, ISO, BRATS) == pytest.approx(5, abs=0.5)


def test_hd95_of_concentric_spheres_in_anisotropic_voxels() -> None:
    spacing = (1.0, 0.8, 2.0)
    a, b = (ball(r, (41, 51, 21), spacing) for r in (10, 16))
    assert hd95(a, b, spacing, BRATS) == pytest.approx(6, abs=1.0)


def test_hd95_takes_the_volume_border_as_a_surface() -> None:
    full, middle = np.ones((7, 7, 7), np.bool_), cube((7, 7, 7), (3, 3, 3), 1)
    assert hd95(full, middle, ISO, BRATS) == pytest.approx(slow_hd95(full, middle, ISO))


def test_hd95_pools_both_directions() -> None:
    # 1 of 201 distances is large, and the percentile drops it.
    a = np.zeros((40, 10, 10), np.bool_)
    a[0] = True
    b = a.copy()
    b[39, 0, 0] = True
    assert hd95(a, b, ISO, BRATS) == 0
    # One of 2 distances from b is large, none of the 1 from a: pooled 0, 0, 9 mm.
    a, b = np.zeros((2, 12, 3, 3), np.bool_)
    a[0, 0, 0] = True
    b[0, 0, 0] = b[9, 0, 0] = True
    assert hd95(a, b, ISO, BRATS) == pytest.approx(0.9 * 9)


@settings(deadline=None, max_examples=80)
@given(masks, masks, spacings)
def test_hd95_agrees_with_brute_force(a: Mask, b: Mask, spacing: tuple[float, ...]) -> None:
    assert hd95(a, b, spacing, BRATS) == pytest.approx(hd95(b, a, spacing, BRATS))
    if a.any() and b.any():
        assert hd95(a, b, spacing, BRATS) == pytest.approx(slow_hd95(a, b, spacing))
    elif not a.any() and not b.any():
        assert hd95(a, b, spacing, BRATS) == 0
    else:
        assert hd95(a, b, spacing, BRATS) == 373.12866


@settings(deadline=None, max_examples=80)
@given(masks, masks)
def test_dice_agrees_with_counting(a: Mask, b: Mask) -> None:
    one = {tuple(v) for v in np.argwhere(a)}
    other = {tuple(v) for v in np.argwhere(b)}
    expected = 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0
    assert dice(a, b, BRATS) == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.uint8, (6, 5, 4), elements=st.integers(0, 3)),
    hnp.arrays(np.uint8, (6, 5, 4), elements=st.integers(0, 3)),
)
def test_scores_of_a_case_agree_with_counting(
    prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
) -> None:
    members = {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}, "NCR": {1}, "ED": {2}}
    scores = score_case(prediction, truth, (2.0, 1.0, 1.5), BRATS)
    assert set(scores) == set(members) == set(SCORED)
    pairs = list(zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True))
    for name, values in members.items():
        tp = sum(p in values and t in values for p, t in pairs)
        fp = sum(p in values and t not in values for p, t in pairs)
        fn = sum(p not in values and t in values for p, t in pairs)
        tn = len(pairs) - tp - fp - fn
        one = scores[name]
        assert one.dice == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1)
        assert one.sensitivity == pytest.approx(tp / (tp + fn) if tp + fn else 1)
        assert one.specificity == pytest.approx(tn / (tn + fp) if tn + fp else 1)
        assert one.volume_ml_predicted == pytest.approx((tp + fp) * 0.003)
        assert one.volume_ml_truth == pytest.approx((tp + fn) * 0.003)
        p, t = (np.isin(labels, list(values)) for labels in (prediction, truth))
        assert one.hd95 == pytest.approx(hd95(p, t, (2.0, 1.0, 1.5), BRATS))


def test_specificity_counts_the_whole_volume_and_not_the_box() -> None:
    truth = np.zeros((50, 40, 30), np.uint8)
    prediction = truth.copy()
    truth[10, 10, 10] = Label.ET
    prediction[10, 10, 10:14] = Label.ET
    assert score_case(prediction, truth, ISO, BRATS)["ET"].specificity == 1 - 3 / 59999


def test_empty_against_empty_and_empty_against_full() -> None:
    nothing, something = np.zeros((2, 8, 8, 8), np.bool_)
    something[3:5, 3, 3] = True
    assert (dice(nothing, nothing, BRATS), hd95(nothing, nothing, ISO, BRATS)) == (1.0, 0.0)
    for a, b in itertools.permutations((nothing, something)):
        assert (dice(a, b, BRATS), hd95(a, b, ISO, BRATS)) == (0.0, 373.12866)


def test_the_value_for_one_empty_is_the_diagonal_of_a_brats_volume() -> None:
    assert np.float32(np.sqrt(240**2 + 240**2 + 155**2)) == np.float32(BRATS.hd95_one_empty)


def test_a_perfect_prediction_scores_perfectly() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (12, 12, 12)).astype(np.uint8)
    for one in score_case(labels, labels, ISO, BRATS).values():
        assert (one.dice, one.hd95, one.sensitivity, one.specificity) == (1, 0, 1, 1)


def test_three_for_four_costs_the_enhancing_tumour() -> None:
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[2:8, 2:8, 2:8] = Label.ED
    truth[4:6, 4:6, 4:6] = Label.ET
    swapped = np.where(truth == Label.ET, np.uint8(Label.NCR), truth)
    scores = score_case(swapped, truth, ISO, BRATS)
    assert scores["WT"].dice == scores["TC"].dice == 1
    assert scores["ET"].dice == scores["NCR"].dice == 0


def test_dice_agrees_with_monai() -> None:
    pytest.importorskip("torch", reason="needs PyTorch for MONAI")
    # What MONAI imports may warn of its own deprecations, which are not ours to mend.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    import torch

    rng = np.random.default_rng(1)
    p, t = (rng.random((3, 1, 12, 10, 8)) < share for share in (0.3, 0.5))
    theirs = metrics.DiceMetric(include_background=True, reduction="none")(
        torch.from_numpy(p.astype(np.float32)), torch.from_numpy(t.astype(np.float32))
    )
    ours = [dice(a[0], b[0], BRATS) for a, b in zip(p, t, strict=True)]
    np.testing.assert_allclose(ours, theirs.numpy().ravel(), rtol=1e-6)


def test_different_shapes_are_refused() -> None:
    a, b = np.zeros((4, 4, 4), np.bool_), np.zeros((4, 4, 5), np.bool_)
    for call in (
        lambda: dice(a, b, BRATS),
        lambda: hd95(a, b, ISO, BRATS),
        lambda: score_case(a.astype(np.uint8), b.astype(np.uint8), ISO, BRATS),
    ):
        with pytest.raises(InputError, match=r"4x4x4.*4x4x5"):
            call()


def test_summary_has_mean_median_and_population_deviation() -> None:
    truth = np.zeros((20, 4, 4), np.uint8)
    truth[:10] = Label.ET
    cases = {}
    for index, planes in enumerate((10, 5, 0)):
        prediction = np.zeros_like(truth)
        prediction[:planes] = Label.ET
        cases[f"case{index}"] = score_case(prediction, truth, ISO, BRATS)
    values = [1.0, 2 * 5 / 15, 0.0]
    summary = summarise(cases)["ET"]["dice"]
    assert summary["mean"] == pytest.approx(sum(values) / 3)
    assert summary["median"] == pytest.approx(2 / 3)
    assert summary["std"] == pytest.approx(
        math.sqrt(sum((v - sum(values) / 3) ** 2 for v in values) / 3)
    )
    assert summarise({}) == {}


def test_json_form() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1] = Label.NCR
    value = json.loads(
        json.dumps(to_json(BRATS, {"X": score_case(labels, labels, ISO, BRATS)}), allow_nan=False)
    )
    assert list(value) == ["profile", "cases", "summary"]
    assert value["profile"] == "brats2020"
    assert tuple(value["cases"]["X"]) == SCORED
    assert tuple(value["cases"]["X"]["WT"]) == METRICS
    assert value["cases"]["X"]["NCR"]["volume_ml_truth"] == pytest.approx(0.016)
    assert value["summary"]["WT"]["dice"] == {"mean": 1.0, "median": 1.0, "std": 0.0}
