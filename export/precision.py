"""Precision as a property of the graph: an fp16-typed copy of a model, fp32 at its ends."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that computes in fp16 between its first and its last node.

    Input and output stay float32. The softmax is computed in float32 from fp16 logits: it is a
    vanishing part of the time, and its exponentials are where fp16 would lose most. Weights beyond
    the range of fp16 become infinite, which the parity gate finds.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    converted = []
    for item in graph.initializer:
        array = numpy_helper.to_array(item)
        if array.dtype == np.float32:
            with np.errstate(over="ignore"):
                array = array.astype(np.float16)
        converted.append(numpy_helper.from_array(array, item.name))
    del graph.initializer[:]
    graph.initializer.extend(converted)

    inputs = {item.name: f"{item.name}_fp16" for item in graph.input}
    nodes = [
        helper.make_node("Cast", [name], [cast], name=f"{name}_to_fp16", to=TensorProto.FLOAT16)
        for name, cast in inputs.items()
    ]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in inputs:
                node.input[index] = inputs[name]
        if node.op_type == "Softmax":
            logits = f"{node.input[0]}_fp32"
            nodes.append(
                helper.make_node(
                    "Cast",
                    [node.input[0]],
                    [logits],
                    name=f"{node.name}_to_fp32",
                    to=TensorProto.FLOAT,
                )
            )
            node.input[0] = logits
        nodes.append(node)
    if not any(node.op_type == "Softmax" for node in graph.node):
        raise ValueError("the graph does not end in a softmax")
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.checker.check_model(half, full_check=True)
    return half
