"""What is said of an engine's input in the graph itself, because a strongly typed builder takes it
from there: its sizes and its type.
"""

from typing import Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from runtime.engine import InputLayout, Profile
from runtime.errors import InputError, UsageError

_CHANNELS_PADDED: Final = 8


def fix_input(model: bytes, profile: Profile, layout: InputLayout, source: str) -> bytes:
    """Give the graph's input the profile's sizes and the layout's type.

    Args:
        model: serialised, with one input (N, C, X, Y, Z) whose N, X, Y, Z are free.
        profile: X, Y, Z become its window; N becomes its batch where that is static.
        layout: for "dhwc8" the input becomes float16 and the cast after it goes, since a strongly
            typed network has no other way to take one. The padded layout itself is the builder's.
        source: the ONNX file's name, for errors.

    Returns:
        The serialised model; nothing else in it is changed.

    Raises:
        InputError: not an ONNX model with one input of five axes.
        UsageError: "dhwc8" of a graph that does not cast its input to float16, or that has more
            than 8 modalities.
    """
    try:
        proto = onnx.load_model_from_string(model)
        (image,) = proto.graph.input
        batch, channels, *spatial = image.type.tensor_type.shape.dim
        for axis, size in zip(spatial, profile.window, strict=True):
            axis.dim_value = size
    except (DecodeError, ValueError) as error:
        raise InputError(
            source,
            found="no ONNX model with one input (N, C, X, Y, Z)",
            expected="a graph as brats-export writes it",
            remedy="export the model again",
        ) from error
    if profile.static:
        batch.dim_value = profile.max_batch
    if layout == "dhwc8":
        _take_half(proto.graph, channels.dim_value)
    fixed: bytes = proto.SerializeToString()
    return fixed


def _take_half(graph: onnx.GraphProto, channels: int) -> None:
    """Drop the cast to float16 after the input and let the input be float16 itself."""
    (image,) = graph.input
    casts = [node for node in graph.node if image.name in node.input]
    if channels > _CHANNELS_PADDED or not all(
        node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16 for node in casts
    ):
        raise UsageError(
            "input layout",
            found="dhwc8",
            expected=f"an fp16 graph of at most {_CHANNELS_PADDED} modalities",
            remedy="use the linear layout",
        )
    renamed = {node.output[0]: image.name for node in casts}
    for cast in casts:
        graph.node.remove(cast)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    image.type.tensor_type.elem_type = TensorProto.FLOAT16
