"""Scores against closed forms, brute force and MONAI."""

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.errors import InputError
from runtime.labels import REGIONS, Label
from runtime.metrics import (
    LESION_METRICS,
    METRICS,
    PROFILES,
    SCORED,
    dice,
    hd95,
    nsd,
    score_case,
)
from runtime.surface import surface_distances

BRATS = PROFILES["brats2020"]
LESIONS = PROFILES["brats2023"]
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


def slow_distances(a: Mask, b: Mask, spacing: tuple[float, ...]) -> list[float]:
    """Every surface voxel against every other, both directions, sorted."""

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
    return sorted(distances)


def slow_hd95(a: Mask, b: Mask, spacing: tuple[float, ...]) -> float:
    """The percentile by its definition."""
    distances = slow_distances(a, b, spacing)
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
@given(masks, masks, spacings, st.sampled_from((0.4, 1.0, 1.7, 2.5)))
def test_nsd_agrees_with_brute_force(
    a: Mask, b: Mask, spacing: tuple[float, float, float], tolerance: float
) -> None:
    profile = replace(BRATS, nsd_tolerance_mm=tolerance)
    found = nsd(a, b, spacing, profile)
    assert found == nsd(b, a, spacing, profile)
    if a.any() and b.any():
        distances = slow_distances(a, b, spacing)
        near = sum(d <= tolerance + 1e-4 for d in distances)
        assert found == pytest.approx(near / len(distances))
    else:
        assert found == (0 if a.any() or b.any() else 1)


@settings(deadline=None, max_examples=40)
@given(masks, masks, st.floats(0, 3), st.floats(0, 3))
def test_nsd_grows_with_the_tolerance(a: Mask, b: Mask, one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = [nsd(a, b, ISO, replace(BRATS, nsd_tolerance_mm=mm)) for mm in (low, high)]
    assert found[0] <= found[1]


def test_nsd_of_shifted_plates() -> None:
    # Plates one voxel thick are all surface: within 1 mm at a shift of 1 mm, and not beyond.
    plates = np.zeros((3, 12, 6, 6), np.bool_)
    for plate, place in zip(plates, (4, 5, 6), strict=True):
        plate[place] = True
    assert nsd(plates[0], plates[1], ISO, BRATS) == 1
    assert nsd(plates[0], plates[2], ISO, BRATS) == 0
    assert nsd(plates[0], plates[1], (1.01, 1.0, 1.0), BRATS) == 0
    # What float32 makes of 1 mm in a rotated header is 1 mm.
    assert nsd(plates[0], plates[1], (1.0000001, 1.0, 1.0), BRATS) == 1


def test_nsd_weighs_both_surfaces_by_their_voxels() -> None:
    # 4 voxels of the one agree, of the other the same 4 of 16: 8 of 20, not the mean of 1 and 1/4.
    a, b = np.zeros((2, 20, 4, 1), np.bool_)
    a[2, :, 0] = True
    b[[2, 8, 11, 14], :, 0] = True
    assert nsd(a, b, ISO, BRATS) == pytest.approx(8 / 20)


@settings(deadline=None, max_examples=40)
@given(masks, masks, spacings, st.sampled_from((0, 1, 2)), st.tuples(*[st.integers(0, 4)] * 3))
def test_mirrored_or_moved_masks_score_the_same(
    a: Mask,
    b: Mask,
    spacing: tuple[float, float, float],
    axis: int,
    before: tuple[int, int, int],
) -> None:
    def both(one: Mask, other: Mask) -> tuple[float, float, float]:
        return (
            dice(one, other, BRATS),
            hd95(one, other, spacing, BRATS),
            nsd(one, other, spacing, BRATS),
        )

    expected = pytest.approx(both(a, b))
    assert both(np.flip(a, axis), np.flip(b, axis)) == expected
    pads = [(n, 2) for n in before]
    assert both(np.pad(a, pads), np.pad(b, pads)) == expected


@settings(deadline=None, max_examples=60)
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
        assert one.volume_difference_ml == pytest.approx((fp - fn) * 0.003)
        if tp + fn:
            assert one.volume_difference_percent == pytest.approx(100 * (fp - fn) / (tp + fn))
        else:
            assert one.volume_difference_percent == (None if fp else 0)
        p, t = (np.isin(labels, list(values)) for labels in (prediction, truth))
        assert one.hd95 == pytest.approx(hd95(p, t, (2.0, 1.0, 1.5), BRATS))
        assert one.nsd == pytest.approx(nsd(p, t, (2.0, 1.0, 1.5), BRATS))


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
        lambda: nsd(a, b, ISO, BRATS),
        lambda: score_case(a.astype(np.uint8), b.astype(np.uint8), ISO, BRATS),
    ):
        with pytest.raises(InputError, match=r"4x4x4.*4x4x5"):
            call()


