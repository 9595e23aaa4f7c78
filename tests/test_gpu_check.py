"""The GPU check from end to end on fakes, its peers against our own path, the roofline's counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks import gpu_check
from benchmarks.gpu_measure import STAGES, same_labels, uncropped
from benchmarks.gpu_peers import Peer, normalised
from benchmarks.gpu_report import ratios
from benchmarks.roofline import Work, work_of
from runtime.model_card import ModelCard
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import prepare
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.windows import Placement
from train.backend import TorchBackend
from train.unet import UNet3D


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, phantom_root: Path
) -> Any:
    out = tmp_path_factory.mktemp("check")
    args = gpu_check.CheckArgs(
        tiny_checkpoint,
        data=phantom_root,
        output=out,
        rounds=1,
        cohort=2,
        up_branch="k4",
        skip=("peers",),
        rehearse=True,
    )
    assert gpu_check.main(args) == 0
    return json.loads((out / "gpu_check.json").read_text())


def test_every_section_of_the_rehearsal_ran(report: Any) -> None:
    assert set(gpu_check.SECTIONS) - {"peers"} <= set(report)
    assert report["rehearsal"] is True
    for name in gpu_check.SECTIONS:
        assert "error" not in report.get(name, {})


def test_all_backends_agree_with_the_cpu_in_the_rehearsal(report: Any) -> None:
    found = report["agreement"]
    assert {"ort fp32", "ort fp16", "trt fp32", "trt fp16"} <= set(found)
    for name in ("ort fp32", "trt fp32"):
        assert found[name]["changed_labels"] == 0
        assert found[name]["backend"]["precision"] == "fp32"
    for name in ("ort fp16", "trt fp16"):
        assert found[name]["changed_labels"] < 0.05
        assert found[name]["backend"]["precision"] == "fp16"


def test_latencies_are_of_the_plans_that_they_name(report: Any) -> None:
    """Windows counted by hand: the box of a 64x56x48 phantom is smaller than its volume."""
    patient = report["patient"]
    whole, box = patient["trt fp16 full"], patient["trt fp16"]
    # Patch 32x32x16 at half overlap over 64x56x48: 3 x 3 x 5 windows.
    assert whole["windows"] == 45
    assert 0 < box["windows"] < 45
    for entry in (whole, box):
        assert set(entry["stages"]) == set(STAGES)
        assert entry["spread"][0] <= entry["total"] <= entry["spread"][1]
        assert entry["total"] == pytest.approx(sum(entry["stages"].values()))
        assert entry["per_window"] == pytest.approx(entry["stages"]["network"] / entry["windows"])


def test_a_section_that_fails_is_told_and_the_others_run(
    tmp_path: Path, tiny_checkpoint: Path, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(check: Any) -> dict[str, Any]:
        raise RuntimeError("no such thing")

    sections = {
        "contract": broken,
        "environment": gpu_check.environment,
    }
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    args = gpu_check.CheckArgs(tiny_checkpoint, phantom_root, tmp_path, rehearse=True)
    assert gpu_check.main(args) == 1
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["contract"]["error"] == "RuntimeError: no such thing"
    assert found["environment"]["gpu"]["name"] == "Fake H100"


def test_the_contract_section_names_every_file_with_a_test_for_a_gpu() -> None:
    tests = Path(__file__).parent
    marked = {
        f"tests/{path.name}"
        for path in tests.glob("test_*.py")
        if "pytest.mark.gpu" in path.read_text() and path.name != Path(__file__).name
    }
    assert marked == set(gpu_check.GPU_TESTS)


def test_ratios_are_peer_over_ours() -> None:
    report = {
        "peers": {"monai_full_ms": 60.0, "amp_patient_ms": 15.0, "monai_disk_to_disk_ms": 600.0},
        "patient": {"trt fp16": {"total": 10.0}},
        "disk": {"one_patient_s": {"total": 0.12}},
    }
    assert [line.rpartition(" ")[2] for line in ratios(report)] == ["6.00x", "1.50x", "5.00x"]
    assert ratios({}) == []


def test_an_uncropped_case_fills_its_volume(phantom_volume: Volume, tiny_card: ModelCard) -> None:
    before = {name: image.voxels.copy() for name, image in phantom_volume.images.items()}
    prepared = prepare(uncropped(phantom_volume), tiny_card, NumpyOps(), tiny_card.patch)
    assert prepared.placement.shape == phantom_volume.grid.shape
    for name, image in phantom_volume.images.items():
        np.testing.assert_array_equal(image.voxels, before[name])


def test_changed_labels_are_counted_against_either_tumour() -> None:
    one, other = np.array([0, 1, 2, 0, 3]), np.array([0, 1, 1, 4, 0])
    assert same_labels(one, other) == 3 / 4
    assert same_labels(one, one) == 0


# Peers


@pytest.fixture(scope="module")
def peer(tiny_network: UNet3D, tiny_card: ModelCard) -> Peer:
    network = UNet3D(features=(4, 8, 16), dropout=0.0, residual=True)
    network.load_state_dict(tiny_network.state_dict())
    return Peer.of(network, tiny_card, "cpu", torch.bfloat16)


def ours(network: UNet3D, card: ModelCard, volume: Volume, placement: Placement) -> Any:
    backend = TorchBackend(network, card, autocast=torch.bfloat16)
    prepared, full = normalised(volume, card)
    labels = np.zeros(prepared.placement.shape, np.uint8)
    Segmenter(backend, SegmentOptions(placement=placement)).stitch(prepared, labels)
    return prepared, full, labels


def test_plain_pytorch_with_our_windows_is_our_segmenter(
    peer: Peer, tiny_network: UNet3D, tiny_card: ModelCard, phantom_volume: Volume
) -> None:
    prepared, _, labels = ours(tiny_network, tiny_card, phantom_volume, "fitted")
    found = peer.windows(prepared.voxels, batch=2)().numpy()
    # bf16 results depend on the batch; next to no label does.
    assert np.mean(found != labels) < 2e-3
    assert len(np.unique(found)) > 1


def test_monai_on_the_box_is_our_segmenter_with_its_plan(
    peer: Peer, tiny_network: UNet3D, tiny_card: ModelCard, phantom_volume: Volume
) -> None:
    pytest.importorskip("monai.inferers", reason="MONAI is in the extra bench")
    prepared, full, labels = ours(tiny_network, tiny_card, phantom_volume, "stride")
    found = peer.monai(prepared.voxels, batch=2)().numpy()
    assert np.mean(found != labels) < 2e-3
    assert peer.monai(full, batch=2)().shape == full.shape[1:]


def test_normalised_volume_holds_the_box_where_it_lies(
    tiny_card: ModelCard, phantom_volume: Volume
) -> None:
    prepared, full = normalised(phantom_volume, tiny_card)
    placement = prepared.placement
    np.testing.assert_array_equal(full[:, *placement.box], placement.inner(prepared.voxels))
    outside = full.copy()
    outside[:, *placement.box] = 0
    assert not outside.any()


def test_windows_are_timed_per_window(peer: Peer) -> None:
    assert 0 < peer.window_seconds(batch=2, rounds=1) < 60


# Roofline


def graph_of(nodes: list[Any], weights: dict[str, Any], channels: int) -> onnx.ModelProto:
    free = ["N", channels, "X", "Y", "Z"]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, free)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    initializers = [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in weights.items()
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_a_convolution_is_counted_by_hand() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6)
    model = graph_of([node], {"w": np.zeros((5, 3, 3, 3, 3))}, channels=3)
    voxels = 8 * 6 * 4
    expected = Work(voxels * 27 * 3 * 5, 2 * (3 * voxels + 27 * 15 + 5 * voxels))
    assert work_of(model, (8, 6, 4)) == expected


def test_a_transposed_convolution_is_counted_by_hand() -> None:
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], kernel_shape=[4] * 3, strides=[2] * 3, pads=[1] * 6
    )
    model = graph_of([node], {"w": np.zeros((6, 2, 4, 4, 4))}, channels=6)
    voxels = 8 * 6 * 4
    expected = Work(voxels * 64 * 6 * 2, 2 * (6 * voxels + 64 * 12 + 2 * 8 * voxels))
    assert work_of(model, (8, 6, 4)) == expected


def test_times_at_the_ceilings() -> None:
    arithmetic, memory = Work(79_000_000_000, 430_000_000).microseconds(790, 4.3)
    assert arithmetic == pytest.approx(200)
    assert memory == pytest.approx(100)
