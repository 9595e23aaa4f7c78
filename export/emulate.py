"""Execute an ONNX graph node by node in PyTorch, in any arithmetic.

ONNX Runtime and OpenVINO do not execute fp16 graphs in fp16 on a CPU, so that their results say
nothing about its rounding and overflow. Here every tensor that the graph types as fp16 or bf16 is
rounded to that type after the node that makes it, which is what a GPU that accumulates in fp32
does; a graph may mix types. In float64 it is the independent truth for graph rewrites.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor

from export.graph import attributes_of
from runtime.backends import BackendInfo, Fill, Take, check_window
from runtime.model_card import ModelCard, Shape3
from runtime.ops.numpy import NumpyOps

FP16_MAX: Final = 65504.0
See = Callable[[str, Tensor], None]
"""see(name, tensor): a tensor of the graph, in the arithmetic's dtype."""
_REDUCED: Final = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}


class EmulatedGraph:
    """An ONNX graph of the operators that our exports hold.

    Attributes:
        peaks: largest |value| seen so far of each tensor that the graph types as fp16; infinite
            where there was a NaN.
    """

    def __init__(self, model: onnx.ModelProto, arithmetic: torch.dtype = torch.float32) -> None:
        """
        Args:
            model: opset 20 to 22; operators Conv, ConvTranspose, BatchNormalization, Relu, MaxPool,
                Concat, Add, Cast, Softmax, and Shape, Reshape, Transpose, Slice of stride 1.
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
        self._weights: dict[str, Tensor] = {}
        types = {self._input: model.graph.input[0].type.tensor_type.elem_type}
        for item in model.graph.initializer:
            types[item.name] = item.data_type
            self._weights[item.name] = self._constant(item)
        for node in self._nodes:
            attributes = attributes_of(node)
            types[node.output[0]] = {
                "Cast": attributes.get("to"),
                "Shape": TensorProto.INT64,
            }.get(node.op_type, types[node.input[0]])
        self._rounded = {name: _REDUCED[kind] for name, kind in types.items() if kind in _REDUCED}
        last = {name: index for index, node in enumerate(self._nodes) for name in node.input}
        self._last_use: Mapping[str, int] = last
        self.peaks: dict[str, float] = {}

    def _constant(self, item: TensorProto) -> Tensor:
        array = numpy_helper.to_array(item)
        if item.data_type == TensorProto.INT64:
            return torch.from_numpy(array.copy())
        # PyTorch takes no bf16 from NumPy; float64 holds every value of every type.
        return _laid_out(torch.from_numpy(array.astype(np.float64)).to(self._arithmetic))

    @torch.inference_mode()
    def __call__(
        self, image: npt.NDArray[np.float32], see: See = lambda name, tensor: None
    ) -> npt.NDArray[Any]:
        """Run on float32 (N, C, X, Y, Z); returns the output in the arithmetic's dtype.

        Args:
            image: the input.
            see: is shown the input and what every node makes, valid only inside the call.
        """
        tensors = {self._input: _laid_out(torch.from_numpy(image).to(self._arithmetic))}
        see(self._input, tensors[self._input])
        for index, node in enumerate(self._nodes):
            inputs = [
                self._weights[name] if name in self._weights else tensors[name]
                for name in node.input
                if name
            ]
            result = _OPERATORS[node.op_type](inputs, attributes_of(node))
            name = node.output[0]
            rounded = self._rounded.get(name)
            if rounded is not None:
                result = result.to(rounded).to(self._arithmetic)
            if rounded is torch.float16:
                peak = float(result.abs().max())
                # A NaN compares as nothing, and would be lost in a maximum.
                peak = peak if peak == peak else float("inf")
                self.peaks[name] = max(self.peaks.get(name, 0.0), peak)
            tensors[name] = result
            see(name, result)
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


def _reshape(inputs: list[Tensor], _: Mapping[str, Any]) -> Tensor:
    x, wanted = inputs
    # In ONNX a 0 keeps the size at its place.
    sizes = [size or x.shape[axis] for axis, size in enumerate(wanted.tolist())]
    return x.reshape(sizes)


def _slice(inputs: list[Tensor], _: Mapping[str, Any]) -> Tensor:
    x, starts, ends, axes = inputs
    where = [slice(None)] * x.ndim
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        where[axis] = slice(start, end)
    return x[tuple(where)]


def _shape(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    return torch.tensor(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")])


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
    "Shape": _shape,
    "Reshape": _reshape,
    "Transpose": lambda inputs, attributes: inputs[0].permute(list(attributes["perm"])),
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: torch.softmax(inputs[0], dim=attributes.get("axis", -1)),
}
