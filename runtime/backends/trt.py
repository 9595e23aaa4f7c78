"""TensorRT: a prebuilt engine, its buffers and its stream on one GPU."""

from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from runtime.backends.seam import BackendInfo, Fill, Take, check_window
from runtime.backends.tensorrt_library import Messages, TensorRt, collecting_logger
from runtime.engine import EngineKey
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    ComputeError,
    InputError,
    UsageError,
)
from runtime.model_card import ModelCard, Shape3
from runtime.ops import Array

if TYPE_CHECKING:
    from runtime.ops.cupy import CupyOps

_ROUNDS: Final = 5
_PADDED_CHANNELS: Final = 8


class TrtBackend:
    """Runs a TensorRT engine on one GPU; see `runtime.backends.Backend`.

    Owns the engine, the array operations and all device memory: input, output, and the execution
    context's workspace, which is sized for the batch that is bound. Everything runs on the
    operations' stream. A batch is always full (the tail is padded with what the one before left),
    so that it can be captured as a CUDA graph; the graph is kept where it measures faster than
    enqueueing.
    """

    def __init__(
        self,
        plan: bytes,
        card: ModelCard,
        info: BackendInfo,
        key: EngineKey,
        library: TensorRt,
        ops: "CupyOps",
    ) -> None:
        """
        Args:
            plan: the engine's bytes, already verified.
            info: what is to execute.
            key: what the engine was built for.
            library: the TensorRT that built it.
            ops: of the device; closed with the backend.

        Raises:
            InputError: not an engine that this TensorRT can load, or not one of this card and key.
            BackendUnavailableError: TensorRT does not work with this driver.
            ComputeError: the device has no memory left for its weights.
        """
        self._card, self._info, self._key, self._trt = card, info, key, library.module
        self.ops = ops
        self._context: Any = None
        self._compiled: Any = None
        self._graph: Any = None
        self._batch = 0
        self._asked = 0
        self._inputs: Array = None
        self._outputs: Array = None
        self._buffers: tuple[Array, ...] = ()
        self._messages = Messages()
        self._logger = collecting_logger(library, self._messages)
        self._runtime: Any = None
        self._engine: Any = None
        try:
            self._load(plan, library)
            self._input, self._output = self._tensors()
        except BratsError:
            self.close()
            raise

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def captured(self) -> bool:
        """Whether batches are launched as a CUDA graph."""
        return self._graph is not None

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self._card, window)
        profile = self._key.profile
        if window != profile.window:
            raise UsageError(
                "--patch",
                found=",".join(map(str, window)),
                expected=f"{','.join(map(str, profile.window))}, for which the engine was built",
                remedy="give that window with --patch, or use --backend ort",
            )
        batch = max(profile.min_batch, min(batch, profile.max_batch))
        # What did not fit for one case is not tried again for each of the next.
        if self._batch and batch in (self._batch, self._asked):
            return
        # Given back first: the old and the new ones need not fit side by side.
        self._release()
        asked = batch
        while True:
            try:
                self._allocate(window, batch)
                self._graph = self._faster_graph()
                break
            except ComputeError:
                self._release()
                if batch == profile.min_batch:
                    raise
                batch = max(profile.min_batch, batch // 2)
        self._batch, self._asked = batch, asked

    def run(self, n: int, fill: Fill, take: Take) -> None:
        if not self._batch:
            raise RuntimeError("run() before bind()")
        first = 0
        while first < n:
            last = min(first + self._batch, n)
            fill(first, last, self._inputs[: last - first])
            if self._graph is not None:
                self._launch(self._graph)
            else:
                self._enqueue()
            take(first, last, self._outputs[: last - first])
            first = last

    def close(self) -> None:
        self._release()
        # In this order: a runtime must outlive its engines.
        self._compiled = None
        self._engine = None
        self._runtime = None
        self.ops.close()

    def _tensors(self) -> tuple[str, str]:
        """Names of input and output, after a look at whether they are those of card and key."""
        engine, modes, types = self._engine, self._trt.TensorIOMode, self._trt.DataType
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        outputs = [name for name in names if engine.get_tensor_mode(name) == modes.OUTPUT]
        there = [
            _tensor(engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:])
            for name in (*inputs, *outputs)
        ]
        window = self._key.profile.window
        image = types.HALF if self._key.input_layout == "dhwc8" else types.FLOAT
        wanted = [
            _tensor(image, (len(self._card.modalities), *window)),
            _tensor(types.FLOAT, (len(self._card.labels), *window)),
        ]
        if len(inputs) != 1 or there != wanted:
            raise InputError(
                self._info.where,
                found=f"an engine with tensors {' and '.join(there) or 'of no kind'}",
                expected=" and ".join(wanted),
                remedy="build it again with brats-export",
            )
        return inputs[0], outputs[0]

    def _load(self, plan: bytes, library: TensorRt) -> None:
        try:
            with self.ops.here():
                self._runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # pybind11's word for a null pointer
            raise BackendUnavailableError(
                str(library),
                found=self._messages.sentence(),
                expected="an NVIDIA driver that is new enough for it",
                remedy="update the driver, or use --backend ort",
            ) from error
        # Onto the device that is current, whatever its stream says later.
        with self.ops.here():
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is not None:
            return
        said = self._messages.sentence()
        # Python is told the reason in words only.
        if "memory" in said.lower():
            raise self._failed("an engine that could not be loaded")
        raise InputError(
            self._info.where,
            found=f"an engine that {library} cannot load ({said})",
            expected="one that this version built on this GPU",
            remedy="build it again with brats-export",
        )

    def _allocate(self, window: Shape3, batch: int) -> None:
        channels = len(self._card.modalities)
        with self.ops.here():
            context = self._new_context()
        if context is None:
            raise self._failed("an execution context refused")
        if not context.set_input_shape(self._input, (batch, channels, *window)):
            raise self._failed(f"a batch of {batch} refused")
        # Zeros, not whatever was there: padding must be finite.
        if self._key.input_layout == "dhwc8":
            stored = self.ops.zeros((batch, *window, _PADDED_CHANNELS), np.float16)
            self._inputs = stored[..., :channels].transpose(0, 4, 1, 2, 3)
        else:
            stored = self._inputs = self.ops.zeros((batch, channels, *window), np.float32)
        self._outputs = self.ops.zeros((batch, len(self._card.labels), *window), np.float32)
        needed = int(context.update_device_memory_size_for_shapes())
        workspace = self.ops.zeros((max(needed, 1),), np.uint8)
        context.set_device_memory(workspace.data.ptr, needed)
        context.set_tensor_address(self._input, stored.data.ptr)
        context.set_tensor_address(self._output, self._outputs.data.ptr)
        self._buffers = (stored, self._outputs, workspace)
        # Only now: what is released with a context is waited for first.
        self._context = context

    def _new_context(self) -> Any:
        """An execution context that works in our memory; None where it is refused."""
        ours = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._key.flavour != "tensorrt_rtx":
            return self._engine.create_execution_context(ours)
        # TensorRT-RTX compiles its kernels where an engine runs. Left alone it begins with kernels
        # for any shape and puts better ones in their place later: the former would be what is
        # timed, and what stays in a CUDA graph.
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(ours)
        eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        if self._compiled is None:
            self._compiled = config.create_runtime_cache()
        config.set_runtime_cache(self._compiled)
        return self._engine.create_execution_context(config)

    def _enqueue(self) -> None:
        with self.ops.here():
            accepted = self._context.execute_async_v3(self.ops.stream.ptr)
        if not accepted:
            raise self._failed("a run refused")

    def _launch(self, graph: Any) -> None:
        with self.ops.here():
            graph.launch(self.ops.stream)

    def _faster_graph(self) -> Any:
        """A CUDA graph of one batch where it is faster than enqueueing; None otherwise."""
        self._enqueue()  # the first run allocates and loads, which cannot be captured
        # TensorRT-RTX knows; TensorRT 10 is asked by trying.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self.ops.stream.ptr):
            return None
        graph = self.ops.capture(lambda: bool(self._context.execute_async_v3(self.ops.stream.ptr)))
        if graph is None:
            # What TensorRT said of it must not be quoted as the reason of a later failure.
            self._messages.errors.clear()
            return None
        launched = self._seconds(lambda: self._launch(graph))
        return graph if launched < self._seconds(self._enqueue) else None

    def _seconds(self, step: Any) -> float:
        """Median device time of one step, the first left out."""
        marks = []
        for _ in range(_ROUNDS + 1):
            began = self.ops.mark()
            step()
            marks.append((began, self.ops.mark()))
        return median(self.ops.seconds(*pair) for pair in marks[1:])

    def _release(self) -> None:
        # The context before the memory that it works in, and nothing while a batch still runs.
        if self._context is not None:
            self.ops.stream.synchronize()
        self._graph = self._context = None
        self._batch = self._asked = 0
        self._inputs = self._outputs = None
        if self._buffers:
            self._buffers = ()
            # What TensorRT allocates by itself does not come out of our pool.
            self.ops.trim()

    def _failed(self, found: str) -> ComputeError:
        return ComputeError(
            self._info.device,
            found=f"{found} by TensorRT ({self._messages.sentence()})",
            expected="a result",
            remedy="choose a smaller --batch, free memory on the GPU, or use --backend ort",
        )


def _tensor(dtype: Any, shape: tuple[int, ...]) -> str:
    """Type and shape but for the batch, such as "FLOAT Nx4x128x128x64"."""
    name = str(dtype).rpartition(".")[2]
    return f"{name} N{''.join(f'x{size}' for size in shape)}"
