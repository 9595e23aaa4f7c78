"""Graphs in reduced precision and the emulation that certifies them, against plain numpy."""

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.emulate import FP16_MAX, EmulatedBackend, EmulatedGraph
from export.fuse import fuse
from export.precision import Part, Reduced, parts, reduce
from export.trace import trace
from export.up_branch import UpBranch
from runtime.backends import BackendInfo
from runtime.model_card import ModelCard
from train.unet import UNet3D

Array = npt.NDArray[np.float32]
KINDS: tuple[Reduced, ...] = ("fp16", "bf16")


@pytest.fixture(scope="module")
def traced(tiny_network: UNet3D, tiny_card: ModelCard) -> onnx.ModelProto:
    return trace(tiny_network, tiny_card)


def fused(traced: onnx.ModelProto, form: UpBranch) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    fuse(model, form)
    return model


@pytest.fixture(scope="module")
def fp32(traced: onnx.ModelProto) -> onnx.ModelProto:
    return fused(traced, "k4")


@pytest.fixture(scope="module")
def fp16(fp32: onnx.ModelProto) -> onnx.ModelProto:
    return reduce(fp32, "fp16")


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, by ONNX's own inference."""
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
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
    reduce(fp32, "fp16", [fp32.graph.node[0].name])
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
    graph = EmulatedGraph(reduce(one_conv(weight, bias), "fp16"))
    found = graph(image)
    np.testing.assert_allclose(found, expected["p"], rtol=1e-5, atol=1e-9)
    for name in ("image_fp16", "y", "r"):
        assert graph.peaks[name] == np.abs(expected[name]).max(), name
    # Rounding is what is seen here: without it the result is another.
    plain = EmulatedGraph(one_conv(weight, bias))(image)
    assert np.abs(plain - expected["p"]).max() > 1e-4


def test_softmax_is_not_rounded() -> None:
    image, weight, bias = hand_made()
    found = EmulatedGraph(reduce(one_conv(weight, bias), "fp16"))(image)
    assert not np.array_equal(found, found.astype(np.float16).astype(np.float32))


def test_peaks_hold_the_largest_magnitude_of_all_runs() -> None:
    weight = np.diag([1, -1, 2, 0.5]).astype(np.float32)
    graph = EmulatedGraph(reduce(one_conv(weight, np.zeros(4, np.float32)), "fp16"))
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
    graph = EmulatedGraph(
        reduce(one_conv(np.eye(2, dtype=np.float32), np.zeros(2, np.float32)), "fp16")
    )
    image = np.zeros((1, 2, 1, 1, 1), np.float32)
    image[0, 0] = value
    graph(image)
    assert graph.peaks["image_fp16"] == rounded
    assert graph.peaks["y"] == rounded


def test_overflow_inside_shows_though_relu_hides_it_from_the_result() -> None:
    weight = np.array([[-1000.0], [1.0]], np.float32)
    graph = EmulatedGraph(reduce(one_conv(weight, np.zeros(2, np.float32)), "fp16"))
    found = graph(np.full((1, 1, 1, 1, 1), 100, np.float32))
    assert np.isfinite(found).all()
    assert graph.peaks["y"] == np.inf
    assert graph.peaks["r"] == 100


def test_infinite_weights_times_zero_do_not_pass_unseen() -> None:
    weight = np.array([[1e6, 1.0], [1.0, 1.0]], np.float32)
    half = reduce(one_conv(weight, np.zeros(2, np.float32)), "fp16")
    graph = EmulatedGraph(half)
    found = graph(np.zeros((1, 2, 1, 1, 1), np.float32))
    assert np.isnan(found).any()
    assert graph.peaks["y"] == np.inf


# --- mixed precision --------------------------------------------------------------------------


BIAS = np.array([-1.1, 0.3, 0.7], np.float32)


