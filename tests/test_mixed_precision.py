"""Layers that need fp32, planted in a network that otherwise does not mind, are found exactly."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.emulate import FP16_MAX, EmulatedBackend, EmulatedGraph
from export.mixed_precision import Reduction, overflowing, reduce_until_it_passes, touching
from export.parity import Candidate, CaseList, Gate, ParityCase, Reference, certify, with_entry
from export.precision import Part, Reduced, reduce
from runtime.backends import BackendInfo
from runtime.model_card import InferenceDefaults, ModelCard
from runtime.nifti import Volume

MakeVolume = Callable[..., Volume]
Weights = list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]

KINDS: tuple[Reduced, ...] = ("fp16", "bf16")
SHAPE = (16, 16, 16)
CARD = ModelCard("chain", patch=SHAPE, divisor=1, inference=InferenceDefaults(0.5, 1))
LAYERS = 8


def chain() -> Weights:
    """1x1x1 convolutions that keep what is positive: the brightest modality is the label.

    Eight channels hold the four modalities twice. Nothing in it needs more than fp16 or bf16.
    """
    eye = np.eye(4, dtype=np.float32)
    none = np.zeros(8, np.float32)
    first = (np.concatenate((eye, eye)), none)
    head = (np.concatenate((eye, eye), axis=1) * 4, none[:4])
    middle = [(np.eye(8, dtype=np.float32), none) for _ in range(LAYERS - 2)]
    return [(weight.copy(), bias.copy()) for weight, bias in (first, *middle, head)]


def graph_of(weights: Weights) -> onnx.ModelProto:
    nodes, stored, name = [], [], "image"
    for number, (weight, bias) in enumerate(weights):
        layer = f"layer{number}"
        stored += [
            numpy_helper.from_array(weight[..., None, None, None], f"{layer}.weight"),
            numpy_helper.from_array(bias, f"{layer}.bias"),
        ]
        inputs = [name, f"{layer}.weight", f"{layer}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"y{number}"], name=f"conv{number}"))
        name = f"y{number}"
        if number < len(weights) - 1:
            nodes.append(helper.make_node("Relu", [name], [f"r{number}"], name=f"relu{number}"))
            name = f"r{number}"
    nodes.append(helper.make_node("Softmax", [name], ["p"], name="softmax", axis=1))
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 4, "x", "y", "z"])
        for end in ("image", "p")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def scaled(weights: Weights, layer: int, factor: float) -> Weights:
    """The same function, through values ``factor`` times as large after one layer."""
    weights[layer] = tuple(part * np.float32(factor) for part in weights[layer])
    after, bias = weights[layer + 1]
    weights[layer + 1] = (after / np.float32(factor), bias)
    return weights


def shifted(weights: Weights, layer: int, shift: float) -> Weights:
    """The same function, with a constant on top of the values after one layer."""
    weight, bias = weights[layer]
    weights[layer] = (weight, bias + np.float32(shift))
    after, bias = weights[layer + 1]
    weights[layer + 1] = (after, bias - after.sum(axis=1) * np.float32(shift))
    return weights


def cancelling(weights: Weights, layer: int) -> Weights:
    """0.4 of each channel, as 1024.4 times it less 1024 times its equal.

    1024.4 takes more bits than fp16 and bf16 have, which round it to 1024.
    """
    weight = np.zeros((8, 8), np.float32)
    weight[:, :4] = np.concatenate((np.eye(4), np.eye(4))) * 1024.4
    weight[:, 4:] = -np.concatenate((np.eye(4), np.eye(4))) * 1024
    weights[layer] = (weight, weights[layer][1])
    return weights


@pytest.fixture
def cases(make_volume: MakeVolume) -> list[ParityCase]:
    """Volumes in which a voxel's brightest modality is drawn by lot, and its truth."""
    made = []
    for number in range(4):
        rng = np.random.default_rng(number)
        truth = rng.integers(0, 4, SHAPE).astype(np.uint8)
        images = {
            name: (200 + 800 * (truth == channel) + rng.integers(0, 50, SHAPE)).astype(np.int16)
            for channel, name in enumerate(CARD.modalities)
        }
        volume = make_volume(images)
        case = replace(volume.case, case_id=f"case{number}")
        made.append(ParityCase(replace(volume, case=case), truth))
    return made


