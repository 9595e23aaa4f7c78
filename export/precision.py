"""Precision as a property of the graph: a copy of a model typed fp16 or bf16, fp32 at its ends and
in whatever layers are to keep it.

Every network is strongly typed: a TensorRT engine computes each node in the type that the graph
gives its inputs, with no flag and no choice of the builder's.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Reduced = Literal["fp16", "bf16"]

_TYPES: Final[Mapping[str, int]] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
# The first opset whose convolutions and poolings take bf16; of the operators that our graphs hold,
# nothing but the types they take has changed between 20 and 22.
_BF16_OPSET: Final = 22
_OPENS_A_PART: Final = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Part:
    """A layer: a convolution and what is done to its result before the next one.

    Attributes:
        name: of the convolution in the network, such as "encoder.0.conv1".
        nodes: names of its nodes.
        reads, makes: float tensors that it takes from other parts, and all that it makes.
    """

    name: str
    nodes: tuple[str, ...]
    reads: frozenset[str]
    makes: frozenset[str]


def reduce(model: onnx.ModelProto, kind: Reduced, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of ``model`` that computes in ``kind``, except for the nodes that are to stay fp32.

    Input and output stay float32. The softmax is computed in float32 from reduced logits: it is a
    vanishing part of the time, and its exponentials are where precision is lost most. A tensor is
    cast once, however many nodes read it in the other type. Weights are rounded to nearest, ties to
    even; beyond the range of fp16 they become infinite, which the parity gate finds.

    Args:
        model: fp32, ending in a softmax, with a name for every node.
        kind: the type to compute in.
        keep: names of nodes that compute in fp32, with their weights in fp32.

    Raises:
        ValueError: the graph does not end in a softmax, or ``keep`` names no node of it.
    """
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    graph = reduced.graph
    names = [node.name for node in graph.node]
    missing = sorted(set(keep) - set(names))
    if missing:
        raise ValueError(f"no node of the graph is called {missing[0]}")
    last = [node.op_type for node in graph.node if graph.output[0].name in node.output]
    if last != ["Softmax"]:
        raise ValueError("the graph does not end in a softmax")
    typing = _Typing(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        exact = node.op_type == "Softmax" or node.name in keep
        nodes += typing.typed(node, "fp32" if exact else kind)
    del graph.node[:]
    graph.node.extend(nodes)
    weights = typing.weights()
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.value_info[:]
    if kind == "bf16":
        for opset in reduced.opset_import:
            if opset.domain == "":
                opset.version = max(opset.version, _BF16_OPSET)
    onnx.checker.check_model(reduced, full_check=True)
    return reduced


class _Typing:
    """The type that each float tensor has so far, and the casts and weights made on the way."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._floats = _float_tensors(graph)
        self._initializers = {item.name: item for item in graph.initializer}
        # Of each tensor, its name in each type in which it is there.
        self._names: dict[str, dict[str, str]] = {
            item.name: {"fp32": item.name} for item in graph.input
        }
        self._taken = {*self._names, *self._initializers}
        self._taken.update(name for node in graph.node for name in node.output)

    def typed(self, node: onnx.NodeProto, wanted: str) -> list[onnx.NodeProto]:
        """``node``, its float inputs and outputs being in type ``wanted``, after the casts that
        takes.
        """
        casts = []
        for index, name in enumerate(node.input):
            if name not in self._floats:
                continue
            if name in self._initializers:
                node.input[index] = self._weight(name, wanted)
                continue
            names = self._names[name]
            if node.op_type == "Shape":
                node.input[index] = next(iter(names.values()))
                continue
            if wanted not in names:
                (there,) = names.values()
                names[wanted] = self._fresh(f"{name}_{wanted}")
                casts.append(
                    helper.make_node(
                        "Cast",
                        [there],
                        [names[wanted]],
                        name=f"{name}_to_{wanted}",
                        to=_TYPES[wanted],
                    )
                )
            node.input[index] = names[wanted]
        for name in node.output:
            if name in self._floats:
                self._names[name] = {wanted: name}
        return [*casts, node]

    def _weight(self, name: str, wanted: str) -> str:
        """The name of a weight in a type; one that is read in both is stored twice."""
        names = self._names.setdefault(name, {})
        if wanted not in names:
            names[wanted] = self._fresh(f"{name}_{wanted}") if names else name
        return names[wanted]

    def weights(self) -> list[TensorProto]:
        """Every constant in the types in which it is read."""
        stored = []
        for name, item in self._initializers.items():
            if name in self._floats:
                names = self._names.get(name, {})
                stored += [_in_type(item, new, _TYPES[kind]) for kind, new in names.items()]
            else:
                stored.append(item)
        return stored

    def _fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _in_type(item: TensorProto, name: str, element_type: int) -> TensorProto:
    with np.errstate(over="ignore"):
        array = numpy_helper.to_array(item).astype(helper.tensor_dtype_to_np_dtype(element_type))
    return numpy_helper.from_array(array, name)


def _float_tensors(graph: onnx.GraphProto) -> frozenset[str]:
    """Names of the float32 tensors and constants of a graph, shapes and indices excepted."""
    floats = {item.name for item in graph.initializer if item.data_type == TensorProto.FLOAT}
    floats |= {item.name for item in graph.input}
    for node in graph.node:
        if node.op_type != "Shape" and node.input[0] in floats:
            floats.update(node.output)
    return frozenset(floats)


def parts(model: onnx.ModelProto) -> tuple[Part, ...]:
    """The layers of a graph, in its order: what is kept in fp32 or reduced as a whole.

    Every convolution opens a part. Other nodes belong to the part that makes the latest of their
    float inputs, so that activation, pooling and addition follow their convolution. The softmax is
    always fp32 and belongs to none.

    Raises:
        ValueError: two nodes share a name, or one has none.
    """
    graph = model.graph
    names = [node.name for node in graph.node]
    if "" in names or len(set(names)) < len(names):
        raise ValueError("every node needs a name of its own")
    floats = _float_tensors(graph)
    weights = {item.name for item in graph.initializer}
    members: list[list[onnx.NodeProto]] = []
    made_by: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Softmax":
            continue
        # Nodes that only compute shapes follow whatever they read.
        inputs = [name for name in node.input if name in floats] or list(node.input)
        sources = [made_by[name] for name in inputs if name in made_by]
        if node.op_type in _OPENS_A_PART or not sources:
            members.append([])
            sources = [len(members) - 1]
        members[max(sources)].append(node)
        made_by.update(dict.fromkeys(node.output, max(sources)))
    found = []
    titles = _titles([nodes[0] for nodes in members])
    for title, nodes in zip(titles, members, strict=True):
        makes = {name for node in nodes for name in node.output} & floats
        reads = {name for node in nodes for name in node.input} & floats - makes - weights
        found.append(
            Part(title, tuple(node.name for node in nodes), frozenset(reads), frozenset(makes))
        )
    return tuple(found)


def _titles(first: list[onnx.NodeProto]) -> list[str]:
    """A name for each part by its convolution's weight, which PyTorch's exporter names after the
    module; by the node where that is not unique.
    """
    titles = []
    for node in first:
        weight = node.input[1] if node.op_type in _OPENS_A_PART else ""
        title = weight.replace(".weight", "").replace(".folded", "").removeprefix("network.")
        titles.append(title or node.name)
    return [
        title if titles.count(title) == 1 else node.name
        for title, node in zip(titles, first, strict=True)
    ]
