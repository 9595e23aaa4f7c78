"""The GPU check from end to end on fakes, what it does where something fails or time is short, its
peers against our own path, the roofline's counts.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from benchmarks import gpu_check, gpu_contract, gpu_export, gpu_sections
from benchmarks.gpu_bench import SETTINGS, Bench, CheckArgs
from benchmarks.gpu_contract import run_contract
from benchmarks.gpu_measure import STAGES, rates, timer_of, uncropped, used_mib
from benchmarks.gpu_peers import Peer, PeerBench, normalised
from benchmarks.gpu_report import comparisons, report_console, show
from benchmarks.gpu_run import Budget, LeftOutError, Row, Run
from benchmarks.roofline import Work, work_of
from export.cli import ExportArgs
from export.half_weights import halve_weights
from runtime.case import find_cases
from runtime.errors import ParityError, UsageError
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP16, ONNX_FP32, ModelDir, sha256_of
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.phantom import Enhancement, write_phantoms
from runtime.preprocess import prepare
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.windows import Placement
from tests.fake_gpu import FakeGpu, fake_gpu
from train.backend import TorchBackend
from train.unet import UNet3D

MakeBench = Callable[..., Bench]


@pytest.fixture(scope="module")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms that a plan of the tiny network covers with few windows."""
    root = tmp_path_factory.mktemp("small")
    write_phantoms(root, 2, seed=7, shape=(48, 40, 32), enhancement=Enhancement.RIM)
    return root


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, small_root: Path
) -> Any:
    """All sections on the second of two GPUs; without torch.compile, which takes a compiler."""
    out = tmp_path_factory.mktemp("check")
    args = CheckArgs(
        tiny_checkpoint,
        data=small_root,
        output=out,
        device="cuda:1",
        rounds=1,
        cohort=2,
        rehearse=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_sections, "BATCHES", (1, 4))
        patch.setattr(Peer, "compiled", lambda self: self)
        assert gpu_check.main(args) == 0
    certificate = json.loads((out / "model" / "parity.json").read_text())
    return json.loads((out / "gpu_check.json").read_text()) | {"certificate": certificate}


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with fake_gpu(devices=2) as machine:
        yield machine


@pytest.fixture
def make_bench(tmp_path: Path, small_root: Path, tiny_model: Path) -> MakeBench:
    """make_bench(**args): a bench on an exported model without engines."""

    def make(**given: Any) -> Bench:
        args = CheckArgs(output=tmp_path, data=small_root, rounds=1, cohort=2, rehearse=True)
        cases = find_cases(small_root)
        return Bench(replace(args, **given), small_root, cases, Budget(600), tiny_model)

    return make


def run_of(folder: Path, limit_s: float = 600, clock: Any = None) -> Run:
    budget = Budget(limit_s, clock) if clock else Budget(limit_s)
    return Run(folder / "report.json", budget, Console(quiet=True))


def statuses(run: Run) -> dict[str, str]:
    return {row["row"]: row["status"] for row in run.report["rows"]}


# A rehearsal


def test_every_row_of_the_rehearsal_ran(report: Any) -> None:
    assert set(report) >= set(gpu_sections.SECTIONS)
    found = {row["row"]: row["status"] for row in report["rows"]}
    # Forms of the graph that an export of k4 alone does not hold.
    forms = {name for name in found if "ort_options: " in name and re.search("unf|inter", name)}
    assert len(forms) == 3
    expected = dict.fromkeys(found, "ok")
    expected |= dict.fromkeys(("contract", "ceilings", *forms), "left out")
    if find_spec("monai") is None:
        monai = {name: "left out" for name in found if name.startswith("peers: monai")}
        assert len(monai) == 3
        expected |= monai
    assert found == expected
    assert found["contract"] == found["ceilings"] == "left out"
    for name in ("monai_full_ms", "monai_box_ms", "amp_patient_ms", "compiled_patient_ms"):
        peer = report["peers"][name]
        assert peer > 0 if isinstance(peer, float) else "left_out" in peer


