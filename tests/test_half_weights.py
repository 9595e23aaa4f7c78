"""Weights stored in fp16: what is rounded, what is not, and that both CPU runtimes compute with
them as with the rounded numbers themselves.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from export.half_weights import halve_weights, is_halved, restore_weights, restored
from runtime.backends import Backend, BackendInfo
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from runtime.errors import InputError
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP32, ModelDir

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture(scope="module")
def graph(tiny_model: Path) -> onnx.ModelProto:
    return onnx.load_model_from_string(ModelDir.open(tiny_model).read(ONNX_FP32))


def weights(model: onnx.ModelProto) -> Arrays:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def kernels(model: onnx.ModelProto) -> set[str]:
    return {node.input[1] for node in model.graph.node if "Conv" in node.op_type}


def test_kernels_are_rounded_and_everything_else_is_kept(graph: onnx.ModelProto) -> None:
    full, back = weights(graph), weights(restore_weights(halve_weights(graph)))
    assert list(back) == list(full)
    rounded = kernels(graph)
    assert len(rounded) > 5
    for name, value in full.items():
        expected = value.astype(np.float16).astype(np.float32) if name in rounded else value
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], expected)
    assert any((back[name] != full[name]).any() for name in rounded)


def test_the_file_has_half_the_size(graph: onnx.ModelProto) -> None:
    before, after = weights(graph), weights(halve_weights(graph))
    stored = sum(before[name].nbytes for name in kernels(graph))
    saved = sum(value.nbytes for value in before.values()) - sum(
        value.nbytes for value in after.values()
    )
    assert saved == stored // 2


def test_the_input_is_left_alone_and_the_card_comes_along(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString()
    halved = halve_weights(graph)
    assert graph.SerializeToString() == before
    assert list(halved.metadata_props) == list(graph.metadata_props)
    assert list(restore_weights(halved).metadata_props) == list(graph.metadata_props)


def test_halving_what_was_halved_and_restored_gives_the_same_bytes(graph: onnx.ModelProto) -> None:
    once = halve_weights(graph)
    assert halve_weights(restore_weights(once)).SerializeToString() == once.SerializeToString()


def test_a_stored_graph_is_known_as_halved(graph: onnx.ModelProto, tiny_model: Path) -> None:
    model = ModelDir.open(tiny_model)
    full, half = model.read(ONNX_FP32), halve_weights(graph).SerializeToString()
    assert is_halved(half)
    assert not is_halved(full)
    # A graph that computes in fp16 is no graph with halved weights.
    assert not is_halved(model.read("model.fp16.onnx"))
    assert restored(full) is full
    assert not is_halved(restored(half))


@pytest.mark.parametrize("kind", [OrtBackend, OpenVinoBackend])
def test_what_serves_computes_with_the_rounded_weights_in_fp32(
    graph: onnx.ModelProto, tiny_card: ModelCard, kind: Callable[..., Backend]
) -> None:
    halved = halve_weights(graph)
    image = np.random.default_rng(1).standard_normal((4, *tiny_card.patch)).astype(np.float32)

    def output(model: onnx.ModelProto) -> npt.NDArray[np.float32]:
        found: list[npt.NDArray[np.float32]] = []
        info = BackendInfo("any", "cpu", "fp32", ONNX_FP32)
        backend = kind(model.SerializeToString(), tiny_card, info, 1)
        backend.bind(tiny_card.patch, 1)
        backend.run(
            1,
            lambda i, j, inputs: np.copyto(inputs[0], image),
            lambda i, j, probabilities: found.append(np.array(probabilities)),
        )
        backend.close()
        return found[0]

    np.testing.assert_array_equal(output(halved), output(restore_weights(halved)))
    assert np.abs(output(halved) - output(graph)).max() < 2e-2


def test_a_weight_that_fp16_cannot_hold_is_refused(graph: onnx.ModelProto) -> None:
    wild = onnx.ModelProto()
    wild.CopyFrom(graph)
    name = sorted(kernels(graph))[0]
    (item,) = (item for item in wild.graph.initializer if item.name == name)
    values = numpy_helper.to_array(item).copy()
    values.flat[0] = 65520
    item.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(InputError, match=f"{name}.*drop --half-weights"):
        halve_weights(wild)
    values.flat[0] = 65519
    item.CopyFrom(numpy_helper.from_array(values, name))
    assert weights(restore_weights(halve_weights(wild)))[name].flat[0] == 65504
