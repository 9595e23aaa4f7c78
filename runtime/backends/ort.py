"""ONNX Runtime, on the CPU or on CUDA."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from runtime.backends import BackendInfo, Fill, Take, check_window
from runtime.errors import BackendUnavailableError, ComputeError, InputError
from runtime.model_card import ModelCard, Shape3
from runtime.ops.numpy import NumpyOps

# An arena that doubles would hold twice the network's peak; windows never change size between
# steps.
_CUDA_OPTIONS: Final = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
}


class OrtBackend:
    """Runs an ONNX model with ONNX Runtime; see `runtime.backends.Backend`. Owns session and input
    buffer.
    """

    def __init__(
        self, model: bytes, card: ModelCard, info: BackendInfo, threads: int | None = None
    ) -> None:
        """
        Args:
            model: a self-contained ONNX file, already verified.
            info: what is to execute; its device ("cpu" or "cuda:N") is taken literally.
            threads: CPU threads; None means one per core.

        Raises:
            InputError: not a model that ONNX Runtime can load.
            BackendUnavailableError: the CUDA provider was asked for and did not load.
        """
        self._card = card
        self._info = info
        self.ops = NumpyOps()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # Windows keep their shape, so the plan of the first run holds; the arena would only grow
        # the peak.
        options.enable_cpu_mem_arena = False
        providers: list[Any] = ["CPUExecutionProvider"]
        if info.device != "cpu":
            device = int(info.device.partition(":")[2] or 0)
            onnxruntime.preload_dlls()
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device, **_CUDA_OPTIONS}))
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # pybind's exceptions share no public base class
            raise InputError(
                info.artefact,
                found=f"a model ONNX Runtime cannot load ({_first_line(error)})",
                expected="an ONNX file written by brats-export",
                remedy="export the model again",
            ) from error
        if info.device != "cpu" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise BackendUnavailableError(
                "--device",
                found=f"no working CUDA provider for {info.device}",
                expected="a CUDA device and ONNX Runtime's CUDA libraries",
                remedy="install brats-deploy[gpu], or use --device cpu",
            )
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self._buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def info(self) -> BackendInfo:
        return self._info

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self._card, window)
        # More than one window at a time gains nothing on a CPU and costs memory.
        batch = 1 if self._info.device == "cpu" else batch
        shape = (batch, len(self._card.modalities), *window)
        if self._buffer.shape != shape:
            self._buffer = np.zeros(shape, np.float32)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        if not self._buffer.size:
            raise RuntimeError("run() before bind()")
        first = 0
        while first < n:
            last = min(first + len(self._buffer), n)
            inputs = self._buffer[: last - first]
            fill(first, last, inputs)
            try:
                (outputs,) = self._session.run([self._output], {self._input: inputs})
            except Exception as error:  # pybind's exceptions share no public base class
                if _out_of_memory(error) and len(self._buffer) > 1:
                    self._buffer = self._buffer[: len(self._buffer) // 2].copy()
                    continue
                raise ComputeError(
                    self._info.device,
                    found=f"ONNX Runtime stopped ({_first_line(error)})",
                    expected="a result",
                    remedy="choose a smaller --patch or another --backend"
                    if _out_of_memory(error)
                    else "try another --backend",
                ) from error
            take(first, last, outputs)
            first = last

    def close(self) -> None:
        del self._session
        self._buffer = np.zeros(0, np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "alloc" in text or "out of memory" in text