def test_too_much_and_too_little_have_their_signs() -> None:
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[2:6, 2:6, 2:6] = Label.ET
    more, less = truth.copy(), truth.copy()
    more[6, 2:6, 2:6] = Label.ET
    less[2, 2:6, 2:6] = Label.BACKGROUND
    grown, shrunk = (score_case(one, truth, ISO, BRATS)["ET"] for one in (more, less))
    assert grown.volume_difference_ml == pytest.approx(0.016)
    assert grown.volume_difference_percent == pytest.approx(25)
    assert shrunk.volume_difference_ml == pytest.approx(-0.016)
    assert shrunk.volume_difference_percent == pytest.approx(-25)


def test_what_is_predicted_where_there_is_none() -> None:
    truth = np.zeros((10, 10, 10), np.uint8)
    prediction = truth.copy()
    prediction[2:6, 2:6, 2:6] = Label.ET
    old, new = (score_case(prediction, truth, ISO, profile)["ET"] for profile in (BRATS, LESIONS))
    assert (old.sensitivity, new.sensitivity) == (1, 0)
    assert (old.hd95, new.hd95) == (373.12866, 374)
    assert old.volume_difference_percent is None
    assert new.lesions is not None
    assert (new.lesions.dice, new.lesions.false_positives) == (0, 1)
    nothing = score_case(truth, truth, ISO, LESIONS)["ET"]
    assert (nothing.dice, nothing.hd95, nothing.nsd, nothing.sensitivity) == (1, 0, 1, 1)
    assert nothing.volume_difference_percent == 0


def test_lesions_are_scored_in_regions_where_the_profile_has_them() -> None:
    truth = np.zeros((24, 10, 10), np.uint8)
    truth[2:8, 2:8, 2:8] = Label.ED
    truth[4:6, 4:6, 4:6] = Label.NCR
    truth[16:22, 2:8, 2:8] = Label.ET
    half = truth.copy()
    half[16:] = Label.BACKGROUND
    assert all(one.lesions is None for one in score_case(half, truth, ISO, BRATS).values())
    scores = score_case(half, truth, ISO, LESIONS)
    for name, one in scores.items():
        assert tuple(one.figures()) == ((*METRICS, *LESION_METRICS) if name in REGIONS else METRICS)
    whole = scores["WT"].figures()
    assert [whole[name] for name in LESION_METRICS] == [0.5, 187, 2, 1, 1, 0]
    # The core of 8 mm3 is dropped, and the other is missed.
    core = scores["TC"].figures()
    assert [core[name] for name in LESION_METRICS] == [0, 374, 1, 0, 1, 0]


def test_both_profiles_agree_on_whole_volumes_that_are_not_empty() -> None:
    truth = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.uint8)
    prediction = np.random.default_rng(1).integers(0, 4, (9, 8, 7)).astype(np.uint8)
    old, new = (score_case(prediction, truth, ISO, profile) for profile in (BRATS, LESIONS))
    for name in SCORED:
        assert replace(new[name], lesions=None) == old[name]


def test_one_transform_of_each_surface_serves_hd95_and_nsd() -> None:
    a, b = ball(6, (21, 21, 21)), ball(8, (21, 21, 21))
    distances = surface_distances(a, b, ISO)
    assert distances.percentile(95) == hd95(a, b, ISO, BRATS)
    assert distances.share_within(1) == nsd(a, b, ISO, BRATS)
    assert distances.forth.size < a.sum()
    assert distances.back.size < b.sum()
