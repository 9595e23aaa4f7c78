"""The graph rewrites against the networks and the convolutions that they replace."""

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from export.emulate import EmulatedGraph
from export.fuse import fuse
from export.trace import trace
from export.up_branch import UpBranch
from runtime.model_card import ModelCard
from tests.test_up_branch import graph_of
from train.unet import UNet3D

Array = npt.NDArray[np.float64]
FORMS: tuple[UpBranch, ...] = ("unfused", "k4", "interleave")


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def with_weights(
    model: onnx.ModelProto,
    change: Callable[[str, npt.NDArray[np.float32]], npt.NDArray[np.float32]],
) -> onnx.ModelProto:
    other = copied(model)
    for item in other.graph.initializer:
        array = numpy_helper.to_array(item)
        if array.dtype.kind == "f":
            item.CopyFrom(numpy_helper.from_array(change(item.name, array), item.name))
    return other


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph typed float64 throughout, so that no weight is rounded on the way."""
    other = with_weights(model, lambda _, array: array.astype(np.float64))
    for value in (*other.graph.input, *other.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return other


def in_float64(model: onnx.ModelProto, image: npt.NDArray[np.float32]) -> Array:
    return np.asarray(EmulatedGraph(model, torch.float64)(image))


def in_onnxruntime(model: onnx.ModelProto, image: npt.NDArray[np.float32]) -> Array:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, {session.get_inputs()[0].name: image})
    return np.asarray(output).astype(np.float64)


# --- whole networks ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "residual"])
def network(request: pytest.FixtureRequest) -> UNet3D:
    """Three levels, and batch norms that are far from the identity."""
    torch.manual_seed(3)
    network = UNet3D(features=(4, 6, 8), residual=request.param).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 3)
                module.weight.uniform_(-1.5, 1.5)
                module.bias.normal_()
    return network


@pytest.fixture(scope="module")
def traced(network: UNet3D) -> onnx.ModelProto:
    """The network's graph; never changed in place."""
    return trace(network, ModelCard("fused", patch=(16, 16, 16), divisor=4))


