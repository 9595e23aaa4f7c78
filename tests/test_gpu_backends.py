"""The GPU backends on a machine made of fakes: order, copies, memory, faults, and what may be
opened.

The network is the real graph on ONNX Runtime's CPU (tests/fake_gpu.py): a case must come out as
it does without a GPU.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from export.build import GRAPHS
from export.engine_graph import fix_input
from runtime.backends import Backend, BackendInfo, BackendOptions, Fill, Take, open_backend
from runtime.backends import open_spare as open_spare_backend
from runtime.backends.driver import Gpu
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.cli.infer import main
from runtime.engine import EnginePrecision, EngineRecord, InputLayout, Profile, read_records
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    ComputeError,
    InputError,
    NonFiniteError,
)
from runtime.labels import MODALITIES
from runtime.model_card import ModelCard, Shape3
from runtime.model_dir import CARD, ONNX_FP16, ONNX_FP32, ModelDir, sha256_of
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.windows import plan_windows
from tests.fake_cupy import CUDARuntimeError, Stream
from tests.fake_gpu import (
    GPU,
    WORKSPACE,
    EngineSpec,
    FakeGpu,
    add_engine,
    certify,
    fake_gpu,
    fake_tensorrt,
    vouch,
)

MakeVolume = Callable[..., Volume]
WriteCase = Callable[..., Path]
Floats = npt.NDArray[np.float32]
Change = Callable[[Path], object]

WINDOW = (16, 12, 8)
SHAPE = (37, 29, 21)
KIB = 1 << 10
IMPORTANCE = 4 * 16 * 12 * 8
INPUT = 4 * IMPORTANCE
"""Bytes of a window's input, 4 channels of float32 or 8 of float16, and of its probabilities."""


# Machines, models and cases


@dataclass(frozen=True)
class Kind:
    """A GPU backend and what it runs."""

    name: str
    precision: EnginePrecision
    layout: InputLayout = "linear"

    def __str__(self) -> str:
        own = f"-{self.layout}" if self.name == "trt" else ""
        return f"{self.name}-{self.precision}{own}"

    @property
    def options(self) -> BackendOptions:
        name: Any = self.name
        return BackendOptions(name, "cuda:0", self.precision, patch=WINDOW)


DHWC8 = Kind("trt", "fp16", "dhwc8")
KINDS = [Kind("trt", "fp32"), Kind("trt", "fp16"), DHWC8, Kind("ort", "fp32"), Kind("ort", "fp16")]
BOTH = [Kind("trt", "fp32"), Kind("ort", "fp32")]

of_every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
of_both_backends = pytest.mark.parametrize("kind", BOTH, ids=str)


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    """A model directory to change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "a model"))


@pytest.fixture
def model_of(copied: Path) -> Callable[[Kind], ModelDir]:
    """model_of(kind): the model directory with the engine of that kind, if it is one."""

    def made(kind: Kind) -> ModelDir:
        if kind.name == "trt":
            add_engine(copied, EngineSpec(kind.precision, kind.layout, WINDOW))
        return ModelDir.open(copied)

    return made


@contextmanager
def opened(model: ModelDir, options: BackendOptions) -> Iterator[Any]:
    backend = open_backend(model, options)
    try:
        yield backend
    finally:
        backend.close()


def but_for_the_skull(warnings: Iterable[str]) -> list[str]:
    """These volumes are so small that most of them is brain."""
    return [text for text in warnings if "is the skull on?" not in text]


def brain(seed: int = 0, shape: Shape3 = SHAPE) -> dict[str, npt.NDArray[np.int16]]:
    """Modalities of a lopsided brain that fills most of a volume."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    inside = (x > 1) & (y < shape[1] - 2) & (z > 0) & (x + 2 * y + 3 * z < sum(shape) * 1.2)
    return {
        name: (inside * (rng.integers(100, 900, shape) + 9 * x + 5 * y)).astype(np.int16)
        for name in MODALITIES
    }


class HostBackend:
    """A graph on ONNX Runtime's CPU and NumPy: what a GPU is to agree with."""

    def __init__(self, model: bytes, card: ModelCard, layout: InputLayout) -> None:
        if layout == "dhwc8":
            model = fix_input(model, Profile(WINDOW, 1, 1, 8), layout, "the graph")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._dtype: Any = np.float16 if layout == "dhwc8" else np.float32
        self.card, self.ops, self.info = card, NumpyOps(), BackendInfo("host", "cpu", "")

    def bind(self, window: Shape3, batch: int) -> None:
        self._buffer = np.zeros((1, len(self.card.modalities), *window), self._dtype)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        (given,) = self._session.get_inputs()
        for i in range(n):
            fill(i, i + 1, self._buffer)
            take(i, i + 1, self._session.run(None, {given.name: self._buffer})[0])

    def close(self) -> None:
        """Nothing to give back."""


def host_of(model: ModelDir, kind: Kind) -> HostBackend:
    return HostBackend(model.read(GRAPHS[kind.precision]), model.card, kind.layout)


def windows_through(backend: Backend, windows: Floats) -> Floats:
    """Probabilities of windows (n, C, X, Y, Z)."""
    results = np.full((len(windows), 4, *windows.shape[2:]), np.nan, np.float32)
    volume = backend.ops.upload(np.ascontiguousarray(np.concatenate(list(windows), axis=1)))
    starts = np.array([[i * windows.shape[2], 0, 0] for i in range(len(windows))])

    def fill(first: int, last: int, inputs: Any) -> None:
        backend.ops.gather(volume, starts[first:last], inputs)

    def take(first: int, last: int, probabilities: Any) -> None:
        assert np.isnan(results[first:last]).all(), "windows that were taken before"
        results[first:last] = backend.ops.download(probabilities)

    backend.run(len(windows), fill, take)
    return results


def random_windows(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, 4, *WINDOW)).astype(np.float32)


# A whole case


