"""int8 graphs: what they compute against NumPy, how they are calibrated, and which layers are kept.

The truth here is written out: integers, scales and loops over the offsets of a kernel.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.calibrate import (
    WINDOWS,
    Calibration,
    CalibrationCases,
    apart_from,
    calibrate,
    windows_of,
)
from export.cases import CALIBRATION, calibration_cases
from export.emulate import EmulatedBackend, EmulatedGraph
from export.int8 import LEVELS, quantize, read_by_convolutions, weight_scales
from export.int8_search import int8_gate, quantize_until_it_passes
from export.parity import Gate, ParityCase, Reference
from export.trace import set_card
from runtime.backends import Backend, BackendInfo
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from runtime.errors import InputError
from runtime.model_card import InferenceDefaults, ModelCard
from runtime.nifti import Volume
from runtime.onnx_bytes import check_onnx
from tests import test_mixed_precision as chains

Array = npt.NDArray[np.float64]
MakeVolume = Callable[..., Volume]

SHAPE = (16, 16, 16)
CARD = ModelCard("small", patch=SHAPE, divisor=2, inference=InferenceDefaults(0.5, 1))
LIMITS = {"image": 3.0, "r0": 2.5, "r1": 4.0, "r2": 6.0}

cases = chains.cases
"""Volumes in which a voxel's brightest modality is drawn by lot, and its truth."""


def weights() -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    shapes = {
        "w0": (8, 4, 3, 3, 3),
        "b0": (8,),
        "w1": (6, 8, 3, 3, 3),
        "b1": (6,),
        "up": (6, 8, 4, 4, 4),
        "skip": (8, 8, 3, 3, 3),
        "bskip": (8,),
        "head": (4, 8, 1, 1, 1),
        "bhead": (4,),
    }
    made = {}
    for name, shape in shapes.items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 10
        made[name] = (rng.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    # Channels of very different size: one scale for the whole weight would lose the small ones.
    made["w0"][0] *= 50
    made["up"][:, 1] /= 40
    made["skip"][2] = 0
    return made


def small_graph() -> onnx.ModelProto:
    """A U-Net of one level, as `export.fuse` leaves it: its up branch composed."""
    same = {"kernel_shape": [3] * 3, "pads": [1] * 6}
    pool = {"kernel_shape": [2] * 3, "strides": [2] * 3}
    double = {"kernel_shape": [4] * 3, "strides": [2] * 3, "pads": [1] * 6}
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w0", "b0"], ["c0"], "conv0", **same),
        node("Relu", ["c0"], ["r0"], "relu0"),
        node("MaxPool", ["r0"], ["p0"], "pool0", **pool),
        node("Conv", ["p0", "w1", "b1"], ["c1"], "conv1", **same),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r0", "skip", "bskip"], ["s"], "skipped", **same),
        node("ConvTranspose", ["r1", "up"], ["u"], "upward", **double),
        node("Add", ["u", "s"], ["sum"], "add"),
        node("Relu", ["sum"], ["r2"], "relu2"),
        node("Conv", ["r2", "head", "bhead"], ["logits"], "last", kernel_shape=[1] * 3),
        node("Softmax", ["logits"], ["p"], "softmax", axis=1),
    ]
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 4, "x", "y", "z"])
        for end in ("image", "p")
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in weights().items()]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    set_card(model, CARD)
    return model


def image() -> npt.NDArray[np.float32]:
    # Beyond the limit of 3, so that some of it is clipped.
    return np.random.default_rng(5).normal(size=(1, 4, *SHAPE)).astype(np.float32) * 1.5


def rounded(values: Array, limit: float) -> Array:
    """What int8 tells apart of a tensor, in steps of limit / 127."""
    step = float(np.float32(limit / 127))
    return np.clip(np.round(values / step), -128, 127) * step


def rounded_by_channel(weight: npt.NDArray[np.float32], axis: int) -> Array:
    found = weight.astype(np.float64)
    for channel in range(weight.shape[axis]):
        of_channel = found.take(channel, axis)
        largest = np.abs(of_channel).max()
        if largest:
            step = float(np.float32(largest / 127))
            index = [slice(None)] * weight.ndim
            index[axis] = channel  # type: ignore[call-overload]
            found[tuple(index)] = np.round(of_channel / step) * step
    return found


