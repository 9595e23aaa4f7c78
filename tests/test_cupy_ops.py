"""One suite for every `ArrayOps`; then what only a device can get wrong: order, waiting, memory.

"fake" is `CupyOps` on tests/fake_cupy.py, whose kernels run on the host and whose streams do
nothing until somebody waits; "cuda" is the real thing.
"""

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.backends.driver import cuda_devices
from runtime.errors import BackendUnavailableError, ComputeError
from runtime.model_card import ModelCard
from runtime.nifti import Volume
from runtime.ops import ArrayOps, Statistics
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import prepare
from runtime.windows import Stitcher, importance_map, plan_windows
from tests import fake_cupy
from tests.fake_cupy import FakeCuda

Array = npt.NDArray[Any]

MIB = 1 << 20


@pytest.fixture(params=["numpy", "threads", "fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def ops(request: pytest.FixtureRequest) -> Iterator[ArrayOps]:
    if request.param == "numpy":
        yield NumpyOps()
    elif request.param == "threads":
        ops = NumpyOps(3)
        yield ops
        ops.close()
    elif request.param == "fake":
        with fake_cupy.installed():
            from runtime.ops.cupy import CupyOps

            ops = CupyOps()
            yield ops
            ops.close()
    else:
        if cuda_devices() == 0:
            pytest.skip("no CUDA device")
        pytest.importorskip("cupy", reason="cupy is not installed")
        from runtime.ops.cupy import CupyOps

        ops = CupyOps()
        yield ops
        ops.close()


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cupy.installed() as cuda:
        yield cuda


@pytest.fixture
def device_ops(cuda: FakeCuda) -> Iterator[Any]:
    from runtime.ops.cupy import CupyOps

    ops = CupyOps()
    cuda.log.clear()
    yield ops
    ops.close()


def oriented(array: Any, axes: tuple[int, ...], steps: tuple[int, ...]) -> Any:
    return array[tuple(slice(None, None, step) for step in steps)].transpose(axes)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64, np.uint64])
def test_what_goes_up_comes_down(ops: ArrayOps, order: Any, dtype: Any) -> None:
    array = np.asarray(np.arange(60).reshape(3, 4, 5), dtype, order=order)
    device = ops.upload(array)
    assert (device.shape, device.dtype, device.strides) == (array.shape, dtype, array.strides)
    back = ops.download(device)
    assert back.strides == array.strides
    np.testing.assert_array_equal(back, array)


