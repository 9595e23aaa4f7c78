"""A machine with a GPU, made of fakes: the driver, CuPy, TensorRT, ONNX Runtime's CUDA provider.

Device memory is host memory (`fake_cupy`), our kernels are the real ones compiled by g++, and the
network is the real ONNX graph on ONNX Runtime's CPU: what comes out must be what the CPU backends
give. As strict as the libraries where strictness finds faults: addresses must lie in live device
memory, a stream's work is done late, an execution context wants its shape, its memory and its
addresses before it runs, an engine takes only what its profile allows.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from export.build import GRAPHS
from export.engine import BuildOptions, BuiltEngine
from export.engine_graph import fix_input
from runtime.backends.driver import Gpu
from runtime.backends.tensorrt_library import Flavour, TensorRt
from runtime.engine import (
    ENGINES,
    EngineKey,
    EnginePrecision,
    EngineRecord,
    InputLayout,
    Profile,
)
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_card import Shape3
from runtime.model_dir import PARITY, sha256_of
from tests import fake_cupy
from tests.fake_cupy import FakeCuda

GPU: Final = Gpu("Fake H100", "9.0")
VERSION: Final = "11.0.0"
MAGIC: Final = b"fake plan\n"
WORKSPACE: Final = 1 << 20
"""Device memory that a context wants for each window of a batch."""


# TensorRT


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class TensorIOMode:
    INPUT, OUTPUT = "input", "output"


class DataType:
    HALF, FLOAT = "DataType.HALF", "DataType.FLOAT"


class ExecutionContextAllocationStrategy:
    STATIC, USER_MANAGED = "static", "user managed"


@dataclass
class Faults:
    """What is to go wrong.

    Attributes:
        contexts: whether an execution context can be made.
        capture: whether a run can be captured.
        enqueue: whether a run is accepted.
        most: largest batch that the network's own memory suffices for; 0 for no limit.
        non_finite: whether reduced precision gives infinities.
        cuda_provider: whether ONNX Runtime's CUDA provider loads.
        driver: whether the driver is new enough for TensorRT.
        gaps: steps of the device's clock that are lost when a run is enqueued, and not when it is
            launched as a graph.
        stale: whether a window that holds what it held in the run before, or nothing, comes out as
            NaN: nobody may look at the padding of a batch.
    """

    contexts: bool = True
    capture: bool = True
    enqueue: bool = True
    most: int = 0
    non_finite: bool = False
    cuda_provider: bool = True
    driver: bool = True
    gaps: int = 0
    stale: bool = False


@dataclass
class FakeGpu:
    """The machine, for tests to look at and to break.

    Attributes:
        cuda: memory, streams and the log of calls.
        faults: what is to go wrong.
        contexts: how many execution contexts were made.
        providers: options that the CUDA provider was given.
        batches: number of windows of every run of a network.
        asked: "driver" and "tensorrt", in the order in which they were asked for.
        configs: with which TensorRT-RTX made its execution contexts.
    """

    cuda: FakeCuda
    faults: Faults = field(default_factory=Faults)
    contexts: int = 0
    providers: list[dict[str, Any]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    configs: "list[RuntimeConfig]" = field(default_factory=list)
    _seen: Any = None

    def infer(self, session: Any, inputs: npt.NDArray[Any], reduced: bool) -> Any:
        """The network's output, spoilt as the faults want it."""
        self.batches.append(len(inputs))
        assert np.isfinite(inputs).all(), "the network was given what nobody wrote"
        (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs})
        if self.faults.non_finite and reduced:
            outputs[0, 0, 0, 0, 0] = np.inf
        if self.faults.stale:
            same = self._seen is not None and self._seen.shape == inputs.shape
            for i, window in enumerate(inputs):
                if not window.any() or (same and np.array_equal(window, self._seen[i])):
                    outputs[i] = np.nan
            self._seen = inputs.copy()
        return outputs


