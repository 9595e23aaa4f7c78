"""Graphs whose bytes are vouched for and whose card is right, and which are still another network:
refused by both CPU backends before a case is touched, or at the latest before a result is used.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.trace import set_card
from runtime.backends import BackendOptions, open_backend
from runtime.errors import InputError
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_card import ModelCard
from runtime.model_dir import CARD, ONNX_FP32, ModelDir

CARD_OF_FOUR = ModelCard("four", patch=(8, 8, 8), divisor=2)
Axes = tuple[Any, ...]
OPEN: Axes = ("x", "y", "z")


def network(
    channels: int = 4,
    classes: int = 4,
    *,
    kind: int = TensorProto.FLOAT,
    axes: Axes = OPEN,
    names: tuple[str, str] = ("image", "probabilities"),
    declared: Axes | None = None,
) -> onnx.ModelProto:
    """A 1x1x1 convolution and a softmax.

    Args:
        channels, classes: of the convolution.
        kind: of all numbers.
        axes: spatial shape of input and output.
        names: of input and output.
        declared: the whole output shape, where it is to say less than it is.
    """
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = np.linspace(-1, 1, channels * classes).reshape(classes, channels, 1, 1, 1)
    nodes = [
        helper.make_node("Conv", [names[0], "w"], ["logits"], kernel_shape=[1, 1, 1]),
        helper.make_node("Softmax", ["logits"], [names[1]], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(names[0], kind, ["n", channels, *axes])],
        [helper.make_tensor_value_info(names[1], kind, declared or ["n", classes, *axes])],
        [numpy_helper.from_array(weights.astype(dtype), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def two_inputs() -> onnx.ModelProto:
    model = network()
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n", 4, *OPEN])
    model.graph.input.append(more)
    model.graph.node.insert(0, helper.make_node("Add", ["image", "more"], ["sum"]))
    model.graph.node[1].input[0] = "sum"
    return model


def two_outputs() -> onnx.ModelProto:
    model = network()
    more = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4, *OPEN])
    model.graph.output.append(more)
    return model


def flat() -> onnx.ModelProto:
    """Of images, not volumes."""
    model = network()
    for one in (*model.graph.input, *model.graph.output):
        del one.type.tensor_type.shape.dim[4:]
    model.graph.initializer[0].dims.pop()
    model.graph.node[0].attribute[0].ints.pop()
    return model


def short_of_weights() -> onnx.ModelProto:
    model = network()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return model


def of_a_strange_operator() -> onnx.ModelProto:
    model = network()
    model.graph.node[1].op_type = "Softmaxx"
    return model


def not_joined() -> onnx.ModelProto:
    model = network()
    model.graph.node[1].input[0] = "nothing"
    return model


def of_a_later_onnx() -> onnx.ModelProto:
    model = network()
    model.opset_import[0].version = 9999
    return model


OTHERS = {
    "3 channels": lambda: network(channels=3),
    "5 classes": lambda: network(classes=5),
    "2 classes": lambda: network(classes=2),
    "double": lambda: network(kind=TensorProto.DOUBLE),
    "fixed to another window": lambda: network(axes=(16, 16, 16)),
    "3 classes, not declared": lambda: network(classes=3, declared=("n", "c", *OPEN)),
    "two inputs": two_inputs,
    "two outputs": two_outputs,
    "flat": flat,
    "short of weights": short_of_weights,
    "a strange operator": of_a_strange_operator,
    "not joined": not_joined,
}
TAKEN = {
    "open": network,
    "of other names": lambda: network(names=("in", "out")),
    "fixed to this window": lambda: network(axes=(8, 8, 8)),
    "output not declared": lambda: network(declared=("n", "c", *OPEN)),
}


def run(model: onnx.ModelProto, tiny_model: Path, path: Path, name: Any) -> Any:
    """Put a graph into a model directory that vouches for it, open it and run one window."""
    shutil.copytree(tiny_model, path)
    set_card(model, CARD_OF_FOUR)
    (path / ONNX_FP32).write_bytes(model.SerializeToString())
    (path / CARD).write_text(CARD_OF_FOUR.to_json())
    (path / MANIFEST).write_bytes(manifest_of(path))
    opened = ModelDir.open(path)
    backend = open_backend(opened, BackendOptions(name, device="cpu", threads=1, uncertified=True))
    try:
        backend.bind((8, 8, 8), 1)
        found: list[Any] = []

        def fill(first: int, last: int, inputs: Any) -> None:
            inputs[:] = np.arange(4 * 512).reshape(1, 4, 8, 8, 8) % 7

        backend.run(1, fill, lambda first, last, out: found.append(np.array(out)))
        return found[0]
    finally:
        backend.close()


NETWORKS = [(name, other) for name in ("ort", "openvino") for other in OTHERS]


# OpenVINO reads whatever operators it knows, by whichever number their set goes.
@pytest.mark.parametrize(("name", "other"), [*NETWORKS, ("ort", "of a later ONNX")])
def test_another_network_is_bad_input(
    tiny_model: Path, tmp_path: Path, name: Any, other: str
) -> None:
    make = OTHERS.get(other, of_a_later_onnx)
    with pytest.raises(InputError, match=r"model\.onnx") as caught:
        run(make(), tiny_model, tmp_path / "model", name)
    assert caught.value.exit_code == 3
    assert "export the model again" in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ort", "openvino"])
@pytest.mark.parametrize("one", TAKEN)
def test_the_cards_network_runs_whatever_its_names(
    tiny_model: Path, tmp_path: Path, name: Any, one: str
) -> None:
    found = run(TAKEN[one](), tiny_model, tmp_path / "model", name)
    image = (np.arange(4 * 512).reshape(4, 8, 8, 8) % 7).astype(np.float64)
    logits = np.einsum("kc,cxyz->kxyz", np.linspace(-1, 1, 16).reshape(4, 4), image)
    raised = np.exp(logits - logits.max(0))
    np.testing.assert_allclose(found[0], raised / raised.sum(0), atol=1e-5)