def reseeded(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Fresh weights, and batch norms that are far from the identity."""
    rng = np.random.default_rng(seed)
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    scales = {node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"}

    def draw(name: str, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if name in variances:
            drawn = rng.uniform(0.3, 3.0, array.shape)
        elif name in scales:
            drawn = rng.uniform(0.5, 1.5, array.shape) * rng.choice((-1, 1), array.shape)
        elif array.ndim == 1:
            drawn = rng.normal(0, 0.5, array.shape)
        else:
            drawn = rng.normal(0, (2 / array[0].size) ** 0.5, array.shape)
        return drawn.astype(np.float32)

    return with_weights(model, draw)


def image_of(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_no_batch_norm_and_no_concat_is_left(traced: onnx.ModelProto) -> None:
    model = copied(traced)
    before = operators(model)
    report = fuse(model)
    after = operators(model)
    assert before.count("BatchNormalization") == 10
    assert before.count("Concat") == 2
    assert "BatchNormalization" not in after
    assert "Concat" not in after
    assert (report.folded, report.composed, report.left_alone) == (10, 2, ())
    assert after.count("ConvTranspose") == before.count("ConvTranspose") + (
        # A residual block reads the concatenation twice: its 1x1x1 composes too.
        before.count("Concat") if "Add" in before else 0
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_function_is_the_same_to_the_last_digits(traced: onnx.ModelProto, seed: int) -> None:
    model = in_double(reseeded(traced, seed))
    image = image_of((2, 4, 8, 12, 4), seed)
    before = in_float64(model, image)
    assert before.std() > 0.01
    for form in FORMS:
        other = copied(model)
        fuse(other, form)
        np.testing.assert_allclose(in_float64(other, image), before, rtol=1e-10, err_msg=form)


@pytest.mark.parametrize("form", FORMS)
def test_every_node_has_a_name_of_its_own(traced: onnx.ModelProto, form: UpBranch) -> None:
    model = copied(traced)
    for node in model.graph.node:
        node.name = "" if node.op_type in ("Relu", "MaxPool") else "the same"
    image = image_of((1, 4, 8, 4, 4))
    before = in_float64(model, image)
    fuse(model, form)
    names = [node.name for node in model.graph.node]
    assert "" not in names
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(in_float64(model, image), before, atol=2e-6)


def test_the_function_is_that_of_the_network(network: UNet3D, traced: onnx.ModelProto) -> None:
    """Not by the emulation's word alone: PyTorch's own modules in float64."""
    model = copied(traced)
    fuse(model)
    image = image_of((1, 4, 12, 4, 8))
    with torch.inference_mode():
        logits = copy.deepcopy(network).double()(torch.from_numpy(image).double())
    expected = torch.softmax(logits, dim=1).numpy()
    np.testing.assert_allclose(in_float64(traced, image), expected, rtol=1e-10)
    # Here the composed weights have been rounded to float32.
    np.testing.assert_allclose(in_float64(model, image), expected, atol=2e-6)
    np.testing.assert_allclose(in_onnxruntime(model, image), expected, atol=1e-5)


def test_the_fused_graph_is_as_accurate_in_float32(traced: onnx.ModelProto) -> None:
    worst_before, worst_after, mean_before, mean_after = 0.0, 0.0, 0.0, 0.0
    seeds = 5
    for seed in range(seeds):
        before = reseeded(traced, 10 + seed)
        after = copied(before)
        fuse(after)
        image = image_of((1, 4, 16, 12, 16), seed)
        truth = in_float64(before, image)
        error_before = np.abs(in_onnxruntime(before, image) - truth)
        error_after = np.abs(in_onnxruntime(after, image) - truth)
        worst_before = max(worst_before, error_before.max())
        worst_after = max(worst_after, error_after.max())
        mean_before += error_before.mean() / seeds
        mean_after += error_after.mean() / seeds
        assert error_after.max() <= 2 * error_before.max() + 1e-6, seed
    assert 0 < mean_after <= 2 * mean_before + 1e-8
    assert worst_after <= 2 * worst_before + 1e-7


# --- cost -------------------------------------------------------------------------------------


def multiply_adds(model: onnx.ModelProto, shape: tuple[int, ...]) -> int:
    """Multiplications of all convolutions of a graph for an input of ``shape``."""
    sized = copied(model)
    for dim, size in zip(sized.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    del sized.graph.output[0].type.tensor_type.shape.dim[:]
    sized.graph.output[0].type.tensor_type.ClearField("shape")
    sized = onnx.shape_inference.infer_shapes(sized, strict_mode=True, data_prop=True)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*sized.graph.input, *sized.graph.value_info, *sized.graph.output)
    }
    weights = {item.name: list(item.dims) for item in sized.graph.initializer}
    total = 0
    for node in sized.graph.node:
        if node.op_type == "Conv":
            # Every output voxel meets the whole kernel.
            voxels = shapes[node.output[0]]
        elif node.op_type == "ConvTranspose":
            # Every input voxel does.
            voxels = shapes[node.input[0]]
        else:
            continue
        assert all(size > 0 for size in voxels)
        total += voxels[0] * int(np.prod(voxels[2:])) * int(np.prod(weights[node.input[1]]))
    return total


def test_multiply_adds_of_a_known_graph() -> None:
    """The counter itself: 3 -> 5 channels, kernel 3 on 4x4x4, then 5 -> 2, kernel 2, stride 2."""
    rng = np.random.default_rng(0)
    model = graph_of(
        [
            helper.make_node("Conv", ["x", "a"], ["y"], pads=[1] * 6, kernel_shape=[3] * 3),
            helper.make_node(
                "ConvTranspose", ["y", "b"], ["out"], strides=[2] * 3, kernel_shape=[2] * 3
            ),
        ],
        {"a": rng.standard_normal((5, 3, 3, 3, 3)), "b": rng.standard_normal((5, 2, 2, 2, 2))},
        channels_in=3,
    )
    assert multiply_adds(model, (1, 3, 4, 4, 4)) == 64 * (3 * 5 * 27) + 64 * (5 * 2 * 8)


def test_the_unfused_form_keeps_up_convolution_and_concatenation(traced: onnx.ModelProto) -> None:
    model = copied(traced)
    report = fuse(model, "unfused")
    assert (report.folded, report.composed, report.left_alone) == (10, 0, ())
    kept = [kind for kind in operators(traced) if kind != "BatchNormalization"]
    assert operators(model) == kept


def test_the_reference_network_needs_54_6_gmac_where_it_needed_75_7() -> None:
    model = trace(UNet3D(), ModelCard("reference"))
    shape = (1, 4, 128, 128, 64)
    assert multiply_adds(model, shape) / 1e9 == pytest.approx(75.7, rel=0.01)
    # Interleaved, one voxel more an axis is computed, and cropped.
    for form, gmac in (("k4", 54.55), ("interleave", 55.71)):
        other = copied(model)
        report = fuse(other, form)
        assert report.composed == 4
        assert multiply_adds(other, shape) / 1e9 == pytest.approx(gmac, rel=1e-3)


# --- batch norms ------------------------------------------------------------------------------


def norm_after_conv(*, conv_bias: bool, epsilon: float, shared: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(23)
    weights = {
        "w": rng.standard_normal((3, 2, 3, 3, 3)),
        "scale": rng.uniform(-2, 2, 3),
        "shift": rng.standard_normal(3),
        "mean": rng.standard_normal(3) * 3,
        "variance": np.array([1e-4, 0.5, 4.0]),
    }
    inputs = ["x", "w"]
    if conv_bias:
        weights["b"] = rng.standard_normal(3)
        inputs.append("b")
    nodes = [
        helper.make_node("Conv", inputs, ["y"], name="conv", kernel_shape=[3] * 3, pads=[1] * 6),
        helper.make_node(
            "BatchNormalization",
            ["y", "scale", "shift", "mean", "variance"],
            ["normal" if shared else "out"],
            epsilon=epsilon,
        ),
    ]
    if shared:
        nodes.append(helper.make_node("Add", ["normal", "y"], ["out"]))
    return graph_of(nodes, weights)


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_a_batch_norm_folds_by_its_definition(conv_bias: bool, epsilon: float) -> None:
    model = norm_after_conv(conv_bias=conv_bias, epsilon=epsilon)
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    image = image_of((1, 2, 5, 4, 3))
    raw = F.conv3d(
        torch.from_numpy(image).double(),
        torch.from_numpy(values["w"].copy()),
        torch.from_numpy(values["b"].copy()) if conv_bias else None,
        padding=1,
    ).numpy()

    def column(name: str) -> Array:
        return np.asarray(values[name][None, :, None, None, None])

    expected = (raw - column("mean")) / np.sqrt(column("variance") + np.float32(epsilon)) * column(
        "scale"
    ) + column("shift")
    assert fuse(model).folded == 1
    assert operators(model) == ["Conv"]
    np.testing.assert_allclose(in_float64(model, image), expected, rtol=1e-10, atol=1e-9)


def test_a_batch_norm_whose_input_is_used_elsewhere_stays() -> None:
    model = norm_after_conv(conv_bias=False, epsilon=1e-5, shared=True)
    image = image_of((1, 2, 4, 4, 4))
    before = in_float64(model, image)
    assert fuse(model).folded == 0
    np.testing.assert_array_equal(in_float64(model, image), before)


def norm_after_up_convolution(*, bias: bool, group: int = 1) -> onnx.ModelProto:
    """4 channels to 4: a factor along the wrong axis of the weight would have the right shape."""
    rng = np.random.default_rng(29)
    weights = {
        "w": rng.standard_normal((4, 4 // group, 2, 2, 2)),
        "scale": rng.uniform(-2, 2, 4),
        "shift": rng.standard_normal(4),
        "mean": rng.standard_normal(4) * 3,
        "variance": np.array([1e-4, 0.5, 4.0, 1.0]),
    }
    inputs = ["x", "w"]
    if bias:
        weights["b"] = rng.standard_normal(4)
        inputs.append("b")
    nodes = [
        helper.make_node(
            "ConvTranspose",
            inputs,
            ["y"],
            name="up",
            kernel_shape=[2] * 3,
            strides=[2] * 3,
            group=group,
        ),
        helper.make_node(
            "BatchNormalization", ["y", "scale", "shift", "mean", "variance"], ["out"], epsilon=1e-5
        ),
    ]
    return graph_of(nodes, weights, channels_in=4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_folds_into_a_transposed_convolution_by_its_definition(bias: bool) -> None:
    model = norm_after_up_convolution(bias=bias)
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    image = image_of((2, 4, 3, 2, 5))
    # y[o, 2 i + a] = sum over c of x[c, i] w[c, o, a]: windows of the result do not overlap.
    raw = np.einsum("ncxyz,coijk->noxiyjzk", image.astype(np.float64), values["w"])
    raw = raw.reshape(2, 4, 6, 4, 10)

    def column(name: str) -> Array:
        return np.asarray(values[name][None, :, None, None, None])

    if bias:
        raw = raw + column("b")
    expected = (raw - column("mean")) / np.sqrt(column("variance") + np.float32(1e-5)) * column(
        "scale"
    ) + column("shift")
    assert fuse(model).folded == 1
    assert operators(model) == ["ConvTranspose"]
    np.testing.assert_allclose(in_float64(model, image), expected, rtol=1e-10, atol=1e-9)


def test_a_batch_norm_after_a_transposed_convolution_in_groups_stays() -> None:
    model = norm_after_up_convolution(bias=False, group=2)
    image = image_of((1, 4, 2, 2, 2))
    before = in_float64(model, image)
    assert fuse(model).folded == 0
    np.testing.assert_array_equal(in_float64(model, image), before)
