"""What threads and the cache must not change: no bit of a result, whatever the number of threads
and the layout; sums of short integers are exact; no thread outlives its ops.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.ops import Statistics
from runtime.ops.moments import statistics_of
from runtime.ops.numpy import NumpyOps
from runtime.windows import importance_map

Array = npt.NDArray[Any]

# Sizes that no part divides, planes of more than one piece; then less than there are threads.
SHAPES = [(37, 150, 61), (2, 1, 3)]
DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"]


def stored(rng: np.random.Generator, shape: Any, dtype: str, layout: str) -> Array:
    """An (X, Y, Z) view of values over the whole range of int8 or more, a third of them 0."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        voxels = (rng.standard_normal(shape) * 300).astype(kind)
    else:
        info = np.iinfo("int16" if kind.itemsize > 2 else kind)
        voxels = rng.integers(info.min, info.max, shape, kind, endpoint=True)
    voxels[rng.random(shape) < 1 / 3] = 0
    if layout == "turned":
        return np.asarray(voxels.transpose(1, 2, 0)[::-1], order="C")[::-1].transpose(2, 0, 1)
    return np.asarray(voxels, order=layout)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(params=[1, 2, 3, 5])
def ops(request: pytest.FixtureRequest) -> Any:
    ops = NumpyOps(request.param)
    yield ops
    ops.close()