def test_rows_come_in_the_order_of_their_worth(report: Any) -> None:
    names = [row["row"] for row in report["rows"]]
    worth = [
        "environment", "contract", "export", "agreement: trt fp16", "agreement: ort fp32",
        "patient: trt fp16", "peers: monai_full_ms", "peers: amp_patient_ms",
        "patient: trt fp16 batch 1", "disk: one_patient", "peers: compiled_patient_ms",
        "ort_options: exhaustive", "ceilings",
    ]  # fmt: skip
    places = [names.index(name) for name in worth]
    assert places == sorted(places)


def test_the_named_device_is_the_one_that_is_exported_for_and_measured(report: Any) -> None:
    devices = {entry["device"] for entry in report["certificate"]["artefacts"]}
    assert devices == {"cpu", "cuda:1"}
    for setting in SETTINGS:
        assert report["agreement"][setting.title]["backend"]["device"] == "cuda:1"
        # A context's memory alone is 1 MiB a window on the fakes.
        if setting.backend == "trt":
            assert report["patient"][setting.title]["memory_mib"] >= setting.batch


def test_all_backends_agree_with_the_cpu_within_the_gate(report: Any) -> None:
    for name, limit in (("fp32", 1e-4), ("fp16", 5e-3)):
        for backend in ("ort", "trt"):
            found = report["agreement"][f"{backend} {name}"]
            assert found["limit"] == limit
            assert found["changed_labels"] <= (0 if name == "fp32" else limit)
            assert found["backend"]["name"] == backend
            assert found["backend"]["precision"] == name


def test_latencies_are_of_the_plans_that_they_name(report: Any) -> None:
    """Windows counted by hand: the box of a 48x40x32 phantom is smaller than its volume."""
    patient = report["patient"]
    whole, box = patient["trt fp16 full"], patient["trt fp16"]
    # Patch 32x32x16 at half overlap over 48x40x32: 2 x 2 x 3 windows.
    assert whole["windows"] == 12
    assert 0 < box["windows"] <= 12
    for entry in (whole, box):
        assert set(entry["stages"]) == set(STAGES)
        assert entry["spread"][0] <= entry["total"] <= entry["spread"][1]
        assert entry["total"] == pytest.approx(sum(entry["stages"].values()))
        assert entry["per_window"] == pytest.approx(entry["stages"]["network"] / entry["windows"])


