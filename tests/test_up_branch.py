"""Up branches in their three forms: equal to what was traced, at every voxel, in every backend."""

import re
import subprocess
import sys
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.emulate import EmulatedGraph
from export.fuse import fuse
from export.precision import reduce
from export.up_branch import UpBranch, compose_kernels, interleaved_kernel

Array = npt.NDArray[np.float64]
FORMS: tuple[UpBranch, ...] = ("unfused", "k4", "interleave")
COMPOSED: tuple[UpBranch, ...] = ("k4", "interleave")


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def rewritten(model: onnx.ModelProto, form: UpBranch) -> onnx.ModelProto:
    other = copied(model)
    fuse(other, form)
    return other


def image_of(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_float64(model: onnx.ModelProto, image: npt.NDArray[np.float32]) -> Array:
    return np.asarray(EmulatedGraph(model, torch.float64)(image))


def in_onnxruntime(model: onnx.ModelProto, image: npt.NDArray[np.float32]) -> Array:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, {session.get_inputs()[0].name: image})
    return np.asarray(output).astype(np.float64)


def in_openvino(model: onnx.ModelProto, image: npt.NDArray[np.float32]) -> Array:
    """With the graph's own dynamic axes."""
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    return np.asarray(compiled(image)[0]).astype(np.float64)


