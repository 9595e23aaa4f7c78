"""The CUDA kernels, compiled for the host, against NumPy; and compiled for devices, unexecuted.

What g++ makes of `kernels.cu` runs with real barriers, with garbage in fresh and shared memory and
with guard zones around every array, its threads taking their turns forwards, backwards and
shuffled: a result that depends on their order would be a race.
"""

import math
import mmap
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime.ops
from runtime.ops import Statistics
from runtime.ops.geometry import WINDOWS, channels_of, launches_of, tiles_of, widest_store
from runtime.ops.numpy import NumpyOps
from tests import fake_cupy
from tests.cuda_shim.build import CompileError, KernelError, Library, build, why_not

Array = npt.NDArray[Any]

SOURCE = Path(runtime.ops.__file__).with_name("kernels.cu")
NUMPY = NumpyOps()
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
DTYPES = [*INTEGERS, np.float32, np.float64]
quick = settings(max_examples=25, deadline=None)

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
shapes = st.tuples(*[st.integers(1, 40)] * 3)
small = st.tuples(*[st.integers(1, 9)] * 3)


@pytest.fixture(scope="module", params=["forward", "reverse", "shuffled"])
def ops(request: pytest.FixtureRequest) -> Iterator[Any]:
    """CupyOps whose kernels run on the host."""
    with fake_cupy.installed(order=request.param, seed=5):
        from runtime.ops.cupy import CupyOps

        ops = CupyOps()
        yield ops
        ops.close()


@st.composite
def views(draw: st.DrawFn) -> tuple[Any, ...]:
    """(order, function): memory order, and how an array becomes one of the 48 orientations of one
    of its boxes.
    """
    order = draw(st.sampled_from("CF"))
    axes = draw(st.permutations(range(3)))
    steps = [draw(st.sampled_from([1, -1])) for _ in range(3)]
    cuts = [draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in range(3)]

    def view(array: Any) -> Any:
        turned = array[tuple(slice(None, None, step) for step in steps)].transpose(axes)
        box = tuple(
            slice(min(low, size - 1), max(size - high, min(low, size - 1) + 1))
            for (low, high), size in zip(cuts, turned.shape, strict=True)
        )
        return turned[box]

    return order, view


def voxels_of(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, order: str = "C"
) -> Array:
    """Values over the whole range of their dtype, a third of them 0."""
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        voxels = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    else:
        voxels = (rng.standard_normal(shape) * 1000 + 500).astype(dtype)
    voxels[rng.random(shape) < 1 / 3] = 0
    return np.asarray(voxels, order=order)


