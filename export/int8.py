"""int8 as a property of the graph: a copy of a model whose convolutions read 8-bit integers, by
pairs of QuantizeLinear and DequantizeLinear (Q/DQ) that every backend knows.

Only ONNX's own operators, zero points of 0 and int8 throughout: what TensorRT demands, and what
OpenVINO and ONNX Runtime take as well. Weights are stored as integers, with a scale for each output
channel; activations have one scale for a tensor. Biases, additions and the softmax stay in fp32.

onnxruntime.quantization finds the same axes and scales of weights, but rounds more than a backend
needs: every convolution's result before its rectifier, both summands of a skip, the logits.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

QUANTIZED: Final = ("Conv", "ConvTranspose")
LEVELS: Final = 127
"""What a limit becomes. A weight is never -128, so that its range is symmetric."""
# The axis of a weight along which its output channels lie.
_CHANNELS: Final = {"Conv": 0, "ConvTranspose": 1}


def quantize(
    model: onnx.ModelProto, limits: Mapping[str, float], keep: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy of ``model`` whose convolutions, plain and transposed, compute in int8.

    A value x becomes round(x / s), halves to even, clipped to -128 to 127, with s = limit / 127 for
    an activation and max|w| / 127 for an output channel of a weight.
    What a max-pooling takes is quantised before it, and its result again with the same scale, which
    changes nothing and lets a backend pool integers.

    Args:
        model: fp32, as `export.fuse` leaves it, with a name for every node.
        limits: of every float tensor that a quantised convolution reads, the largest |value| to
            tell apart; larger ones are clipped.
        keep: names of nodes that compute in fp32, with their weights in fp32.

    Raises:
        ValueError: ``keep`` names no node of the graph, a convolution that is not kept is in
            groups, or a limit is missing or not a finite number above 0.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    missing = sorted(set(keep) - {node.name for node in graph.node})
    if missing:
        raise ValueError(f"no node of the graph is called {missing[0]}")
    writer = _Writer(graph, limits)
    chosen = frozenset(node.name for node in graph.node if _is_quantized(node, keep))
    pooled = _pooled(graph.node, chosen)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        if node.name in chosen:
            nodes += writer.activation(new, pooled)
            nodes.append(writer.weight(new))
        elif node.op_type == "MaxPool" and node.output[0] in pooled:
            nodes += writer.activation(new, pooled)
        nodes.append(new)
    constants = writer.constants(nodes)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def read_by_convolutions(model: onnx.ModelProto) -> tuple[str, ...]:
    """The tensors that need a limit if every convolution is quantised, in the graph's order: those
    that convolutions read, taken before any max-pooling, which makes no value that was not there.
    """
    pools = {node.output[0]: node for node in model.graph.node if node.op_type == "MaxPool"}
    read = (_source(node.input[0], pools) for node in model.graph.node if node.op_type in QUANTIZED)
    return tuple(dict.fromkeys(read))


def weight_scales(op_type: str, weight: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The scale of each output channel of a weight: max|w| / 127; 1 for a channel of zeros."""
    axis = _CHANNELS[op_type]
    others = tuple(other for other in range(weight.ndim) if other != axis)
    scales = (np.abs(weight.astype(np.float64)).max(axis=others) / LEVELS).astype(np.float32)
    # The smallest normal number: what lies below it would not survive being divided by.
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)


def _is_quantized(node: onnx.NodeProto, keep: Collection[str]) -> bool:
    if node.op_type not in QUANTIZED or node.name in keep:
        return False
    # Along which axis the output channels of a transposed weight lie is then no longer one axis.
    groups = next((item.i for item in node.attribute if item.name == "group"), 1)
    if groups != 1:
        raise ValueError(f"{node.name} is a convolution in {groups} groups")
    return True


def _pooled(nodes: Iterable[onnx.NodeProto], chosen: Collection[str]) -> dict[str, str]:
    """Of each max-pooling that only quantised convolutions read, its result and what it pools."""
    everything = list(nodes)
    found = {}
    for node in everything:
        if node.op_type != "MaxPool":
            continue
        readers = [other for other in everything if node.output[0] in other.input]
        if readers and all(other.name in chosen for other in readers):
            found[node.output[0]] = node.input[0]
    return found


def _source(name: str, pools: Mapping[str, onnx.NodeProto]) -> str:
    while name in pools:
        name = pools[name].input[0]
    return name


class _Writer:
    """The constants of the graph, and what has been quantised so far."""

    def __init__(self, graph: onnx.GraphProto, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._pools = {node.output[0]: node for node in graph.node if node.op_type == "MaxPool"}
        self._constants = {item.name: item for item in graph.initializer}
        self._quantized: dict[str, str] = {}
        self._taken = {*self._constants, *(item.name for item in graph.input)}
        self._taken.update(name for node in graph.node for name in node.output)

    def activation(self, node: onnx.NodeProto, pooled: Mapping[str, str]) -> list[onnx.NodeProto]:
        """Let ``node`` read its first input quantised; returns the nodes that takes."""
        name = node.input[0]
        nodes: list[onnx.NodeProto] = []
        if name not in self._quantized:
            scale = self._scale(_source(name, self._pools))
            zero = self._store("int8_zero", np.zeros((), np.int8))
            there = self._fresh(f"{name}_int8")
            self._quantized[name] = self._fresh(f"{name}_quantized")
            nodes = [
                helper.make_node("QuantizeLinear", [name, scale, zero], [there], f"{name}_q"),
                helper.make_node(
                    "DequantizeLinear", [there, scale, zero], [self._quantized[name]], f"{name}_dq"
                ),
            ]
        node.input[0] = self._quantized[name]
        return nodes

    def weight(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Let ``node`` read its weight from integers; returns the node that takes."""
        name = node.input[1]
        axis = _CHANNELS[node.op_type]
        value = numpy_helper.to_array(self._constants[name])
        scales = weight_scales(node.op_type, value)
        along = [1] * value.ndim
        along[axis] = -1
        rounded = np.rint(value / scales.reshape(along))
        integers = np.clip(rounded, -LEVELS, LEVELS).astype(np.int8)
        full = self._fresh(f"{name}_quantized")
        inputs = [
            self._store(f"{name}_int8", integers),
            self._store(f"{name}_scale", scales),
            self._store(f"{name}_zero", np.zeros(len(scales), np.int8)),
        ]
        node.input[1] = full
        return helper.make_node("DequantizeLinear", inputs, [full], f"{node.name}_dq", axis=axis)

    def constants(self, nodes: Iterable[onnx.NodeProto]) -> list[onnx.TensorProto]:
        """Those that are still read."""
        read = {name for node in nodes for name in node.input}
        return [item for name, item in self._constants.items() if name in read]

    def _scale(self, source: str) -> str:
        limit = self._limits.get(source, 0.0)
        if not 0 < limit < np.inf:
            raise ValueError(f"the limit of {source} is {limit}")
        return self._store(f"{source}_scale", np.array(limit / LEVELS, np.float32))

    def _store(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def _fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name
