"""Windows cover every voxel where the formula says, and stitching gives back what went in."""

import itertools
import warnings
from fractions import Fraction
from math import ceil, exp
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.model_card import Shape3
from runtime.ops.numpy import NumpyOps
from runtime.windows import (
    Placement,
    Stitcher,
    WindowPlan,
    importance_map,
    plan_windows,
    stride_of,
)

quick = settings(max_examples=60, deadline=None)

sizes = st.tuples(*[st.integers(1, 40)] * 3)
extras = st.tuples(*[st.integers(0, 70)] * 3)
overlaps = st.floats(0, 0.99) | st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.75, 0.9])
placements = st.sampled_from(["fitted", "stride"])


def grown(patch: Shape3, extra: Shape3) -> Shape3:
    x, y, z = (size + more for size, more in zip(patch, extra, strict=True))
    return (x, y, z)


def monai_utils() -> Any:
    """MONAI, whose import warns about everything under the sun."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.data.utils", reason="MONAI is the truth of this test")


def brute_starts(length: int, size: int, overlap: float, placement: Placement) -> list[int]:
    """The formula of the design, in exact fractions."""
    if length <= size:
        return [0]
    step = max(1, int(size * (1 - overlap)))
    count = ceil(Fraction(length - size, step)) + 1
    if placement == "fitted":
        return [round(Fraction(i * (length - size), count - 1)) for i in range(count)]
    starts = [i * step for i in range(count - 1)]
    return [*starts, length - size]


@quick
@given(sizes, extras, overlaps, placements)
def test_starts_are_those_of_the_formula(
    patch: Shape3, extra: Shape3, overlap: float, placement: Placement
) -> None:
    shape = grown(
        patch, tuple(min(more, 3 * size) for more, size in zip(extra, patch, strict=True))
    )
    steps = stride_of(patch, overlap)
    if np.prod([(b - a) / s + 2 for a, b, s in zip(patch, shape, steps, strict=True)]) > 3e4:
        return
    plan = plan_windows(shape, patch, overlap, placement)
    axes = [
        brute_starts(length, size, overlap, placement)
        for length, size in zip(shape, patch, strict=True)
    ]
    assert plan.starts.tolist() == [list(start) for start in itertools.product(*axes)]
    assert len(plan) == len(axes[0]) * len(axes[1]) * len(axes[2])
    assert plan.stride == tuple(max(1, int(size * (1 - overlap))) for size in patch)


@quick
@given(
    st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(0, 12)] * 3), overlaps, placements
)
def test_every_voxel_is_covered_and_none_outside(
    patch: Shape3, extra: Shape3, overlap: float, placement: Placement
) -> None:
    shape = grown(patch, extra)
    covered = np.zeros(shape, np.int64)
    plan = plan_windows(shape, patch, overlap, placement)
    for x, y, z in plan.starts:
        window = covered[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
        assert window.shape == patch
        window += 1
    assert covered.min() >= 1
    # The first and the last window are flush with the ends.
    np.testing.assert_array_equal(plan.starts.min(axis=0), [0, 0, 0])
    np.testing.assert_array_equal(plan.starts.max(axis=0), np.subtract(shape, patch))
    assert len(np.unique(plan.starts, axis=0)) == len(plan)


def test_a_brats_box_is_covered_as_worked_out_by_hand() -> None:
    # 140 = 128 + 12: two windows; 170: ceil(42 / 64) + 1 = 2; 150 with 64: ceil(86 / 32) + 1 = 4.
    plan = plan_windows((140, 170, 150), (128, 128, 64), 0.5)
    assert [sorted(set(axis)) for axis in plan.starts.T.tolist()] == [
        [0, 12],
        [0, 42],
        [0, 29, 57, 86],  # 28.67, 57.33
    ]
    flush = plan_windows((140, 170, 150), (128, 128, 64), 0.5, "stride")
    assert sorted(set(flush.starts[:, 2].tolist())) == [0, 32, 64, 86]


def test_fitted_starts_round_half_to_even() -> None:
    # 5 / 2 = 2.5 -> 2; 7 / 2 = 3.5 -> 4; 14 / 4 = 3.5, 7, 10.5; no halves in 6 / 3.
    for room, step, expected in (
        (5, 3, [0, 2, 5]),
        (7, 4, [0, 4, 7]),
        (14, 4, [0, 4, 7, 10, 14]),
        (6, 2, [0, 2, 4, 6]),
    ):
        plan = plan_windows((8 + room, 8, 8), (8, 8, 8), (step, 8, 8))
        assert plan.starts[:, 0].tolist() == expected
    # 10 / 4 = 2.5, 5, 7.5.
    plan = plan_windows((18, 8, 8), (8, 8, 8), (3, 8, 8))
    assert plan.starts[:, 0].tolist() == [0, 2, 5, 8, 10]


@quick
@given(st.tuples(*[st.integers(1, 24)] * 3), st.tuples(*[st.integers(0, 40)] * 3), overlaps)
def test_stride_placement_is_monais(patch: Shape3, extra: Shape3, overlap: float) -> None:
    utils = monai_utils()
    shape = grown(
        patch, tuple(min(more, 2 * size) for more, size in zip(extra, patch, strict=True))
    )
    interval = tuple(max(1, int(size * (1 - overlap))) for size in patch)
    if np.prod([(b - a) / s + 2 for a, b, s in zip(patch, shape, interval, strict=True)]) > 3e4:
        return
    theirs = utils.dense_patch_slices(shape, patch, interval)
    plan = plan_windows(shape, patch, overlap, "stride")
    assert plan.starts.tolist() == [[part.start for part in window] for window in theirs]
    by_voxels = plan_windows(shape, patch, interval, "stride")
    np.testing.assert_array_equal(by_voxels.starts, plan.starts)


@pytest.mark.parametrize(
    ("overlap", "placement", "where"),
    [
        (1.0, "fitted", "--overlap"),
        (-0.1, "fitted", "--overlap"),
        (float("nan"), "fitted", "--overlap"),
        ((0, 4, 4), "fitted", "--stride"),
        ((4, 9, 4), "stride", "--stride"),
        (0.5, "even", "--placement"),
    ],
)
def test_unusable_options_are_refused(overlap: Any, placement: Any, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_windows((16, 16, 16), (8, 8, 8), overlap, placement)
    assert caught.value.where == where


def test_a_volume_smaller_than_the_patch_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="smaller than the patch"):
        plan_windows((16, 7, 16), (8, 8, 8))


@pytest.mark.parametrize("patch", [(128, 128, 64), (32, 48, 16), (5, 8, 3), (1, 2, 31)])
def test_importance_is_monais(patch: Shape3) -> None:
    utils = monai_utils()
    theirs = utils.compute_importance_map(patch, mode="gaussian", sigma_scale=0.125)
    np.testing.assert_allclose(importance_map(patch), theirs.numpy(), atol=1e-6, rtol=0)


def test_importance_is_the_gaussian_of_the_design() -> None:
    weights = importance_map((9, 8, 3))
    assert weights[4, 3, 1] == pytest.approx(exp(-0.5 * (0.5 / 1) ** 2), abs=1e-6)
    assert weights[4, 4, 1] == weights[4, 3, 1]
    assert importance_map((9, 7, 3))[4, 3, 1] == 1.0
    assert weights[0, 0, 0] == np.float32(1e-3)
    assert weights[3, 3, 1] == pytest.approx(
        exp(-0.5 * (1 / 1.125) ** 2) * exp(-0.5 * 0.25), abs=1e-6
    )
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0, 0] = 1


def brute_stitch(
    plan: WindowPlan, windows: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Blend in float64, with weights worked out voxel by voxel."""
    weights = np.empty(plan.patch)
    for index in np.ndindex(*plan.patch):
        weights[index] = max(
            1e-3,
            exp(
                -sum(
                    (i - (size - 1) / 2) ** 2 / (2 * (0.125 * size) ** 2)
                    for i, size in zip(index, plan.patch, strict=True)
                )
            ),
        )
    total = np.zeros((windows.shape[1], *plan.shape))
    norm = np.zeros(plan.shape)
    for window, start in zip(windows, plan.starts, strict=True):
        at = tuple(slice(a, a + size) for a, size in zip(start, plan.patch, strict=True))
        total[(slice(None), *at)] += weights * window
        norm[at] += weights
    return total / norm, total


