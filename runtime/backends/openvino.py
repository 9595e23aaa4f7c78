"""OpenVINO on the CPU: the fastest of the CPU backends."""

import os
from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino

from runtime.backends.seam import (
    BackendInfo,
    Fill,
    Take,
    Tensor,
    check_tensors,
    check_window,
)
from runtime.errors import BackendUnavailableError, ComputeError, InputError
from runtime.model_card import CARD_KEY, ModelCard, Shape3, check_card
from runtime.ops.numpy import NumpyOps

# One for the process, and for as long as it lives. Each gives its thread a stack for signals and
# takes it away again as if they ended in the opposite order of their beginnings: after any other
# order Ctrl-C ends the process with a segmentation fault.
_CORE: Final = openvino.Core()


class OpenVinoBackend:
    """Runs an ONNX model with OpenVINO, one window at a time on all threads; see
    `runtime.backends.Backend`.

    Owns the compiled model and the input tensor. The precision is pinned to f32: left alone,
    OpenVINO chooses bf16 on processors that have it. What a graph quantises is computed in int8 all
    the same.
    """

    def __init__(
        self,
        model: bytes,
        card: ModelCard,
        info: BackendInfo,
        threads: int | None = None,
        *,
        varying: bool = False,
    ) -> None:
        """
        Args:
            model: a self-contained ONNX file, already verified.
            threads: CPU threads; None means one per core.
            varying: windows of many shapes are to be bound: compile once for all of them.

        Raises:
            InputError: not a model that OpenVINO can read.
            BackendUnavailableError: a device other than the CPU was asked for.
        """
        if info.device != "cpu":
            raise BackendUnavailableError(
                "--device",
                found=info.device,
                expected="cpu, the only device of the openvino backend",
                remedy="use --backend ort or trt for a GPU",
            )
        self._card = card
        self._info = info
        self._varying = varying
        self.ops = NumpyOps(threads)
        self._core = _CORE
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "NUM_STREAMS": "1",
        }
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = str(threads)
            if threads < (os.cpu_count() or 1):
                # It pins its threads to the first cores, each process to the same ones: two that
                # share a machine would take turns on one core while another lies idle.
                self._settings["ENABLE_CPU_PINNING"] = "NO"
        try:
            self._model = self._core.read_model(model, b"")
        except RuntimeError as error:
            raise InputError(
                info.where,
                found=f"a model OpenVINO cannot read ({str(error).strip().splitlines()[-1][:200]})",
                expected="an ONNX file written by brats-export",
                remedy="export the model again",
            ) from error
        path = ["framework", CARD_KEY]
        stored = (
            self._model.get_rt_info(path).astype(str) if self._model.has_rt_info(path) else None
        )
        check_card(card, stored, info.where)
        _check_graph(self._model, card, info.where)
        _check_finite(self._model, info.where)
        self._compiled: openvino.CompiledModel | None = None
        self._request: openvino.InferRequest | None = None
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
        shape = (1, len(self._card.modalities), *window)
        if self._buffer.shape == shape:
            return
        # Before it is given a shape: OpenVINO would make a graph of another one fit.
        _check_graph(self._model, self._card, self._info.where, window)
        # Reshaped for the check even where the shape is left open: it finds what does not fit.
        fitted = self._model.clone()
        try:
            fitted.reshape(list(shape))
        except RuntimeError as error:
            raise InputError(
                self._info.where,
                found=f"a graph that takes no input of {'x'.join(map(str, shape))}",
                expected="the channels and axes that the model's card promises",
                remedy="export the model again",
            ) from error
        _check_graph(fitted, self._card, self._info.where, window)
        if self._request is None or not self._varying:
            self._request = self._compile(fitted)
        self._buffer = np.zeros(shape, np.float32)
        self._window = window
        self._request.set_input_tensor(openvino.Tensor(self._buffer, shared_memory=True))

    def _compile(self, model: openvino.Model) -> openvino.InferRequest:
        """A shape that is known lets oneDNN choose its kernels and layouts now, once. One that is
        open takes as long to compile and runs as fast: kernels are chosen when a shape is first
        seen, in a tenth of the time.
        """
        if self._varying:
            model.reshape([1, len(self._card.modalities), -1, -1, -1])
        try:
            self._compiled = self._core.compile_model(model, "CPU", self._settings)
            return self._compiled.create_infer_request()
        except RuntimeError as error:
            raise _failed(error) from error

    def run(self, n: int, fill: Fill, take: Take) -> None:
        if self._request is None:
            raise RuntimeError("run() before bind()")
        for index in range(n):
            fill(index, index + 1, self._buffer)
            try:
                self._request.infer()
            except RuntimeError as error:
                raise _failed(error) from error
            outputs = self._request.get_output_tensor().data
            # Known only now where the graph leaves it open.
            given, taken = Tensor.of(outputs), Tensor.of(self._buffer)
            check_tensors(self._card, [taken], [given], self._info.where, self._window)
            take(index, index + 1, outputs)

    def convolutions(self) -> dict[str, int]:
        """How many convolutions, plain and transposed, the compiled model computes in each type, as
        OpenVINO names it: "f32", or "u8" and "i8" for those that are quantised.
        """
        if self._compiled is None:
            raise RuntimeError("convolutions() before bind()")
        found: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            told = node.get_rt_info()
            if told["layerType"].astype(str) in ("Convolution", "Deconvolution"):
                found[told["runtimePrecision"].astype(str)] += 1
        return dict(found)

    def close(self) -> None:
        self._request = None
        self._compiled = None
        self._buffer = np.zeros(0, np.float32)
        self.ops.close()


def _check_graph(
    model: openvino.Model, card: ModelCard, artefact: str, window: Shape3 | None = None
) -> None:
    inputs, outputs = ([_tensor(one) for one in side] for side in (model.inputs, model.outputs))
    check_tensors(card, inputs, outputs, artefact, window)


def _tensor(port: Any) -> Tensor:
    kind, shape = port.get_element_type().get_type_name(), port.get_partial_shape()
    axes = None
    if not shape.rank.is_dynamic:
        axes = tuple(None if size.is_dynamic else size.get_length() for size in shape)
    return Tensor("float32" if kind == "f32" else kind, axes)


def _failed(error: RuntimeError) -> ComputeError:
    return ComputeError(
        "openvino",
        found=f"a failed run ({str(error).strip().splitlines()[-1][:200]})",
        expected="a result",
        remedy="choose a smaller --patch or --backend ort",
    )


def _check_finite(model: openvino.Model, artefact: str) -> None:
    """OpenVINO's rectifier makes 0 of NaN, so that weights that are none would give a label map.

    Raises:
        InputError: a constant of the graph is NaN or infinite.
    """
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or not node.get_element_type().is_real():
            continue
        values = np.asarray(node.data)
        if not np.isfinite(values).all():
            raise InputError(
                artefact,
                found=f"weights that are NaN or infinite ({node.get_friendly_name()})",
                expected="finite ones",
                remedy="export the model again, from a checkpoint whose weights are finite",
            )
