"""Nodes and constants of an ONNX model, indexed by tensor name, for passes that rewrite it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Float64 = npt.NDArray[np.float64]


class Graph:
    """A model that is being rewritten; `write` puts nodes and constants back, without what is dead.

    Attributes:
        nodes: in execution order, `Constant` nodes excepted.
        constants: value of each initialiser and each `Constant` node.
        outputs: names of the model's outputs.
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
        self.outputs = frozenset(item.name for item in model.graph.output)
        computed_in = model.graph.input[0].type.tensor_type.elem_type
        self._dtype = helper.tensor_dtype_to_np_dtype(computed_in)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def used_once(self, tensor: str) -> bool:
        return len(self.consumers(tensor)) == 1 and tensor not in self.outputs

    def weight(self, node: onnx.NodeProto) -> Float64:
        return self.constants[node.input[1]].astype(np.float64)

    def bias(self, node: onnx.NodeProto, channels: int) -> Float64:
        """The bias of a (transposed) convolution; zeros where it has none."""
        if len(node.input) > 2 and node.input[2]:
            return self.constants[node.input[2]].astype(np.float64)
        return np.zeros(channels)

    def store(self, name: str, value: Float64) -> str:
        """Keep a weight, in the type that the graph computes in; returns the name it got."""
        return self._keep(name, value.astype(self._dtype))

    def store_integers(self, name: str, values: list[int]) -> str:
        """Keep a one-dimensional int64 constant, such as a shape; returns the name it got."""
        return self._keep(name, np.array(values, np.int64))

    def _keep(self, name: str, value: npt.NDArray[Any]) -> str:
        while name in self.constants:
            name += "_"
        self.constants[name] = value
        return name

    def replace(self, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
        index = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[index : index + 1] = new

    def remove(self, node: onnx.NodeProto) -> None:
        self.nodes = [other for other in self.nodes if other is not node]

    def write(self) -> None:
        """Put nodes and constants back into the model; every node gets a name of its own."""
        live = set(self.outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if live.intersection(node.output):
                kept.insert(0, node)
                live.update(node.input)
        taken: set[str] = set()
        for node in kept:
            node.name = node.name or f"{node.op_type}_{node.output[0]}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
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


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node by name, as Python values."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def layer_of(node: onnx.NodeProto) -> str:
    """The name that a (transposed) convolution has in the network, such as "encoder.0.conv1".

    PyTorch's exporter names a weight after its module; a node whose weight is not named so goes by
    its own name.
    """
    layer, dot, _ = node.input[1].rpartition(".weight")
    return layer.removeprefix("network.") if dot else node.name