@quick
@given(shapes, views(), dtypes, seeds, st.integers(1, 3))
def test_extent_is_the_box_of_what_is_not_zero(
    ops: Any, shape: Any, layout: Any, dtype: Any, seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    order, view = layout
    images = []
    for _ in range(count):
        image = np.zeros(shape, dtype, order)
        for _ in range(rng.integers(0, 3)):
            image[tuple(rng.integers(0, shape))] = rng.integers(1, 100)
        images.append(image)
    found = ops.extent([view(ops.upload(image)) for image in images])
    hits = np.argwhere(np.any([view(image) != 0 for image in images], axis=0))
    if len(hits) == 0:
        assert found is None
    else:
        assert found == tuple(
            slice(low, high + 1)
            for low, high in zip(hits.min(axis=0), hits.max(axis=0), strict=True)
        )


@quick
@given(shapes, views(), dtypes, seeds, st.booleans())
def test_statistics_are_those_of_the_formula(
    ops: Any, shape: Any, layout: Any, dtype: Any, seed: int, nonzero_only: bool
) -> None:
    order, view = layout
    image = voxels_of(np.random.default_rng(seed), shape, dtype, order)
    (found,) = ops.statistics([view(ops.upload(image))], nonzero_only)
    values = [float(value) for value in view(image).ravel() if value != 0 or not nonzero_only]
    assert found.count == len(values)
    if values:
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        scale = max(abs(value) for value in values)
        assert found.mean == pytest.approx(mean, rel=1e-13, abs=1e-13 * scale)
        assert found.std == pytest.approx(std, rel=1e-12, abs=1e-13 * scale)
    else:
        assert (found.mean, found.std) == (0.0, 0.0)


@quick
@given(shapes, st.sampled_from([np.int16, np.uint16, np.int8]), seeds, st.booleans())
def test_sums_of_short_integers_are_exact_and_know_no_dtype(
    ops: Any, shape: Any, dtype: Any, seed: int, nonzero_only: bool
) -> None:
    image = voxels_of(np.random.default_rng(seed), shape, dtype, "F")
    stored = [dtype, np.int32, np.int64, np.float32, np.float64]
    found = ops.statistics([ops.upload(image.astype(other)) for other in stored], nonzero_only)
    assert len(set(found)) == 1
    chosen = image[image != 0] if nonzero_only else image
    if chosen.size:
        assert found[0].mean == float(Fraction(int(chosen.sum(dtype=np.int64)), chosen.size))


def test_statistics_hold_far_from_zero(ops: Any) -> None:
    image = (2**30 + np.arange(20**3) % 5).astype(np.int32).reshape(20, 20, 20)
    (found,) = ops.statistics([ops.upload(image)], True)
    assert found.mean == 2**30 + 2
    assert found.std == math.sqrt(2)


def test_a_volume_of_many_blocks_has_the_same_statistics(ops: Any) -> None:
    # More voxels than one block takes, fewer rows than the grid has warps.
    image = voxels_of(np.random.default_rng(3), (3, 5, 4000), np.int16)
    (found,) = ops.statistics([ops.upload(image)], False)
    assert found == Statistics(image.size, float(image.mean()), pytest.approx(float(image.std())))


@quick
@given(shapes, views(), dtypes, seeds, st.booleans(), small)
def test_normalise_is_the_formula_rounded_once(
    ops: Any, shape: Any, layout: Any, dtype: Any, seed: int, nonzero_only: bool, extra: Any
) -> None:
    rng = np.random.default_rng(seed)
    order, view = layout
    image = voxels_of(rng, shape, dtype, order)
    source = view(ops.upload(image))
    statistics = Statistics(1, float(rng.normal() * 100), float(rng.random() + 0.1) * 50)
    target = [size + int(more) - 1 for size, more in zip(source.shape, extra, strict=True)]
    out = ops.upload(np.full((2, *target), np.nan, np.float32))
    ops.normalise(source, statistics, nonzero_only, out[1])
    padded = np.zeros(target)
    inner = tuple(slice(size) for size in source.shape)
    padded[inner] = view(image).astype(np.float64)
    expected = (padded - statistics.mean) / statistics.std
    if nonzero_only:
        expected[padded == 0] = 0
    result = ops.download(out)
    np.testing.assert_array_equal(result[1], expected.astype(np.float32))
    assert np.isnan(result[0]).all()


def starts_of(rng: np.random.Generator, n: int, shape: Any, patch: Any) -> npt.NDArray[np.int64]:
    """Starts all over, the first and last possible ones among them."""
    room = np.subtract(shape, patch)
    starts = rng.integers(0, room + 1, (n, 3))
    starts[0] = room
    starts[-1] = starts[-1] * 0 if n > 1 else starts[-1]
    return starts


def laid_out(shape: tuple[int, ...], dtype: Any, layout: str, fill: float) -> tuple[Array, Any]:
    """(memory, function): an array, and how it is seen as (n, C, x, y, z)."""
    n, channels, x, y, z = shape
    if layout == "channels last of 8":
        pitch = max(8, channels)
        return np.full((n, x, y, z, pitch), fill, dtype), lambda array: array[
            ..., :channels
        ].transpose(0, 4, 1, 2, 3)
    if layout == "channels last":
        return np.full((n, x, y, z, channels), fill, dtype), lambda array: array.transpose(
            0, 4, 1, 2, 3
        )
    if layout == "odd channels last":
        return np.full((n, x, y, z, channels + 1), fill, dtype), lambda array: array[
            ..., 1:
        ].transpose(0, 4, 1, 2, 3)
    if layout == "x fastest, backwards":
        return np.full((z, y, x, channels, n), fill, dtype), lambda array: array.T[..., ::-1, :, :]
    return np.full(shape, fill, dtype), lambda array: array


LAYOUTS = ["C", "channels last of 8", "channels last", "odd channels last", "x fastest, backwards"]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    small,
    small,
    st.integers(1, 6),
    st.sampled_from([np.float32, np.float16]),
    st.sampled_from(LAYOUTS),
    seeds,
)
def test_gather_copies_windows_into_any_layout(
    ops: Any, channels: int, patch: Any, extra: Any, n: int, dtype: Any, layout: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(np.add(patch, extra) - 1)
    volume = (rng.standard_normal((channels, *shape)) * 10.0 ** rng.integers(-8, 6)).astype(
        np.float32
    )
    starts = starts_of(rng, n, shape, patch)
    memory, view = laid_out((n, channels, *patch), dtype, layout, -7.0)
    device = ops.upload(memory)
    ops.gather(ops.upload(volume), starts, view(device))
    for window, (x, y, z) in zip(view(memory), starts, strict=True):
        with np.errstate(over="ignore"):
            window[...] = volume[:, x : x + patch[0], y : y + patch[1], z : z + patch[2]]
    # All of the memory: what lies between the windows' voxels stays as it was.
    np.testing.assert_array_equal(ops.download(device), memory)


def added(total: Array, values: Array, importance: Array, starts: Array) -> tuple[Array, int]:
    """The definition, one voxel after the other, in float32."""
    total = total.copy()
    for window, start in zip(values, starts, strict=True):
        for k, *index in np.ndindex(window.shape):
            at = (k, *np.add(index, start))
            total[at] = np.float32(
                total[at] + np.float32(window[(k, *index)] * importance[tuple(index)])
            )
    return total, int(np.count_nonzero(~np.isfinite(values)))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.integers(1, 6),
    seeds,
)
def test_accumulate_gives_the_bits_of_the_definition(
    ops: Any, classes: int, patch: Any, extra: Any, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(np.add(patch, extra) - 1)
    total = rng.random((classes, *shape), dtype=np.float32)
    values = rng.random((n, classes, *patch), dtype=np.float32)
    values[rng.random(values.shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf])
    importance = rng.random(patch, dtype=np.float32)
    starts = starts_of(rng, n, shape, patch)
    device, counter = ops.upload(total), ops.upload(np.array([5], np.uint64))
    with np.errstate(invalid="ignore"):
        expected, bad = added(total, values, importance, starts)
    ops.accumulate(device, ops.upload(values), ops.upload(importance), starts, counter)
    np.testing.assert_array_equal(ops.download(device), expected)
    assert ops.download(counter) == 5 + bad


@pytest.mark.parametrize("shape", [(37, 9, 70), (4, 20, 33)])
def test_accumulate_agrees_with_numpy_on_larger_boxes(ops: Any, shape: Any) -> None:
    rng = np.random.default_rng(1)
    patch = tuple(min(size, 33) for size in shape)
    values = rng.random((4, 4, *patch), dtype=np.float32)
    importance = rng.random(patch, dtype=np.float32)
    starts = starts_of(rng, 4, shape, patch)
    total, bad = np.zeros((4, *shape), np.float32), np.zeros(1, np.uint64)
    device, counter = ops.upload(total.copy()), ops.upload(bad.copy())
    NUMPY.accumulate(total, values, importance, starts, bad)
    ops.accumulate(device, ops.upload(values), ops.upload(importance), starts, counter)
    np.testing.assert_array_equal(ops.download(device), total)


def test_a_batch_of_more_windows_than_a_launch_takes(ops: Any) -> None:
    rng = np.random.default_rng(2)
    starts = starts_of(rng, 150, (6, 7, 8), (3, 2, 4))
    volume = rng.random((2, 6, 7, 8), dtype=np.float32)
    batch = ops.zeros((150, 2, 3, 2, 4), np.float32)
    ops.gather(ops.upload(volume), starts, batch)
    expected = np.empty((150, 2, 3, 2, 4), np.float32)
    NUMPY.gather(volume, starts, expected)
    np.testing.assert_array_equal(ops.download(batch), expected)
    importance = rng.random((3, 2, 4), dtype=np.float32)
    total, bad = np.zeros(volume.shape, np.float32), np.zeros(1, np.uint64)
    device, counter = ops.zeros(volume.shape, np.float32), ops.zeros((1,), np.uint64)
    NUMPY.accumulate(total, expected, importance, starts, bad)
    ops.accumulate(device, batch, ops.upload(importance), starts, counter)
    np.testing.assert_array_equal(ops.download(device), total)


@quick
@given(st.integers(1, 9), shapes, views(), seeds)
def test_argmax_takes_the_lowest_index_and_stops_at_nan_as_numpy_ops(
    ops: Any, classes: int, shape: Any, layout: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    order, view = layout
    file = np.full(shape, 99, np.uint8, order)
    box = view(file)
    padded = tuple(
        size + int(more) for size, more in zip(box.shape, rng.integers(0, 4, 3), strict=True)
    )
    # Few values, so that ties are common.
    total = rng.integers(0, 4, (classes, *padded)).astype(np.float32)
    total[rng.random(total.shape) < 0.05] = np.nan
    total[rng.random(total.shape) < 0.05] = np.inf
    device = ops.upload(file)
    ops.argmax(ops.upload(total), view(device))
    NUMPY.argmax(total, box)
    np.testing.assert_array_equal(ops.download(device), file)
    inner = total[(slice(None), *(slice(size) for size in box.shape))]
    known = ~np.isnan(inner).any(axis=0)
    np.testing.assert_array_equal(box[known], inner.argmax(axis=0)[known])


@quick
@given(st.integers(1, 5), small, seeds)
def test_divide_is_numpys_division(ops: Any, classes: int, shape: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = rng.standard_normal((classes, *shape)).astype(np.float32)
    weight = rng.random(shape, dtype=np.float32)
    weight[rng.random(shape) < 0.1] = 0
    device = ops.upload(total)
    ops.divide(device, ops.upload(weight))
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(ops.download(device), total / weight)


@pytest.fixture(scope="module")
def library() -> Library:
    skip_without_compiler()
    return build(SOURCE.read_text())


def skip_without_compiler() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def address(array: Array) -> bytes:
    return np.uint64(array.ctypes.data).tobytes()


def test_offsets_pass_the_range_of_32_bits(library: Library) -> None:
    """Two classes of more than 2^31 voxels each; only the pages that are touched need memory."""
    side = 1300
    try:
        memory = mmap.mmap(
            -1,
            2 * side**3 * 4,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000),
        )
    except OSError as error:
        pytest.skip(f"16 GiB of addresses are not to be had: {error}")
    total = np.frombuffer(memory, np.float32).reshape(2, side, side, side)
    rng = np.random.default_rng(0)
    patch = (3, 4, 5)
    starts = np.array([[side - 3, side - 4, side - 5]])
    values = rng.random((1, 2, *patch), dtype=np.float32)
    ones = np.ones(patch, np.float32)
    counter = np.zeros(1, np.uint64)
    ((_, windows),) = launches_of(starts, values.shape, total.shape)
    corner = total[:, -3:, -4:, -5:]
    library.launch(
        "accumulate",
        (1, 1, 3),
        (32, 8, 1),
        [
            address(total),
            channels_of(total).tobytes(),
            address(values),
            address(ones),
            windows.tobytes(),
            address(counter),
        ],
    )
    np.testing.assert_array_equal(corner, values[0])
    batch = np.zeros_like(values)
    geometry = np.zeros((), np.dtype([("shape", np.int32, 5), ("stride", np.int64, 5)], align=True))
    geometry["shape"] = batch.shape
    geometry["stride"] = np.array(batch.strides) // 4
    library.launch(
        "gather_float32",
        (1, 3, 1),
        (256, 1, 1),
        [
            address(total),
            channels_of(total).tobytes(),
            windows.tobytes(),
            address(batch),
            geometry.tobytes(),
        ],
    )
    np.testing.assert_array_equal(batch, values)
    del total, corner
    memory.close()


def test_the_structs_of_both_sides_have_one_layout(library: Library) -> None:
    parameters = library.kernels["accumulate"].parameters
    sizes = {parameter.type: parameter.size for parameter in parameters if not parameter.pointer}
    assert sizes == {"Channels": 16, "Windows": WINDOWS.itemsize}


@pytest.mark.parametrize(
    ("axes", "expected"),
    # File axis 0 is the fastest one; the network's arrays always run along z.
    [
        ((0, 1, 2), (0, False)),
        ((0, 2, 1), (0, False)),
        ((1, 0, 2), (1, False)),
        ((2, 0, 1), (1, False)),
        ((1, 2, 0), (1, True)),
        ((2, 1, 0), (1, True)),
    ],
)
@pytest.mark.parametrize("step", [1, -1])
def test_tiles_span_the_axes_that_are_fastest_on_either_side(
    axes: tuple[int, ...], expected: tuple[int, bool], step: int
) -> None:
    file = np.zeros((6, 5, 4), np.int16, order="F")
    assert tiles_of(file[::step, ::-1].transpose(axes)) == expected


def test_channels_that_lie_side_by_side_are_stored_at_once() -> None:
    class Device(np.ndarray[Any, Any]):
        """An array whose memory has an address, as a CUDA array's has."""

        pointer = 512

        @property
        def data(self) -> Any:
            return SimpleNamespace(ptr=self.pointer)

    def width(shape: tuple[int, ...], channels: int, dtype: Any, pointer: int = 512) -> int:
        seen = np.zeros(shape, dtype).view(Device)[..., :channels].transpose(0, 4, 1, 2, 3)
        seen.pointer = pointer
        return widest_store(seen)

    assert width((2, 3, 4, 5, 8), 4, np.float16) == 8
    assert width((2, 3, 4, 5, 8), 8, np.float16) == 16
    assert width((2, 3, 4, 5, 4), 4, np.float32) == 16
    assert width((2, 3, 4, 5, 4), 2, np.float32) == 8
    # Three channels, a pitch of five, and an address between two stores.
    assert width((2, 3, 4, 5, 8), 3, np.float16) == 0
    assert width((2, 3, 4, 5, 5), 4, np.float16) == 0
    assert width((2, 3, 4, 5, 8), 4, np.float16, pointer=516) == 0


def floats_around_halves() -> Array:
    """Every float16, what lies between two of them, and their neighbours in float32."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    between = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    edge = np.array([65519.996, 65520.0, 1e30, np.inf, np.nan, 1e-30, 0.0], np.float32)
    near = [np.nextafter(between, np.float32(sign * np.inf)) for sign in (-1, 1)]
    every = np.concatenate([halves, between, *near, edge, -edge])
    return every[: len(every) // 9 * 9]


def test_the_shims_float16_is_numpys(ops: Any) -> None:
    values = floats_around_halves().reshape(1, 1, 9, -1)
    out = ops.zeros((1, *values.shape), np.float16)
    ops.gather(ops.upload(values), np.zeros((1, 3), np.int64), out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(ops.download(out)[0], values.astype(np.float16))


PROBES = """
extern "C" __global__ void divergent(float* out) {
    __shared__ float shared[64];
    shared[threadIdx.x] = 1.0f;
    if (threadIdx.x < 3) return;
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x];
}
extern "C" __global__ void crashing(int* out, int how) {
    __shared__ int shared[4];
    if (how == 0) out[1LL << 40] = 1;
    if (how == 1) shared[threadIdx.x - how + 5] = 1;
    if (how == 2) out[0] = 2147483647 + static_cast<int>(threadIdx.x) + how;
    if (how == 3) *reinterpret_cast<uint4*>(out + 1) = uint4{1, 2, 3, 4};
    if (how != 1) out[0] = shared[0];
}
extern "C" __global__ void racy(int* out) { out[0] = static_cast<int>(threadIdx.x); }
extern "C" __global__ void turned(int* out, int barrier) {
    __shared__ int shared[64];
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (barrier) __syncthreads();
    out[threadIdx.x] = shared[63 - threadIdx.x];
}
"""


@pytest.fixture(scope="module")
def probes() -> Library:
    skip_without_compiler()
    return build(PROBES)


def test_a_barrier_that_some_threads_miss_is_an_error(probes: Library) -> None:
    out = np.zeros(64, np.float32)
    with pytest.raises(KernelError, match="61 of 64 threads wait"):
        probes.launch("divergent", (1, 1, 1), (64, 1, 1), [address(out)])
    # And the next launch starts afresh.
    counted = np.zeros(64, np.int32)
    arguments = [address(counted), np.int32(1).tobytes()]
    probes.launch("turned", (1, 1, 1), (64, 1, 1), arguments)
    np.testing.assert_array_equal(counted, np.arange(64)[::-1])


@pytest.mark.parametrize("how", range(4))
def test_a_crash_names_its_thread_and_leaves_the_process_alive(probes: Library, how: int) -> None:
    out = np.zeros(8, np.int32)
    arguments = [address(out), np.int32(how).tobytes()]
    with pytest.raises(KernelError, match="crashing: block 0,0,0, thread 0,0,0 did what"):
        probes.launch("crashing", (1, 1, 1), (64, 1, 1), arguments)


def test_a_race_shows_in_another_order(probes: Library) -> None:
    found = set()
    for order, seed in [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]:
        out = np.zeros(1, np.int32)
        probes.launch("racy", (1, 1, 1), (64, 1, 1), [address(out)], order, seed)
        found.add(int(out[0]))
    assert {63, 0} < found


def test_a_missing_barrier_shows_as_garbage(probes: Library) -> None:
    out = np.zeros(64, np.int32)
    arguments = [address(out), np.int32(0).tobytes()]
    probes.launch("turned", (1, 1, 1), (64, 1, 1), arguments)
    assert (out[:32] == -1).all()


def test_what_g_plus_plus_refuses_is_said() -> None:
    skip_without_compiler()
    with pytest.raises(CompileError, match="nonsense"):
        build('extern "C" __global__ void f(int* out) { nonsense(out); }')


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_nvcc_compiles_without_warnings_and_without_local_memory(arch: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc to compile the kernels with")
    done = subprocess.run(
        [
            *(nvcc, "-std=c++17", f"-arch={arch}", "-cubin", "-Werror", "all-warnings"),
            *("-Xptxas", "-v", "-o", str(tmp_path / "kernels.cubin"), str(SOURCE)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames = [line.strip() for line in done.stderr.splitlines() if "stack frame" in line]
    assert len(frames) == 4 * len(DTYPES) + 8
    assert set(frames) == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}


NVRTC = """
import sys
from cupy.cuda import nvrtc

source, arch = open(sys.argv[1]).read(), sys.argv[2]
try:
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
except (RuntimeError, ImportError, OSError) as error:
    sys.exit(f"does not load: {str(error).splitlines()[0]}")
nvrtc.compileProgram(program, ("-std=c++17", f"-arch={arch}"))
print("log:", nvrtc.getProgramLog(program).strip("\\0\\n "), len(nvrtc.getCUBIN(program)) > 0)
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_nvrtc_compiles_without_any_header(arch: str) -> None:
    # In a process of its own: here, cupy may be the fake.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NVRTC, str(SOURCE), arch],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'cupy'" in done.stderr:
        pytest.skip("cupy is not installed")
    if "does not load" in done.stderr:
        pytest.skip(f"NVRTC {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "log:  True\n"), done.stderr