@pytest.mark.parametrize("layout", ["C", "F", "turned"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_voxels_are_normalised_to_the_bit(
    ops: NumpyOps, rng: np.random.Generator, dtype: str, shape: Any, layout: str
) -> None:
    voxels = stored(rng, shape, dtype, layout)
    statistics = Statistics(7, 3.7, 11.3)
    for nonzero_only in (True, False):
        out = np.full((shape[0] + 1, *shape[1:]), np.nan, np.float32)
        ops.normalise(voxels, statistics, nonzero_only, out)
        padded = np.zeros(out.shape)
        padded[:-1] = voxels
        expected = (padded - 3.7) / 11.3
        if nonzero_only:
            expected[padded == 0] = 0
        np.testing.assert_array_equal(out, expected.astype(np.float32))


@pytest.mark.parametrize("layout", ["C", "F", "turned"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_know_no_threads_no_layout_and_no_dtype(
    ops: NumpyOps, rng: np.random.Generator, dtype: str, layout: str
) -> None:
    voxels = stored(rng, SHAPES[0], dtype, layout)
    for nonzero_only in (True, False):
        found = ops.statistics([voxels, voxels.astype(np.float64), voxels], nonzero_only)
        assert found == [statistics_of(np.ascontiguousarray(voxels), nonzero_only)] * 3
        values = voxels[voxels != 0] if nonzero_only else voxels.ravel()
        assert found[0].count == values.size
        if voxels.dtype.kind != "f":
            whole = [int(value) for value in values.tolist()]
            mean = Fraction(sum(whole), len(whole))
            variance = Fraction(sum(value * value for value in whole), len(whole)) - mean**2
            assert found[0].mean == float(mean)
            assert found[0].std == math.sqrt(variance)
        else:
            exact = values.astype(np.longdouble)
            assert found[0].mean == pytest.approx(float(exact.mean()), rel=1e-12)
            assert found[0].std == pytest.approx(float(exact.std()), rel=1e-12)


@pytest.mark.parametrize("value", [65535.0, 65536.0, 0.1, -1e9 - 0.5])
def test_a_constant_has_no_deviation(value: float) -> None:
    voxels = np.full((5, 90, 101), value)
    voxels[0] = 0
    found = statistics_of(voxels, True)
    assert found.count == 4 * 90 * 101
    assert found.mean == pytest.approx(value, rel=1e-15)
    assert found.std <= 1e-7 * abs(value)


def test_one_voxel_that_is_no_short_integer_is_not_rounded() -> None:
    voxels = np.ones((3, 100, 100), np.float32)
    voxels[-1, -1, -1] = 2.5
    found = statistics_of(voxels, False)
    assert found.mean == pytest.approx(1 + 1.5 / 30_000, rel=1e-14)
    assert found.std == pytest.approx(math.sqrt(1.5**2 / 30_000 * (1 - 1 / 30_000)), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_windows_are_gathered_whole(
    ops: NumpyOps, rng: np.random.Generator, dtype: Any, channels_last: bool
) -> None:
    volume = rng.random((3, 20, 19, 18), np.float32)
    starts = np.array([[0, 0, 0], [7, 3, 11], [3, 12, 1]])
    out = np.zeros((3, 3, 13, 7, 5), dtype)
    if channels_last:
        out = np.moveaxis(np.zeros((3, 13, 7, 5, 3), dtype), -1, 1)
    ops.gather(volume, starts, out)
    for window, (x, y, z) in zip(out, starts, strict=True):
        expected = volume[:, x : x + 13, y : y + 7, z : z + 5].astype(dtype)
        np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("classes", [1, 4])
def test_windows_that_overlap_are_added_in_their_order(
    ops: NumpyOps, rng: np.random.Generator, classes: int
) -> None:
    patch = (37, 6, 5)
    starts = np.array([[0, 0, 0], [3, 1, 2], [2, 1, 1], [0, 0, 0]])
    values = (rng.standard_normal((4, classes, *patch)) * 10.0 ** rng.integers(-3, 3)).astype("f4")
    total = rng.random((classes, 40, 8, 8), np.float32)
    expected, count = total.copy(), np.zeros(1, np.uint64)
    importance = importance_map(patch)
    for window, (x, y, z) in zip(values, starts, strict=True):
        expected[:, x : x + 37, y : y + 6, z : z + 5] += window * importance
    ops.accumulate(total, values, importance, starts, count)
    np.testing.assert_array_equal(total.view(np.uint32), expected.view(np.uint32))
    assert count[0] == 0


def test_values_that_are_not_finite_are_counted_where_they_are(ops: NumpyOps) -> None:
    patch = (37, 6, 5)
    values = np.full((2, 4, *patch), -0.25, np.float32)
    values[0, 1, 0, 0, 0], values[0, 1, 36, 5, 4] = np.nan, np.inf
    values[1, 3, 16:20, 2, 2] = -np.inf
    total, count = np.zeros((4, 37, 6, 5), np.float32), np.full(1, 2, np.uint64)
    ops.accumulate(total, values, importance_map(patch), np.zeros((2, 3), np.int64), count)
    assert count[0] == 2 + 6
    assert np.count_nonzero(~np.isfinite(total)) == 6


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_largest_class_wins_and_the_lower_of_two(
    ops: NumpyOps, rng: np.random.Generator, order: Any
) -> None:
    total = rng.integers(-3, 4, (4, 9, 35, 7)).astype(np.float32)
    out = np.full((8, 34, 7), 9, np.uint8, order)
    ops.argmax(total, out)
    # NumPy's takes the first of equals.
    np.testing.assert_array_equal(out, total.argmax(axis=0)[:8, :34])


def test_an_error_in_any_part_is_told() -> None:
    ops = NumpyOps(2)
    for bad in (0, 1):

        def work(first: int, last: int, bad: int = bad) -> int:
            if first == bad:
                raise MemoryError(str(first))
            return first

        with pytest.raises(MemoryError, match=str(bad)):
            ops._shared(2, work)
    assert ops._shared(2, lambda first, last: (first, last)) == [(0, 1), (1, 2)]
    ops.close()


def test_threads_end_with_their_ops() -> None:
    before = threading.active_count()
    voxels = np.ones((4, 4, 4), np.int16)
    alone, three = NumpyOps(), NumpyOps(3)
    alone.extent([voxels])
    assert threading.active_count() == before
    for _ in range(20):
        three.extent([voxels])
    assert before < threading.active_count() <= before + 2
    three.close()
    three.close()
    assert threading.active_count() == before
    assert three.extent([voxels]) == (slice(0, 4),) * 3
    three.close()


def test_threads_are_shared_by_all_that_call() -> None:
    """As a cohort's readers and writers do; each has its own result."""
    before = threading.active_count()
    ops, rng = NumpyOps(3), np.random.default_rng(0)
    totals = [rng.integers(-3, 4, (4, 9, 35, 7)).astype(np.float32) for _ in range(64)]
    most = 0

    def largest(total: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        nonlocal most
        out = np.empty(total.shape[1:], np.uint8)
        ops.argmax(total, out)
        most = max(most, threading.active_count())
        return out

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(largest, totals))
    for total, out in zip(totals, found, strict=True):
        np.testing.assert_array_equal(out, total.argmax(axis=0))
    assert most <= before + 8 + 2
    ops.close()