class Runtime:
    machine: ClassVar[FakeGpu]

    def __init__(self, logger: ILogger) -> None:
        if not self.machine.faults.driver:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        if not plan.startswith(MAGIC):
            self.logger.log(ILogger.ERROR, "Error Code 1: Serialization (magic tag does not match)")
            return None
        header, _, graph = plan.removeprefix(MAGIC).partition(b"\n")
        facts = json.loads(header)
        if len(graph) != facts["bytes"]:
            self.logger.log(ILogger.ERROR, "Error Code 1: Serialization (the plan is truncated)")
            return None
        try:
            return Engine(self.machine, self.logger, facts, graph)
        except fake_cupy.OutOfMemoryError:
            self.logger.log(ILogger.ERROR, "Error Code 1: Cuda Runtime (out of memory)")
            return None


class Engine:
    def __init__(
        self, machine: FakeGpu, logger: ILogger, facts: dict[str, Any], graph: bytes
    ) -> None:
        self.machine, self.logger, self.facts = machine, logger, facts
        self.device = machine.cuda.device
        self.weights = machine.cuda.allocate(len(graph))
        self.session = _session(graph)
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index].name)

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == self.tensors[0].name else "output"

    def get_tensor_shape(self, name: str) -> list[int]:
        (tensor,) = (one for one in self.tensors if one.name == name)
        window = self.facts["profile"]["window"]
        channels = self.session.get_inputs()[0].shape[1] if tensor is self.tensors[0] else 4
        return [-1, channels, *window]

    def get_tensor_dtype(self, name: str) -> str:
        (tensor,) = (one for one in self.tensors if one.name == name)
        return DataType.HALF if tensor.type == "tensor(float16)" else DataType.FLOAT

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig()

    def create_execution_context(self, strategy: "str | RuntimeConfig") -> "Context | None":
        if not self.machine.faults.contexts:
            self.logger.log(ILogger.ERROR, "Error Code 2: OutOfMemory (no memory for a context)")
            return None
        assert self.machine.cuda.device == self.device, "another device is current"
        self.machine.contexts += 1
        if isinstance(strategy, RuntimeConfig):
            self.machine.configs.append(strategy)
            return RtxContext(self, strategy.allocation)
        return Context(self, strategy)


class RuntimeConfig:
    """TensorRT-RTX's; what is not set is what the library itself would choose."""

    def __init__(self) -> None:
        self.allocation = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.cache: object = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True


class Context:
    def __init__(self, engine: Engine, strategy: str) -> None:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self.engine, self.strategy = engine, strategy
        self.shape: tuple[int, ...] = ()
        self.memory = (0, 0)
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        profile = self.engine.facts["profile"]
        fits = profile["min_batch"] <= shape[0] <= profile["max_batch"]
        if not fits or list(shape[2:]) != list(profile["window"]):
            self.engine.logger.log(ILogger.ERROR, f"Error Code 3: shape {list(shape)} is outside")
            return False
        self.shape = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return WORKSPACE * self.shape[0]

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        machine, engine = self.engine.machine, self.engine
        assert machine.cuda.device == engine.device, "another device is current"
        capturing = machine.cuda.streams[stream].is_capturing()
        ready = self.shape and len(self.addresses) == engine.num_io_tensors
        if not ready or not machine.faults.enqueue or (capturing and not machine.faults.capture):
            engine.logger.log(ILogger.ERROR, "Error Code 1: Cuda Runtime (launch failed)")
            return False
        machine.cuda.at(*self.memory[:1], (self.memory[1],), np.uint8)
        assert self.memory[1] >= self.update_device_memory_size_for_shapes()
        machine.cuda.enqueue(stream, self._work(), "network")
        if not capturing:
            for _ in range(machine.faults.gaps):
                machine.cuda.streams[stream].put(lambda: None)
        return True

    def _work(self) -> Any:
        engine, machine, shape = self.engine, self.engine.machine, self.shape
        given, found = engine.tensors
        dhwc8 = engine.facts["input_layout"] == "dhwc8"
        addresses = dict(self.addresses)

        def work() -> None:
            if dhwc8:
                stored = (shape[0], *shape[2:], 8)
                padded = machine.cuda.at(addresses[given.name], stored, np.float16)
                assert not padded[..., shape[1] :].any(), "channels of padding that are not 0"
                inputs = np.ascontiguousarray(np.moveaxis(padded[..., : shape[1]], -1, 1))
            else:
                inputs = machine.cuda.at(addresses[given.name], shape, np.float32).copy()
            outputs = machine.infer(engine.session, inputs, engine.facts["precision"] != "fp32")
            machine.cuda.at(addresses[found.name], outputs.shape, np.float32)[...] = outputs

        return work


