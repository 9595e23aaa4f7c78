"""ONNX Runtime on CUDA: windows and probabilities never leave the device."""

import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import onnxruntime

from runtime.backends.ort import (
    check_graph,
    open_session,
    out_of_memory,
    stopped,
    stored_card,
)
from runtime.backends.seam import BackendInfo, Fill, Take, check_window
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    ComputeError,
    InputError,
    first_line,
)
from runtime.model_card import ModelCard, Shape3, check_card
from runtime.ops import Array

if TYPE_CHECKING:
    from runtime.ops.cupy import CupyOps

_PROVIDER: Final = "CUDAExecutionProvider"
_FAILURE_OF_CUDA: Final = re.compile("(CUDA|CUDNN|CUBLAS)[A-Z]* (failure|error)", re.IGNORECASE)


@dataclass(frozen=True)
class CudaOptions:
    """Settings of ONNX Runtime's CUDA provider.

    Attributes:
        conv_search: how cuDNN's kernels are chosen. "EXHAUSTIVE" times them once per shape, and
            windows have one shape; the third choice, "DEFAULT", can be tens of times slower.
        prefer_nhwc: convolve channels last.
        fuse_conv_bias: let cuDNN fuse a convolution with its bias and activation at run time.
        memory: part of the free device memory at the start that the arena may take.
    """

    conv_search: Literal["EXHAUSTIVE", "HEURISTIC"] = "EXHAUSTIVE"
    prefer_nhwc: bool = False
    fuse_conv_bias: bool = False
    memory: float = 0.9


