"""Engines for the GPU at hand: every form of a graph and every layout of its input is built and
timed, since which is the fastest is a property of the device and of the TensorRT there.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import numpy as np

from export.engine import BuildOptions, BuildProgress, build_engine
from export.half_weights import restored
from export.up_branch import UpBranch
from runtime.backends.driver import Gpu
from runtime.backends.seam import Backend, BackendInfo
from runtime.backends.tensorrt_library import TensorRt
from runtime.engine import EngineKey, EnginePrecision, EngineRecord, InputLayout, Profile
from runtime.errors import BratsError
from runtime.model_card import ModelCard
from runtime.model_dir import sha256_of

_ROUNDS: Final = 5


@dataclass(frozen=True)
class EngineSource:
    """An ONNX model that engines are built from.

    Attributes:
        file: its name in the model directory.
        data: the file's bytes.
        precision: that of the graph.
        up_branch: form of its up branches.
    """

    file: str
    data: bytes
    precision: EnginePrecision
    up_branch: UpBranch


@dataclass(frozen=True)
class EngineDevice:
    """What engines are built and run with.

    Attributes:
        tensorrt: an imported TensorRT.
        index: of the CUDA device.
        gpu: what that device is.
    """

    tensorrt: TensorRt
    index: int
    gpu: Gpu


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    Attributes:
        max_batch: most windows at a time.
        static: take exactly the card's batch instead of 1 to ``max_batch``.
        level: the builder's optimisation level, 0 to 5.
        workspace_bytes: device memory that an engine may work in.
    """

    max_batch: int = 16
    static: bool = False
    level: int = 3
    workspace_bytes: int = 16 << 30

    def profile(self, card: ModelCard) -> Profile:
        """Shapes that an engine for this card accepts: its patch, tuned for its batch."""
        batch = card.inference.batch
        if self.static:
            return Profile(card.patch, batch, batch, batch)
        return Profile(card.patch, 1, min(batch, self.max_batch), self.max_batch)


@dataclass(frozen=True)
class Engine:
    """A plan that was built and timed here.

    Attributes:
        source: what it was built from.
        record: its key and how it was built.
        plan: its bytes.
        window_seconds: median device time per window at the card's batch.
        warnings: of the builder.
    """

    source: EngineSource
    record: EngineRecord
    plan: bytes
    window_seconds: float
    warnings: tuple[str, ...]

    @property
    def title(self) -> str:
        """For people: file and input layout."""
        return _title(self.source, self.record.key.input_layout)


@dataclass(frozen=True)
class Failure:
    """A combination of graph and layout that could not be built, or could not be run.

    Attributes:
        source: what it would have been built from.
        input_layout: of its input.
        reason: what was found and what was expected.
    """

    source: EngineSource
    input_layout: InputLayout
    reason: str

    @property
    def title(self) -> str:
        """For people: file and input layout."""
        return _title(self.source, self.input_layout)


@dataclass
class Trials:
    """What was tried.

    Attributes:
        engines: the fastest first.
        failures: what could not be built or run.
        timing_cache: of the builder, for the next build.
    """

    engines: list[Engine] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    timing_cache: bytes | None = None


def _title(source: EngineSource, layout: InputLayout) -> str:
    return f"{source.file}, {layout} input"


def layouts(precision: EnginePrecision) -> tuple[InputLayout, ...]:
    """Input layouts that an engine of this precision can take."""
    return ("linear", "dhwc8") if precision == "fp16" else ("linear",)


def try_engines(
    sources: Sequence[EngineSource],
    card: ModelCard,
    device: EngineDevice,
    options: EngineOptions,
    timing_cache: bytes | None = None,
    progress: BuildProgress | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Trials:
    """Build and time an engine of every graph in every layout.

    A combination that this TensorRT cannot build, or that the device cannot run, is told as a
    failure; the others go on.

    Args:
        sources: of one precision.
        card: gives window and batch.
        device: to build for and run on.
        options: of the builder.
        timing_cache: of an earlier build.
        progress: is told of the builder's phases.
        told: called with a line before each build and after it.
    """
    trials = Trials(timing_cache=timing_cache)
    profile = options.profile(card)
    for source in sources:
        for layout in layouts(source.precision):
            wanted = BuildOptions(
                profile,
                options.workspace_bytes,
                options.level,
                layout,
                trials.timing_cache,
                device=device.index,
            )
            key = EngineKey(
                sha256_of(source.data),
                device.tensorrt.flavour,
                device.tensorrt.version,
                device.gpu,
                source.precision,
                profile,
                layout,
            )
            told(f"building an engine: {_title(source, layout)}")
            try:
                data = restored(source.data)
                built = build_engine(data, device.tensorrt, wanted, progress, source.file)
                record = built.record(key, wanted, source=source.file, up_branch=source.up_branch)
                info = info_of(record, device)
                with closing(open_engine(built.plan, card, info, key, device.tensorrt)) as backend:
                    seconds = window_seconds(backend)
            except BratsError as error:
                trials.failures.append(
                    Failure(source, layout, f"found {error.found}, expected {error.expected}")
                )
                told("unusable")
                continue
            told(f"{1e3 * seconds:.3g} ms a window")
            trials.timing_cache = built.timing_cache or trials.timing_cache
            trials.engines.append(Engine(source, record, built.plan, seconds, built.warnings))
    trials.engines.sort(key=lambda engine: engine.window_seconds)
    return trials


def info_of(record: EngineRecord, device: EngineDevice) -> BackendInfo:
    """What executes an engine that no certificate covers yet."""
    return BackendInfo(
        "trt", f"cuda:{device.index}", record.key.precision, record.key.plan, record.sha256
    )


def open_engine(
    plan: bytes, card: ModelCard, info: BackendInfo, key: EngineKey, library: TensorRt
) -> Backend:
    """An engine that was just built, as a backend; the caller closes it."""
    # Imported here: there is no CuPy where engines are not run.
    from runtime.backends.trt import TrtBackend
    from runtime.ops.cupy import CupyOps

    index = int(info.device.partition(":")[2])
    return TrtBackend(plan, card, info, key, library, CupyOps(index))


def window_seconds(backend: Backend) -> float:
    """Median device time per window at the card's batch, windows of noise, warmed up."""
    card, ops = backend.card, backend.ops
    batch = card.inference.batch
    backend.bind(card.patch, batch)
    # Noise, since some devices are faster on zeros.
    noise = np.random.default_rng(0).normal(size=(len(card.modalities), *card.patch))
    volume = ops.upload(noise.astype(np.float32))
    starts = np.zeros((batch, 3), np.int64)

    def fill(first: int, last: int, inputs: Any) -> None:
        ops.gather(volume, starts[: last - first], inputs)

    times = []
    for _ in range(_ROUNDS + 1):
        began = ops.mark()
        backend.run(batch, fill, lambda first, last, probabilities: None)
        times.append(ops.seconds(began, ops.mark()) / batch)
    return median(times[1:])
