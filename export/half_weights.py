"""Weights stored in fp16 in a graph that computes in fp32: half the file, the same arithmetic.

Each stored weight is followed by a cast to fp32, which OpenVINO and ONNX Runtime fold while they
load.
"""

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.emulate import FP16_MAX
from runtime.errors import InputError

_READS_WEIGHTS: Final = ("Conv", "ConvTranspose")
_STORED: Final = "_stored"


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that keeps the kernels of its convolutions in fp16.

    Kernels are rounded to nearest, ties to even. Biases, a thousandth of the file, stay in fp32.

    Args:
        model: fp32, as `export.fuse` leaves it.

    Raises:
        InputError: a kernel leaves the range of fp16.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    kernels = {node.input[1] for node in graph.node if node.op_type in _READS_WEIGHTS}
    stored, casts = [], []
    for item in graph.initializer:
        if item.name not in kernels or item.data_type != TensorProto.FLOAT:
            stored.append(item)
            continue
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(item).astype(np.float16)
        if not np.isfinite(half).all():
            raise InputError(
                "--half-weights",
                found=f"a weight beyond the range of fp16 in {item.name}",
                expected=f"weights under {FP16_MAX:.0f}",
                remedy="drop --half-weights",
            )
        name = item.name + _STORED
        stored.append(numpy_helper.from_array(half, name))
        cast = helper.make_node(
            "Cast", [name], [item.name], name=f"{item.name}_to_fp32", to=TensorProto.FLOAT
        )
        casts.append(cast)
    nodes = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend(nodes)
    onnx.checker.check_model(halved, full_check=True)
    return halved


def restore_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` whose weights are stored as it computes with them: the inverse of
    `halve_weights`, but for the rounding. TensorRT takes kernels that are constants, not casts of
    them.
    """
    restored = onnx.ModelProto()
    restored.CopyFrom(model)
    graph = restored.graph
    casts = _casts(graph)
    made = set(casts.values())
    nodes = [node for node in graph.node if node.output[0] not in made]
    stored = []
    for item in graph.initializer:
        if item.name in casts:
            full = numpy_helper.to_array(item).astype(np.float32)
            stored.append(numpy_helper.from_array(full, casts[item.name]))
        else:
            stored.append(item)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend(nodes)
    onnx.checker.check_model(restored, full_check=True)
    return restored


def is_halved(data: bytes) -> bool:
    """Whether a stored graph keeps weights in fp16 that it computes with in fp32."""
    return bool(_casts(onnx.load_model_from_string(data).graph))


def restored(data: bytes) -> bytes:
    """`restore_weights` for a stored graph; the very bytes where no weight is halved."""
    if not is_halved(data):
        return data
    full: bytes = restore_weights(onnx.load_model_from_string(data)).SerializeToString()
    return full


def _casts(graph: onnx.GraphProto) -> dict[str, str]:
    """Names of the weights that are cast to fp32, and what they are called then."""
    halves = {item.name for item in graph.initializer if item.data_type == TensorProto.FLOAT16}
    return {
        node.input[0]: node.output[0]
        for node in graph.node
        if node.op_type == "Cast"
        and node.input[0] in halves
        and helper.get_node_attr_value(node, "to") == TensorProto.FLOAT
    }