class RtxContext(Context):
    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.machine.faults.capture


def fake_build(
    model: bytes,
    library: TensorRt,
    options: BuildOptions,
    progress: Any = None,
    source: str = "the ONNX model",
) -> BuiltEngine:
    """As `export.engine.build_engine`: the plan is the graph with its profile before it."""
    graph = fix_input(model, options.profile, options.input_layout, source)
    half = _reduced(model)
    facts = {
        "profile": asdict(options.profile),
        "input_layout": options.input_layout,
        "precision": "fp16" if half else "fp32",
        "bytes": len(graph),
    }
    if progress is not None:
        progress.started("Building", None, 2)
        progress.stepped("Building", 0)
        progress.stepped("Building", 1)
        progress.finished("Building")
    plan = MAGIC + json.dumps(facts).encode() + b"\n" + graph
    return BuiltEngine(plan, b"timings", 0.5, ())


def _reduced(model: bytes) -> bool:
    """Whether the graph's weights are of less than 32 bits."""
    weights = onnx.load_model_from_string(model).graph.initializer
    return any(
        item.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for item in weights
    )


def fake_tensorrt(flavour: Flavour = "tensorrt") -> TensorRt:
    """The library whose runtime executes what `fake_build` makes."""
    module = ModuleType(flavour, "A fake; see tests/fake_gpu.py.")
    vars(module).update(
        ILogger=ILogger,
        Runtime=Runtime,
        TensorIOMode=TensorIOMode,
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        __version__=VERSION,
    )
    if flavour == "tensorrt_rtx":
        strategies = SimpleNamespace(LAZY="lazy", EAGER="eager", NONE="none")
        vars(module).update(DynamicShapesKernelSpecializationStrategy=strategies)
    return TensorRt(module, flavour, VERSION)


@dataclass(frozen=True)
class EngineSpec:
    """An engine of a model directory.

    Attributes:
        precision: of the graph that it is built from.
        layout: of its input.
        window: the one spatial shape that it takes.
        max_batch: most windows at a time.
        verdict: of its certificate; None for no certificate.
        gpu: that it was built for.
        version: of the TensorRT that built it.
        min_batch: fewest windows at a time.
    """

    precision: EnginePrecision = "fp16"
    layout: InputLayout = "linear"
    window: Shape3 = (32, 32, 16)
    max_batch: int = 8
    verdict: str | None = "pass"
    gpu: Gpu = GPU
    version: str = VERSION
    min_batch: int = 1


def add_engine(
    model: Path, spec: EngineSpec, build: Any = fake_build, library: TensorRt | None = None
) -> EngineRecord:
    """Build an engine into a model directory as `brats-export` does, certificate and manifest with
    it; a real one with `export.engine.build_engine` and a real library.
    """
    library = library or fake_tensorrt()
    source = GRAPHS[spec.precision]
    data = (model / source).read_bytes()
    profile = Profile(spec.window, spec.min_batch, spec.min_batch, spec.max_batch)
    options = BuildOptions(profile, input_layout=spec.layout)
    key = EngineKey(
        sha256_of(data),
        library.flavour,
        spec.version,
        spec.gpu,
        spec.precision,
        profile,
        spec.layout,
    )
    built: BuiltEngine = build(data, library, options)
    record = built.record(key, options, source=source, up_branch="k4")
    (model / ENGINES).mkdir(exist_ok=True)
    (model / key.plan).write_bytes(built.plan)
    (model / key.record).write_text(record.to_json())
    if spec.verdict is not None:
        certify(model, key.plan, spec.verdict)
    vouch(model)
    return record


def certify(model: Path, file: str, verdict: str) -> None:
    """Put a verdict on a file's present bytes into the certificate, instead of earlier ones."""
    certificate = json.loads((model / PARITY).read_text())
    entries = [one for one in certificate["artefacts"] if one["file"] != file]
    digest = sha256_of((model / file).read_bytes())
    entries.append({"file": file, "sha256": digest, "backend": "trt", "verdict": verdict})
    (model / PARITY).write_text(json.dumps({**certificate, "artefacts": entries}))
    vouch(model)