def reference_of(model: onnx.ModelProto) -> Reference:
    info = BackendInfo("emulation", "cpu", "fp32")
    return Reference(EmulatedBackend(EmulatedGraph(model), CARD, info))


def options_of(kind: Reduced, **changes: object) -> Reduction:
    return replace(Reduction(f"model.{kind}.onnx", kind), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_does_not_mind_keeps_nothing(cases: list[ParityCase], kind: Reduced) -> None:
    model = graph_of(chain())
    lines: list[str] = []
    made = reduce_until_it_passes(
        model, reference_of(model), cases, Gate(), options_of(kind, up_branch="k4"), lines.append
    )
    assert made.model == reduce(model, kind)
    assert made.data == made.model.SerializeToString()
    assert made.entry["verdict"] == "pass"
    assert made.entry["file"] == f"model.{kind}.onnx"
    assert made.entry["sha256"] == hashlib.sha256(made.data).hexdigest()
    assert made.entry["up_branch"] == "k4"
    assert made.entry["kept"] == {"kept_fp32": [], "evaluations": 1, "minimal": True}
    assert lines == [f"evaluation 1: {kind}, 0 of {LAYERS} parts in fp32"]
    # Rounding did take place, or its pass says nothing.
    assert all(0 < record["max_probability_error"] < 0.1 for record in made.entry["cases"])


PLANTED: dict[str, tuple[Callable[[], Weights], set[int]]] = {
    "overflow": (lambda: scaled(chain(), 3, 2.0**18), {3, 4}),
    "weights beyond fp16": (lambda: scaled(chain(), 1, 2.0**40), {1, 2}),
    "overflow in two places": (
        lambda: scaled(scaled(chain(), 0, 2.0**20), 5, 2.0**17),
        {0, 1, 5, 6},
    ),
    "overflow of neighbours": (lambda: scaled(scaled(chain(), 2, 2.0**18), 3, 2.0**18), {2, 3, 4}),
    "over the margin, but finite": (lambda: scaled(chain(), 4, 2.0**14), {4, 5}),
    "bias that cancels": (lambda: shifted(chain(), 2, 2.0**13), {2, 3}),
    "two biases that cancel": (
        lambda: shifted(shifted(chain(), 0, 2.0**13), 4, 9000),
        {0, 1, 4, 5},
    ),
    "weights that cancel": (lambda: cancelling(chain(), 5), {5}),
    "each kind of loss": (
        lambda: cancelling(shifted(scaled(chain(), 0, 2.0**18), 3, 2.0**13), 6),
        {0, 1, 3, 4, 6},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_exactly_what_needs_fp32_is_kept_in_an_fp16_graph(
    cases: list[ParityCase], name: str
) -> None:
    make, needed = PLANTED[name]
    model = graph_of(make())
    reference = reference_of(model)
    made = reduce_until_it_passes(model, reference, cases, Gate(), options_of("fp16"))
    assert {part.part for part in made.kept.parts} == {f"layer{number}" for number in needed}
    assert made.kept.minimal
    assert made.entry["verdict"] == "pass"
    record = made.entry["kept"]
    assert [kept["part"] for kept in record["kept_fp32"]] == [f"layer{n}" for n in sorted(needed)]
    if "overflow" in name or "margin" in name:
        assert all("in fp16, over the margin" in kept["why"] for kept in record["kept_fp32"])
        # What overflows gives itself away, and what it hid the next time: nothing is halved.
        assert record["evaluations"] <= 3 + len(needed)
    else:
        assert all(
            "case0: " in kept["why"] or "tensor" in kept["why"] for kept in record["kept_fp32"]
        )
    nodes = [node.name for node in model.graph.node if node.name[4:] in map(str, needed)]
    assert made.model == reduce(model, "fp16", nodes)
    # Another look at the same graph: every tensor that is fp16 keeps its margin, on every case.
    graph = EmulatedGraph(made.model)
    backend = EmulatedBackend(graph, CARD, BackendInfo("emulation", "cpu", "fp16"))
    digest = hashlib.sha256(made.data).hexdigest()
    candidate = Candidate("model.fp16.onnx", digest, backend, "fp16 (emulated)", True, graph.peaks)
    (entry,) = certify(reference, [candidate], cases, Gate(), "test")["artefacts"]
    assert made.entry == {**entry, "kept": record}
    assert max(graph.peaks.values()) < FP16_MAX / 4


@pytest.mark.parametrize(
    ("make", "needed"),
    [
        pytest.param(lambda: cancelling(chain(), 2), {2}, id="weights"),
        # 2**9 with 8 bits leaves a spacing of 4; 16 bits would leave 2**-7.
        pytest.param(lambda: shifted(chain(), 5, 2.0**9), {5, 6}, id="bias"),
        pytest.param(
            lambda: cancelling(shifted(chain(), 0, 2.0**9), 4), {0, 1, 4}, id="bias and weights"
        ),
    ],
)
def test_exactly_what_needs_fp32_is_kept_in_a_bf16_graph(
    cases: list[ParityCase], make: object, needed: set[int]
) -> None:
    model = graph_of(make())  # type: ignore[operator]
    made = reduce_until_it_passes(model, reference_of(model), cases, Gate(), options_of("bf16"))
    assert {part.part for part in made.kept.parts} == {f"layer{number}" for number in needed}
    assert made.entry["verdict"] == "pass"
    assert "peak" not in made.entry


@pytest.mark.parametrize("kind", KINDS)
def test_the_range_of_bf16_is_that_of_fp32(cases: list[ParityCase], kind: Reduced) -> None:
    model = graph_of(scaled(chain(), 3, 2.0**60))
    made = reduce_until_it_passes(model, reference_of(model), cases, Gate(), options_of(kind))
    assert len(made.kept.parts) == (2 if kind == "fp16" else 0)


@pytest.mark.parametrize("name", ["overflow", "bias that cancels"])
def test_strict_leaves_the_failure_as_it_is(cases: list[ParityCase], name: str) -> None:
    model = graph_of(PLANTED[name][0]())
    made = reduce_until_it_passes(
        model, reference_of(model), cases, Gate(), options_of("fp16", strict=True)
    )
    assert made.model == reduce(model, "fp16")
    assert made.entry["verdict"] == "fail"
    assert made.entry["kept"] == {"kept_fp32": [], "evaluations": 1, "minimal": True}
    # All cases were looked at, for the record.
    assert [record["case_id"] for record in made.entry["cases"]] == ["case0", "case1", "case2"]
    certificate = {"verdict": "pass", "artefacts": [{"file": "model.onnx", "verdict": "pass"}]}
    assert with_entry(certificate, made.entry)["verdict"] == "fail"


def test_what_fails_in_fp32_too_is_given_up(cases: list[ParityCase]) -> None:
    # A reference that sees other labels than the graph, whatever its precision.
    weights = chain()
    weights[-1] = (weights[-1][0][::-1].copy(), weights[-1][1])
    other = reference_of(graph_of(weights))
    made = reduce_until_it_passes(graph_of(chain()), other, cases, Gate(), options_of("fp16"))
    assert made.entry["verdict"] == "fail"
    assert made.model == reduce(graph_of(chain()), "fp16")
    assert made.entry["kept"]["evaluations"] == 2
    assert "even with every part in fp32" in made.entry["kept"]["gave_up"]
    assert made.entry["reasons"][-1] == f"bisection: {made.kept.gave_up}"


def test_a_graph_that_is_fp32_throughout_is_not_called_fp16(cases: list[ParityCase]) -> None:
    weights = [chain()[0], chain()[1], chain()[-1]]
    weights = scaled(scaled(weights, 0, 2.0**18), 1, 2.0**18)
    model = graph_of(weights)
    made = reduce_until_it_passes(model, reference_of(model), cases, Gate(), options_of("fp16"))
    assert made.entry["verdict"] == "fail"
    assert made.kept.gave_up == "no part passes in fp16"
    assert made.model == reduce(model, "fp16")


def test_running_out_of_evaluations_is_a_failure(cases: list[ParityCase]) -> None:
    model = graph_of(shifted(chain(), 2, 2.0**13))
    made = reduce_until_it_passes(
        model, reference_of(model), cases, Gate(), options_of("fp16", evaluations=4)
    )
    assert made.entry["verdict"] == "fail"
    assert made.kept.gave_up == "4 evaluations did not suffice"


def test_cases_that_decide_nothing_start_no_search(cases: list[ParityCase]) -> None:
    model = graph_of(chain())
    made = reduce_until_it_passes(model, reference_of(model), cases[:2], Gate(), options_of("fp16"))
    assert made.entry["verdict"] == "inconclusive"
    assert made.kept.evaluations == 1


def test_cases_are_read_once_and_fp32_predicts_them_once(cases: list[ParityCase]) -> None:
    model = graph_of(shifted(chain(), 2, 2.0**13))
    read: list[str] = []

    def told() -> Iterator[ParityCase]:
        for case in cases:
            read.append(case.volume.case.case_id)
            yield case

    class Counting(EmulatedBackend):
        runs = 0

        def run(self, *args: object) -> None:
            Counting.runs += 1
            super().run(*args)  # type: ignore[arg-type]

    info = BackendInfo("emulation", "cpu", "fp32")
    reference = Reference(Counting(EmulatedGraph(model), CARD, info))
    made = reduce_until_it_passes(
        model,
        reference,
        CaseList(told()),
        Gate(),
        options_of("fp16"),  # type: ignore[arg-type]
    )
    assert made.kept.evaluations > 5
    assert read == ["case0", "case1", "case2"]
    assert Counting.runs == 3


# --- whose fault it is ------------------------------------------------------------------------


def test_what_is_computed_from_infinity_is_not_blamed() -> None:
    model = reduce(graph_of(chain()[:3] + chain()[-1:]), "fp16")
    peaks = {"image_fp16": 5.0, "y0": 17_000.0, "r0": 16_999.0, "y1": np.inf, "r1": np.inf}
    peaks |= {"y2": np.inf, "r2": np.inf, "y3": 20_000.0}
    # y0 is finite, so that y1's infinity is its own.
    assert overflowing(model, peaks, FP16_MAX / 4) == {"y0", "r0", "y1", "r1"}
    assert overflowing(model, peaks, 18_000) == {"y1", "r1"}
    # A Relu that sets the infinity to nothing does not pass it on.
    assert overflowing(model, peaks | {"r1": 1.0}, 18_000) == {"y1"}
    assert overflowing(model, dict.fromkeys(peaks, 1.0), 18_000) == set()


def test_a_cast_is_blamed_on_the_tensor_that_it_casts() -> None:
    model = reduce(graph_of(chain()), "fp16", ["conv2", "relu2"])
    assert overflowing(model, {"r2_fp16": np.inf, "y3": np.inf}, 100) == {"r2"}
    assert overflowing(model, {"image_fp16": 101.0}, 100) == {"image"}


def test_makers_and_readers_are_touched() -> None:
    layers = [
        Part(name, (), frozenset(reads), frozenset(makes))
        for name, reads, makes in (("a", "", "x"), ("b", "x", "yz"), ("c", "xz", "w"))
    ]
    assert touching(layers, frozenset("x")) == {"a", "b", "c"}
    assert touching(layers, frozenset("y")) == {"b"}
    assert touching(layers, frozenset("z")) == {"b", "c"}
    assert touching(layers, frozenset()) == set()
