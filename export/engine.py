"""From an ONNX model to a TensorRT engine: shapes, layout and limits are said here, precision is in
the graph.

TensorRT 11 and TensorRT for RTX know strongly typed networks only, and TensorRT 10 is asked for
one, so that an engine computes in the types of its ONNX model on all three. The TF32 mode, in which
float32 products are rounded to 10 bits, is switched off: an fp32 engine is one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from export.engine_graph import fix_input
from export.interrupt import Stop, interruptibly
from runtime.backends.tensorrt_library import Messages, TensorRt, collecting_logger, title
from runtime.engine import EngineKey, EngineRecord, InputLayout, Profile
from runtime.errors import BackendUnavailableError, ComputeError, InputError, UsageError
from runtime.model_dir import sha256_of


class BuildProgress(Protocol):
    """Is told what the builder does; called from the builder's own threads.

    Phases are nested, and a phase's name may come again once it has finished. An exception stops
    the build and is raised by `build_engine`.
    """

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins inside ``parent``, or on its own."""

    def stepped(self, phase: str, step: int) -> None:
        """Step ``step`` of a phase, counted from 0, is complete."""

    def finished(self, phase: str) -> None:
        """A phase has ended, possibly before its last step."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        profile: shapes that it accepts.
        workspace_bytes: device memory that one layer may use; a fused part of the network, and that
            may be all of it, counts as one layer.
        level: the builder's optimisation level, 0 (quick build) to 5 (tries most).
        input_layout: "linear" takes the ONNX model's own float32 input; "dhwc8" takes float16
            (N, X, Y, Z, 8), the channels padded with zeros, and needs a graph that casts its input
            to float16 first.
        timing_cache: what an earlier build returned, or None to start afresh.
        compute_capability: TensorRT-RTX only: build for "8.9" and the like with or without a GPU,
            or for the "current" one. None leaves it to the library: TensorRT builds for the current
            device, TensorRT-RTX for any of compute capability 8.0 and later that it supports.
        device: index of the CUDA device that is to be current while it builds; None leaves it to
            CUDA, whose choice for a new thread is device 0.

    Raises:
        ValueError: a level outside 0..5 or no workspace.
    """

    profile: Profile
    workspace_bytes: int = 4 << 30
    level: int = 3
    input_layout: InputLayout = "linear"
    timing_cache: bytes | None = None
    compute_capability: str | None = None
    device: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 5:
            raise ValueError(f"level {self.level}")
        if self.workspace_bytes < 1:
            raise ValueError(f"workspace of {self.workspace_bytes} bytes")


@dataclass(frozen=True)
class BuiltEngine:
    """What a build returns.

    Attributes:
        plan: the serialised engine.
        timing_cache: for the next build; None from TensorRT-RTX, which times nothing.
        seconds: that parsing and building took.
        warnings: of this toolkit and then of TensorRT, one line each.
    """

    plan: bytes
    timing_cache: bytes | None
    seconds: float
    warnings: tuple[str, ...]

    def record(
        self, key: EngineKey, options: BuildOptions, *, source: str, up_branch: str
    ) -> EngineRecord:
        """The record that lies beside the plan.

        Args:
            key: all that the plan depends on; its profile and layout are those of ``options``.
            options: what it was built with.
            source: name of the ONNX file in the model directory.
            up_branch: form of the graph's up branches.

        Raises:
            ValueError: key and options do not describe the same engine.
        """
        if (key.profile, key.input_layout) != (options.profile, options.input_layout):
            raise ValueError("key and options of an engine differ")
        return EngineRecord(
            key=key,
            source=source,
            up_branch=up_branch,
            sha256=sha256_of(self.plan),
            bytes=len(self.plan),
            seconds=self.seconds,
            level=options.level,
            workspace_bytes=options.workspace_bytes,
        )


def build_engine(
    model: bytes,
    library: TensorRt,
    options: BuildOptions,
    progress: BuildProgress | None = None,
    source: str = "the ONNX model",
) -> BuiltEngine:
    """Build an engine from a serialised ONNX model with one input (N, C, X, Y, Z).

    The builder works in a thread of its own while the caller's waits (`export.interrupt`). On
    Ctrl-C it is told to stop at its next step, and stops; a second one does not wait for that.

    Args:
        model: as `export.trace` and `export.precision` make it; its precision is the engine's.
        library: what builds. Unless ``options`` name a compute capability, it needs a GPU.
        options: shapes, layout and limits.
        progress: is told of phases and steps.
        source: the ONNX file's name, for errors.

    Returns:
        The plan, which takes float32 or, in layout "dhwc8", float16, and returns float32.

    Raises:
        InputError: TensorRT cannot parse the model or its types do not fit together.
        UsageError: layout or compute capability is not possible with this model and library.
        BackendUnavailableError: no builder can be made, for want of a driver.
        ComputeError: the build failed; the error quotes TensorRT.
        KeyboardInterrupt: Ctrl-C, after the builder has stopped.
    """
    _check_target(library, options)
    model = fix_input(model, options.profile, options.input_layout, source)
    stop = Stop()
    begun = time.perf_counter()
    plan, cache, warnings = interruptibly(
        lambda: _Build(library, options, stop, source).run(model, progress), stop
    )
    return BuiltEngine(plan, cache, time.perf_counter() - begun, warnings)