def close(found: Array, expected: Array, tolerance: float) -> None:
    """Equal at every voxel, up to ``tolerance`` times the largest |value|."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


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


# --- interleaved_kernel -----------------------------------------------------------------------


def by_subpixels(x: Array, kernel: Array) -> Array:
    """A convolution with eight times the channels, put side by side voxel by voxel, cropped."""
    out, crop = kernel.shape[1], kernel.shape[2] // 2 - 1
    weight = torch.from_numpy(interleaved_kernel(kernel).copy())
    phases = F.conv3d(torch.from_numpy(x), weight, padding=crop).numpy()
    whole = np.zeros((len(x), out, *(2 * n for n in phases.shape[2:])))
    for o in range(out):
        for number, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
            whole[:, o, i::2, j::2, k::2] = phases[:, 8 * o + number]
    ends = [slice(crop, n - crop) for n in whole.shape[2:]]
    return np.asarray(whole[:, :, *ends])


@settings(max_examples=40, deadline=None)
@given(
    low=channels,
    out=channels,
    taps=st.sampled_from((1, 2)),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_subpixels_are_the_transposed_convolution(
    low: int, out: int, taps: int, shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Small integers, so that every sum is exact in any order.
    x = rng.integers(-4, 5, (2, low, *shape)).astype(np.float64)
    kernel = rng.integers(-4, 5, (low, out, *[2 * taps] * 3)).astype(np.float64)
    assert interleaved_kernel(kernel).shape == (8 * out, low, *[taps] * 3)
    expected = F.conv_transpose3d(
        torch.from_numpy(x), torch.from_numpy(kernel), stride=2, padding=taps - 1
    ).numpy()
    assert expected.shape[2:] == tuple(2 * n for n in shape)
    np.testing.assert_array_equal(by_subpixels(x, kernel), expected)


def test_each_phase_has_the_two_taps_that_the_formula_says() -> None:
    # Tap k stands where it can be told along the first axis; the others have one tap, k = 1.
    kernel = np.zeros((1, 1, 4, 4, 4))
    kernel[0, 0, :, 1, 1] = (10, 11, 12, 13)
    weight = interleaved_kernel(kernel).reshape(2, 2, 2, 2, 2, 2)
    # s = 1 makes even voxels, from x[m-1] by k = 3 and x[m] by k = 1; s = 0 makes odd ones, from
    # x[m] by k = 2 and x[m+1] by k = 0.
    np.testing.assert_array_equal(weight[1, 1, 1, :, 1, 1], (13, 11))
    np.testing.assert_array_equal(weight[0, 1, 1, :, 1, 1], (12, 10))
    assert np.count_nonzero(weight) == 4


# --- single branches --------------------------------------------------------------------------


def graph_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    channels_in: int = 2,
    outputs: tuple[str, ...] = ("out",),
) -> onnx.ModelProto:
    for number, node in enumerate(nodes):
        node.name = node.name or f"node{number}"
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
    residual: bool = False,
    channels: int = 2,
    channels_out: int = 5,
) -> onnx.ModelProto:
    """x -> pool -> up-convolution, concatenated with x itself, then a convolution, in float64.

    With ``residual`` a 1x1x1 convolution of the concatenation is added.
    """
    rng = np.random.default_rng(17)
    weights = {
        "up.w": rng.standard_normal((channels, middle, *[up_kernel] * 3)),
        "conv.w": rng.standard_normal((channels_out, middle + channels, *[conv_kernel] * 3)),
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
            ["mixed" if used_elsewhere or residual else "out"],
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
    if residual:
        weights["shortcut.w"] = rng.standard_normal((channels_out, middle + channels, 1, 1, 1))
        nodes += [
            helper.make_node(
                "Conv", ["both", "shortcut.w"], ["aside"], name="shortcut", kernel_shape=[1] * 3
            ),
            helper.make_node("Add", ["mixed", "aside"], ["out"]),
        ]
    outputs = ("out", "both") if concat_is_output else ("out",)
    return graph_of(nodes, weights, channels, outputs)


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
    for form in FORMS:
        other = copied(model)
        report = fuse(other, form)
        assert (report.composed, report.left_alone) == (int(form != "unfused"), ())
        assert ("up" in {node.name for node in other.graph.node}) == (form == "unfused")
        close(in_float64(other, image), before, 1e-12)


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
    before = branch(**options)  # type: ignore[arg-type]
    image = image_of((1, 2, 6, 4, 8))
    for form in FORMS:
        model = copied(before)
        report = fuse(model, form)
        assert (report.composed, report.up_branch) == (0, form)
        assert len(report.left_alone) == 1
        assert report.left_alone[0].startswith("up: ")
        assert reason in report.left_alone[0]
        if report.folded:
            # The batch norm is in the up-convolution now, and what it did still stands between.
            kept = [kind for kind in operators(before) if kind != "BatchNormalization"]
            assert operators(model) == kept
            close(in_float64(model, image), in_float64(before, image), 1e-12)
            continue
        assert list(model.graph.node) == list(before.graph.node)
        if "dilations" in options.get("up_attributes", {}):  # type: ignore[operator]
            # Its output is a voxel too large to run.
            continue
        np.testing.assert_array_equal(in_float64(model, image), in_float64(before, image))


def test_a_bias_of_zeros_composes() -> None:
    model = branch(up_bias=True)
    for item in model.graph.initializer:
        if item.name == "up.b":
            item.CopyFrom(numpy_helper.from_array(np.zeros(3), "up.b"))
    image = image_of((1, 2, 4, 4, 4))
    before = in_float64(model, image)
    for form in COMPOSED:
        other = copied(model)
        assert fuse(other, form).composed == 1
        close(in_float64(other, image), before, 1e-12)


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


# --- the three forms --------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 2), *[st.integers(1, 4)] * 3),
    channels=st.integers(1, 3),
    middle=st.integers(1, 3),
    channels_out=st.integers(1, 5),
    skip_first=st.booleans(),
    residual=st.booleans(),
)
def test_three_forms_are_one_function(
    sizes: tuple[int, ...],
    channels: int,
    middle: int,
    channels_out: int,
    skip_first: bool,
    residual: bool,
) -> None:
    model = branch(
        channels=channels,
        middle=middle,
        channels_out=channels_out,
        skip_first=skip_first,
        residual=residual,
    )
    image = image_of((sizes[0], channels, *(2 * n for n in sizes[1:])))
    expected = in_float64(model, image)
    for form in FORMS:
        # Every voxel: at sizes 1 and 2 all of them lie at a border.
        close(in_float64(rewritten(model, form), image), expected, 1e-12)


def test_forms_by_their_operators() -> None:
    model = branch(residual=True)
    kinds = {form: operators(rewritten(model, form)) for form in FORMS}
    assert kinds["unfused"] == operators(model)
    for form, kind in (("k4", "ConvTranspose"), ("interleave", "Transpose")):
        assert kinds[form].count(kind) == 2  # type: ignore[index]
        assert kinds[form].count("Conv") == (2 if form == "k4" else 4)  # type: ignore[index]
    assert "ConvTranspose" not in kinds["interleave"]
    # The 1x1x1 composes to a kernel of 2, which needs no crop.
    assert kinds["interleave"].count("Slice") == 1


def in_single(model: onnx.ModelProto) -> onnx.ModelProto:
    other = copied(model)
    for item in other.graph.initializer:
        array = numpy_helper.to_array(item)
        if array.dtype == np.float64:
            item.CopyFrom(numpy_helper.from_array(array.astype(np.float32), item.name))
    for value in (*other.graph.input, *other.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.checker.check_model(other, full_check=True)
    return other


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_backends_run_every_form_at_any_batch_and_size(form: UpBranch, residual: bool) -> None:
    model = branch(channels=3, channels_out=5, residual=residual)
    single = in_single(rewritten(model, form))
    for shape in ((1, 3, 2, 4, 6), (3, 3, 8, 2, 4)):
        image = image_of(shape)
        expected = in_float64(model, image)
        close(in_onnxruntime(single, image), expected, 1e-6)
        close(in_openvino(single, image), expected, 1e-6)


BUILD = """
import sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
if not parser.parse(sys.stdin.buffer.read()):
    sys.exit(str(parser.get_error(0)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
profile.set_shape("x", (1, 4, 16, 16, 8), (2, 4, 16, 16, 8), (4, 4, 16, 16, 8))
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
print(f"bytes {engine.nbytes if engine else 0}", flush=True)
"""


@pytest.mark.parametrize(
    ("form", "kind"),
    # TensorRT for RTX 1.7 has no transposed convolution in bf16.
    [("unfused", "fp16"), ("k4", "fp16"), ("interleave", "fp16"), ("interleave", "bf16")],
)
def test_tensorrt_builds_every_form_strongly_typed_with_a_free_batch(
    form: UpBranch, kind: Literal["fp16", "bf16"]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = in_single(rewritten(branch(channels=4, channels_out=8, residual=True), form))
    model.graph.node.append(helper.make_node("Softmax", ["out"], ["p"], name="softmax", axis=1))
    model.graph.output[0].name = "p"
    # A process of its own: without a driver the library may crash at its end, engine or no engine.
    built = subprocess.run(
        [sys.executable, "-c", BUILD],
        input=reduce(model, kind).SerializeToString(),
        capture_output=True,
        timeout=300,
        check=False,
    )
    size = re.search(rb"bytes (\d+)", built.stdout)
    assert size, built.stderr.decode()
    assert int(size[1]) > 10_000