AFFINES = {
    "LPS": np.diag([-1.0, -1, 1, 1]),
    "RAS": np.diag([1.0, 1, 1, 1]),
    "SLA": np.array([[0.0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
}
PLANS = [
    (SegmentOptions(batch=1), "LPS", SHAPE),
    (SegmentOptions(overlap=0.0, batch=2), "RAS", SHAPE),
    (SegmentOptions(overlap=0.6, placement="stride", batch=3), "SLA", SHAPE),
    (SegmentOptions(overlap=(9, 12, 5), batch=5), "RAS", SHAPE),
    # Smaller than a window on every axis: the box is padded.
    (SegmentOptions(batch=3), "SLA", (11, 7, 14)),
]


def as_on_the_cpu(
    model: ModelDir, kind: Kind, make_volume: MakeVolume, plans: list[Any], order: str
) -> None:
    host = host_of(model, kind)
    with fake_gpu(order=order), opened(model, kind.options) as backend:
        for options, code, shape in plans:
            volume = make_volume(brain(1, shape), AFFINES[code])
            options = replace(options, patch=WINDOW, probabilities=True)
            found = Segmenter(backend, options).segment(volume)
            expected = Segmenter(host, options).segment(volume)
            np.testing.assert_array_equal(found.labels, expected.labels)
            assert found.probabilities is not None
            assert expected.probabilities is not None
            np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=2e-6)
            assert len(np.unique(found.labels)) > 2  # no flat field


@of_every_kind
def test_a_case_comes_out_as_on_the_cpu(
    model_of: Callable[[Kind], ModelDir], kind: Kind, make_volume: MakeVolume
) -> None:
    as_on_the_cpu(model_of(kind), kind, make_volume, PLANS, "forward")


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
@pytest.mark.parametrize("kind", [DHWC8, Kind("ort", "fp32")], ids=str)
def test_the_order_of_threads_does_not_matter(
    model_of: Callable[[Kind], ModelDir], kind: Kind, make_volume: MakeVolume, order: str
) -> None:
    as_on_the_cpu(model_of(kind), kind, make_volume, PLANS[2:], order)


@of_both_backends
def test_the_device_that_is_named_does_the_work(
    model_of: Callable[[Kind], ModelDir], kind: Kind
) -> None:
    model, windows = model_of(kind), random_windows(3)
    with fake_gpu(devices=2) as machine, opened(model, kind.options) as first:
        first.bind(WINDOW, 2)
        used = machine.cuda.used[0]
        with opened(model, replace(kind.options, device="cuda:1")) as second:
            assert second.info.device == "cuda:1"
            second.bind(WINDOW, 2)
            found = windows_through(second, windows)
            assert machine.cuda.used[0] == used
            assert machine.cuda.used[1] > 2 * 2 * INPUT
        np.testing.assert_array_equal(windows_through(first, windows), found)
        assert machine.cuda.used[1] == 0


# What travels, and in which order


@of_every_kind
def test_raw_voxels_go_up_once_and_only_labels_come_down(
    model_of: Callable[[Kind], ModelDir], kind: Kind, make_volume: MakeVolume
) -> None:
    volume = make_volume(brain())
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        segmenter = Segmenter(backend, SegmentOptions(patch=WINDOW, batch=3))
        for once in ([IMPORTANCE], []):
            machine.cuda.log.clear()
            segmenter.segment(volume)
            up = [call.size for call in machine.cuda.log if call.kind == "h2d"]
            down = [call.size for call in machine.cuda.log if call.kind == "d2h"]
            voxels = int(np.prod(SHAPE))
            # int16 of four modalities, and for the first case the importance map of a window.
            assert sorted(up) == sorted([*once, *[2 * voxels] * 4])
            # uint8 labels; extents, statistics and the count of values that are not finite.
            assert max(down) == voxels
            assert sum(down) - voxels < KIB
            # Everything is in order on one stream, and nothing on CUDA's default stream.
            assert {call.stream for call in machine.cuda.log if call.kind != "alloc"} == {
                backend.ops.stream.ptr
            }


@pytest.mark.parametrize("graph", [False, True], ids=["enqueued", "graph"])
@of_every_kind
def test_nothing_is_waited_for_between_first_gather_and_last_accumulate(
    model_of: Callable[[Kind], ModelDir], kind: Kind, make_volume: MakeVolume, graph: bool
) -> None:
    """Per batch one gather, one run of the network and one accumulate, in this order."""
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        machine.faults.gaps = 2 if graph else 0
        options = SegmentOptions(patch=WINDOW, overlap=0.25, batch=5)
        plan = Segmenter(backend, options).segment(make_volume(brain())).plan
        assert len(plan) % 5, "no batch is padded"
        batches = -(-len(plan) // 5)
        log = machine.cuda.kinds("kernel", "external", "graph", "synchronise")
        gather = "kernel gather_last_float16" if kind.layout == "dhwc8" else "kernel gather_float32"
        network = "graph" if graph and kind.name == "trt" else "external network"
        steps = log[log.index(gather) :]
        steps = steps[: len(steps) - steps[::-1].index("kernel accumulate")]
        assert steps == [gather, network, "kernel accumulate"] * batches


@of_every_kind
def test_a_batch_is_always_full_and_nobody_looks_at_its_padding(
    model_of: Callable[[Kind], ModelDir], kind: Kind
) -> None:
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        host = host_of(model_of(kind), kind)
        machine.faults.stale = True
        for count, batch in [(5, 3), (2, 4), (7, 2), (1, 8), (3, 3)]:
            windows = random_windows(count, seed=count)
            backend.bind(WINDOW, batch)
            machine.cuda.settle()
            machine.batches.clear()
            found = windows_through(backend, windows)
            assert machine.batches == [batch] * -(-count // batch)
            host.bind(WINDOW, 1)
            np.testing.assert_allclose(found, windows_through(host, windows), atol=1e-6)


# Memory


def allocated(machine: FakeGpu) -> "Counter[int]":
    """Sizes that were allocated since the log was cleared."""
    return Counter(call.size for call in machine.cuda.log if call.kind == "alloc")


@of_every_kind
def test_the_next_case_uses_the_buffers_of_the_one_before(
    model_of: Callable[[Kind], ModelDir], kind: Kind, make_volume: MakeVolume
) -> None:
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        segmenter = Segmenter(backend, SegmentOptions(patch=WINDOW, batch=3))
        machine.cuda.log.clear()
        segmenter.segment(make_volume(brain(0)))
        first, used, contexts = allocated(machine), machine.cuda.used[0], machine.contexts
        machine.cuda.log.clear()
        segmenter.segment(make_volume(brain(2)))
        again = allocated(machine)
        # The first case alone has input, output, workspace and the importance map.
        workspace = [3 * WORKSPACE] if kind.name == "trt" else []
        assert first - again == Counter([3 * INPUT, 3 * INPUT, *workspace, IMPORTANCE])
        assert not again - first
        assert machine.cuda.used[0] == used
        assert machine.contexts == contexts


@of_every_kind
def test_another_batch_gives_back_before_it_takes(
    model_of: Callable[[Kind], ModelDir], kind: Kind
) -> None:
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        backend.bind(WINDOW, 6)
        # Not a byte more than now: the old buffers and the new ones do not fit side by side.
        machine.cuda.memory = machine.cuda.used[0]
        for batch in (5, 6, 4, 6, 1):
            machine.cuda.log.clear()
            backend.bind(WINDOW, batch)
            # Input and output are of one size here, whatever the input's layout.
            assert allocated(machine)[batch * INPUT] == 2
    assert machine.cuda.used[0] == 0


@of_every_kind
def test_nothing_is_given_back_that_the_device_still_works_on(
    model_of: Callable[[Kind], ModelDir], kind: Kind
) -> None:
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        volume = backend.ops.upload(random_windows(1)[0])
        starts = np.zeros((2, 3), np.int64)
        for batch in (2, 1, 2):
            backend.bind(WINDOW, batch)
            backend.run(
                2,
                lambda first, last, inputs: backend.ops.gather(volume, starts[first:last], inputs),
                lambda *_: None,
            )
        # Late work would find its memory gone.
        machine.cuda.settle()


def need(model: ModelDir, options: BackendOptions, batch: int) -> int:
    """Device memory in use while a batch is bound."""
    with fake_gpu() as machine, opened(model, options) as backend:
        backend.bind(WINDOW, batch)
        return int(machine.cuda.used[0])


@pytest.mark.parametrize(("asked", "fits", "bound"), [(8, 2, 2), (8, 4, 4), (6, 2, 1), (5, 1, 1)])
@of_every_kind
def test_a_batch_that_does_not_fit_is_halved(
    model_of: Callable[[Kind], ModelDir], kind: Kind, asked: int, fits: int, bound: int
) -> None:
    model, windows = model_of(kind), random_windows(5)
    memory, needed = (need(model, kind.options, batch) for batch in (fits, bound))
    with fake_gpu(memory=memory) as machine, opened(model, kind.options) as backend:
        backend.bind(WINDOW, asked)
        assert machine.cuda.used[0] == needed
        # Room for the test's own volume.
        machine.cuda.memory += 2 * windows.nbytes
        machine.cuda.settle()
        machine.batches.clear()
        found = windows_through(backend, windows)
        assert set(machine.batches) == {bound}
        host = host_of(model, kind)
        host.bind(WINDOW, 1)
        np.testing.assert_allclose(found, windows_through(host, windows), atol=2e-3)
        # The next case asks for as much, and is not made to wait for another trial.
        machine.cuda.log.clear()
        backend.bind(WINDOW, asked)
        assert not allocated(machine)


@of_every_kind
def test_too_little_for_a_single_window_is_told(
    model_of: Callable[[Kind], ModelDir], kind: Kind
) -> None:
    model = model_of(kind)
    memory = need(model, kind.options, 1) - KIB
    with fake_gpu(memory=memory) as machine, opened(model, kind.options) as backend:
        idle = machine.cuda.used[0]
        with pytest.raises(ComputeError, match="MiB of free GPU memory") as caught:
            backend.bind(WINDOW, 8)
        assert caught.value.exit_code == 8
        assert "\n" not in str(caught.value)
        del caught
        assert machine.cuda.used[0] == idle
        # Once the other process is gone, it goes on.
        machine.cuda.memory *= 2
        backend.bind(WINDOW, 1)
        assert np.isfinite(windows_through(backend, random_windows(2))).all()


@pytest.mark.parametrize(("most", "batches"), [(4, {8, 4}), (1, {8, 4, 2, 1})])
def test_memory_that_onnx_runtime_lacks_halves_the_batch_too(
    model_of: Callable[[Kind], ModelDir], most: int, batches: set[int]
) -> None:
    """What failed is done again: no window is lost, and none is taken twice."""
    kind = Kind("ort", "fp32")
    model, windows = model_of(kind), random_windows(11)
    host = host_of(model, kind)
    host.bind(WINDOW, 1)
    asked: list[int] = []
    with fake_gpu() as machine, opened(model, kind.options) as backend:
        machine.faults.most = most
        backend.bind(WINDOW, 8)
        gather = backend.ops.gather

        def counted(volume: Any, starts: npt.NDArray[np.int64], out: Any) -> None:
            asked.append(len(out))
            gather(volume, starts, out)

        backend.ops.gather = counted
        found = windows_through(backend, windows)
        assert set(machine.batches) == {most}
        assert set(asked) - {len(windows) % most} == batches - {len(windows) % most}
        np.testing.assert_allclose(found, windows_through(host, windows), atol=1e-6)
        # The batch that fits is kept for the next case.
        asked.clear()
        backend.bind(WINDOW, 8)
        windows_through(backend, windows)
        assert max(asked) == most


def test_a_case_for_which_onnx_runtime_lacks_memory_comes_out_right(
    model_of: Callable[[Kind], ModelDir], make_volume: MakeVolume
) -> None:
    kind = Kind("ort", "fp32")
    model, volume = model_of(kind), make_volume(brain())
    options = SegmentOptions(patch=WINDOW, batch=5)
    expected = Segmenter(host_of(model, kind), options).segment(volume)
    with fake_gpu() as machine, opened(model, kind.options) as backend:
        machine.faults.most = 2
        found = Segmenter(backend, options).segment(volume)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.timings.network >= 0


def test_memory_that_onnx_runtime_lacks_for_one_window_is_told(
    model_of: Callable[[Kind], ModelDir],
) -> None:
    kind = Kind("ort", "fp32")
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        backend.bind(WINDOW, 4)
        machine.faults.most = -1
        with pytest.raises(ComputeError, match="Failed to allocate memory") as caught:
            windows_through(backend, random_windows(5))
    assert "--patch" in caught.value.remedy


# CUDA graphs


@pytest.mark.parametrize("kind", [Kind("trt", "fp32"), DHWC8], ids=str)
def test_a_graph_is_kept_where_the_device_is_faster_with_it_and_gives_the_same_bytes(
    model_of: Callable[[Kind], ModelDir], kind: Kind
) -> None:
    windows, results = random_windows(7), []
    model = model_of(kind)
    for gaps, capture, kept in [(0, True, False), (3, True, True), (3, False, False)]:
        with fake_gpu() as machine, opened(model, kind.options) as backend:
            machine.faults.gaps, machine.faults.capture = gaps, capture
            backend.bind(WINDOW, 3)
            assert backend.captured is kept
            machine.cuda.log.clear()
            results.append(windows_through(backend, windows))
            runs = machine.cuda.kinds("graph", "external")
            assert runs == ["graph" if kept else "external network"] * 3
            # A graph holds addresses: other buffers want another graph.
            backend.bind(WINDOW, 2)
            assert backend.captured is kept
            results.append(windows_through(backend, windows))
    for result in results[1:]:
        assert result.tobytes() == results[0].tobytes()


def test_a_driver_that_refuses_to_capture_is_no_error(
    model_of: Callable[[Kind], ModelDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stream: Stream) -> None:
        stream._captured = None
        raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed")

    kind = Kind("trt", "fp32")
    monkeypatch.setattr(Stream, "end_capture", refuse)
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        machine.faults.gaps = 3
        backend.bind(WINDOW, 3)
        assert not backend.captured
        assert np.isfinite(windows_through(backend, random_windows(4))).all()


@pytest.mark.parametrize("capture", [True, False])
def test_tensorrt_rtx_compiles_its_kernels_before_they_are_timed_and_only_once(
    model_of: Callable[[Kind], ModelDir], capture: bool
) -> None:
    """Left alone it would begin with kernels for any shape, and those would stay in the graph."""
    kind = Kind("trt", "fp32")
    model = model_of(kind)
    (record,) = read_records(model)
    windows = random_windows(5)
    with fake_gpu() as machine:
        with opened(model, kind.options) as plain:
            plain.bind(WINDOW, 3)
            expected = windows_through(plain, windows)
            assert machine.configs == []
        from runtime.backends.trt import TrtBackend
        from runtime.ops.cupy import CupyOps

        machine.faults.gaps, machine.faults.capture = 3, capture
        key = replace(record.key, flavour="tensorrt_rtx")
        info = BackendInfo("trt", "cuda:0", "fp32", key.plan, record.sha256)
        plan, library = model.read(record.key.plan), fake_tensorrt("tensorrt_rtx")
        backend = TrtBackend(plan, model.card, info, key, library, CupyOps())
        for batch in (3, 2):
            backend.bind(WINDOW, batch)
            assert backend.captured is capture
            np.testing.assert_array_equal(windows_through(backend, windows), expected)
        backend.close()
    assert [config.dynamic_shapes_kernel_specialization_strategy for config in machine.configs] == [
        "eager",
        "eager",
    ]
    assert {config.allocation for config in machine.configs} == {"user managed"}
    caches = {id(config.cache) for config in machine.configs}
    assert len(caches) == 1
    assert machine.configs[0].cache is not None


@pytest.mark.parametrize("backend", ["ort", "auto"])
def test_a_graph_that_failed_on_a_gpu_is_not_run_there(copied: Path, backend: Any) -> None:
    """It may serve elsewhere all the same: it passed on the CPU, or by emulation."""

    def refuse(file: str) -> None:
        found = json.loads((copied / "parity.json").read_text())
        entry = {"file": file, "sha256": sha256_of((copied / file).read_bytes()), "backend": "ort"}
        found["refused"] = [*found.get("refused", []), entry]
        for one in found["artefacts"]:
            one["verdict"] = "pass"
        (copied / "parity.json").write_text(json.dumps(found))
        vouch(copied)

    def precision(**options: Any) -> str:
        with opened(ModelDir.open(copied), BackendOptions(backend, **options)) as found:
            return f"{found.info.name} {found.info.precision}"

    with fake_gpu():
        assert precision() == "ort fp32"  # inconclusive so far
        refuse(ONNX_FP16)
        assert precision() == "ort fp32"
        with pytest.raises(BackendUnavailableError, match="failed its certificate") as caught:
            precision(precision="fp16", device="cuda:0")
        assert caught.value.exit_code == 4
        assert precision(precision="fp16", uncertified=True) == "ort fp16"
        refuse(ONNX_FP32)
        if backend == "auto":
            assert precision() == "openvino fp32"
        assert precision(device="cpu").endswith("fp32")


# Faults of the libraries


@pytest.mark.parametrize(
    ("fault", "quoted"),
    [("contexts", "no memory for a context"), ("enqueue", "launch failed")],
)
def test_what_tensorrt_refuses_is_told_in_its_words(
    model_of: Callable[[Kind], ModelDir], fault: str, quoted: str
) -> None:
    kind = Kind("trt", "fp32")
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        setattr(machine.faults, fault, False)
        with pytest.raises(ComputeError, match=quoted) as caught:
            backend.bind(WINDOW, 4)
        assert caught.value.exit_code == 8
        assert "\n" not in str(caught.value)
        with pytest.raises(RuntimeError, match="before bind"):
            windows_through(backend, random_windows(1))


def test_a_run_that_tensorrt_refuses_later_is_told_without_stale_reasons(
    model_of: Callable[[Kind], ModelDir],
) -> None:
    kind = Kind("trt", "fp32")
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        machine.faults.capture = False
        backend.bind(WINDOW, 4)
        machine.faults.enqueue = False
        backend._messages.errors.append("the reason of today")
        with pytest.raises(ComputeError, match="the reason of today"):
            windows_through(backend, random_windows(3))


@pytest.mark.parametrize(("precision", "tensor_cores"), [("fp32", "0"), ("fp16", "1")])
def test_the_provider_is_told_stream_memory_and_arithmetic(
    precision: Any, tensor_cores: str, model_of: Callable[[Kind], ModelDir]
) -> None:
    memory = 6 << 30
    kind = Kind("ort", precision)
    with (
        fake_gpu(devices=3, memory=memory) as machine,
        opened(model_of(kind), replace(kind.options, device="cuda:2")) as backend,
    ):
        (settings,) = machine.providers
        assert settings["device_id"] == "2"
        assert settings["user_compute_stream"] == str(backend.ops.stream.ptr)
        assert settings["use_tf32"] == tensor_cores
        assert settings["cudnn_conv_algo_search"] == "EXHAUSTIVE"
        assert settings["arena_extend_strategy"] == "kSameAsRequested"
        assert memory // 2 < int(settings["gpu_mem_limit"]) < memory
        assert all(isinstance(value, str) for value in settings.values())


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ("CUDA failure 35: CUDA driver version is insufficient", BackendUnavailableError, 4),
        ("CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED", BackendUnavailableError, 4),
        ("CUDA failure 2: out of memory", ComputeError, 8),
        ("BFCArena::AllocateRawInternal Available memory of 0 is smaller", ComputeError, 8),
        ("This is an invalid model. Error: Duplicate definition", InputError, 3),
    ],
)
def test_why_a_session_cannot_be_made(
    model_of: Callable[[Kind], ModelDir],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    kind: type[BratsError],
    code: int,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(f"{text}\nwith more lines")

    model = model_of(Kind("ort", "fp32"))
    with fake_gpu() as machine:
        monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
        with pytest.raises(kind) as caught:
            open_backend(model, BackendOptions("ort", "cuda:0"))
        assert caught.value.exit_code == code
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
        assert machine.cuda.pinned == {}, "the operations were not closed"
        del caught
        assert machine.cuda.used.get(0, 0) == 0
    monkeypatch.undo()


def test_libraries_that_do_not_load_are_told_and_not_printed(
    model_of: Callable[[Kind], ModelDir],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = model_of(Kind("ort", "fp32"))
    with fake_gpu() as machine:
        machine.faults.cuda_provider = False
        monkeypatch.setattr(
            onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so.13: gone")
        )
        with pytest.raises(BackendUnavailableError, match=r"libcublas\.so\.13: gone") as caught:
            open_backend(model, BackendOptions("ort", "cuda:0"))
        assert caught.value.exit_code == 4
        with opened(model, BackendOptions()) as backend:
            info = backend.info
    monkeypatch.undo()
    assert (info.name, info.device) == ("openvino", "cpu")
    assert "trt (no engine)" in str(info.fell_back_from)
    assert "ort (no working CUDA provider for cuda:0" in str(info.fell_back_from)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), ComputeError, 8),
        (
            CUDARuntimeError("cudaErrorDevicesUnavailable: busy or unavailable"),
            BackendUnavailableError,
            4,
        ),
    ],
)
def test_a_device_that_another_process_holds(
    model_of: Callable[[Kind], ModelDir],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[BratsError],
    code: int,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    model = model_of(BOTH[0])
    with fake_gpu():
        monkeypatch.setattr(Stream, "__init__", fails)
        for backend in BOTH:
            with pytest.raises(kind, match=str(error)) as caught:
                open_backend(model, backend.options)
            assert caught.value.exit_code == code
        monkeypatch.undo()


def test_a_cupy_that_does_not_import(
    model_of: Callable[[Kind], ModelDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(Kind("trt", "fp32"))
    with fake_gpu():
        del sys.modules["cupy"].RawModule, sys.modules["cupy"].cuda
        monkeypatch.setitem(sys.modules, "runtime.ops.cupy", None)
        with pytest.raises(BackendUnavailableError, match="CuPy that cannot be imported"):
            open_backend(model, Kind("trt", "fp32").options)
        with opened(model, BackendOptions(patch=WINDOW)) as backend:
            assert backend.info.name == "openvino"
            assert "CuPy that cannot be imported" in str(backend.info.fell_back_from)
        monkeypatch.undo()


# Values that are not finite


def spare_for(model: ModelDir, options: BackendOptions, backend: Backend) -> Any:
    return lambda: open_spare_backend(model, options, backend.info)


@pytest.mark.parametrize(
    ("kind", "engine", "name", "artefact"),
    [
        (Kind("trt", "fp16"), "pass", "trt", ".plan"),
        (DHWC8, "fail", "ort", ONNX_FP32),
        (Kind("ort", "fp16"), "", "ort", ONNX_FP32),
    ],
    ids=str,
)
def test_what_overflows_is_run_again_in_fp32(
    copied: Path,
    model_of: Callable[[Kind], ModelDir],
    make_volume: MakeVolume,
    kind: Kind,
    engine: str,
    name: str,
    artefact: str,
) -> None:
    if engine:
        add_engine(copied, EngineSpec("fp32", "linear", WINDOW, verdict=engine))
    model, volume = model_of(kind), make_volume(brain())
    options = kind.options
    plan = SegmentOptions(patch=WINDOW, overlap=0.25, batch=3)
    expected = Segmenter(host_of(model, Kind("ort", "fp32")), plan).segment(volume)
    with fake_gpu() as machine, opened(model, options) as backend:
        segmenter = Segmenter(backend, plan, spare_for(model, options, backend))
        sound = segmenter.segment(volume)
        assert (sound.backend, but_for_the_skull(sound.warnings)) == (backend.info, [])
        idle = machine.cuda.used[0]
        machine.faults.non_finite = True
        found = segmenter.segment(volume)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert (found.backend.name, found.backend.precision) == (name, "fp32")
        assert found.backend.artefact.endswith(artefact)
        reason = f"{kind.name} fp16 gave probabilities that are NaN or infinite"
        assert found.backend.fell_back_from == reason
        assert but_for_the_skull(found.warnings) == [f"{reason}; run again in fp32"]
        # The spare has given its memory back, and the next case begins with what is asked for.
        assert machine.cuda.used[0] == idle
        machine.faults.non_finite = False
        assert segmenter.segment(volume).backend == backend.info


@pytest.mark.parametrize("kind", [Kind("trt", "fp16"), Kind("ort", "fp16")], ids=str)
def test_every_value_that_is_not_finite_is_counted_on_the_device(
    model_of: Callable[[Kind], ModelDir], make_volume: MakeVolume, kind: Kind
) -> None:
    with fake_gpu() as machine, opened(model_of(kind), kind.options) as backend:
        machine.faults.non_finite = True
        options = SegmentOptions(patch=WINDOW, batch=3)
        with pytest.raises(NonFiniteError) as caught:
            Segmenter(backend, options).segment(make_volume(brain()))
        shape = tuple(int(size) for size in np.ptp(np.argwhere(brain()["t1"]), axis=0) + 1)
        batches = -(-len(plan_windows((shape[0], shape[1], shape[2]), WINDOW, 0.5)) // 3)
        # One per run of the network.
        assert caught.value.count == batches
        assert caught.value.exit_code == 8


def test_there_is_no_spare_for_fp32(copied: Path) -> None:
    with fake_gpu():
        failed = BackendInfo("ort", "cuda:0", "fp32")
        assert open_spare_backend(ModelDir.open(copied), BackendOptions("ort"), failed) is None


# Opening


def refuse_tensorrt(patch: pytest.MonkeyPatch) -> None:
    """The real search for a library, which finds none."""
    patch.setattr("runtime.backends.tensorrt_library._MODULES", (("no_such_tensorrt", "tensorrt"),))
    patch.setattr("runtime.backends.tensorrt_library.load_tensorrt", load_tensorrt)


def other_weights(model: Path) -> None:
    proto = onnx.load(model / ONNX_FP16)
    weights = proto.graph.initializer[0]
    changed = numpy_helper.to_array(weights) * 2
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(proto, model / ONNX_FP16)
    certify(model, ONNX_FP16, "pass")


FULL = EngineSpec()
"""For the card's own patch, in fp16, certified."""
UNUSABLE: list[tuple[EngineSpec | None, Change | None, str]] = [
    (None, None, "no engine"),
    (replace(FULL, gpu=Gpu("Fake A100", "8.0")), None, "Fake A100"),
    (replace(FULL, gpu=Gpu(GPU.name, "8.9")), None, "compute capability 8.9"),
    (replace(FULL, version="10.9.0"), None, "TensorRT 10.9.0"),
    (replace(FULL, verdict=None), None, "no parity certificate"),
    (replace(FULL, verdict="fail"), None, "a failed parity certificate"),
    (replace(FULL, window=WINDOW), None, "window 16x12x8"),
    (FULL, other_weights, "another model.fp16.onnx"),
]
UNUSABLE_IDS = ["none", "gpu", "capability", "version", "uncertified", "failed", "window", "model"]


def prepared(model: Path, spec: EngineSpec | None, change: Change | None) -> ModelDir:
    if spec is not None:
        add_engine(model, spec)
    if change is not None:
        change(model)
    return ModelDir.open(model)


@pytest.mark.parametrize(("spec", "change", "found"), UNUSABLE, ids=UNUSABLE_IDS)
def test_an_engine_that_may_not_run_here(
    copied: Path, spec: EngineSpec | None, change: Change | None, found: str
) -> None:
    """By name it is refused with the command that mends it; `auto` takes the next and says why."""
    model = prepared(copied, spec, change)
    with fake_gpu():
        with pytest.raises(BackendUnavailableError, match=found) as caught:
            open_backend(model, BackendOptions("trt", precision="fp16"))
        assert caught.value.exit_code == 4
        assert "brats-export" in caught.value.remedy
        assert str(copied) in caught.value.remedy
        with opened(model, BackendOptions()) as backend:
            assert (backend.info.name, backend.info.device) == ("ort", "cuda:0")
            assert str(backend.info.fell_back_from).startswith("trt (")
            assert found in str(backend.info.fell_back_from)
        if spec is not None and spec.verdict in (None, "fail"):
            allowed = BackendOptions("trt", precision="fp16", uncertified=True)
            with opened(model, allowed) as backend:
                assert backend.info.certificate == ("none" if spec.verdict is None else "fail")
                backend.bind(FULL.window, 1)


def test_auto_takes_the_certified_engine_first_then_its_fp32_one(copied: Path) -> None:
    half = add_engine(copied, FULL)
    full = add_engine(copied, replace(FULL, precision="fp32"))
    with fake_gpu() as machine:
        with opened(ModelDir.open(copied), BackendOptions()) as backend:
            assert backend.info == BackendInfo(
                "trt", "cuda:0", "fp16", half.key.plan, half.sha256, "pass", directory=copied
            )
        # The driver was asked before TensorRT was touched.
        assert machine.asked[:2] == ["driver", "tensorrt"]
        certify(copied, half.key.plan, "fail")
        with opened(ModelDir.open(copied), BackendOptions()) as backend:
            assert backend.info.artefact == full.key.plan
            assert backend.info.precision == "fp32"


def test_who_asks_for_a_gpu_or_for_half_precision_gets_no_cpu(copied: Path) -> None:
    model = ModelDir.open(copied)
    with fake_gpu() as machine:
        machine.faults.cuda_provider = False
        for options in (BackendOptions(device="cuda:0"), BackendOptions(precision="fp16")):
            with pytest.raises(BackendUnavailableError, match="none that works here") as caught:
                open_backend(model, options)
            assert "trt (no engine)" in caught.value.found
            assert "ort (no working CUDA provider" in caught.value.found
            assert "brats-export" in caught.value.remedy


@pytest.mark.parametrize("name", ["auto", "trt", "ort"])
def test_tensorrt_is_not_touched_without_a_driver(copied: Path, name: Any) -> None:
    add_engine(copied, FULL)
    with fake_gpu(devices=0) as machine:
        if name == "trt":
            with pytest.raises(BackendUnavailableError, match="0 CUDA devices") as caught:
                open_backend(ModelDir.open(copied), BackendOptions(name))
            assert caught.value.exit_code == 4
        else:
            with opened(ModelDir.open(copied), BackendOptions(name)) as backend:
                assert backend.info.device == "cpu"
        assert machine.asked == ["driver"]


def test_a_driver_that_is_too_old_for_tensorrt(copied: Path) -> None:
    add_engine(copied, FULL)
    with fake_gpu() as machine:
        machine.faults.driver = False
        with pytest.raises(BackendUnavailableError, match="CUDA initialization failure") as caught:
            open_backend(ModelDir.open(copied), BackendOptions("trt"))
        assert caught.value.exit_code == 4
        assert machine.cuda.pinned == {}, "the operations were not closed"
        del caught
        assert machine.cuda.used.get(0, 0) == 0
        with opened(ModelDir.open(copied), BackendOptions()) as backend:
            assert backend.info.name == "ort"
            assert "CUDA initialization failure" in str(backend.info.fell_back_from)


def test_a_tensorrt_that_is_not_installed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_engine(copied, FULL)
    with fake_gpu():
        refuse_tensorrt(monkeypatch)
        with pytest.raises(BackendUnavailableError, match=r"brats-deploy\[trt\]") as caught:
            open_backend(ModelDir.open(copied), BackendOptions("trt"))
        assert caught.value.exit_code == 4
        with opened(ModelDir.open(copied), BackendOptions()) as backend:
            assert backend.info.fell_back_from == "trt (no such package)"
        monkeypatch.undo()


def put_plan(model: Path, record: EngineRecord, plan: bytes) -> None:
    """Another plan under a record that, like manifest and certificate, vouches for it."""
    (model / record.key.plan).write_bytes(plan)
    told = replace(record, sha256=sha256_of(plan), bytes=len(plan))
    (model / record.key.record).write_text(told.to_json())
    certify(model, record.key.plan, "pass")


def tampered(model: Path) -> None:
    plan = model / add_engine(model, FULL).key.plan
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)


def truncated(model: Path) -> None:
    record = add_engine(model, FULL)
    plan = (model / record.key.plan).read_bytes()
    put_plan(model, record, plan[: len(plan) // 2])


def mutated(model: Path) -> None:
    record = add_engine(model, FULL)
    plan = (model / record.key.plan).read_bytes()
    put_plan(model, record, b"x" + plan[1:])


def of_another_layout(model: Path) -> None:
    linear = add_engine(model, FULL)
    dhwc8 = add_engine(model, replace(FULL, layout="dhwc8"))
    plan = (model / dhwc8.key.plan).read_bytes()
    for name in (dhwc8.key.plan, dhwc8.key.record):
        (model / name).unlink()
    put_plan(model, linear, plan)


def of_another_window(model: Path) -> None:
    record = add_engine(model, FULL)
    other = add_engine(model, replace(FULL, window=WINDOW))
    plan = (model / other.key.plan).read_bytes()
    for name in (other.key.plan, other.key.record):
        (model / name).unlink()
    put_plan(model, record, plan)


def of_another_record(model: Path) -> None:
    record = add_engine(model, FULL)
    (model / record.key.plan).write_bytes(b"a plan that its record does not describe")
    vouch(model)


def without_record(model: Path) -> None:
    (model / add_engine(model, FULL).key.record).unlink()
    vouch(model)


DAMAGED: list[tuple[Change, str]] = [
    (tampered, "differs from the manifest"),
    (truncated, "the plan is truncated"),
    (mutated, "magic tag does not match"),
    (of_another_layout, "HALF Nx4x32x32x16 and FLOAT Nx4x32x32x16"),
    (of_another_window, "FLOAT Nx4x16x12x8"),
    (of_another_record, "a plan other than its record describes"),
    (without_record, "no engines/"),
]


@pytest.mark.parametrize(("damage", "found"), DAMAGED, ids=lambda one: getattr(one, "__name__", ""))
def test_a_damaged_engine_is_bad_input(copied: Path, damage: Change, found: str) -> None:
    damage(copied)
    with fake_gpu() as machine:
        for name in ("trt", "auto"):
            options: Any = BackendOptions(name)
            with pytest.raises(InputError, match=found) as caught:
                open_backend(ModelDir.open(copied), options)
            assert caught.value.exit_code == 3
            assert "\n" not in str(caught.value)
        del caught
        assert machine.cuda.used.get(0, 0) == 0


# The command line


@pytest.fixture
def case_dir(tmp_path: Path, write_case: WriteCase) -> Path:
    """A case of two windows."""
    return write_case(tmp_path / "data" / "X", {**brain(3, (40, 18, 14))})


@pytest.fixture
def infer(
    copied: Path, case_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, Path]]:
    """infer(*flags) -> exit code, standard error, output folder."""

    def call(*flags: str) -> tuple[int, str, Path]:
        out = tmp_path / "out"
        capsys.readouterr()
        code = main([str(case_dir), "--model", str(copied), "-o", str(out), *flags])
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err, out

    return call


def sentence(err: str, *parts: str) -> None:
    """One line with fault and remedy, and no traceback."""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert err.endswith(line + "\n")
    assert ": found " in line
    assert ", expected " in line
    assert line.endswith(".")
    for part in parts:
        assert part in line, line


def nothing_in(out: Path) -> None:
    assert not out.exists() or list(out.iterdir()) == []


def sidecar_of(out: Path) -> Any:
    assert (out / "X_seg.nii.gz").exists()
    return json.loads((out / "X.json").read_text())


def test_the_command_runs_the_engine(infer: Any, copied: Path) -> None:
    record = add_engine(copied, FULL)
    with fake_gpu():
        code, err, out = infer("--backend", "trt")
    assert code == 0, err
    sidecar = sidecar_of(out)
    assert sidecar["backend"] == {
        "name": "trt", "device": "cuda:0", "precision": "fp16", "fell_back_from": None,
    }  # fmt: skip
    assert sidecar["model"]["sha256"] == record.sha256
    assert sidecar["model"]["certificate"] == "pass"
    assert sidecar["windows"]["count"] == 2
    assert but_for_the_skull(sidecar["warnings"]) == []


@pytest.mark.parametrize(("spec", "change", "found"), UNUSABLE, ids=UNUSABLE_IDS)
def test_the_command_names_what_builds_an_engine(
    infer: Any, copied: Path, spec: EngineSpec | None, change: Change | None, found: str
) -> None:
    prepared(copied, spec, change)
    with fake_gpu():
        code, err, out = infer("--backend", "trt", "--precision", "fp16")
        assert code == 4
        sentence(err, found, "brats-export")
        nothing_in(out)
        code, err, out = infer()
    assert code == 0, err
    assert "not used: trt (" in err
    backend = sidecar_of(out)["backend"]
    assert backend["name"] == "ort"
    assert backend["fell_back_from"].startswith("trt (")


def test_the_command_runs_what_is_not_certified_if_it_is_told_to(infer: Any, copied: Path) -> None:
    record = add_engine(copied, replace(FULL, verdict=None))
    with fake_gpu():
        code, err, out = infer("--backend", "trt", "--uncertified")
    assert code == 0, err
    assert sidecar_of(out)["model"] == {
        "name": "tiny", "sha256": record.sha256, "certificate": "none",
    }  # fmt: skip


@pytest.mark.parametrize(("damage", "found"), DAMAGED, ids=lambda one: getattr(one, "__name__", ""))
def test_the_command_refuses_a_damaged_engine(
    infer: Any, copied: Path, damage: Change, found: str
) -> None:
    damage(copied)
    with fake_gpu():
        code, err, out = infer("--backend", "trt")
    assert code == 3
    sentence(err, found)
    nothing_in(out)


@pytest.mark.parametrize(
    ("devices", "flags", "code", "parts"),
    [
        (1, ["--device", "cuda:7"], 4, ["1 CUDA devices", "cuda:7"]),
        (1, ["--backend", "trt", "--device", "cuda:7"], 4, ["cuda:7"]),
        (1, ["--device", "cuda:x"], 2, ["cuda:x", "cuda:N"]),
        (1, ["--device", "cuda:-1"], 2, ["cuda:-1"]),
        (0, ["--backend", "trt"], 4, ["0 CUDA devices", "driver"]),
        (0, ["--device", "cuda:0"], 4, ["0 CUDA devices", "driver"]),
    ],
)
def test_the_command_says_what_device_is_not_there(
    infer: Any, copied: Path, devices: int, flags: list[str], code: int, parts: list[str]
) -> None:
    add_engine(copied, FULL)
    with fake_gpu(devices) as machine:
        found, err, out = infer(*flags)
        assert "tensorrt" not in machine.asked
    assert found == code
    sentence(err, *parts)
    nothing_in(out)


@pytest.mark.parametrize("name", ["trt", "ort"])
@pytest.mark.parametrize("memory", [256, 100 * KIB, 900 * KIB])
def test_a_device_whose_memory_others_hold_exits_8(
    infer: Any, copied: Path, name: str, memory: int
) -> None:
    """Too little for the model, for the case, or for a single window."""
    add_engine(copied, FULL)
    with fake_gpu(memory=memory):
        code, err, out = infer("--backend", name, "--device", "cuda:0")
    assert code == 8
    sentence(err, "memory")
    nothing_in(out)


@pytest.mark.parametrize("spare", [True, False])
def test_the_command_never_writes_what_is_not_finite(infer: Any, copied: Path, spare: bool) -> None:
    if spare:
        add_engine(copied, FULL)
    else:
        proto = onnx.load(copied / ONNX_FP32)
        weights = max(proto.graph.initializer, key=lambda item: len(item.dims))
        nans = np.full(tuple(weights.dims), np.nan, np.float32)
        weights.CopyFrom(numpy_helper.from_array(nans, weights.name))
        onnx.save(proto, copied / ONNX_FP32)
        certify(copied, ONNX_FP32, "pass")
    with fake_gpu() as machine:
        machine.faults.non_finite = True
        code, err, out = infer("--backend", "trt" if spare else "ort", "--device", "cuda:0")
    if not spare:
        assert code == 8
        sentence(err, "X", "NaN")
        nothing_in(out)
        return
    assert code == 0, err
    sidecar = sidecar_of(out)
    reason = "trt fp16 gave probabilities that are NaN or infinite"
    assert sidecar["backend"] == {
        "name": "ort", "device": "cuda:0", "precision": "fp32", "fell_back_from": reason,
    }  # fmt: skip
    told = but_for_the_skull(sidecar["warnings"])
    assert told == [f"{reason}; run again in fp32"]
    assert "run again in fp32" in err


def test_the_card_of_another_model_exits_3(infer: Any, copied: Path) -> None:
    card = ModelCard.from_json((copied / CARD).read_text(), CARD)
    (copied / CARD).write_text(replace(card, normalisation="zscore-volume").to_json())
    vouch(copied)
    with fake_gpu():
        code, err, out = infer("--backend", "ort", "--device", "cuda:0")
    assert code == 3
    sentence(err, ONNX_FP32, "the card of another model")
    nothing_in(out)