def test_the_last_tables_can_be_read_in_a_file(
    report: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    show(report, report_console())
    lines = capsys.readouterr().out.splitlines()
    assert not any("\u2026" in line for line in lines), "something was cut off"
    (row,) = (line for line in lines if line.startswith("\u2502 trt fp16 full"))
    assert f"{report['patient']['trt fp16 full']['total']:.2f}" in row
    assert any(line.startswith("  contract: a rehearsal has no GPU") for line in lines)
    assert any(line.endswith("rows ran, and none failed") for line in lines)


# What fails takes nothing else with it


def test_a_missing_engine_costs_only_its_own_rows(
    make_bench: MakeBench, gpu: FakeGpu, tmp_path: Path
) -> None:
    bench = make_bench()
    run = run_of(tmp_path)
    run.take(row for row in gpu_sections.rows(bench) if row.section in ("agreement", "disk"))
    agreed = run.report["agreement"]
    for precision in ("fp16", "fp32"):
        assert "BackendUnavailableError" in agreed[f"trt {precision}"]["error"]
        assert agreed[f"ort {precision}"]["changed_labels"] <= 5e-3
        assert statuses(run)[f"agreement: ort {precision}"] == "ok"
    for name, figure in (("one_patient", "total"), ("cohort", "patients_per_s")):
        found = run.report["disk"][name]
        assert found["setting"] == "ort fp16"
        assert found[figure] > 0
        # The figures are kept; that they are not those of the engine is a failure.
        assert found["error"].startswith("trt fp16: BackendUnavailableError")
        assert statuses(run)[f"disk: {name}"] == "failed"


def test_without_engines_the_next_backend_is_measured_in_every_batch(
    make_bench: MakeBench, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_sections, "BATCHES", (1, 4))
    bench = make_bench()
    run = run_of(tmp_path)
    run.take(row for row in gpu_sections.rows(bench) if row.section in ("agreement", "patient"))
    assert bench.headline.title == "ort fp16"
    found = statuses(run)
    assert found["patient: trt fp16"] == found["patient: trt fp16 full"] == "left out"
    assert found["patient: ort fp16 batch 1"] == found["patient: ort fp16 full"] == "ok"
    assert run.report["patient"]["ort fp16 batch 1"]["windows"] > 1


def test_a_check_with_a_missing_engine_fails_and_keeps_its_figures(
    tmp_path: Path, tiny_model: Path, small_root: Path
) -> None:
    others = tuple({*gpu_sections.SECTIONS} - {"environment", "agreement"})
    args = CheckArgs(model=tiny_model, data=small_root, output=tmp_path, skip=others, rehearse=True)
    assert gpu_check.main(args) == 1
    found = json.loads((tmp_path / gpu_check.REPORT).read_text())
    assert found["environment"]["gpu"]["name"] == "Fake H100"
    assert found["agreement"]["ort fp32"]["changed_labels"] == 0
    assert {row["row"] for row in found["rows"] if row["status"] == "failed"} == {
        "agreement: trt fp16",
        "agreement: trt fp32",
    }


@pytest.mark.parametrize(("flipped", "status"), [(0, "ok"), (3, "failed")])
def test_labels_that_disagree_fail(
    make_bench: MakeBench, gpu: FakeGpu, tmp_path: Path, flipped: int, status: str
) -> None:
    bench = make_bench()
    labels = bench.expected.copy()
    tumour = np.flatnonzero(labels)
    labels.flat[tumour[:flipped]] = labels.flat[tumour[:flipped]] % 3 + 1
    vars(bench)["expected"] = labels
    (setting,) = (one for one in SETTINGS if one.title == "ort fp32")
    run = run_of(tmp_path)
    run.take([Row("agreement", "x", lambda: gpu_sections.agreement(bench, setting), 0)])
    assert statuses(run) == {"agreement: x": status}
    assert run.report["agreement"]["x"]["changed_labels"] == flipped / len(tumour)


def test_the_report_is_on_disk_after_every_row(tmp_path: Path) -> None:
    def told() -> Any:
        return json.loads((tmp_path / "report.json").read_text())

    def broken() -> None:
        raise ValueError("no such\nthing")

    def cut() -> None:
        raise KeyboardInterrupt

    run = run_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.take(
            [
                Row("a", "one", lambda: 1.5, 0),
                Row("a", "two", lambda: told()["a"], 0),
                Row("b", "", broken, 0),
                Row("c", "", lambda: {"seen": told()["b"]}, 0),
                Row("d", "", cut, 0),
            ]
        )
    found = told()
    assert found["a"] == {"one": 1.5, "two": {"one": 1.5}}
    assert found["b"] == {"error": "ValueError: no such thing"}
    assert found["c"] == {"seen": found["b"]}
    assert [row["status"] for row in found["rows"]] == ["ok", "ok", "failed", "ok"]


# Time


def test_what_no_longer_fits_is_left_out_and_what_does_is_not(tmp_path: Path) -> None:
    now = [0.0]

    def takes(seconds: float) -> Callable[[], float]:
        def work() -> float:
            now[0] += seconds
            return seconds

        return work

    run = run_of(tmp_path, 100, lambda: now[0])
    run.take(
        [
            Row("a", "quick", takes(40), 10),
            Row("a", "fits", takes(30), 10),
            # 30 s are left, and the longest of this section took 40 s.
            Row("a", "as the first", takes(1), 10),
            Row("b", "fits", takes(5), 30),
            Row("b", "too long", takes(1), 26),
            Row("c", "vital", takes(1), 26, vital=True),
        ]
    )
    assert statuses(run) == {
        "a: quick": "ok",
        "a: fits": "ok",
        "a: as the first": "no time",
        "b: fits": "ok",
        "b: too long": "no time",
        "c: vital": "failed",
    }
    assert run.report["b"] == {"fits": 5}
    assert run.report["rows"][2]["why"] == "30 s were left, and about 40 s are needed"


def test_what_was_left_out_for_want_of_time_is_named_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"row": "ceilings", "status": "no time", "seconds": 0, "why": "1 s was left"}
    show({"rows": [row], "minutes": 8.0}, report_console())
    out = capsys.readouterr().out
    assert "left out, as 8.0 minutes were given:\n  ceilings: 1 s was left" in out


