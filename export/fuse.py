"""Exact graph rewrites: batch norms fold into convolutions, and up branches compose into one
transposed convolution.

Up-convolution, concatenation and convolution are linear in a row. For output voxel j,
low-resolution voxel i, an up-convolution U (kernel 2, stride 2) and a convolution C (kernel 3,
padding 1), per axis

    y[j] = sum_i x[i] * sum_{a - t + 2 = k} U[a] C[t],   k = j + 1 - 2 i

which is a transposed convolution of kernel 4, stride 2, padding 1. What the convolution pads with
zeros are values of the up-sampled tensor that no x[i] reaches, so that the identity holds at the
borders too, as long as nothing stands between the two (a bias would be cut off at the border by the
padding, but not by the composed kernel).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Float64 = npt.NDArray[np.float64]
_AXES = 3


@dataclass(frozen=True)
class FusionReport:
    """What was rewritten.

    Attributes:
        folded: batch norms folded into convolutions.
        composed: up-convolutions composed with the convolution after the concatenation.
        left_alone: one sentence per place that looks like an up branch and is not one that
            composes exactly.
    """

    folded: int
    composed: int
    left_alone: tuple[str, ...]


def fuse(model: onnx.ModelProto) -> FusionReport:
    """Rewrite ``model`` in place; the function it computes stays the same up to rounding.

    Weights are folded and composed in float64 and stored in the type that the graph computes in.
    """
    graph = _Graph(model)
    folded = _fold_batch_norms(graph)
    composed, left_alone = _compose_up_branches(graph)
    graph.write()
    return FusionReport(folded, composed, tuple(left_alone))


class _Graph:
    """Nodes and constants of a model, indexed by tensor name; `write` puts them back, without what
    is dead.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.constants = {
            item.name: numpy_helper.to_array(item) for item in model.graph.initializer
        }
        self.nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            else:
                self.nodes.append(node)
        self._outputs = {item.name for item in model.graph.output}
        computed_in = model.graph.input[0].type.tensor_type.elem_type
        self._dtype = helper.tensor_dtype_to_np_dtype(computed_in)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def used_once(self, tensor: str) -> bool:
        return len(self.consumers(tensor)) == 1 and tensor not in self._outputs

    def weight(self, node: onnx.NodeProto) -> Float64:
        return self.constants[node.input[1]].astype(np.float64)

    def bias(self, node: onnx.NodeProto, channels: int) -> Float64:
        """The bias of a (transposed) convolution; zeros where it has none."""
        if len(node.input) > 2 and node.input[2]:
            return self.constants[node.input[2]].astype(np.float64)
        return np.zeros(channels)

    def store(self, name: str, value: Float64) -> str:
        while name in self.constants:
            name += "_"
        self.constants[name] = value.astype(self._dtype)
        return name

    def replace(self, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
        index = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[index : index + 1] = new

    def remove(self, node: onnx.NodeProto) -> None:
        self.nodes = [other for other in self.nodes if other is not node]

    def write(self) -> None:
        live = set(self._outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if live.intersection(node.output):
                kept.insert(0, node)
                live.update(node.input)
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(kept)
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in self.constants.items()
            if name in live
        )
        onnx.checker.check_model(self._model, full_check=True)


def _fold_batch_norms(graph: _Graph) -> int:
    folded = 0
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        conv = graph.producer(norm.input[0])
        if conv is None or conv.op_type != "Conv" or not graph.used_once(norm.input[0]):
            continue
        scale, shift, mean, variance = (
            graph.constants[name].astype(np.float64) for name in norm.input[1:5]
        )
        factor = scale / np.sqrt(variance + _attributes(norm).get("epsilon", 1e-5))
        weight = graph.weight(conv)
        bias = (graph.bias(conv, len(weight)) - mean) * factor + shift
        name = conv.input[1]
        folded_conv = helper.make_node(
            "Conv",
            [
                conv.input[0],
                graph.store(f"{name}.folded", weight * factor[:, None, None, None, None]),
                graph.store(f"{name}.bias", bias),
            ],
            [norm.output[0]],
            name=conv.name,
            **_attributes(conv),
        )
        graph.replace(conv, [folded_conv])
        graph.remove(norm)
        folded += 1
    return folded


def _compose_up_branches(graph: _Graph) -> tuple[int, list[str]]:
    composed, left_alone = 0, []
    for concat in [node for node in graph.nodes if node.op_type == "Concat"]:
        up = _up_convolution(graph, concat)
        if up is None:
            continue
        reason = _why_not(graph, concat, up)
        if reason:
            left_alone.append(f"{up.name}: {reason}")
            continue
        for conv in graph.consumers(concat.output[0]):
            graph.replace(conv, _composed(graph, up, concat, conv))
        composed += 1
    return composed, left_alone


def _up_convolution(graph: _Graph, concat: onnx.NodeProto) -> onnx.NodeProto | None:
    """The transposed convolution that feeds ``concat``, directly or through element-wise nodes;
    None if none does.
    """
    for tensor in concat.input:
        node = graph.producer(tensor)
        while node is not None and node.op_type in (
            "Relu",
            "LeakyRelu",
            "PRelu",
            "BatchNormalization",
            "InstanceNormalization",
            "Add",
        ):
            node = graph.producer(node.input[0])
        if node is not None and node.op_type == "ConvTranspose":
            return node
    return None


def _why_not(graph: _Graph, concat: onnx.NodeProto, up: onnx.NodeProto) -> str:
    """Why this up branch does not compose exactly; empty if it does."""
    if up.output[0] not in concat.input:
        return (
            "a bias, normalisation or non-linearity stands between up-convolution and concatenation"
        )
    if not graph.used_once(up.output[0]):
        return "its output is used elsewhere too"
    attributes = _attributes(up)
    if (
        list(attributes.get("kernel_shape", [])) != [2] * _AXES
        or list(attributes.get("strides", [])) != [2] * _AXES
        or any(attributes.get("pads", []))
        or any(attributes.get("output_padding", []))
        or any(step != 1 for step in attributes.get("dilations", []))
        or attributes.get("group", 1) != 1
    ):
        return "it is not a plain kernel 2, stride 2 up-convolution"
    if np.any(graph.bias(up, 1)):
        return "it has a bias, which zero padding cuts off at the border"
    if len(concat.input) != 2 or _attributes(concat).get("axis") != 1:
        return "the concatenation is not of two tensors along the channels"
    for conv in graph.consumers(concat.output[0]):
        if conv.op_type != "Conv" or not _same_size(graph, conv):
            return "the concatenation feeds something other than a size-keeping convolution"
    if concat.output[0] in {item.name for item in graph._model.graph.output}:
        return "the concatenation is an output"
    return ""


def _same_size(graph: _Graph, conv: onnx.NodeProto) -> bool:
    """Whether ``conv`` is 3x3x3 with padding 1 or 1x1x1 with none, dense and unstrided."""
    attributes = _attributes(conv)
    kernel = graph.constants[conv.input[1]].shape[2:]
    pads = list(attributes.get("pads", [0] * 2 * _AXES))
    return (
        kernel in ((3,) * _AXES, (1,) * _AXES)
        and pads == [kernel[0] // 2] * 2 * _AXES
        and all(step == 1 for step in attributes.get("strides", []))
        and all(step == 1 for step in attributes.get("dilations", []))
        and attributes.get("group", 1) == 1
    )


def _composed(
    graph: _Graph, up: onnx.NodeProto, concat: onnx.NodeProto, conv: onnx.NodeProto
) -> list[onnx.NodeProto]:
    """conv(concat(up(x), skip)) as up'(x) + conv'(skip), the bias on conv'."""
    up_weight, weight = graph.weight(up), graph.weight(conv)
    middle = up_weight.shape[1]
    up_first = concat.input[0] == up.output[0]
    skip = concat.input[1 if up_first else 0]
    split = middle if up_first else weight.shape[1] - middle
    parts = weight[:, :split], weight[:, split:]
    of_up, of_skip = parts if up_first else parts[::-1]
    kernel = weight.shape[2]
    name = conv.input[1]
    low, high = f"{conv.output[0]}_up", f"{conv.output[0]}_skip"
    return [
        helper.make_node(
            "ConvTranspose",
            [up.input[0], graph.store(f"{name}.up", compose_kernels(up_weight, of_up))],
            [low],
            name=f"{conv.name}_up",
            kernel_shape=[kernel + 1] * _AXES,
            strides=[2] * _AXES,
            pads=[kernel // 2] * 2 * _AXES,
        ),
        helper.make_node(
            "Conv",
            [
                skip,
                graph.store(f"{name}.skip", of_skip),
                graph.store(f"{name}.skip_bias", graph.bias(conv, len(weight))),
            ],
            [high],
            name=f"{conv.name}_skip",
            **_attributes(conv),
        ),
        helper.make_node("Add", [low, high], [conv.output[0]], name=f"{conv.name}_sum"),
    ]


def compose_kernels(up: Float64, conv: Float64) -> Float64:
    """Kernel of the transposed convolution that equals an up-convolution followed by a convolution.

    Args:
        up: (low, middle, 2, 2, 2), weights of a kernel 2, stride 2 transposed convolution.
        conv: (out, middle, K, K, K), weights of a convolution with padding K // 2, K 1 or 3.

    Returns:
        (low, out, K + 1, K + 1, K + 1), for stride 2 and padding K // 2.
    """
    size = conv.shape[2]
    # Taps first: the products are of whole matrices that lie together in memory.
    ups = np.ascontiguousarray(up.transpose(2, 3, 4, 0, 1))
    convs = np.ascontiguousarray(conv.transpose(2, 3, 4, 1, 0))
    kernel = np.zeros((*[size + 1] * _AXES, up.shape[0], conv.shape[0]))
    for a in np.ndindex(2, 2, 2):
        for t in np.ndindex(size, size, size):
            k = tuple(ai - ti + size - 1 for ai, ti in zip(a, t, strict=True))
            kernel[k] += ups[a] @ convs[t]
    return kernel.transpose(3, 4, 0, 1, 2)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