def test_arrays_larger_than_all_staging_buffers_travel(ops: ArrayOps) -> None:
    array = np.random.default_rng(0).integers(0, 255, (37 * MIB // 2 + 1,), np.uint8)
    np.testing.assert_array_equal(ops.download(ops.upload(array)), array)


def test_empty_and_read_only_arrays_travel(ops: ArrayOps) -> None:
    assert ops.download(ops.upload(np.zeros((0, 3), np.int16))).shape == (0, 3)
    weights = importance_map((4, 5, 6))
    assert not weights.flags.writeable
    np.testing.assert_array_equal(ops.download(ops.upload(weights)), weights)


@pytest.mark.parametrize("fortran", [False, True])
def test_zeros_are_zero_in_the_order_asked_for(ops: ArrayOps, fortran: bool) -> None:
    zeros = ops.zeros((3, 4, 5), np.uint8, fortran)
    assert zeros.flags.f_contiguous == fortran
    assert zeros.flags.c_contiguous != fortran
    np.testing.assert_array_equal(ops.download(zeros), np.zeros((3, 4, 5), np.uint8))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_every_orientation_is_read_and_written_where_it_is(
    ops: ArrayOps, axes: Any, rng: np.random.Generator
) -> None:
    for steps in itertools.product([1, -1], repeat=3):
        file = np.zeros((35, 9, 40), np.int16, order="F")
        file[3:34, 2:8, 1:35] = rng.integers(-90, 900, (31, 6, 34))
        file[3, 2, 1] = file[33, 7, 34] = 7
        device = oriented(ops.upload(file), axes, steps)
        image = oriented(file, axes, steps)
        hits = np.argwhere(image)
        box = ops.extent([device])
        assert box == tuple(
            slice(low, high + 1)
            for low, high in zip(hits.min(axis=0), hits.max(axis=0), strict=True)
        )
        inner = image[box]
        chosen = inner[inner != 0].astype(np.float64)
        (found,) = ops.statistics([device[box]], True)
        assert found.count == chosen.size
        assert found.mean == chosen.sum() / chosen.size
        assert found.std == pytest.approx(chosen.std(), rel=1e-12)
        out = ops.zeros((2, *inner.shape), np.float32)
        ops.normalise(device[box], found, True, out[1])
        expected = np.where(inner != 0, (inner.astype(np.float64) - found.mean) / found.std, 0)
        np.testing.assert_array_equal(ops.download(out)[1], expected.astype(np.float32))
        labels = ops.zeros(file.shape, np.uint8, fortran=True)
        total = rng.random((4, *inner.shape), dtype=np.float32)
        ops.argmax(ops.upload(total), oriented(labels, axes, steps)[box])
        pasted = np.zeros(file.shape, np.uint8)
        oriented(pasted, axes, steps)[box] = total.argmax(axis=0)
        np.testing.assert_array_equal(ops.download(labels), pasted)


def test_the_extent_is_that_of_all_volumes_together(ops: ArrayOps) -> None:
    first, second = np.zeros((9, 8, 7), np.int16), np.zeros((9, 8, 7), np.float32, order="F")
    assert ops.extent([ops.upload(first), ops.upload(second)]) is None
    first[2, 3, 6], second[5, 1, 0] = 1, np.nan
    expected = (slice(2, 6), slice(1, 4), slice(0, 7))
    assert ops.extent([ops.upload(first), ops.upload(second)]) == expected


def test_statistics_of_several_volumes(ops: ArrayOps) -> None:
    zeros = np.zeros((5, 4, 3), np.int16)
    ramp = np.arange(60, dtype=np.uint16).reshape(5, 4, 3)
    halves = np.asarray(ramp, np.float32, order="F") / 2
    volumes = [ops.upload(volume) for volume in (zeros, ramp, halves)]
    # Of 1..n: the mean is (n + 1) / 2, the variance (n^2 - 1) / 12.
    std = ((59**2 - 1) / 12) ** 0.5
    assert ops.statistics(volumes, True) == [
        Statistics(0, 0.0, 0.0),
        Statistics(59, 30.0, pytest.approx(std, rel=1e-14)),
        Statistics(59, 15.0, pytest.approx(std / 2, rel=1e-14)),
    ]
    std = ((60**2 - 1) / 12) ** 0.5
    assert ops.statistics(volumes, False) == [
        Statistics(60, 0.0, 0.0),
        Statistics(60, 29.5, pytest.approx(std, rel=1e-14)),
        Statistics(60, 14.75, pytest.approx(std / 2, rel=1e-14)),
    ]


def test_statistics_of_nan_are_nan(ops: ArrayOps) -> None:
    voxels = np.ones((3, 3, 3), np.float32)
    voxels[1, 1, 1] = np.nan
    (found,) = ops.statistics([ops.upload(voxels)], True)
    assert found.count == 27
    assert np.isnan(found.mean)
    assert np.isnan(found.std)


@pytest.mark.parametrize("nonzero_only", [True, False])
def test_what_lies_beyond_a_volume_is_normalised_as_background(
    ops: ArrayOps, nonzero_only: bool
) -> None:
    voxels = np.array([[[2, 4, 0]]], np.int16)
    out = ops.upload(np.full((2, 3, 4), np.nan, np.float32))
    ops.normalise(ops.upload(voxels), Statistics(2, 3.0, 0.5), nonzero_only, out)
    expected = np.full((2, 3, 4), 0 if nonzero_only else -6, np.float32)
    expected[0, 0, :2] = -2, 2
    np.testing.assert_array_equal(ops.download(out), expected)


def test_a_case_is_prepared_alike(
    ops: ArrayOps, make_volume: Callable[..., Volume], rng: np.random.Generator
) -> None:
    card = ModelCard(name="test", patch=(16, 16, 16), divisor=2)
    images = {}
    for name in card.modalities:
        images[name] = np.zeros((20, 24, 12), np.int16)
        images[name][4:15, 3:22, 2:11] = rng.integers(0, 900, (11, 19, 9))
    # Right-anterior-superior: two axes run against the model's.
    volume = make_volume(images, np.eye(4))
    expected = prepare(volume, card, NumpyOps(), card.patch)
    found = prepare(volume, card, ops, card.patch)
    assert found.placement == expected.placement
    np.testing.assert_allclose(ops.download(found.voxels), expected.voxels, rtol=1e-6, atol=1e-7)


def test_windows_are_cut_and_stitched_alike(ops: ArrayOps, rng: np.random.Generator) -> None:
    plan = plan_windows((20, 18, 13), (8, 8, 8), 0.5)
    field = rng.random((4, *plan.shape), dtype=np.float32)
    device = ops.upload(field)
    stitcher, truth = Stitcher(plan, 4, ops), Stitcher(plan, 4, NumpyOps())
    for first in range(0, len(plan), 5):
        starts = plan.starts[first : first + 5]
        batch = ops.zeros((len(starts), 4, *plan.patch), np.float32)
        ops.gather(device, starts, batch)
        expected = np.empty(batch.shape, np.float32)
        NumpyOps().gather(field, starts, expected)
        np.testing.assert_array_equal(ops.download(batch), expected)
        stitcher.add(first, first + len(starts), batch)
        truth.add(first, first + len(starts), expected)
    labels = ops.zeros(plan.shape, np.uint8)
    stitcher.labels(labels)
    np.testing.assert_array_equal(ops.download(labels), field.argmax(axis=0))
    blended = ops.download(stitcher.probabilities())
    np.testing.assert_array_equal(blended, truth.probabilities())
    np.testing.assert_allclose(blended, field, rtol=1e-5)
    assert stitcher.count_non_finite() == 0


def test_values_that_are_not_finite_are_counted(ops: ArrayOps) -> None:
    plan = plan_windows((6, 5, 4), (4, 4, 4), 0.5)
    windows = np.zeros((len(plan), 2, 4, 4, 4), np.float32)
    windows[0, 1, 0, 0, 0] = np.nan
    windows[1, 0, 3, 3, 3] = -np.inf
    windows[-1, 1, 2] = np.inf
    stitcher = Stitcher(plan, 2, ops)
    stitcher.add(0, len(plan), ops.upload(windows))
    assert stitcher.count_non_finite() == 18


def test_seconds_pass_between_marks(ops: ArrayOps) -> None:
    first = ops.mark()
    ops.zeros((100, 100), np.float32)
    last = ops.mark()
    assert 0 < ops.seconds(first, last) < 60


# From here on, what only a device can get wrong.


def test_nothing_waits_between_upload_and_download(cuda: FakeCuda, device_ops: Any) -> None:
    ops = device_ops
    voxels = ops.upload(np.ones((8, 8, 8), np.int16))
    out = ops.zeros((1, 8, 8, 8), np.float32)
    ops.normalise(voxels, Statistics(1, 0.5, 0.25), True, out[0])
    batch = ops.zeros((2, 1, 4, 4, 4), np.float32)
    starts = np.array([[0, 0, 0], [4, 4, 4]])
    ops.gather(out, starts, batch)
    weights, counter = ops.upload(importance_map((4, 4, 4))), ops.zeros((1,), np.uint64)
    total = ops.zeros((2, 8, 8, 8), np.float32)
    ops.accumulate(total[:1], batch, weights, starts, counter)
    labels = ops.zeros((8, 8, 8), np.uint8)
    ops.argmax(total, labels)
    ops.divide(total, ops.zeros((8, 8, 8), np.float32))
    first, last = ops.mark(), ops.mark()
    assert cuda.kinds("synchronise", "kernel") == [
        "kernel normalise_int16",
        "kernel gather_float32",
        "kernel accumulate",
        "kernel argmax",
        "kernel divide",
    ]
    # Windows are parameters of the launch: no copy but the two uploads.
    assert len(cuda.kinds("h2d")) == 2
    assert {call.stream for call in cuda.log if call.kind != "alloc"} == {ops.stream.ptr}
    # Nothing was done yet, not even the zeros.
    assert np.isnan(cuda.peek(total)).all()
    cuda.log.clear()
    result = ops.download(labels)
    assert cuda.kinds() == ["d2h", "record", "synchronise event"]
    # Class 0 got ones weighted, class 1 nothing.
    assert (result == 0).all()
    cuda.log.clear()
    ops.seconds(first, last)
    assert cuda.kinds() == []


def test_a_question_waits_once(cuda: FakeCuda, device_ops: Any) -> None:
    volumes = [device_ops.upload(np.full((4, 5, 6), i, np.int16)) for i in range(1, 5)]
    cuda.log.clear()
    device_ops.statistics(volumes, True)
    assert cuda.kinds("synchronise", "d2h", "kernel") == [
        *["kernel moments_int16", "kernel squares_int16"] * 4,
        "kernel summarise",
        "d2h",
        "synchronise event",
    ]
    cuda.log.clear()
    device_ops.extent(volumes)
    assert cuda.kinds("synchronise", "d2h", "kernel") == [
        *["kernel extent_int16"] * 4,
        "d2h",
        "synchronise event",
    ]


def test_a_source_may_change_as_soon_as_its_upload_returns(device_ops: Any) -> None:
    source = np.zeros(MIB, np.int16)
    devices = []
    for value in range(9):
        source[...] = value
        devices.append(device_ops.upload(source))
    source[...] = -1
    for value, device in enumerate(devices):
        assert (device_ops.download(device) == value).all()


def test_what_was_downloaded_stays(device_ops: Any) -> None:
    kept = [device_ops.download(device_ops.upload(np.full(7, value))) for value in range(20)]
    assert [int(array[0]) for array in kept] == list(range(20))


def test_small_uploads_wait_only_for_a_buffer_that_is_still_read(
    cuda: FakeCuda, device_ops: Any
) -> None:
    for _ in range(4):
        device_ops.upload(np.ones(10, np.float32))
    assert cuda.kinds("synchronise") == []
    device_ops.upload(np.ones(10, np.float32))
    assert cuda.kinds("synchronise") == ["synchronise event"]


def test_memory_goes_back_when_it_is_closed(cuda: FakeCuda) -> None:
    from runtime.ops.cupy import CupyOps

    ops = CupyOps()
    volume = ops.upload(np.ones((10, 10, 10), np.float32))
    free = ops.free_memory()
    assert free == cuda.memory - 4096
    ops.extent([volume])
    ops.close()
    del volume
    gc.collect()
    assert cuda.used == {0: 0}
    assert cuda.pinned == {}
    assert cuda.streams[ops.stream.ptr].done


def test_running_out_of_memory_says_what_was_asked_for() -> None:
    with fake_cupy.installed(memory=100 * MIB):
        from runtime.ops.cupy import CupyOps

        ops = CupyOps()
        kept = ops.zeros((30 * MIB,), np.uint8)
        with pytest.raises(ComputeError) as caught:
            ops.zeros((4, 20 * MIB), np.float32)
        assert str(caught.value) == (
            "cuda:0: found 70 MiB of free GPU memory, expected 320 MiB more; choose a smaller "
            "--patch or --batch, or another GPU with --device."
        )
        assert caught.value.exit_code == 8
        with pytest.raises(ComputeError, match="80 MiB more"):
            ops.upload(np.zeros(80 * MIB, np.uint8))
        # And it can go on with less.
        assert (ops.download(ops.zeros((MIB,), np.uint8)) == 0).all()
        assert (ops.download(kept) == 0).all()
        ops.close()


@pytest.mark.parametrize(("devices", "device"), [(0, 0), (1, 1), (2, 2), (1, -1)])
def test_a_device_that_is_not_there(devices: int, device: int) -> None:
    with fake_cupy.installed(devices=devices):
        from runtime.ops.cupy import CupyOps

        with pytest.raises(BackendUnavailableError, match=f"expected cuda:{device}") as caught:
            CupyOps(device)
        assert caught.value.exit_code == 4


def test_another_device_than_the_current_one() -> None:
    with fake_cupy.installed(devices=2) as cuda:
        from runtime.ops.cupy import CupyOps

        ops = CupyOps(1)
        voxels = ops.upload(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
        assert ops.extent([voxels]) == (slice(0, 2), slice(0, 3), slice(0, 4))
        assert voxels.device.id == 1
        assert cuda.device == 0
        assert set(cuda.used) == {1}
        ops.close()


def test_kernels_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("NVRTC is not here\nand more")

    with fake_cupy.installed():
        from runtime.ops.cupy import CupyOps

        monkeypatch.setattr(fake_cupy.RawModule, "compile", refuse)
        with pytest.raises(BackendUnavailableError, match=r"compile for it \(NVRTC is not here\)"):
            CupyOps()


def test_what_does_not_fit_is_refused_before_it_is_launched(device_ops: Any) -> None:
    ops = device_ops
    volume, batch = ops.zeros((2, 8, 8, 8), np.float32), ops.zeros((1, 2, 4, 4, 4), np.float32)
    for start in ([-1, 0, 0], [0, 5, 0]):
        with pytest.raises(ValueError, match="beyond the volume"):
            ops.gather(volume, np.array([start]), batch)
    with pytest.raises(ValueError, match="do not make a batch"):
        ops.gather(volume, np.zeros((2, 3), np.int64), batch)
    with pytest.raises(ValueError, match="do not fit into"):
        ops.normalise(volume[0], Statistics(1, 0, 1), True, ops.zeros((8, 8, 7), np.float32))
    with pytest.raises(ValueError, match="reach beyond"):
        ops.argmax(volume, ops.zeros((8, 8, 9), np.uint8))
    with pytest.raises(ValueError, match="do not fit"):
        ops.divide(volume, ops.zeros((8, 8, 7), np.float32))
    with pytest.raises(ValueError, match="only contiguous"):
        ops.upload(np.zeros((4, 4))[::2, ::2])
    with pytest.raises(TypeError, match="no kernel reads voxels of float16"):
        ops.extent([ops.zeros((2, 2, 2), np.float16)])
    with pytest.raises(TypeError, match="no kernel reads voxels of >i2"):
        ops.statistics([ops.upload(np.zeros((2, 2, 2), ">i2"))], True)
    with pytest.raises(TypeError, match="C-order float32"):
        ops.divide(volume[:, ::2], ops.zeros((4, 8, 8), np.float32))
    with pytest.raises(TypeError, match="uint8"):
        ops.argmax(volume, ops.zeros((8, 8, 8), np.int16))


# The fake itself: as strict as CuPy, as late as a device.


def test_the_fake_mixes_with_numpy_as_little_as_cupy(cuda: FakeCuda) -> None:
    import cupy

    array = cupy.zeros((3, 4), np.float32)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(array)
    for mix in (lambda: array + np.ones(4), lambda: np.ones(4) + array, lambda: np.add(array, 1)):
        with pytest.raises(TypeError):
            mix()
    with pytest.raises(NotImplementedError, match="kernel"):
        array[0] = 1
    assert (array.get() == 0).all()


KERNEL = """
extern "C" __global__ void fill(float* out, int count, long long offset, double value) {
    if (threadIdx.x < static_cast<unsigned>(count)) {
        out[offset + threadIdx.x] = static_cast<float>(value);
    }
}
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(4, np.float32), np.int32(4), 0, 1.0), "ndarray for a device pointer"),
        ((None, np.int32(4), 0, 1.0), "NoneType for a device pointer"),
        (("float64", np.int32(4), 0, 1.0), r"an array of float64 for float\*"),
        (("float32", 4, 0, 1.0), "int for int"),
        (("float32", np.int64(4), 0, 1.0), "int64 for int"),
        (("float32", np.int32(4), np.int32(0), 1.0), "int32 for long long"),
        (("float32", np.int32(4), 0, np.float32(1)), "float32 for double"),
        (("float32", np.int32(4), 0, 1), "int for double"),
        (("float32", np.int32(4), 0), "takes 4, not 3"),
    ],
)
def test_the_fake_takes_a_parameters_very_type_only(
    cuda: FakeCuda, arguments: tuple[Any, ...], message: str
) -> None:
    import cupy

    fill = cupy.RawModule(code=KERNEL).get_function("fill")
    array, *rest = arguments
    if isinstance(array, str):
        array = cupy.zeros(4, array)
    with pytest.raises(TypeError, match=message):
        fill((1,), (4,), (array, *rest))


def test_the_fake_works_late_and_in_order(cuda: FakeCuda) -> None:
    import cupy

    fill = cupy.RawModule(code=KERNEL).get_function("fill")
    array = cupy.empty(4, np.float32)
    stream, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    with stream:
        fill((1,), (4,), (array, np.int32(4), 0, 2.0))
    early, late = cupy.cuda.alloc_pinned_memory(16), cupy.cuda.alloc_pinned_memory(16)
    values = [np.frombuffer(memory, np.float32, 4) for memory in (early, late)]
    array.data.copy_to_host_async(early.ptr, 16, other)
    other.synchronize()
    # Nobody told the other stream to wait for the kernel.
    assert np.isnan(values[0]).all()
    other.wait_event(stream.record())
    array.data.copy_to_host_async(late.ptr, 16, other)
    assert np.isnan(values[1]).all()
    other.synchronize()
    assert (values[1] == 2).all()
    assert (cuda.at(array.data.ptr, (4,), np.float32) == 2).all()


def test_the_fake_replays_what_it_captured(cuda: FakeCuda) -> None:
    import cupy

    fill = cupy.RawModule(code=KERNEL).get_function("fill")
    array = cupy.zeros(4, np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        fill((1,), (4,), (array, np.int32(2), 1, 3.0))
        with pytest.raises(RuntimeError, match="capturing"):
            stream.synchronize()
        graph = stream.end_capture()
    stream.synchronize()
    assert array.get().tolist() == [0, 0, 0, 0]
    graph.launch(stream)
    stream.synchronize()
    assert array.get().tolist() == [0, 3, 3, 0]


def test_the_fake_notices_what_is_written_outside(cuda: FakeCuda) -> None:
    import cupy

    fill = cupy.RawModule(code=KERNEL).get_function("fill")
    array = cupy.empty(4, np.float32)
    fill((1,), (4,), (array, np.int32(4), 1, 3.0))
    with pytest.raises(fake_cupy.KernelError, match="fill wrote outside"):
        array.get()


def test_the_fake_ruins_pinned_memory_that_is_freed_too_early(cuda: FakeCuda) -> None:
    import cupy

    memory = cupy.cuda.alloc_pinned_memory(16)
    np.frombuffer(memory, np.float32, 4)[...] = 1
    array = cupy.empty(4, np.float32)
    array.data.copy_from_host_async(memory.ptr, 16)
    del memory
    gc.collect()
    assert np.isnan(array.get()).all()


def test_the_fake_goes_as_it_came() -> None:
    import sys

    before = {name for name in sys.modules if name.startswith(fake_cupy.MODULES)}
    with fake_cupy.installed():
        import cupy

        import runtime.ops.cupy

        assert cupy.__doc__ == "A fake; see tests/fake_cupy.py."
        assert runtime.ops.cupy.cupy is cupy
    assert {name for name in sys.modules if name.startswith(fake_cupy.MODULES)} == before


def test_an_error_of_cuda_is_a_sentence_and_not_a_traceback() -> None:
    with fake_cupy.installed():
        import cupy

        from runtime.ops.cupy import CupyOps

        ops = CupyOps()
        for error in (
            cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: illegal access\nmore"),
            cupy.cuda.driver.CUDADriverError("CUDA_ERROR_LAUNCH_FAILED: unspecified"),
        ):
            with pytest.raises(ComputeError) as caught, ops.here():
                raise error
            assert caught.value.exit_code == 8
            assert str(error).splitlines()[0] in str(caught.value)
            assert "\n" not in str(caught.value)


def test_trimming_waits_and_asks_the_pool_of_its_own_stream() -> None:
    with fake_cupy.installed() as cuda:
        from runtime.ops.cupy import CupyOps

        ops = CupyOps()
        array = ops.upload(np.arange(5, dtype=np.int16))
        cuda.log.clear()
        ops.trim()
        assert cuda.kinds("synchronise", "trim") == ["synchronise stream", "trim"]
        assert {call.stream for call in cuda.log if call.kind == "trim"} == {ops.stream.ptr}
        np.testing.assert_array_equal(cuda.peek(array), np.arange(5))
