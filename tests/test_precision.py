"""The fp16 graph and the emulation that certifies it, against plain numpy."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.emulate import FP16_MAX, EmulatedBackend, EmulatedGraph
from export.precision import to_fp16
from runtime.backends import BackendInfo
from runtime.model_card import ModelCard
from train.unet import UNet3D

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def fp32(tiny_model: Path) -> onnx.ModelProto:
    return onnx.load_from_string((tiny_model / "model.onnx").read_bytes())


@pytest.fixture(scope="module")
def fp16(tiny_model: Path) -> onnx.ModelProto:
    return onnx.load_from_string((tiny_model / "model.fp16.onnx").read_bytes())


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, by ONNX's own inference."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_everything_inside_is_typed_fp16(fp16: onnx.ModelProto) -> None:
    onnx.checker.check_model(fp16, full_check=True)
    types = types_of(fp16)
    weights = {item.name: item.data_type for item in fp16.graph.initializer}
    assert weights
    assert set(weights.values()) == {TensorProto.FLOAT16}
    for node in fp16.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            assert all(weights[name] == TensorProto.FLOAT16 for name in node.input[1:])
        if node.op_type not in ("Cast", "Softmax"):
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name
            assert all(types.get(name, TensorProto.FLOAT16) == 10 for name in node.input)


def test_the_ends_and_the_softmax_are_fp32(fp16: onnx.ModelProto) -> None:
    types = types_of(fp16)
    for value in (*fp16.graph.input, *fp16.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    (softmax,) = [node for node in fp16.graph.node if node.op_type == "Softmax"]
    assert types[softmax.input[0]] == TensorProto.FLOAT
    assert types[softmax.output[0]] == TensorProto.FLOAT
    assert [node.op_type for node in fp16.graph.node].count("Cast") == 2


def test_nothing_but_types_changed(fp32: onnx.ModelProto, fp16: onnx.ModelProto) -> None:
    def operators(model: onnx.ModelProto) -> list[str]:
        return [node.op_type for node in model.graph.node if node.op_type != "Cast"]

    assert operators(fp16) == operators(fp32)
    assert list(fp16.metadata_props) == list(fp32.metadata_props)
    assert list(fp16.opset_import) == list(fp32.opset_import)
    wide = {item.name: numpy_helper.to_array(item) for item in fp32.graph.initializer}
    for item in fp16.graph.initializer:
        np.testing.assert_array_equal(
            numpy_helper.to_array(item), wide[item.name].astype(np.float16)
        )


def test_conversion_leaves_the_original_alone(fp32: onnx.ModelProto) -> None:
    before = fp32.SerializeToString()
    to_fp16(fp32)
    assert fp32.SerializeToString() == before


def test_it_runs_in_onnxruntime_at_any_size(
    fp32: onnx.ModelProto, fp16: onnx.ModelProto, tiny_network: UNet3D
) -> None:
    session = onnxruntime.InferenceSession(
        fp16.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for shape in ((1, 4, 8, 12, 16), (2, 4, 16, 4, 8)):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(4))
        (found,) = session.run(None, {"image": image.numpy()})
        with torch.inference_mode():
            expected = torch.softmax(tiny_network(image), dim=1).numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_the_emulation_of_fp32_is_the_network(fp32: onnx.ModelProto, tiny_network: UNet3D) -> None:
    image = torch.randn((2, 4, 8, 12, 16), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = torch.softmax(tiny_network(image), dim=1).numpy()
    graph = EmulatedGraph(fp32)
    np.testing.assert_allclose(graph(image.numpy()), expected, atol=1e-5)
    assert graph.peaks == {}


def test_the_emulation_of_fp16_rounds_where_fp32_does_not(
    fp32: onnx.ModelProto, fp16: onnx.ModelProto
) -> None:
    image = np.random.default_rng(6).standard_normal((1, 4, 16, 16, 8)).astype(np.float32)
    graph = EmulatedGraph(fp16)
    error = np.abs(graph(image) - EmulatedGraph(fp32)(image))
    # About the unit roundoff of fp16, not that of fp32, and not a mistake either.
    assert 1e-5 < error.max() < 0.05
    # Every tensor that the graph types as fp16, and no other, has a peak.
    types = types_of(fp16)
    made = {node.output[0] for node in fp16.graph.node}
    assert set(graph.peaks) == {name for name in made if types[name] == TensorProto.FLOAT16}
    assert all(0 < peak < FP16_MAX / 4 for peak in graph.peaks.values())


# --- a graph small enough to compute by hand --------------------------------------------------


def one_conv(weight: Array, bias: Array) -> onnx.ModelProto:
    """image -> 1x1x1 convolution -> relu -> softmax."""
    channels_out, channels_in = weight.shape
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["y"], name="conv", kernel_shape=[1] * 3),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
        helper.make_node("Softmax", ["r"], ["p"], name="softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "hand",
        [
            helper.make_tensor_value_info(
                "image", TensorProto.FLOAT, ["n", channels_in, "x", "y", "z"]
            )
        ],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", channels_out, "x", "y", "z"])],
        [
            numpy_helper.from_array(weight.reshape(channels_out, channels_in, 1, 1, 1), "w"),
            numpy_helper.from_array(bias, "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def by_hand(image: Array, weight: Array, bias: Array) -> dict[str, Array]:
    """The same in numpy: fp16 values, each sum in float64, every tensor rounded to fp16."""

    def half(array: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        with np.errstate(over="ignore"):
            return array.astype(np.float16).astype(np.float64)

    x, w, b = half(image), half(weight), half(bias)
    y = half(np.einsum("oc,ncxyz->noxyz", w, x) + b[None, :, None, None, None])
    r = half(np.maximum(y, 0))
    powers = np.exp(r - r.max(axis=1, keepdims=True))
    return {"image_fp16": x, "y": y, "r": r, "p": powers / powers.sum(axis=1, keepdims=True)}


def hand_made() -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(8)
    # Few channels and a scale at which fp16's spacing is 2**-6: sums in fp32 and in float64 then
    # round to the same fp16.
    image = (rng.standard_normal((2, 3, 4, 5, 3)) * 5).astype(np.float32)
    weight = (rng.standard_normal((4, 3)) * 3).astype(np.float32)
    return image, weight, rng.standard_normal(4).astype(np.float32)


def test_rounding_equals_numpys_float16_tensor_by_tensor() -> None:
    image, weight, bias = hand_made()
    expected = by_hand(image, weight, bias)
    graph = EmulatedGraph(to_fp16(one_conv(weight, bias)))
    found = graph(image)
    np.testing.assert_allclose(found, expected["p"], rtol=1e-5, atol=1e-9)
    for name in ("image_fp16", "y", "r"):
        assert graph.peaks[name] == np.abs(expected[name]).max(), name
    # Rounding is what is seen here: without it the result is another.
    plain = EmulatedGraph(one_conv(weight, bias))(image)
    assert np.abs(plain - expected["p"]).max() > 1e-4


def test_softmax_is_not_rounded() -> None:
    image, weight, bias = hand_made()
    found = EmulatedGraph(to_fp16(one_conv(weight, bias)))(image)
    assert not np.array_equal(found, found.astype(np.float16).astype(np.float32))


def test_peaks_hold_the_largest_magnitude_of_all_runs() -> None:
    weight = np.diag([1, -1, 2, 0.5]).astype(np.float32)
    graph = EmulatedGraph(to_fp16(one_conv(weight, np.zeros(4, np.float32))))
    image = np.zeros((1, 4, 2, 2, 2), np.float32)
    image[0, 1, 1, 0, 1] = -300
    image[0, 2, 0, 0, 0] = -200
    graph(image)
    # The largest |y| is the negative -400; the rectified one is 300.
    assert graph.peaks == {"image_fp16": 300, "y": 400, "r": 300}
    graph(image / 10)
    assert graph.peaks == {"image_fp16": 300, "y": 400, "r": 300}
    graph(image * 2)
    assert graph.peaks == {"image_fp16": 600, "y": 800, "r": 600}


@pytest.mark.parametrize(
    ("value", "rounded"), [(65504.0, 65504.0), (65519.0, 65504.0), (65520.0, np.inf)]
)
def test_overflow_becomes_infinity_where_numpy_says(value: float, rounded: float) -> None:
    graph = EmulatedGraph(to_fp16(one_conv(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))))
    image = np.zeros((1, 2, 1, 1, 1), np.float32)
    image[0, 0] = value
    graph(image)
    assert graph.peaks["image_fp16"] == rounded
    assert graph.peaks["y"] == rounded


def test_overflow_inside_shows_though_relu_hides_it_from_the_result() -> None:
    weight = np.array([[-1000.0], [1.0]], np.float32)
    graph = EmulatedGraph(to_fp16(one_conv(weight, np.zeros(2, np.float32))))
    found = graph(np.full((1, 1, 1, 1, 1), 100, np.float32))
    assert np.isfinite(found).all()
    assert graph.peaks["y"] == np.inf
    assert graph.peaks["r"] == 100


def test_infinite_weights_times_zero_do_not_pass_unseen() -> None:
    weight = np.array([[1e6, 1.0], [1.0, 1.0]], np.float32)
    half = to_fp16(one_conv(weight, np.zeros(2, np.float32)))
    graph = EmulatedGraph(half)
    found = graph(np.zeros((1, 2, 1, 1, 1), np.float32))
    assert np.isnan(found).any()
    assert graph.peaks["y"] == np.inf


def test_a_graph_without_softmax_is_refused() -> None:
    model = one_conv(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    del model.graph.node[-1]
    model.graph.output[0].name = "r"
    with pytest.raises(ValueError, match="softmax"):
        to_fp16(model)


def test_an_unknown_operator_is_refused() -> None:
    model = one_conv(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    model.graph.node[1].op_type = "Sigmoid"
    with pytest.raises(ValueError, match="Sigmoid"):
        EmulatedGraph(model)


def test_the_emulating_backend_runs_windows_in_order() -> None:
    image, weight, bias = hand_made()
    card = ModelCard("hand", modalities=("flair", "t1", "t1ce"), patch=(4, 4, 4), divisor=1)
    graph = EmulatedGraph(to_fp16(one_conv(weight, bias)))
    backend = EmulatedBackend(graph, card, BackendInfo("emulation", "cpu", "fp16"))
    backend.bind((4, 5, 3), 4)
    taken: list[Array] = []

    def fill(first: int, last: int, inputs: Array) -> None:
        inputs[...] = image[first:last]

    def take(first: int, last: int, probabilities: Array) -> None:
        assert first == len(taken)
        taken.extend(probabilities.copy())

    backend.run(2, fill, take)
    backend.close()
    np.testing.assert_allclose(taken, by_hand(image, weight, bias)["p"], rtol=1e-5, atol=1e-9)
    assert taken[0].dtype == np.float32
