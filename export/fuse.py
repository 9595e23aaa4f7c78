"""Exact graph rewrites: batch norms fold into convolutions, and the decoder's up branches take the
form that the device at hand runs fastest (`export.up_branch`).
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
        folded: batch norms folded into convolutions.
        composed: up-convolutions composed with the convolution after the concatenation; 0 in the
            form "unfused".
        left_alone: one sentence per place that looks like an up branch and is not one that
            composes exactly, in whichever form.
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
        if conv is None or conv.op_type != "Conv" or not graph.used_once(norm.input[0]):
            continue
        scale, shift, mean, variance = (
            graph.constants[name].astype(np.float64) for name in norm.input[1:5]
        )
        factor = scale / np.sqrt(variance + attributes_of(norm).get("epsilon", 1e-5))
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
            **attributes_of(conv),
        )
        graph.replace(conv, [folded_conv])
        graph.remove(norm)
        folded += 1
    return folded