def stitched(plan: WindowPlan, windows: npt.NDArray[np.float32], batch: int = 1) -> Stitcher:
    stitcher = Stitcher(plan, windows.shape[1], NumpyOps())
    for first in range(0, len(plan), batch):
        last = min(first + batch, len(plan))
        stitcher.add(first, last, windows[first:last])
    return stitcher


def labels_of(stitcher: Stitcher, plan: WindowPlan) -> npt.NDArray[np.uint8]:
    labels = np.full(plan.shape, 9, np.uint8)
    stitcher.labels(labels)
    return labels


def cut(field: npt.NDArray[np.float32], plan: WindowPlan) -> npt.NDArray[np.float32]:
    return np.stack(
        [
            field[(slice(None), *(slice(a, a + p) for a, p in zip(start, plan.patch, strict=True)))]
            for start in plan.starts
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 10)] * 3),
    st.tuples(*[st.integers(0, 9)] * 3),
    st.floats(0, 0.85),
    placements,
    st.floats(2**-10, 1, width=32),
)
def test_a_constant_field_stays_constant(
    patch: Shape3, extra: Shape3, overlap: float, placement: Placement, value: float
) -> None:
    plan = plan_windows(grown(patch, extra), patch, overlap, placement)
    if len(plan) > 1000:
        return
    windows = np.full((1, 2, *patch), value, np.float32)
    windows[:, 1] = 1 - value
    stitcher = Stitcher(plan, 2, NumpyOps())
    for index in range(len(plan)):
        stitcher.add(index, index + 1, windows)
    result = stitcher.probabilities()
    assert result.shape == (2, *plan.shape)
    assert result.dtype == np.float32
    # Sums of at most len(plan) float32 terms, above and below the line.
    rtol = float(np.finfo(np.float32).eps) * (len(plan) + 4)
    np.testing.assert_allclose(result[0], value, rtol=rtol, atol=1e-9)
    np.testing.assert_allclose(result[1], 1 - value, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("placement", ["fitted", "stride"])
def test_a_linear_field_comes_back(placement: Placement) -> None:
    plan = plan_windows((13, 17, 9), (8, 6, 5), 0.4, placement)
    x, y, z = np.meshgrid(*(np.arange(size) for size in plan.shape), indexing="ij")
    field = np.stack([0.01 * x + 0.002 * y, 0.03 * z - 0.001 * x]).astype(np.float32)
    result = stitched(plan, cut(field, plan)).probabilities()
    np.testing.assert_allclose(result, field, atol=1e-6)


@pytest.mark.parametrize("placement", ["fitted", "stride"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_windows_that_disagree_are_blended_by_importance(
    placement: Placement, overlap: float, rng: np.random.Generator
) -> None:
    plan = plan_windows((13, 11, 9), (6, 5, 4), overlap, placement)
    windows = rng.dirichlet(np.ones(4), (len(plan), *plan.patch)).astype(np.float32)
    windows = np.ascontiguousarray(np.moveaxis(windows, -1, 1))
    expected, total = brute_stitch(plan, windows)
    stitcher = stitched(plan, windows, batch=3)
    labels = labels_of(stitcher, plan)
    # Where two classes are within rounding either may win; random fields have next to none.
    second, first = np.sort(total, axis=0)[-2:]
    clear = first - second > 1e-5 * first
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected.argmax(axis=0)[clear])
    np.testing.assert_allclose(stitcher.probabilities(), expected, atol=1e-6)


def test_two_windows_worked_out_by_hand() -> None:
    # Patch 4 along x, windows at 0 and 2, the first says 1, the second says 0.
    plan = plan_windows((6, 1, 1), (4, 1, 1), 0.5)
    windows = np.array([1, 0], np.float32).reshape(2, 1, 1, 1, 1) * np.ones((1, 1, 4, 1, 1), "f4")
    inner, outer = exp(-0.5), exp(-4.5)  # half a voxel and one and a half, sigma half a voxel
    share = inner / (inner + outer)
    result = stitched(plan, windows).probabilities()[0, :, 0, 0]
    np.testing.assert_allclose(result, [1, 1, share, 1 - share, 0, 0], atol=1e-6)


def test_one_hot_labels_come_back_voxel_for_voxel(rng: np.random.Generator) -> None:
    plan = plan_windows((13, 11, 9), (6, 5, 4), 0.5)
    truth = rng.integers(0, 4, plan.shape)
    field = (np.arange(4)[:, None, None, None] == truth).astype(np.float32)
    stitcher = stitched(plan, cut(field, plan))
    np.testing.assert_array_equal(labels_of(stitcher, plan), truth)
    np.testing.assert_allclose(stitcher.probabilities(), field, atol=1e-6)


def test_a_tie_goes_to_the_lower_label() -> None:
    plan = plan_windows((2, 1, 1), (2, 1, 1))
    windows = np.array([[0.2, 0.4, 0.4, 0.0], [0.25, 0.25, 0.25, 0.25]], np.float32)
    stitcher = stitched(plan, windows.T.reshape(1, 4, 2, 1, 1).copy())
    assert labels_of(stitcher, plan).ravel().tolist() == [1, 0]


def test_batches_add_up_to_the_same_bits(rng: np.random.Generator) -> None:
    plan = plan_windows((13, 11, 9), (6, 5, 4), 0.5)
    windows = rng.random((len(plan), 4, *plan.patch), np.float32)
    single = stitched(plan, windows, 1).probabilities()
    for batch in (2, 5, len(plan)):
        np.testing.assert_array_equal(stitched(plan, windows, batch).probabilities(), single)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_seen(bad: float) -> None:
    plan = plan_windows((9, 8, 8), (8, 8, 8))
    windows = np.full((len(plan), 4, *plan.patch), 0.25, np.float32)
    assert stitched(plan, windows).count_non_finite() == 0
    windows[1, 2, 7, 0, 0] = bad
    windows[0, 1, 3:5, 0, 1] = bad
    assert stitched(plan, windows).count_non_finite() == 3
    # Large and yet finite: their sum is not, which is no reason to count anything.
    windows[:] = 3e38
    assert stitched(plan, windows).count_non_finite() == 0
