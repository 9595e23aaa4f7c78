"""Execute an ONNX graph node by node in PyTorch, in any arithmetic.

ONNX Runtime and OpenVINO do not execute fp16 graphs in fp16 on a CPU, so that their results say
nothing about its rounding and overflow. Here every tensor that the graph types as fp16 is rounded
to fp16 after the node that makes it, which is what a GPU that accumulates in fp32 does. In float64
it is the independent truth for graph rewrites.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from runtime.backends import BackendInfo, Fill, Take, check_window
from runtime.model_card import ModelCard, Shape3
from runtime.ops.numpy import NumpyOps

FP16_MAX: Final = 65504.0


class EmulatedGraph:
    """An ONNX graph of the operators that our exports hold.

    Attributes:
        peaks: largest |value| seen so far of each tensor that the graph types as fp16; infinite
            where there was a NaN.
    """

    def __init__(self, model: onnx.ModelProto, arithmetic: torch.dtype = torch.float32) -> None:
        """
        Args:
            model: opset 20, operators Conv, ConvTranspose, BatchNormalization, Relu, MaxPool,
                Concat, Add, Cast, Softmax.
            arithmetic: what nodes compute in, torch.float32 or torch.float64.

        Raises:
            ValueError: the graph holds another operator.
        """
        self._nodes = list(model.graph.node)
        self._input = model.graph.input[0].name
        self._output = model.graph.output[0].name
        self._arithmetic = arithmetic
        unknown = sorted({node.op_type for node in self._nodes} - set(_OPERATORS))
        if unknown:
            raise ValueError(f"operator {unknown[0]} is not one that the emulation knows")
        self._half: set[str] = set()
        self._weights: dict[str, Tensor] = {}
        for item in model.graph.initializer:
            array = numpy_helper.to_array(item)
            self._weights[item.name] = _laid_out(torch.from_numpy(array.copy()).to(arithmetic))
            if array.dtype == np.float16:
                self._half.add(item.name)
        for node in self._nodes:
            if node.op_type == "Cast":
                target = helper.get_attribute_value(node.attribute[0])
                half = target == TensorProto.FLOAT16
            else:
                half = node.input[0] in self._half
            if half:
                self._half.update(node.output)
        last = {name: index for index, node in enumerate(self._nodes) for name in node.input}
        self._last_use: Mapping[str, int] = last
        self.peaks: dict[str, float] = {}

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Run on float32 (N, C, X, Y, Z); returns the output in the arithmetic's dtype."""
        tensors = {self._input: _laid_out(torch.from_numpy(image).to(self._arithmetic))}
        for index, node in enumerate(self._nodes):
            inputs = [
                self._weights[name] if name in self._weights else tensors[name]
                for name in node.input
                if name
            ]
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            result = _OPERATORS[node.op_type](inputs, attributes)
            name = node.output[0]
            if name in self._half:
                result = result.to(torch.float16).to(self._arithmetic)
                peak = float(result.abs().max())
                # A NaN compares as nothing, and would be lost in a maximum.
                peak = peak if peak == peak else float("inf")
                self.peaks[name] = max(self.peaks.get(name, 0.0), peak)
            tensors[name] = result
            for used in node.input:
                if self._last_use.get(used) == index:
                    tensors.pop(used, None)
        output: npt.NDArray[Any] = tensors[self._output].contiguous().numpy()
        return output


def _laid_out(tensor: Tensor) -> Tensor:
    """Channels last, in which PyTorch convolves volumes about twice as fast on a CPU."""
    return tensor.to(memory_format=torch.channels_last_3d) if tensor.ndim == 5 else tensor


class EmulatedBackend:
    """An `EmulatedGraph` as a `runtime.backends.Backend` on the CPU; owns its input buffer."""

    def __init__(self, graph: EmulatedGraph, card: ModelCard, info: BackendInfo) -> None:
        self.card = card
        self.info = info
        self.ops = NumpyOps()
        self._graph = graph
        self._buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self.card, window)
        self._buffer = np.zeros((1, len(self.card.modalities), *window), np.float32)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        for index in range(n):
            fill(index, index + 1, self._buffer)
            take(index, index + 1, self._graph(self._buffer).astype(np.float32, copy=False))

    def close(self) -> None:
        self._buffer = np.zeros(0, np.float32)


def _padding(attributes: Mapping[str, Any]) -> list[int]:
    pads = list(attributes.get("pads", [0] * 6))
    if pads[:3] != pads[3:]:
        raise ValueError(f"padding {pads} is not symmetric")
    return pads[:3]


def _conv(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    bias = inputs[2] if len(inputs) > 2 else None
    return F.conv3d(
        inputs[0],
        inputs[1],
        bias,
        stride=list(attributes.get("strides", [1] * 3)),
        padding=_padding(attributes),
        dilation=list(attributes.get("dilations", [1] * 3)),
        groups=attributes.get("group", 1),
    )


def _conv_transpose(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    bias = inputs[2] if len(inputs) > 2 else None
    return F.conv_transpose3d(
        inputs[0],
        inputs[1],
        bias,
        stride=list(attributes.get("strides", [1] * 3)),
        padding=_padding(attributes),
        output_padding=list(attributes.get("output_padding", [0] * 3)),
        groups=attributes.get("group", 1),
    )


def _batch_norm(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    x, scale, shift, mean, variance = inputs
    return F.batch_norm(x, mean, variance, scale, shift, eps=attributes.get("epsilon", 1e-5))


def _max_pool(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    return F.max_pool3d(
        inputs[0],
        kernel_size=list(attributes["kernel_shape"]),
        stride=list(attributes["strides"]),
        padding=_padding(attributes),
    )


_OPERATORS: Final[Mapping[str, Callable[[list[Tensor], Mapping[str, Any]], Tensor]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "Relu": lambda inputs, _: torch.relu(inputs[0]),
    "MaxPool": _max_pool,
    "Concat": lambda inputs, attributes: torch.cat(inputs, dim=attributes["axis"]),
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    # Tensors are rounded by what the graph types them as, so that a cast itself does nothing.
    "Cast": lambda inputs, _: inputs[0],
    "Softmax": lambda inputs, attributes: torch.softmax(inputs[0], dim=attributes.get("axis", -1)),
}