class _Build:
    """One run of a builder; TensorRT's objects live no longer than `run`."""

    def __init__(self, library: TensorRt, options: BuildOptions, stop: Stop, source: str) -> None:
        self._library = library
        self._trt = library.module
        self._options = options
        self._stop = stop
        self._source = source
        self._messages = Messages()

    def run(
        self, model: bytes, progress: BuildProgress | None
    ) -> tuple[bytes, bytes | None, tuple[str, ...]]:
        logger = collecting_logger(self._library, self._messages)
        if self._options.device is not None:
            # Here and not before: which device is current is a property of the thread.
            from runtime.ops.cupy import make_current

            make_current(self._options.device)
        try:
            builder = self._trt.Builder(logger)
        except TypeError as error:  # pybind11's word for a null pointer
            raise BackendUnavailableError(
                str(self._library),
                found=self._messages.sentence(),
                expected="an NVIDIA driver and a GPU",
                remedy="build engines on the machine that runs them",
            ) from error
        strong = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if strong is None else 1 << int(strong))
        parser = self._trt.OnnxParser(network, logger)
        if not parser.parse(model) or network.num_inputs != 1:
            raise self._unparsed(parser)
        config = builder.create_builder_config()
        notes = self._configure(builder, network, config)
        # Named, because it must outlive the build: TensorRT keeps a plain pointer to it.
        monitor = _monitor(self._trt, progress, self._stop)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None or self._stop.asked:
            raise ComputeError(
                self._source,
                found=f"{self._library} could not build an engine: {self._messages.sentence()}",
                expected="a graph, shapes and limits that it can build",
                remedy="change what it names: precision, window, batch, workspace or layout",
            )
        cache = None
        if self._library.flavour == "tensorrt":
            cache = bytes(config.get_timing_cache().serialize())
        return bytes(plan), cache, (*notes, *self._messages.warnings)

    def _configure(self, builder: Any, network: Any, config: Any) -> list[str]:
        trt, options = self._trt, self._options
        config.builder_optimization_level = options.level
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        config.clear_flag(trt.BuilderFlag.TF32)
        # What allocates while it runs cannot be captured as a CUDA graph. TensorRT 10 has no such
        # flag and needs none.
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        image = network.get_input(0)
        for tensor, layout in (
            (image, "LINEAR" if options.input_layout == "linear" else "DHWC8"),
            (network.get_output(0), "LINEAR"),
        ):
            tensor.allowed_formats = 1 << int(getattr(trt.TensorFormat, layout))
        profile = builder.create_optimization_profile()
        shapes = (
            (batch, image.shape[1], *options.profile.window)
            for batch in (
                options.profile.min_batch,
                options.profile.opt_batch,
                options.profile.max_batch,
            )
        )
        profile.set_shape(image.name, *shapes)
        config.add_optimization_profile(profile)
        if options.compute_capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(_target(trt, options.compute_capability), 0)
        # TensorRT-RTX times nothing when it builds, and would ask for a GPU if it had a cache.
        if self._library.flavour == "tensorrt":
            return self._use_timing_cache(config)
        return []

    def _use_timing_cache(self, config: Any) -> list[str]:
        given = self._options.timing_cache or b""
        cache = config.create_timing_cache(given)
        if cache is not None and config.set_timing_cache(cache, False):
            return []
        self._messages.errors.clear()  # what it said of the cache is no reason for a later failure
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return ["the timing cache is not for this TensorRT and GPU, and was begun afresh"]

    def _unparsed(self, parser: Any) -> InputError:
        if parser.num_errors:
            error = parser.get_error(0)
            # The second line says what is wrong with the node of the first; the rest is aftermath.
            words = (error.node_operator(), error.node_name(), *str(error.desc()).splitlines()[:2])
            self._messages.errors.insert(0, " ".join(word for word in words if word))
        return InputError(
            self._source,
            found=f"a model that {self._library} cannot parse: {self._messages.sentence()}",
            expected="a graph as brats-export writes it",
            remedy="export the model again or choose another window",
        )


def _monitor(trt: Any, progress: BuildProgress | None, stop: Stop) -> Any:
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the base is known at run time only
        """An exception must not leave a callback: the binding would print it and go on."""

        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tell(lambda told: told.started(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(lambda told: told.stepped(phase_name, step))
            return not stop.asked

        def phase_finish(self, phase_name: str) -> None:
            self._tell(lambda told: told.finished(phase_name))

        def _tell(self, event: Callable[[BuildProgress], None]) -> None:
            if progress is None or stop.asked:
                return
            try:
                event(progress)
            except BaseException as error:
                stop.ask(error)

    return Monitor()


def _check_target(library: TensorRt, options: BuildOptions) -> None:
    wanted = options.compute_capability
    if wanted is None:
        return
    if library.flavour != "tensorrt_rtx":
        known = ["that of the GPU that is here"]
    elif _target(library.module, wanted) is not None:
        return
    else:
        members = library.module.ComputeCapability.__members__
        known = [f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM")]
    raise UsageError(
        "compute capability",
        found=wanted,
        expected=", ".join(known),
        remedy=f"leave it to {title(library.flavour)}",
    )


def _target(trt: Any, wanted: str) -> Any:
    name = "CURRENT" if wanted == "current" else f"SM{wanted.replace('.', '')}"
    return trt.ComputeCapability.__members__.get(name)