def vouch(model: Path) -> None:
    """Make the manifest agree with what is there."""
    (model / MANIFEST).write_bytes(manifest_of(model))


# ONNX Runtime's CUDA provider


def _session(model: bytes, kind: Any = None) -> Any:
    """The graph on one thread of the CPU, quietly."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return (kind or onnxruntime.InferenceSession)(
        model, options, providers=["CPUExecutionProvider"]
    )


class FakeSession:
    """A session on the CPU that takes pointers into device memory and runs on a stream."""

    def __init__(self, machine: FakeGpu, session: Any, stream: int, reduced: bool) -> None:
        self._machine, self._session = machine, session
        self._stream, self._reduced = stream, reduced
        self._weights = machine.cuda.allocate(1 << 16)

    def get_providers(self) -> list[str]:
        cuda = ["CUDAExecutionProvider"] if self._machine.faults.cuda_provider else []
        return [*cuda, "CPUExecutionProvider"]

    def get_modelmeta(self) -> Any:
        return self._session.get_modelmeta()

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def io_binding(self) -> "FakeBinding":
        return FakeBinding()

    def run_with_iobinding(self, binding: "FakeBinding", options: Any) -> None:
        cuda, bound = self._machine.cuda, dict(binding.bound)
        (given,), (found,) = self.get_inputs(), self.get_outputs()
        batch = bound[given.name][1][0]
        if self._machine.faults.most and batch > self._machine.faults.most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 4194304")

        def work() -> None:
            inputs = cuda.at(*bound[given.name], np.float32).copy()
            outputs = self._machine.infer(self._session, inputs, self._reduced)
            cuda.at(*bound[found.name], np.float32)[...] = outputs

        cuda.enqueue(self._stream, work, "network")


class FakeBinding:
    def __init__(self) -> None:
        self.bound: dict[str, tuple[int, tuple[int, ...]]] = {}

    def bind_input(
        self, name: str, device: str, index: int, dtype: Any, shape: tuple[int, ...], address: int
    ) -> None:
        assert (device, dtype) == ("cuda", np.float32)
        self.bound[name] = (address, tuple(shape))

    bind_output = bind_input

    def clear_binding_inputs(self) -> None:
        self.bound.clear()

    def clear_binding_outputs(self) -> None:
        self.bound.clear()


@contextmanager
def fake_gpu(devices: int = 1, memory: int = 80 << 30, order: str = "forward") -> Iterator[FakeGpu]:
    """Make this machine look as if it had GPUs, for as long as the context lasts."""
    with fake_cupy.installed(devices, memory, order) as cuda, pytest.MonkeyPatch.context() as patch:
        machine = FakeGpu(cuda)
        Runtime.machine = machine
        library = fake_tensorrt()
        real = onnxruntime.InferenceSession

        def session(
            model: bytes, options: Any = None, providers: Sequence[Any] = (), **more: Any
        ) -> Any:
            if not providers or not isinstance(providers[0], tuple):
                return real(model, options, providers=["CPUExecutionProvider"], **more)
            _, settings = providers[0]
            assert more == {"enable_fallback": 0}, "it would fall back to a stream of its own"
            machine.providers.append(settings)
            stream = int(settings["user_compute_stream"])
            try:
                with fake_cupy.Device(int(settings["device_id"])):
                    return FakeSession(machine, _session(model, real), stream, _reduced(model))
            except fake_cupy.OutOfMemoryError as error:
                raise RuntimeError("CUDA failure 2: out of memory ; GPU=0") from error

        def asked(what: str, answer: Any) -> Any:
            machine.asked.append(what)
            return answer

        patch.setattr(onnxruntime, "InferenceSession", session)
        patch.setattr(onnxruntime, "preload_dlls", lambda: None)
        for where in ("runtime.backends.opening", "export.run"):
            patch.setattr(f"{where}.cuda_devices", lambda: asked("driver", devices))
            patch.setattr(f"{where}.gpu", lambda index: GPU)
        patch.setattr("runtime.backends.driver.gpu", lambda index: GPU)
        patch.setattr(
            "runtime.backends.tensorrt_library.load_tensorrt", lambda: asked("tensorrt", library)
        )
        patch.setattr("export.run.load_tensorrt", lambda: library)
        patch.setattr("export.engines.build_engine", fake_build)
        yield machine
