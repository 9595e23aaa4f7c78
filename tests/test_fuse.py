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
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.emulate import EmulatedGraph
from export.fuse import compose_kernels, fuse
from export.trace import trace
from runtime.model_card import ModelCard
from train.unet import UNet3D

Array = npt.NDArray[np.float64]


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


# --- compose_kernels --------------------------------------------------------------------------


def two_steps(x: Array, up: Array, conv: Array) -> Array:
    tall = F.conv_transpose3d(torch.from_numpy(x), torch.from_numpy(up), stride=2)
    return F.conv3d(tall, torch.from_numpy(conv), padding=conv.shape[2] // 2).numpy()


def one_step(x: Array, up: Array, conv: Array) -> Array:
    kernel = torch.from_numpy(compose_kernels(up, conv))
    return F.conv_transpose3d(
        torch.from_numpy(x), kernel, stride=2, padding=conv.shape[2] // 2
    ).numpy()


channels = st.integers(1, 4)


@settings(max_examples=40, deadline=None)
@given(
    low=channels,
    middle=channels,
    out=channels,
    size=st.sampled_from((1, 3)),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_composed_kernel_is_up_convolution_and_convolution_in_one(
    low: int, middle: int, out: int, size: int, shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, low, *shape))
    up = rng.standard_normal((low, middle, 2, 2, 2))
    conv = rng.standard_normal((out, middle, size, size, size))
    kernel = compose_kernels(up, conv)
    assert kernel.shape == (low, out, *[size + 1] * 3)
    expected, found = two_steps(x, up, conv), one_step(x, up, conv)
    assert found.shape == expected.shape == (2, out, *(2 * n for n in shape))
    # Every voxel, the outermost ones included.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_composed_kernel_is_exact_in_integers() -> None:
    rng = np.random.default_rng(5)
    x, up, conv = (
        rng.integers(-4, 5, shape).astype(np.float64)
        for shape in ((1, 3, 3, 1, 5), (3, 2, 2, 2, 2), (4, 2, 3, 3, 3))
    )
    np.testing.assert_array_equal(one_step(x, up, conv), two_steps(x, up, conv))


def test_composed_kernel_of_single_taps_lands_where_the_formula_says() -> None:
    # y[j] = x[i] for j = 2 i + a - t + 1: a = 1 and t = 0 put voxel 1 of 3 at 4.
    up, conv = np.zeros((1, 1, 2, 2, 2)), np.zeros((1, 1, 3, 3, 3))
    up[0, 0, 1, 0, 0], conv[0, 0, 0, 1, 1] = 3, 5
    x = np.zeros((1, 1, 3, 3, 3))
    x[0, 0, 1, 1, 1] = 1
    expected = np.zeros((1, 1, 6, 6, 6))
    expected[0, 0, 4, 2, 2] = 15
    np.testing.assert_array_equal(one_step(x, up, conv), expected)


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
    fuse(model)
    after = in_float64(model, image)
    assert before.std() > 0.01
    np.testing.assert_allclose(after, before, rtol=1e-10)


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
    sized = onnx.shape_inference.infer_shapes(sized, strict_mode=True)
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


def test_the_reference_network_needs_54_6_gmac_where_it_needed_75_7() -> None:
    model = trace(UNet3D(), ModelCard("reference"))
    shape = (1, 4, 128, 128, 64)
    assert multiply_adds(model, shape) / 1e9 == pytest.approx(75.7, rel=0.01)
    report = fuse(model)
    assert report.composed == 4
    assert multiply_adds(model, shape) / 1e9 == pytest.approx(54.6, rel=0.01)


# --- single branches --------------------------------------------------------------------------


def graph_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    channels_in: int = 2,
    outputs: tuple[str, ...] = ("out",),
) -> onnx.ModelProto:
    dims = ["n", channels_in, "x", "y", "z"]
    graph = helper.make_graph(
        nodes,
        "branch",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, dims)],
        [
            helper.make_tensor_value_info(
                name, TensorProto.DOUBLE, [f"{name}{i}" for i in range(5)]
            )
            for name in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def branch(
    *,
    skip_first: bool = False,
    middle: int = 3,
    up_bias: bool = False,
    between: tuple[str, ...] = (),
    used_elsewhere: bool = False,
    up_kernel: int = 2,
    up_stride: int = 2,
    up_attributes: dict[str, object] | None = None,
    conv_kernel: int = 3,
    conv_pad: int | None = None,
    conv_bias: bool = True,
    concat_is_output: bool = False,
) -> onnx.ModelProto:
    """x -> pool -> up-convolution, concatenated with x itself, then a convolution, in float64."""
    rng = np.random.default_rng(17)
    channels_out = 5
    weights = {
        "up.w": rng.standard_normal((2, middle, *[up_kernel] * 3)),
        "conv.w": rng.standard_normal((channels_out, middle + 2, *[conv_kernel] * 3)),
    }
    up_inputs, conv_inputs = ["low", "up.w"], ["both", "conv.w"]
    if up_bias:
        weights["up.b"] = rng.standard_normal(middle)
        up_inputs.append("up.b")
    if conv_bias:
        weights["conv.b"] = rng.standard_normal(channels_out)
        conv_inputs.append("conv.b")
    nodes = [
        helper.make_node("MaxPool", ["x"], ["low"], kernel_shape=[2] * 3, strides=[2] * 3),
        helper.make_node(
            "ConvTranspose",
            up_inputs,
            ["tall"],
            name="up",
            kernel_shape=[up_kernel] * 3,
            strides=[up_stride] * 3,
            **(up_attributes or {}),
        ),
    ]
    joined = "tall"
    for number, kind in enumerate(between):
        inputs = [joined]
        if kind == "BatchNormalization":
            for name in ("scale", "shift", "mean", "variance"):
                weights[name] = rng.uniform(0.5, 2, middle)
                inputs.append(name)
        nodes.append(helper.make_node(kind, inputs, [f"between{number}"]))
        joined = f"between{number}"
    skip = "x" if up_stride == 2 else "low"
    order = [skip, joined] if skip_first else [joined, skip]
    nodes += [
        helper.make_node("Concat", order, ["both"], axis=1),
        helper.make_node(
            "Conv",
            conv_inputs,
            ["out" if not used_elsewhere else "mixed"],
            name="conv",
            kernel_shape=[conv_kernel] * 3,
            pads=[conv_kernel // 2 if conv_pad is None else conv_pad] * 6,
        ),
    ]
    if used_elsewhere:
        weights["other.w"] = rng.standard_normal((channels_out, middle, 1, 1, 1))
        nodes += [
            helper.make_node("Conv", ["tall", "other.w"], ["aside"], kernel_shape=[1] * 3),
            helper.make_node("Add", ["mixed", "aside"], ["out"]),
        ]
    outputs = ("out", "both") if concat_is_output else ("out",)
    return graph_of(nodes, weights, outputs=outputs)


@pytest.mark.parametrize("skip_first", [False, True], ids=["up-first", "skip-first"])
@pytest.mark.parametrize("conv_kernel", [1, 3])
@pytest.mark.parametrize(("middle", "conv_bias"), [(2, True), (3, False)])
def test_either_order_of_the_concatenation_composes(
    skip_first: bool, conv_kernel: int, middle: int, conv_bias: bool
) -> None:
    # With as many channels from the up-convolution as from the skip, no shape tells them apart.
    model = branch(
        skip_first=skip_first, conv_kernel=conv_kernel, middle=middle, conv_bias=conv_bias
    )
    image = image_of((2, 2, 6, 4, 2))
    before = in_float64(model, image)
    report = fuse(model)
    assert (report.composed, report.left_alone) == (1, ())
    assert "Concat" not in operators(model)
    np.testing.assert_allclose(in_float64(model, image), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({"up_bias": True}, "bias", id="bias"),
        pytest.param(
            {"between": ("BatchNormalization", "Relu")}, "normalisation", id="bn-relu-of-tutorial"
        ),
        pytest.param({"between": ("Relu",), "skip_first": True}, "non-linearity", id="relu"),
        pytest.param({"used_elsewhere": True}, "used elsewhere", id="used-elsewhere"),
        pytest.param(
            {"up_kernel": 4, "up_attributes": {"pads": [1] * 6}}, "kernel 2, stride 2", id="kernel4"
        ),
        pytest.param(
            {"up_kernel": 1, "up_attributes": {"output_padding": [1] * 3}},
            "kernel 2, stride 2",
            id="kernel1",
        ),
        pytest.param(
            {"up_kernel": 3, "up_stride": 1, "up_attributes": {"pads": [1] * 6}},
            "kernel 2, stride 2",
            id="stride1",
        ),
        pytest.param(
            {"up_attributes": {"dilations": [2] * 3}},
            "kernel 2, stride 2",
            id="dilated",
        ),
        pytest.param({"conv_pad": 0}, "size-keeping", id="unpadded-convolution"),
        pytest.param({"concat_is_output": True}, "output", id="concat-is-output"),
    ],
)
def test_what_does_not_compose_exactly_is_left_alone_and_named(
    options: dict[str, object], reason: str
) -> None:
    model = branch(**options)  # type: ignore[arg-type]
    before = copied(model)
    report = fuse(model)
    assert report.composed == 0
    assert len(report.left_alone) == 1
    assert report.left_alone[0].startswith("up: ")
    assert reason in report.left_alone[0]
    assert operators(model) == operators(before)
    image = image_of((1, 2, 6, 4, 8))
    if "dilations" in options.get("up_attributes", {}):  # type: ignore[operator]
        # Its output is a voxel too large to run; nodes and weights are untouched.
        assert list(model.graph.node) == list(before.graph.node)
        return
    np.testing.assert_allclose(in_float64(model, image), in_float64(before, image), rtol=0, atol=0)


def test_a_bias_of_zeros_composes() -> None:
    model = branch(up_bias=True)
    for item in model.graph.initializer:
        if item.name == "up.b":
            item.CopyFrom(numpy_helper.from_array(np.zeros(3), "up.b"))
    image = image_of((1, 2, 4, 4, 4))
    before = in_float64(model, image)
    assert fuse(model).composed == 1
    np.testing.assert_allclose(in_float64(model, image), before, rtol=1e-10, atol=1e-12)


def test_a_bias_really_is_cut_off_at_the_border() -> None:
    """Why a bias is left alone: composing it as a constant is wrong on the outermost voxels."""
    rng = np.random.default_rng(2)
    x, up, conv = (
        rng.standard_normal(shape) for shape in ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), (4, 3, 3, 3, 3))
    )
    bias = rng.standard_normal(3)
    tall = F.conv_transpose3d(*map(torch.from_numpy, (x, up, bias)), stride=2)
    exact = F.conv3d(tall, torch.from_numpy(conv), padding=1).numpy()
    constant = np.einsum("omxyz,m->o", conv, bias)[None, :, None, None, None]
    error = np.abs(one_step(x, up, conv) + constant - exact)
    assert error[..., 1:-1, 1:-1, 1:-1].max() < 1e-12
    assert error.max() > 0.1


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