# Export


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> list[ExportArgs]:
    """What brats-export is asked for; it fails unless no engines are wanted."""
    asked: list[ExportArgs] = []

    def export(options: ExportArgs, console: Console) -> None:
        asked.append(options)
        if options.engines != "no":
            raise ParityError("gate", found="a failure", expected="none", remedy="mend it")
        assert options.output is not None
        shutil.copytree(tiny_model, options.output)

    monkeypatch.setattr(gpu_export, "brats_export", export)
    return asked


def test_without_engines_where_the_export_fails(
    make_bench: MakeBench, exports: list[ExportArgs], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bench = make_bench(checkpoint=tiny_checkpoint, device="cuda:1")
    found = gpu_sections.export(bench)
    assert [(one.engines, one.device, one.fp16, one.up_branch) for one in exports] == [
        ("auto", 1, True, "k4"),
        ("no", 1, True, "k4"),
    ]
    assert "ParityError: gate: found a failure" in found["error"]
    assert found["instead"] == "an export without engines"
    assert found["verdict"] == "inconclusive"
    assert bench.model_path == tmp_path / "model"


def test_a_given_model_is_measured_as_it_is_where_engines_fail(
    make_bench: MakeBench, exports: list[ExportArgs], tiny_model: Path
) -> None:
    bench = make_bench(model=tiny_model)
    found = gpu_sections.export(bench)
    assert [(one.checkpoint, one.fp16) for one in exports] == [(tiny_model, False)]
    assert "ParityError" in found["error"]
    assert bench.model_path == tiny_model
    assert {entry["file"] for entry in found["artefacts"]} == {ONNX_FP32, ONNX_FP16}


def test_engines_are_added_to_a_given_model_which_stays_as_it_was(
    make_bench: MakeBench, gpu: FakeGpu, tiny_model: Path, tmp_path: Path
) -> None:
    before = (tiny_model / "manifest.json").read_bytes()
    bench = make_bench(model=tiny_model, device="cuda:1")
    found = gpu_sections.export(bench)
    assert "error" not in found
    assert bench.model_path == tmp_path / "model"
    assert {one["precision"] for one in found["engines"]["tried"]} == {"fp16", "fp32"}
    assert gpu_sections.agreement(bench, SETTINGS[0])["backend"]["name"] == "trt"
    assert (tiny_model / "manifest.json").read_bytes() == before


def test_without_any_model_every_row_says_so(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench()
    bench.model_path = None
    run = run_of(tmp_path)
    run.take(row for row in gpu_sections.rows(bench) if row.name == "patient: trt fp16")
    assert set(statuses(run).values()) == {"failed"}
    assert "no model directory" in run.report["patient"]["trt fp16"]["error"]


# Contract


TESTS = """
import time
import pytest

@pytest.mark.gpu
def test_one(): pass

@pytest.mark.gpu
@pytest.mark.skip(reason="no second device")
@pytest.mark.parametrize("n", [1, 2])
def test_two(n): pass

@pytest.mark.gpu
@pytest.mark.skip(reason='a driver, "old"')
def test_three(): pass

def test_unmarked(): raise RuntimeError
"""


def test_contract_tests_are_counted_with_the_reasons_of_skips(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    found = run_contract([str(file)], tmp_path / "log", 0, 120)
    assert found == {
        "passed": 1,
        "failed": 0,
        "skipped": 3,
        "skips": {"no second device": 2, 'a driver, "old"': 1},
        "failures": [],
    }
    assert "SKIPPED" in (tmp_path / "log").read_text()


def test_contract_tests_that_all_skip_or_fail_are_a_failure(tmp_path: Path) -> None:
    skipped, failing = tmp_path / "test_skipped.py", tmp_path / "test_failing.py"
    skipped.write_text(TESTS.replace("def test_one(): pass", "def test_one(): pytest.skip('x')"))
    failing.write_text(TESTS.replace("def test_one(): pass", "def test_one(): raise ValueError"))
    found = run_contract([str(skipped)], tmp_path / "log", 0, 120)
    assert found["passed"] == 0
    assert found["error"].startswith("no test passed, 4 skipped")
    found = run_contract([str(failing)], tmp_path / "log", 0, 120)
    assert found["failed"] == 1
    assert [name.rpartition("::")[2] for name in found["failures"]] == ["test_one"]
    assert "1 failed" in found["error"]


def test_contract_tests_that_hang_are_ended(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS.replace("def test_one(): pass", "def test_one(): time.sleep(60)"))
    assert "not done after" in run_contract([str(file)], tmp_path / "log", 0, 0.2)["error"]


def test_the_contract_section_names_every_file_with_a_test_for_a_gpu() -> None:
    tests = Path(__file__).parent
    marked = {
        f"tests/{path.name}"
        for path in tests.glob("test_*.py")
        if "pytest.mark.gpu" in path.read_text() and path.name != Path(__file__).name
    }
    assert marked == set(gpu_contract.GPU_TESTS)


# Arguments, ceilings, memory


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"skip": ("peers", "celings")}, "--skip: found celings, expected environment, contract"),
        ({"device": "cpu"}, "--device: found cpu"),
        ({"minutes": 0}, "--minutes: found 0"),
        ({"rounds": 0}, "--rounds: found 0"),
        ({"cohort": 0}, "--cohort: found 0"),
        ({"checkpoint": None}, "CHECKPOINT: found neither"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(given: dict[str, Any], flag: str) -> None:
    args = CheckArgs(Path("some.pt"))
    with pytest.raises(UsageError, match=flag):
        gpu_check.main(replace(args, **given))


def test_ceilings_are_those_of_the_graph_that_the_engine_was_built_from(tiny_model: Path) -> None:
    model = ModelDir.open(tiny_model)
    tried = [
        {"precision": "fp32", "up_branch": "k4", "file": ONNX_FP32, "chosen": True},
        {"precision": "fp16", "up_branch": "k4", "file": ONNX_FP16, "chosen": False},
        {"precision": "fp16", "up_branch": "interleave", "file": "f16.onnx", "chosen": True},
    ]
    forms = replace(model, certificate={"engines": {"tried": tried}})
    assert gpu_export.graph_of_engine(model) == ONNX_FP32
    assert gpu_export.graph_of_engine(forms) == "f16.onnx"
    held = replace(forms, hashes={**model.hashes, "model.interleave.onnx": ""})
    assert gpu_export.graph_of_engine(held) == "model.interleave.onnx"


def test_the_floor_of_a_window_is_its_work_at_the_ceilings(tiny_model: Path) -> None:
    model = ModelDir.open(tiny_model)
    work = work_of(onnx.load(tiny_model / ONNX_FP32), model.card.patch)
    found = gpu_export.floor(model, tflops=2.0, tbytes=0.5)
    assert found["arithmetic_us"] == pytest.approx(2 * work.macs / 2e12 * 1e6)
    assert found["memory_us"] == pytest.approx(work.bytes / 0.5e12 * 1e6)


def test_the_floor_is_the_same_where_weights_are_stored_in_half(
    tiny_model: Path, tmp_path: Path
) -> None:
    halved = halve_weights(onnx.load(tiny_model / ONNX_FP32)).SerializeToString()
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / ONNX_FP32).write_bytes(halved)
    model = ModelDir.open(tiny_model)
    stored = replace(
        model,
        path=tmp_path / "model",
        hashes={**model.hashes, ONNX_FP32: sha256_of(halved)},
        sizes={**model.sizes, ONNX_FP32: len(halved)},
    )
    assert gpu_export.floor(stored, 2.0, 0.5) == gpu_export.floor(model, 2.0, 0.5)


def test_rates_are_operations_and_bytes_over_time() -> None:
    seconds = iter([2e-3, 4e-3])

    def timer(step: Callable[[], Any]) -> float:
        step()
        return next(seconds)

    found = rates(torch.device("cpu"), side=32, length=1000, timer=timer)
    assert found["tflops"] == pytest.approx(2 * 32**3 / 2e-3 / 1e12)
    # Every byte is read once and written once.
    assert found["tbytes"] == pytest.approx(2 * 1000 / 4e-3 / 1e12)


def test_rates_are_taken_on_the_cpu_too() -> None:
    found = rates(torch.device("cpu"), side=64, length=1 << 16)
    assert 0 < found["tflops"] < 100
    assert 0 < found["tbytes"] < 100


def test_a_timer_leaves_the_warm_up_out() -> None:
    calls: list[int] = []
    timer_of(torch.device("cpu"), rounds=4, warm_up=2)(lambda: calls.append(1))
    assert len(calls) == 6


def test_memory_is_that_of_the_named_device(gpu: FakeGpu) -> None:
    import cupy

    before = used_mib("cuda:0"), used_mib("cuda:1")
    with cupy.cuda.Device(1):
        block = gpu.cuda.allocate(3 << 20)
    assert (used_mib("cuda:0"), used_mib("cuda:1")) == (before[0], before[1] + 3)
    del block


# The report


def test_peers_are_compared_with_what_was_measured_of_ours() -> None:
    peers = {
        "monai_full_ms": 60.0,
        "amp_patient_ms": 15.0,
        "monai_box_ms": {"error": "OutOfMemoryError: x"},
        "monai_disk_to_disk_ms": 600.0,
    }
    report = {
        "peers": peers,
        "patient": {"trt fp16": {"total": 10.0}, "trt fp16 full": {"total": 20.0}},
        "disk": {"one_patient": {"setting": "trt fp16", "total": 0.12}},
    }
    found = [(one.peer.partition(",")[0], one.ours, one.ratio) for one in comparisons(report)]
    assert found == [
        ("MONAI AMP", "trt fp16, default plan", 6.0),
        ("MONAI AMP", "trt fp16 full, same windows", 3.0),
        ("PyTorch AMP", "trt fp16, same windows", 1.5),
        ("MONAI AMP", "trt fp16", 5.0),
    ]
    report["patient"] = {"trt fp16": {"error": "no engine"}, "ort fp16": {"total": 30.0}}
    assert comparisons(report)[0].ours == "ort fp16, default plan"
    assert comparisons({}) == []


def test_failures_are_shown_and_an_empty_report_too(capsys: pytest.CaptureFixture[str]) -> None:
    why = "ParityError: gate: found [a] failure, expected none"
    report = {
        "environment": {"error": "x"},
        "agreement": {"trt fp16": {"error": why}, "ort fp16": {"error": "y"}},
        "patient": {"trt fp16": {"error": why}},
        "contract": {"passed": 3, "failed": 1, "skipped": 2, "skips": {"no [b] GPU": 2}},
        "rows": [{"row": "patient: trt fp16", "status": "failed", "why": why}],
    }
    show(report, report_console())
    out = capsys.readouterr().out
    assert f"failed:\n  patient: trt fp16: {why}\n" in out
    assert "contract tests: 3 passed, 1 failed, 2 skipped\n  skipped 2 times: no [b] GPU" in out
    assert "none failed" not in out
    show({}, report_console())


def test_an_uncropped_case_fills_its_volume(phantom_volume: Volume, tiny_card: ModelCard) -> None:
    before = {name: image.voxels.copy() for name, image in phantom_volume.images.items()}
    prepared = prepare(uncropped(phantom_volume), tiny_card, NumpyOps(), tiny_card.patch)
    assert prepared.placement.shape == phantom_volume.grid.shape
    for name, image in phantom_volume.images.items():
        np.testing.assert_array_equal(image.voxels, before[name])


# Peers


def test_a_peer_that_fails_leaves_the_others(
    make_bench: MakeBench,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def milliseconds(self: PeerBench, title: str) -> float:
        if title == "amp_window_16_ms":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if title.startswith("compiled"):
            raise TypeError("of any kind")
        if title.startswith("monai"):
            raise ModuleNotFoundError("No module named 'monai'")
        return float(len(title))

    monkeypatch.setattr(PeerBench, "milliseconds", milliseconds)
    run = run_of(tmp_path)
    bench = make_bench(checkpoint=tiny_checkpoint)
    run.take(row for row in gpu_sections.rows(bench) if row.section == "peers")
    found = run.report["peers"]
    assert found["amp_patient_ms"] == len("amp_patient_ms")
    assert found["amp_window_8_ms"] == len("amp_window_8_ms")
    assert found["amp_window_16_ms"] == {"error": "OutOfMemoryError: CUDA out of memory"}
    assert found["compiled_window_ms"] == {"error": "TypeError: of any kind"}
    assert found["monai_full_ms"] == {"left_out": "No module named 'monai'"}
    assert statuses(run)["peers: monai_full_ms"] == "left out"


def test_without_a_checkpoint_peers_are_left_out(make_bench: MakeBench) -> None:
    with pytest.raises(LeftOutError, match="checkpoint"):
        gpu_sections.peer(make_bench(), "amp_patient_ms")


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