def two_convs(weights: tuple[Array, Array], *, shared: bool = False) -> onnx.ModelProto:
    """image -> conv1 -> relu1 -> conv2 -> add (of relu1) -> softmax, with 1x1x1 convolutions."""
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b"], ["y1"], name="conv1"),
        helper.make_node("Relu", ["y1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w1" if shared else "w2", "b"], ["y2"], name="conv2"),
        helper.make_node("Add", ["y2", "r1"], ["sum"], name="add"),
        helper.make_node("Softmax", ["sum"], ["p"], name="softmax", axis=1),
    ]
    size = len(weights[0])
    values = {"w1": weights[0], "w2": weights[1]}
    stored = [
        numpy_helper.from_array(value.reshape(size, size, 1, 1, 1), name)
        for name, value in values.items()
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size, "x", "y", "z"])
        for name in ("image", "p")
    ]
    stored.append(numpy_helper.from_array(BIAS[:size], "b"))
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def rounded_to_bf16(array: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """By the bits of float32: the upper half, to nearest, ties to even."""
    bits = array.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def rounded_to_fp16(array: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return array.astype(np.float16).astype(np.float64)


KEPT = ((), ("conv1",), ("conv1", "relu1", "add"), ("conv2", "add"))
ROUNDED = {"fp16": rounded_to_fp16, "bf16": rounded_to_bf16}


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("kept", KEPT)
def test_a_mixed_graph_rounds_what_is_reduced_and_nothing_else(
    kind: Reduced, kept: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(12)
    image = (rng.standard_normal((2, 3, 4, 3, 5)) * 3).astype(np.float32)
    w1, w2 = rng.standard_normal((2, 3, 3)).astype(np.float32)
    reduced = ROUNDED[kind]

    def conv(x: Array, weight: Array, name: str) -> Array:
        there = np.float64 if name in kept else reduced
        y = np.einsum("oc,ncxyz->noxyz", there(weight), there(x))
        y = y + there(BIAS)[None, :, None, None, None]
        return np.asarray(there(y))

    r1 = np.maximum(conv(image, w1, "conv1"), 0)
    if "relu1" not in kept:
        r1 = reduced(r1)
    y2 = conv(r1, w2, "conv2")
    # The addition reads the cast of what the relu made.
    total = y2 + r1 if "add" in kept else reduced(reduced(y2) + reduced(r1))
    powers = np.exp(total - total.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)

    model = two_convs((w1, w2))
    found = EmulatedGraph(reduce(model, kind, kept), torch.float64)(image)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # Another set of kept nodes gives another result, or nothing was tested.
    for other in set(KEPT) - {kept}:
        different = EmulatedGraph(reduce(model, kind, other), torch.float64)(image)
        assert np.abs(different - expected).max() > 1e-6


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_weight_that_both_read_is_stored_twice(kind: Reduced) -> None:
    rng = np.random.default_rng(13)
    weight = rng.standard_normal((3, 3)).astype(np.float32)
    model = reduce(two_convs((weight, weight), shared=True), kind, ["conv2"])
    stored = {item.name: item for item in model.graph.initializer}
    (first,) = [node for node in model.graph.node if node.name == "conv1"]
    (second,) = [node for node in model.graph.node if node.name == "conv2"]
    for one, other in zip(first.input[1:], second.input[1:], strict=True):
        assert one != other
        assert stored[other].data_type == TensorProto.FLOAT
        exact = numpy_helper.to_array(stored[other])
        reduced = numpy_helper.to_array(stored[one]).astype(np.float64)
        np.testing.assert_array_equal(reduced, ROUNDED[kind](exact))
    # Nobody reads w2.
    assert len(stored) == 4


@pytest.mark.parametrize("form", ["unfused", "k4", "interleave"])
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_types_agree_at_every_node_and_each_tensor_is_cast_once(
    traced: onnx.ModelProto, form: UpBranch, kind: Reduced, seed: int | None
) -> None:
    model = fused(traced, form)
    names = [node.name for node in model.graph.node if node.op_type != "Softmax"]
    kept: set[str] = set()
    if seed is not None:
        kept = set(np.random.default_rng(seed).choice(names, len(names) // 3, replace=False))
    mixed = reduce(model, kind, kept)
    types = types_of(mixed) | {item.name: item.data_type for item in mixed.graph.initializer}
    narrow = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[kind]
    for value in (*mixed.graph.input, *mixed.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    casts = set()
    for node in mixed.graph.node:
        if node.op_type == "Cast":
            one, other = types[node.input[0]], types[node.output[0]]
            assert {one, other} == {TensorProto.FLOAT, narrow}
            assert (node.input[0], other) not in casts
            casts.add((node.input[0], other))
            continue
        wanted = TensorProto.FLOAT if node.name in kept | {"node_softmax"} else narrow
        assert types[node.output[0]] in (wanted, TensorProto.INT64), node.name
        if node.op_type != "Shape":
            assert all(types[name] in (wanted, TensorProto.INT64) for name in node.input), node.name
    assert len({node.name for node in mixed.graph.node}) == len(mixed.graph.node)
    # A cast that no node reads would be one too many.
    read = {name for node in mixed.graph.node for name in node.input}
    assert {node.output[0] for node in mixed.graph.node if node.op_type == "Cast"} <= read
    assert [node.name for node in mixed.graph.node if node.op_type != "Cast"] == [
        node.name for node in model.graph.node
    ]
    if kind == "fp16":
        # Another reader of the types; for bf16 ONNX Runtime has no convolution on a CPU.
        onnxruntime.InferenceSession(mixed.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("form", ["unfused", "k4", "interleave"])
def test_a_graph_of_which_all_is_kept_is_the_fp32_graph(
    traced: onnx.ModelProto, form: UpBranch
) -> None:
    model = fused(traced, form)
    mixed = reduce(model, "fp16", [node.name for node in model.graph.node])
    assert list(mixed.graph.node) == list(model.graph.node)
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for item in mixed.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(item), weights.pop(item.name))
    assert not weights


@pytest.mark.parametrize("form", ["unfused", "k4", "interleave"])
def test_the_forms_lose_alike_in_reduced_precision(traced: onnx.ModelProto, form: UpBranch) -> None:
    """A few units of roundoff (2**-11, 2**-8) of the logits, whichever the form."""
    image = np.random.default_rng(6).standard_normal((1, 4, 8, 16, 8)).astype(np.float32)
    truth = EmulatedGraph(traced, torch.float64)(image)
    model = fused(traced, form)
    half = np.abs(EmulatedGraph(reduce(model, "fp16"))(image) - truth).max()
    brain = EmulatedGraph(reduce(model, "bf16"))
    rough = np.abs(brain(image) - truth).max()
    assert 1e-4 < half < 0.02
    assert 2 * half < rough < 0.1
    # bf16 has the range of fp32, so that no margin is watched.
    assert brain.peaks == {}


def test_bf16_asks_for_the_opset_that_has_its_convolutions(fp32: onnx.ModelProto) -> None:
    versions = {
        kind: [opset.version for opset in reduce(fp32, kind).opset_import if not opset.domain]
        for kind in KINDS
    }
    assert versions == {"fp16": [20], "bf16": [22]}


def test_no_node_of_that_name_is_an_error() -> None:
    model = one_conv(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="conv9"):
        reduce(model, "fp16", ["conv", "conv9"])


# --- parts ------------------------------------------------------------------------------------


def test_a_part_is_a_convolution_and_what_follows_it() -> None:
    eye = np.eye(3, dtype=np.float32)
    assert parts(two_convs((eye, eye))) == (
        Part("w1", ("conv1", "relu1"), frozenset({"image"}), frozenset({"y1", "r1"})),
        Part("w2", ("conv2", "add"), frozenset({"r1"}), frozenset({"y2", "sum"})),
    )
    # The weight names a part as long as it is the weight of one.
    shared = parts(two_convs((eye, eye), shared=True))
    assert [part.name for part in shared] == ["conv1", "conv2"]


@pytest.mark.parametrize("form", ["unfused", "k4", "interleave"])
def test_every_node_belongs_to_one_part_named_after_its_layer(
    traced: onnx.ModelProto, form: UpBranch
) -> None:
    model = fused(traced, form)
    layers = parts(model)
    members = [name for part in layers for name in part.nodes]
    assert sorted([*members, "node_softmax"]) == sorted(node.name for node in model.graph.node)
    kinds = {node.name: node.op_type for node in model.graph.node}
    for part in layers:
        assert [kinds[name] for name in part.nodes].count("Conv") + [
            kinds[name] for name in part.nodes
        ].count("ConvTranspose") == 1
    order = [node.name for node in model.graph.node]
    first = [order.index(part.nodes[0]) for part in layers]
    assert first == sorted(first)
    expected = {"encoder.0.conv1", "encoder.2.shortcut", "decoder.1.block.conv2", "head"}
    up = {"decoder.0.up"} if form == "unfused" else {"decoder.0.block.conv1.up"}
    assert expected | up <= {part.name for part in layers}


def test_nodes_without_names_have_no_parts() -> None:
    model = two_convs((np.eye(2, dtype=np.float32),) * 2)
    model.graph.node[0].name = ""
    with pytest.raises(ValueError, match="name"):
        parts(model)
    model.graph.node[0].name = "relu1"
    with pytest.raises(ValueError, match="name"):
        parts(model)


# --- what is refused --------------------------------------------------------------------------


def test_a_graph_without_softmax_is_refused() -> None:
    model = one_conv(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    del model.graph.node[-1]
    model.graph.output[0].name = "r"
    with pytest.raises(ValueError, match="softmax"):
        reduce(model, "fp16")


def test_an_unknown_operator_is_refused() -> None:
    model = one_conv(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    model.graph.node[1].op_type = "Sigmoid"
    with pytest.raises(ValueError, match="Sigmoid"):
        EmulatedGraph(model)


def test_the_emulating_backend_runs_windows_in_order() -> None:
    image, weight, bias = hand_made()
    card = ModelCard("hand", modalities=("flair", "t1", "t1ce"), patch=(4, 4, 4), divisor=1)
    graph = EmulatedGraph(reduce(one_conv(weight, bias), "fp16"))
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