class OrtCudaBackend:
    """Runs an ONNX model on one GPU; see `runtime.backends.Backend`.

    Owns the session, the array operations and both device buffers. Input and output are bound by
    pointer, everything runs on the operations' stream, and the last batch is padded with what
    the one before it left, so that there is one shape only.
    """

    def __init__(
        self,
        model: bytes,
        card: ModelCard,
        info: BackendInfo,
        ops: "CupyOps",
        options: CudaOptions | None = None,
    ) -> None:
        """
        Args:
            model: a self-contained ONNX file with float32 input and output, already verified.
            info: what is to execute; its device "cuda:N" is that of ``ops``.
            ops: closed with the backend.
            options: of the provider.

        Raises:
            InputError: not a model that ONNX Runtime can load, or one without this card.
            BackendUnavailableError: the CUDA provider did not load.
            ComputeError: the device has no memory left for the model.
        """
        self._card = card
        self._info = info
        self.ops = ops
        self._asked = 0
        self._inputs: Array = None
        self._outputs: Array = None
        self._session: Any = None
        self._binding: Any = None
        try:
            self._session = self._opened(model, options or CudaOptions())
            check_card(card, stored_card(self._session), info.where)
            check_graph(self._session, card, info.where)
        except BratsError:
            self.close()
            raise
        self._binding = self._session.io_binding()
        self._run_options = onnxruntime.RunOptions()
        # What follows is on the same stream: nothing has to wait for the end of a run.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def info(self) -> BackendInfo:
        return self._info

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self._card, window)
        # What did not fit for one case is not tried again for each of the next.
        if (
            self._inputs is not None
            and self._inputs.shape[2:] == window
            and batch in (len(self._inputs), self._asked)
        ):
            return
        check_graph(self._session, self._card, self._info.where, window)
        self._fit(window, batch)
        self._asked = batch

    def run(self, n: int, fill: Fill, take: Take) -> None:
        if self._inputs is None:
            raise RuntimeError("run() before bind()")
        first = 0
        while first < n:
            last = min(first + len(self._inputs), n)
            fill(first, last, self._inputs[: last - first])
            try:
                self._session.run_with_iobinding(self._binding, self._run_options)
            except Exception as error:  # pybind's exceptions share no public base class
                batch = len(self._inputs)
                if not out_of_memory(error) or batch == 1:
                    raise stopped(self._info.device, error) from error
                self._fit(self._inputs.shape[2:], batch // 2)
                continue
            take(first, last, self._outputs[: last - first])
            first = last

    def close(self) -> None:
        self._release()
        self._binding = self._session = None
        self.ops.close()

    def _opened(self, model: bytes, options: CudaOptions) -> onnxruntime.InferenceSession:
        # The CUDA libraries of Python packages are not on the loader's path. What is missing is
        # printed, and that to standard output.
        with redirect_stdout(StringIO()) as printed:
            onnxruntime.preload_dlls()
        try:
            session = open_session(
                model,
                self._info,
                onnxruntime.SessionOptions(),
                [(_PROVIDER, _settings(self.ops, self._info, options)), "CPUExecutionProvider"],
            )
        except InputError as error:
            cause = error.__cause__
            if isinstance(cause, Exception) and out_of_memory(cause):
                raise stopped(self._info.device, cause) from cause
            if isinstance(cause, Exception) and _FAILURE_OF_CUDA.search(str(cause)):
                raise self._unavailable(first_line(cause)) from cause
            raise
        # A provider that is listed as available may still fail to load, without an error.
        if _PROVIDER not in session.get_providers():
            raise self._unavailable(printed.getvalue().strip().partition("\n")[0])
        return session

    def _unavailable(self, reason: str) -> BackendUnavailableError:
        return BackendUnavailableError(
            "--backend ort",
            found=f"no working CUDA provider for {self._info.device}"
            + (f" ({reason})" if reason else ""),
            expected="ONNX Runtime's CUDA libraries and a driver that go together",
            remedy="install brats-deploy[gpu], or use --device cpu",
        )

    def _fit(self, window: Shape3, batch: int) -> None:
        """Allocate for as many windows as there is memory for, at most ``batch``."""
        # Given back first: the old and the new ones need not fit side by side.
        self._release()
        while True:
            try:
                self._allocate(window, batch)
                return
            except ComputeError:
                self._release()
                if batch == 1:
                    raise
                batch //= 2

    def _allocate(self, window: Shape3, batch: int) -> None:
        # Zeros, not whatever was there: the padding of a first batch must be finite.
        self._inputs = self.ops.zeros((batch, len(self._card.modalities), *window), np.float32)
        self._outputs = self.ops.zeros((batch, len(self._card.labels), *window), np.float32)
        index = int(self._info.device.partition(":")[2])
        for bind, name, array in (
            (self._binding.bind_input, self._session.get_inputs()[0].name, self._inputs),
            (self._binding.bind_output, self._session.get_outputs()[0].name, self._outputs),
        ):
            bind(name, "cuda", index, np.float32, array.shape, array.data.ptr)

    def _release(self) -> None:
        if self._inputs is None:
            return
        # Nothing is released that a batch still works on.
        self.ops.stream.synchronize()
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._inputs = self._outputs = None
        # ONNX Runtime's own memory does not come out of our pool.
        self.ops.trim()


def _settings(ops: "CupyOps", info: BackendInfo, options: CudaOptions) -> dict[str, Any]:
    return {
        "device_id": str(ops.device),
        "user_compute_stream": str(ops.stream.ptr),
        "do_copy_in_default_stream": "1",
        "cudnn_conv_algo_search": options.conv_search,
        "cudnn_conv_use_max_workspace": "1",
        "prefer_nhwc": str(int(options.prefer_nhwc)),
        "fuse_conv_bias": str(int(options.fuse_conv_bias)),
        # In an fp32 graph it would round products to 10 bits. Without it no kernel of the tensor
        # cores is left, not even those of fp16: 16.2 ms a window instead of 2.8 on an H100.
        "use_tf32": str(int(info.precision != "fp32")),
        # Windows never change size between steps; an arena that doubles would hold twice the peak.
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(int(options.memory * ops.free_memory())),
    }
