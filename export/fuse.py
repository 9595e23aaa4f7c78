"""Exact graph rewrites: batch norms fold into (transposed) convolutions, and the decoder's up
branches take the form that the device at hand runs fastest (`export.up_branch`).
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from export.graph import Graph, attributes_of
from export.up_branch import UpBranch, compose_up_branches


@dataclass(frozen=True)
class FusionReport:
    """What was rewritten.

    Attributes:
        folded: batch norms folded into convolutions, plain or transposed.
        composed: up-convolutions composed with the convolution after the concatenation; 0 in the
            form "unfused".
        left_alone: for each reason, a sentence that names the up-convolutions that do not compose
            exactly because of it, in whichever form.
        up_branch: the form that was asked for.
    """

    folded: int
    composed: int
    left_alone: tuple[str, ...]
    up_branch: UpBranch = "k4"


def fuse(model: onnx.ModelProto, up_branch: UpBranch = "k4") -> FusionReport:
    """Rewrite ``model`` in place; the function it computes stays the same up to rounding.

    Weights are folded and composed in float64 and stored in the type that the graph computes in.

    Args:
        model: as `export.trace` makes it.
        up_branch: form of the decoder's up branches. "unfused" leaves up-convolution, concatenation
            and convolution as they are traced.
    """
    graph = Graph(model)
    folded = _fold_batch_norms(graph)
    composed, left_alone = compose_up_branches(graph, up_branch)
    graph.write()
    return FusionReport(folded, composed, tuple(left_alone), up_branch)


def _fold_batch_norms(graph: Graph) -> int:
    folded = 0
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        conv = graph.producer(norm.input[0])
        if conv is None or not graph.used_once(norm.input[0]):
            continue
        axis = _channel_axis(conv)
        if axis is None:
            continue
        scale, shift, mean, variance = (
            graph.constants[name].astype(np.float64) for name in norm.input[1:5]
        )
        factor = scale / np.sqrt(variance + attributes_of(norm).get("epsilon", 1e-5))
        weight = graph.weight(conv)
        bias = (graph.bias(conv, weight.shape[axis]) - mean) * factor + shift
        along = [1] * weight.ndim
        along[axis] = -1
        name = conv.input[1]
        folded_conv = helper.make_node(
            conv.op_type,
            [
                conv.input[0],
                graph.store(f"{name}.folded", weight * factor.reshape(along)),
                graph.store(f"{name}.bias", bias),
            ],
            [norm.output[0]],
            name=conv.name,
            **attributes_of(conv),
        )
        graph.replace(conv, [folded_conv])
        graph.remove(norm)
        folded += 1
    return folded


def _channel_axis(node: onnx.NodeProto) -> int | None:
    """The axis of a node's weight that its output channels lie along; None if no batch norm after
    it can be folded.
    """
    if node.op_type == "Conv":
        return 0
    # In groups, the output channels of a transposed convolution lie along both axes.
    if node.op_type == "ConvTranspose" and attributes_of(node).get("group", 1) == 1:
        return 1
    return None
