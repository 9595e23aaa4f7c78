"""From a PyTorch network to one self-contained ONNX model with dynamic batch and spatial axes."""

import logging
import warnings
from typing import Final

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from runtime.model_card import CARD_KEY, ModelCard

OPSET: Final = 20
INPUT_NAME: Final = "image"
OUTPUT_NAME: Final = "probabilities"


class _WithSoftmax(nn.Module):
    """The deployed graph ends in probabilities, so that no runtime has to know about logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.network(image), dim=1)


def trace(network: nn.Module, card: ModelCard) -> onnx.ModelProto:
    """Trace ``network`` in evaluation mode.

    Args:
        network: maps float32 (N, C, X, Y, Z) to logits (N, classes, X, Y, Z).
        card: gives the number of modalities and the divisor of the spatial axes; stored in the
            model's metadata.

    Returns:
        ONNX model, opset 20: ``image`` float32 (N, C, X, Y, Z) to ``probabilities`` float32 (N,
        classes, X, Y, Z), with N free and X, Y, Z free multiples of the card's divisor. Batch norms
        are still nodes of their own; `export.fuse` folds them.
    """
    # Sizes that are all different and none of them 1, so that no axis is specialised.
    units = (2, 3, 4)
    example = torch.zeros(2, len(card.modalities), *(unit * card.divisor for unit in units))
    axes = {
        axis + 2: card.divisor * torch.export.Dim(f"{name}_units", min=1)
        for axis, name in enumerate("xyz")
    }
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.onnx.export(
                _WithSoftmax(network).eval(),
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1), **axes},),
                verbose=False,
                optimize=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    # Constants only: batch norms are folded by export.fuse in float64, the exporter would do it in
    # float32.
    fold_constants(program.model)
    model = program.model_proto
    _drop_zero_biases(model)
    _strip(model)
    set_card(model, card)
    return model


def _drop_zero_biases(model: onnx.ModelProto) -> None:
    """Drop the zeros that the exporter gives a convolution without bias (it even gives them a
    second axis).
    """
    constants = {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    } | {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2:
            bias = constants.get(node.input[2])
            if bias is not None and not np.any(numpy_helper.to_array(bias)):
                del node.input[2]
    used = {name for node in model.graph.node for name in node.input}
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        if node.output[0] not in used:
            model.graph.node.remove(node)
    for item in [item for item in model.graph.initializer if item.name not in used]:
        model.graph.initializer.remove(item)


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold stack traces with the paths of the machine."""
    graph = model.graph
    for item in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.value_info[:]
    model.doc_string = ""


def set_card(model: onnx.ModelProto, card: ModelCard) -> None:
    """Store the card under its metadata key, and nothing else there."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card.to_json()
