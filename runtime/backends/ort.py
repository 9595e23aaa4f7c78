"""ONNX Runtime on the CPU."""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from runtime.backends.seam import (
    BackendInfo,
    Fill,
    Take,
    Tensor,
    check_tensors,
    check_window,
)
from runtime.errors import ComputeError, InputError, first_line
from runtime.model_card import CARD_KEY, ModelCard, Shape3, check_card
from runtime.ops.numpy import NumpyOps

# malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK: Final = 8 << 20


class OrtBackend:
    """Runs an ONNX model with ONNX Runtime, one window at a time; see `runtime.backends.Backend`.
    Owns session and input buffer.
    """

    def __init__(
        self, model: bytes, card: ModelCard, info: BackendInfo, threads: int | None = None
    ) -> None:
        """
        Args:
            model: a self-contained ONNX file, already verified.
            info: what is to execute.
            threads: CPU threads; None means one per core.

        Raises:
            InputError: not a model that ONNX Runtime can load, or one without this card.
        """
        self._card = card
        self._info = info
        self.ops = NumpyOps(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Windows keep their shape, so the plan of the first run holds; the arena would only grow
        # the peak.
        options.enable_cpu_mem_arena = False
        _give_back_large_blocks()
        self._session = open_session(model, info, options, ["CPUExecutionProvider"])
        check_card(card, stored_card(self._session), info.where)
        check_graph(self._session, card, info.where)
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self._buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._window: Shape3 | None = None

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def info(self) -> BackendInfo:
        return self._info

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self._card, window)
        check_graph(self._session, self._card, self._info.where, window)
        # More than one window at a time gains nothing on a CPU and costs memory.
        self._window = window
        shape = (1, len(self._card.modalities), *window)
        if self._buffer.shape != shape:
            self._buffer = np.zeros(shape, np.float32)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        if not self._buffer.size:
            raise RuntimeError("run() before bind()")
        for index in range(n):
            fill(index, index + 1, self._buffer)
            try:
                (outputs,) = self._session.run([self._output], {self._input: self._buffer})
            except Exception as error:  # pybind's exceptions share no public base class
                raise stopped(self._info.device, error) from error
            # Known only now where the graph leaves it open.
            given, taken = Tensor.of(outputs), Tensor.of(self._buffer)
            check_tensors(self._card, [taken], [given], self._info.where, self._window)
            take(index, index + 1, outputs)

    def close(self) -> None:
        del self._session
        self._buffer = np.zeros(0, np.float32)
        self.ops.close()


def _give_back_large_blocks() -> None:
    """Let malloc take blocks of 8 MB and more from the system and give them back when freed.

    glibc begins with that, and stops by and by for blocks of up to 32 MB: those of a network then
    leave holes in the heap, and its peak is a tenth higher. Holds for the process.
    """
    if sys.platform == "linux":
        # Another C library has no such function.
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def open_session(
    model: bytes, info: BackendInfo, options: Any, providers: Sequence[Any]
) -> onnxruntime.InferenceSession:
    """A session that prints nothing below an error.

    Raises:
        InputError: not a model that ONNX Runtime can load.
    """
    options.log_severity_level = 3
    # The loading of providers is logged by the process's logger, before there is a session.
    onnxruntime.set_default_logger_severity(3)
    try:
        # Left alone it would try again on other terms, print that, and run on another stream.
        return onnxruntime.InferenceSession(
            model, options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # pybind's exceptions share no public base class
        raise InputError(
            info.where,
            found=f"a model ONNX Runtime cannot load ({first_line(error)})",
            expected="an ONNX file written by brats-export",
            remedy="export the model again",
        ) from error


def stored_card(session: onnxruntime.InferenceSession) -> str | None:
    """What a model's metadata holds under `CARD_KEY`."""
    found: str | None = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    return found


def check_graph(
    session: onnxruntime.InferenceSession,
    card: ModelCard,
    artefact: str,
    window: Shape3 | None = None,
) -> None:
    """Refuse a graph that is not of the card's modalities and labels; see `check_tensors`."""
    inputs, outputs = (
        [_tensor(one.type, one.shape) for one in side]
        for side in (session.get_inputs(), session.get_outputs())
    )
    check_tensors(card, inputs, outputs, artefact, window)


def _tensor(kind: str, shape: Sequence[Any]) -> Tensor:
    # An axis that is open has a name, or none; a shape of no axes is one of which nothing is known.
    axes = tuple(size if isinstance(size, int) else None for size in shape)
    return Tensor("float32" if kind == "tensor(float)" else kind, axes or None)


def stopped(where: str, error: Exception) -> ComputeError:
    """What a failed run means to a user."""
    return ComputeError(
        where,
        found=f"ONNX Runtime stopped ({first_line(error)})",
        expected="a result",
        remedy="choose a smaller --patch or another --backend"
        if out_of_memory(error)
        else "try another --backend",
    )


def out_of_memory(error: Exception) -> bool:
    """Whether ONNX Runtime, which has no class for it, speaks of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "alloc" in text or "out of memory" in text