def convolved(x: Array, weight: Array, bias: npt.NDArray[np.float32]) -> Array:
    size = weight.shape[2]
    padded = np.pad(x, ((0, 0), *[(size // 2, size // 2)] * 3))
    out = np.zeros((len(weight), *x.shape[1:])) + bias[:, None, None, None]
    for i, j, k in product(range(size), repeat=3):
        part = padded[:, i : i + x.shape[1], j : j + x.shape[2], k : k + x.shape[3]]
        out += np.einsum("oc,cxyz->oxyz", weight[:, :, i, j, k], part)
    return out


def transposed(x: Array, weight: Array) -> Array:
    """Kernel 4, stride 2, padding 1."""
    length = 2 * x.shape[1] + 2
    out = np.zeros((weight.shape[1], length, length, length))
    for i, j, k in product(range(4), repeat=3):
        out[:, i : length - 3 + i : 2, j : length - 3 + j : 2, k : length - 3 + k : 2] += np.einsum(
            "co,cxyz->oxyz", weight[:, :, i, j, k], x
        )
    return out[:, 1:-1, 1:-1, 1:-1]


def truth(quantized: bool) -> Array:
    """Probabilities (4, X, Y, Z) of `small_graph` in float64."""
    w = weights()

    def read(x: Array, name: str) -> Array:
        return rounded(x, LIMITS[name]) if quantized else x

    def of(name: str, axis: int = 0) -> Array:
        return rounded_by_channel(w[name], axis) if quantized else w[name].astype(np.float64)

    r0 = np.maximum(convolved(read(image()[0].astype(np.float64), "image"), of("w0"), w["b0"]), 0)
    pooled = read(r0, "r0").reshape(8, 8, 2, 8, 2, 8, 2).max(axis=(2, 4, 6))
    r1 = np.maximum(convolved(pooled, of("w1"), w["b1"]), 0)
    skip = convolved(read(r0, "r0"), of("skip"), w["bskip"])
    r2 = np.maximum(transposed(read(r1, "r1"), of("up", 1)) + skip, 0)
    logits = convolved(read(r2, "r2"), of("head"), w["bhead"])
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def run_by(kind: Callable[..., Backend], model: onnx.ModelProto) -> npt.NDArray[np.float32]:
    info = BackendInfo("any", "cpu", "int8", "model.int8.onnx")
    backend = kind(model.SerializeToString(), CARD, info, 1)
    backend.bind(SHAPE, 1)
    found = []
    backend.run(
        1,
        lambda i, j, inputs: inputs.__setitem__(slice(None), image()),
        lambda i, j, outputs: found.append(outputs[0].copy()),
    )
    backend.close()
    return np.asarray(found[0])


@pytest.mark.parametrize("kind", [OpenVinoBackend, OrtBackend])
def test_both_backends_compute_what_integers_give(kind: Callable[..., Backend]) -> None:
    exact, quantized = truth(quantized=False), truth(quantized=True)
    assert np.abs(run_by(kind, small_graph()) - exact).max() < 1e-4
    found = run_by(kind, quantize(small_graph(), LIMITS))
    # A value that lies on the border of two steps may round to either.
    error = np.abs(found - quantized)
    assert error.mean() < 2e-4
    assert np.abs(found - exact).mean() > 20 * error.mean()


def test_openvino_executes_int8_and_says_so() -> None:
    info = BackendInfo("openvino", "cpu", "int8", "model.int8.onnx")
    for model, types in (
        (small_graph(), {"f32"}),
        (quantize(small_graph(), LIMITS), {"u8", "i8"}),
    ):
        backend = OpenVinoBackend(model.SerializeToString(), CARD, info, 1)
        with pytest.raises(RuntimeError):
            backend.convolutions()
        backend.bind(SHAPE, 1)
        found = backend.convolutions()
        assert set(found) <= types
        assert sum(found.values()) == 5
        backend.close()


def test_onnx_runtime_convolves_the_rounded_values_in_fp32(tmp_path: Path) -> None:
    """Its entry of the certificate says that."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    options.log_severity_level = 3
    data = quantize(small_graph(), LIMITS).SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "seen.onnx").graph.node}
    assert "QLinearConv" not in operators
    assert operators & {"Conv", "FusedConv"}


def test_what_the_graph_holds() -> None:
    fp32 = small_graph()
    before = fp32.SerializeToString()
    model = quantize(fp32, LIMITS)
    assert fp32.SerializeToString() == before
    check_onnx(model.SerializeToString(), CARD, "model.int8.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    made_by = {node.output[0]: node for node in model.graph.node}
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert {item.data_type for item in model.graph.initializer if item.dims and item.dims[1:]} == {
        TensorProto.INT8
    }
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        assert made_by[node.input[0]].op_type == "DequantizeLinear"
        assert made_by[made_by[node.input[0]].input[0]].op_type == "QuantizeLinear"
        weight = made_by[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        axis = helper.get_node_attr_value(weight, "axis")
        assert axis == (1 if node.op_type == "ConvTranspose" else 0)
        values, scale, zero = (constants[name] for name in weight.input)
        assert np.abs(values.astype(int)).max() <= 127
        assert scale.shape == zero.shape == (values.shape[axis],)
        # TensorRT takes no other zero point.
        assert not zero.any()
    # A tensor is quantised once, whoever reads it.
    quantizers = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(quantizers) == ["image", "p0", "r0", "r1", "r2"]
    scales = {node.input[0]: node.input[1] for node in model.graph.node if "_q" in node.name}
    assert scales["p0"] == scales["r0"]
    for name, limit in LIMITS.items():
        assert constants[scales[name]] == np.float32(limit / 127)
    assert read_by_convolutions(fp32) == tuple(LIMITS)


@pytest.mark.parametrize(("kind", "axis"), [("Conv", 0), ("ConvTranspose", 1)])
def test_the_scale_of_a_channel_is_its_largest_weight_over_127(kind: str, axis: int) -> None:
    weight = np.random.default_rng(1).normal(size=(5, 7, 3, 3, 3)).astype(np.float32)
    zeros: list[slice | int] = [slice(None)] * 5
    zeros[axis] = 2
    weight[tuple(zeros)] = 0
    found = weight_scales(kind, weight)
    for channel in range(weight.shape[axis]):
        largest = np.abs(weight.take(channel, axis)).max()
        assert found[channel] == (np.float32(float(largest) / 127) if channel != 2 else 1)
    assert LEVELS == 127


def test_what_is_kept_stays_as_it_was() -> None:
    fp32 = small_graph()
    model = quantize(fp32, {name: LIMITS[name] for name in ("r0", "r1")}, ["conv0", "last"])
    there = {node.name: node for node in model.graph.node}
    for node in fp32.graph.node:
        if node.name in ("conv0", "last"):
            assert there[node.name] == node
    (first,) = (item for item in model.graph.initializer if item.name == "w0")
    assert np.array_equal(numpy_helper.to_array(first), weights()["w0"])
    assert quantize(fp32, {}, [node.name for node in fp32.graph.node]) == fp32
    # Where not every reader of a pooled tensor is quantised, it is pooled in fp32.
    mixed = quantize(fp32, LIMITS, ["conv1"])
    (pool,) = (node for node in mixed.graph.node if node.op_type == "MaxPool")
    assert pool.input[0] == "r0"


def in_groups() -> onnx.ModelProto:
    model = small_graph()
    model.graph.node[0].attribute.append(helper.make_attribute("group", 2))
    return model


@pytest.mark.parametrize(
    ("model", "limits", "keep", "said"),
    [
        (small_graph(), LIMITS, ["nobody"], "nobody"),
        (small_graph(), {**LIMITS, "r1": 0.0}, [], "r1"),
        (small_graph(), {**LIMITS, "r1": float("inf")}, [], "r1"),
        (small_graph(), {**LIMITS, "r1": float("nan")}, [], "r1"),
        (small_graph(), {"image": 1.0}, [], "r0"),
        (in_groups(), LIMITS, [], "2 groups"),
    ],
)
def test_what_cannot_be_quantised(
    model: onnx.ModelProto, limits: dict[str, float], keep: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        quantize(model, limits, keep)


def test_limits_are_the_largest_values_over_all_windows(phantom_volume: Volume) -> None:
    model = small_graph()
    found = calibrate(model, CARD, CalibrationCases([phantom_volume], "phantoms"))
    # Another executor, with every tensor as an output.
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for name in ("r0", "r1", "r2"):
        shown.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    largest = dict.fromkeys(LIMITS, 0.0)
    windows = list(windows_of(phantom_volume, CARD))
    for window in windows:
        made = session.run(["r0", "r1", "r2"], {"image": window})
        for name, value in zip(LIMITS, (window, *made), strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
    assert found.limits == pytest.approx(largest, rel=1e-5)
    hashes = {name: image.sha256 for name, image in phantom_volume.images.items()}
    assert found.cases == (hashes,)
    assert found.record == {
        "source": "phantoms",
        "apart_from_gate": True,
        "limits": "largest |value|",
        "cases": [
            {"case_id": phantom_volume.case.case_id, "inputs": hashes, "windows": len(windows)}
        ],
    }


def test_windows_are_spread_over_the_brain(phantom_volume: Volume) -> None:
    every = list(windows_of(phantom_volume, CARD, most=10_000))
    some = list(windows_of(phantom_volume, CARD))
    assert len(every) > WINDOWS == len(some)
    assert np.array_equal(some[0], every[0])
    assert np.array_equal(some[-1], every[-1])
    assert all(window.shape == (1, 4, *SHAPE) for window in every)


def test_calibration_says_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="no case"):
        calibrate(small_graph(), CARD, CalibrationCases([], "data"))


def test_an_activation_that_is_not_finite_gives_no_limit(phantom_volume: Volume) -> None:
    model = small_graph()
    model.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.full(8, np.inf, np.float32), "b0")
    )
    with pytest.raises(ValueError, match="r0 is not finite"):
        calibrate(model, CARD, CalibrationCases([phantom_volume], "data"))


# Cases


def linked(root: Path, phantom: Path, count: int) -> Path:
    for number in range(count):
        folder = root / f"case_{number}"
        folder.mkdir(parents=True)
        for file in phantom.iterdir():
            suffix = file.name.removeprefix(phantom.name)
            (folder / f"case_{number}{suffix}").symlink_to(file)
    return root


@pytest.mark.parametrize(
    ("count", "wanted", "shared"),
    [
        (2, [0, 1], True),
        (3, [0, 1, 2], True),
        (4, [3], False),
        (5, [3, 4], False),
        (9, [5, 6, 7, 8], False),
    ],
)
def test_the_gate_keeps_three_cases_to_itself(
    tmp_path: Path, phantom_dir: Path, count: int, wanted: list[int], shared: bool
) -> None:
    found = calibration_cases(linked(tmp_path, phantom_dir, count), None)
    assert [volume.case.case_id for volume in found.volumes] == [f"case_{n}" for n in wanted]
    assert (found.shared, found.source) == (shared, "data")


def test_cases_of_its_own(tmp_path: Path, phantom_dir: Path) -> None:
    own = linked(tmp_path, phantom_dir, 2)
    found = calibration_cases(Path("elsewhere"), own)
    assert [volume.case.case_id for volume in found.volumes] == ["case_0", "case_1"]
    assert (found.shared, found.source) == (False, "cases of its own")
    with pytest.raises(InputError):
        calibration_cases(None, tmp_path / "nothing")


def test_phantoms_are_other_ones_than_the_gate_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def drawn(folder: Path, number: int, seed: int, **how: object) -> Path:
        seeds.append(seed)
        raise InterruptedError

    monkeypatch.setattr("export.cases.write_phantom", drawn)
    from export.cases import PHANTOM_SEED, parity_cases

    for made in (parity_cases(None, 1), calibration_cases(None, None).volumes):
        with pytest.raises(InterruptedError):
            next(iter(made))
    assert seeds[0] == PHANTOM_SEED != seeds[1]
    assert CALIBRATION == 4


# The search, on a chain of layers that does not mind int8 unless something is planted


def carded(made: onnx.ModelProto) -> onnx.ModelProto:
    set_card(made, chains.CARD)
    return made


def calibrated(model: onnx.ModelProto, cases: list[ParityCase]) -> Calibration:
    volumes = [case.volume for case in cases]
    return calibrate(model, chains.CARD, CalibrationCases(volumes, "data"))


def reference_of(model: onnx.ModelProto) -> Reference:
    info = BackendInfo("emulation", "cpu", "fp32")
    return Reference(EmulatedBackend(EmulatedGraph(model), chains.CARD, info))


def test_a_network_that_does_not_mind_keeps_nothing(cases: list[ParityCase]) -> None:
    model = carded(chains.graph_of(chains.chain()))
    lines: list[str] = []
    calibration = calibrated(model, cases)
    made = quantize_until_it_passes(
        model, reference_of(model), cases, int8_gate(Gate()), calibration, 1, lines.append
    )
    assert made.data == quantize(model, calibration.limits).SerializeToString()
    assert lines == [
        "evaluation 1 on openvino: 0 of 8 parts in fp32",
        "parity on ort",
    ]
    assert [entry["backend"] for entry in made.entries] == ["openvino", "ort"]
    assert [entry["arithmetic"] for entry in made.entries] == [
        "int8 in 8 of 8 convolutions, fp32 elsewhere",
        "fp32, of values rounded to int8",
    ]
    for entry in made.entries:
        assert entry["verdict"] == "pass"
        assert entry["file"] == "model.int8.onnx"
        assert entry["kept"] == {"kept_fp32": [], "evaluations": 1, "minimal": True}
        assert entry["calibration"] == calibration.record
        # Rounding did take place, or its pass says nothing.
        assert all(record["max_probability_error"] > 0 for record in entry["cases"])


def test_exactly_what_needs_fp32_is_kept(cases: list[ParityCase]) -> None:
    # A constant of 800 leaves int8 a step of more than 6 for values that differ by about 1.
    model = carded(chains.graph_of(chains.shifted(chains.chain(), 2, 800.0)))
    made = quantize_until_it_passes(
        model, reference_of(model), cases, int8_gate(Gate()), calibrated(model, cases), 1
    )
    # It is layer 3 that reads these values; what layer 2 makes is never rounded then.
    assert [part.part for part in made.kept.parts] == ["layer3"]
    assert made.kept.minimal
    assert [entry["verdict"] for entry in made.entries] == ["pass", "pass"]
    assert made.entries[0]["arithmetic"] == "int8 in 7 of 8 convolutions, fp32 elsewhere"
    (record,) = made.entries[0]["kept"]["kept_fp32"]
    assert "Dice of" in record["why"]


def test_where_nothing_passes_the_certificate_says_why(cases: list[ParityCase]) -> None:
    model = carded(chains.graph_of(chains.shifted(chains.chain(), 2, 800.0)))
    made = quantize_until_it_passes(
        model,
        reference_of(model),
        cases,
        int8_gate(Gate()),
        calibrated(model, cases),
        1,
        evaluations=2,
    )
    (entry,) = made.entries
    assert entry["verdict"] == "fail"
    assert entry["reasons"][-1] == "bisection: 2 evaluations did not suffice"
    assert made.kept.parts == ()


def test_the_gate_of_int8() -> None:
    gate = int8_gate(Gate(informative_cases=2, informative_voxels=7))
    assert (gate.dice, gate.truth, gate.changed_reduced) == (0.98, 0.99, 0.03)
    assert (gate.informative_cases, gate.informative_voxels) == (2, 7)
    # Who asks less of every artefact asks no more of this one.
    assert int8_gate(Gate(truth=0.95)).truth == 0.95


def test_the_gate_judges_on_other_cases(cases: list[ParityCase]) -> None:
    def renamed(number: int) -> ParityCase:
        volume = cases[number].volume
        images = {
            name: replace(image, sha256=f"{number} {name}") for name, image in volume.images.items()
        }
        return ParityCase(replace(volume, images=images), None)

    told_apart = [renamed(number) for number in range(3)]
    used = {name: f"1 {name}" for name in CARD.modalities}
    left = list(apart_from(told_apart, [used]))
    assert left == [told_apart[0], told_apart[2]]
    assert list(apart_from(told_apart, [])) == told_apart


# TensorRT, in a process of its own, as it may take its process with it

BUILD = """
import sys
from pathlib import Path
from export.engine import BuildOptions, build_engine
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.engine import Profile

options = BuildOptions(Profile((16, 16, 16), 1, 1, 1), compute_capability="8.9")
built = build_engine(Path(sys.argv[1]).read_bytes(), load_tensorrt(), options)
print(len(built.plan), *built.warnings)
"""


@pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install brats-deploy[rtx]",
)
def test_tensorrt_takes_the_graph(tmp_path: Path) -> None:
    """Parsed and built, which shows that its rules for Q/DQ are kept; it takes a GPU to run it."""
    file = tmp_path / "model.int8.onnx"
    file.write_bytes(quantize(small_graph(), LIMITS).SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(file)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    size, *warnings = done.stdout.split()
    assert int(size) > 0
    assert warnings == []
