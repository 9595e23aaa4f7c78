"""brats-export with engines from the command line, on a machine made of fakes: what is written,
what is said, and with which exit code it ends.
"""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console

from export.cli import ExportArgs, check, check_adding
from export.cpu_backends import cpu_backends
from export.engine import BuildOptions
from export.export_view import engine_table, parity_table
from export.half_weights import is_halved, restored
from export.parity import Gate
from export.timing_cache import TimingCacheFile
from runtime.backends import BackendOptions, open_backend
from runtime.backends.driver import Gpu
from runtime.engine import read_records
from runtime.errors import BackendUnavailableError, ComputeError, UsageError
from runtime.model_dir import ModelDir, sha256_of
from tests.fake_gpu import (
    GPU,
    EngineSpec,
    FakeGpu,
    add_engine,
    fake_build,
    fake_gpu,
    fake_tensorrt,
)
from tests.tiny_export import (
    Builder,
    Tracer,
    bytes_of,
    exported,
    write_cases,
    write_checkpoints,
)

HALF, INTERLEAVED = "model.fp16.onnx", "model.fp16.interleave.onnx"
HALVES = frozenset(
    (f"model.fp16{form}.onnx", layout)
    for form in ("", ".unfused", ".interleave")
    for layout in ("linear", "dhwc8")
)
SINGLES = frozenset((f"model{form}.onnx", "linear") for form in ("", ".unfused", ".interleave"))


@pytest.fixture(scope="module")
def tracer() -> Tracer:
    return Tracer()


@pytest.fixture(autouse=True)
def traced_once(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.build.trace", tracer)


@pytest.fixture(autouse=True)
def one_case_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time here is to run cases, and what they decide is the subject of other tests."""
    monkeypatch.setattr("export.run.Gate", partial(Gate, informative_cases=1))


@pytest.fixture
def three_cases_decide(one_case_decides: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.run.Gate", Gate)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default timing cache of these tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "brats-deploy" / "timing_cache"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoints(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    write_cases(root)
    return root


@pytest.fixture(scope="module")
def elsewhere(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, data: Path, tracer: Tracer
) -> Path:
    """A model directory exported without a GPU; read-only."""
    out = tmp_path_factory.mktemp("elsewhere") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.build.trace", tracer)
        code = exported(
            checkpoints / "good.pt", "-o", out, "--fp16", "--engines", "no", "--data", data
        )
    assert code == 0
    return out


@pytest.fixture
def model(elsewhere: Path, tmp_path: Path) -> Path:
    """A copy of that model directory."""
    return Path(shutil.copytree(elsewhere, tmp_path / "place" / "model"))


@pytest.fixture
def machine() -> Iterator[FakeGpu]:
    with fake_gpu() as made:
        yield made


@pytest.fixture
def plan(machine: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Builder]:
    """plan(...): the builder of this machine from now on."""

    def planned(**how: Any) -> Builder:
        builder = Builder(**how)
        monkeypatch.setattr("export.engines.build_engine", builder.build)
        monkeypatch.setattr("export.engines.window_seconds", builder.window_seconds)
        return builder

    return planned


def rows_of(lines: list[str]) -> list[list[str]]:
    """The cells of printed tables, without their heads."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]


Plan = Callable[..., Builder]
Captured = pytest.CaptureFixture[str]


def certificate_of(out: Path) -> Any:
    return json.loads((out / "parity.json").read_text())


# From a checkpoint


@pytest.mark.usefixtures("three_cases_decide")
def test_a_checkpoint_becomes_a_model_with_engines(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, own_cache: Path, capsys: Captured
) -> None:
    builder = plan(
        ms={(INTERLEAVED, "linear"): 0.25, (INTERLEAVED, "dhwc8"): 0.125, (HALF, "dhwc8"): 0.0625},
        wrong=frozenset({(HALF, "dhwc8")}),
        broken=frozenset({("model.fp16.unfused.onnx", "linear")}),
    )
    out = tmp_path / "model"
    assert exported(checkpoints / "good.pt", "-o", out, "--data", data, "--fp16") == 0
    assert len(builder.built) == 7
    names = set(bytes_of(out))
    engines = {name for name in names if name.startswith("engines/")}
    assert names - engines == {
        *("manifest.json", "card.json", "parity.json", "model.onnx", HALF, INTERLEAVED),
        "model.interleave.onnx",
    }
    certificate = certificate_of(out)
    assert certificate["verdict"] == "pass"
    assert certificate["reference"] == {"backend": "torch", "device": "cpu", "arithmetic": "fp32"}
    found = [
        (entry.get("built_from", entry["file"]), entry["backend"], entry["device"])
        for entry in certificate["artefacts"]
    ]
    assert found == [
        ("model.onnx", "openvino", "cpu"),
        ("model.onnx", "ort", "cpu"),
        ("model.interleave.onnx", "ort", "cpu"),
        ("model.onnx", "ort", "cuda:0"),
        (HALF, "emulation", "cpu"),
        (HALF, "ort", "cuda:0"),
        (INTERLEAVED, "emulation", "cpu"),
        (INTERLEAVED, "trt", "cuda:0"),
        ("model.interleave.onnx", "trt", "cuda:0"),
    ]
    # Judged with the graphs, on the same cases by the same gate: nothing to say twice.
    assert not any({"gate", "source", "inputs"} & set(entry) for entry in certificate["artefacts"])
    opened = ModelDir.open(out)
    assert all(opened.verdict(name) == "pass" for name in names if name.endswith((".plan", "onnx")))
    backend = open_backend(opened, BackendOptions("trt"))
    assert (backend.info.precision, backend.info.certificate) == ("fp16", "pass")
    backend.close()
    said = capsys.readouterr().err.splitlines()
    assert "engines for Fake H100 by TensorRT 11.0.0" in said
    assert f"  building an engine: {HALF}, linear input" in said
    assert "  0.125 ms a window" in said
    (title,) = (line for line in said if line.startswith("Engines on Fake H100, TensorRT 11.0.0"))
    rows = rows_of(said[said.index(title) :])
    assert rows[:3] == [
        [HALF, "dhwc8", "0.062", "0.5", "fail"],
        [INTERLEAVED, "dhwc8", "0.125", "0.5", "pass, chosen"],
        [INTERLEAVED, "linear", "0.250", "0.5", "slower"],
    ]
    assert rows[-1] == ["model.fp16.unfused.onnx", "linear", "", "", "unusable"]
    assert said[-1] == (
        f"model directory {out}: {INTERLEAVED}, {HALF}, model.interleave.onnx, model.onnx, "
        "2 engines"
    )
    # The next build begins with what this one has timed.
    assert TimingCacheFile(own_cache, fake_tensorrt(), GPU).load() == (b"timings 7", None)


@pytest.mark.parametrize("choice", ["k4", "all"])
def test_the_forms_of_the_up_branch_can_be_one_or_all(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, choice: str
) -> None:
    builder = plan()
    out = tmp_path / "model"
    flags = ("--data", data, "--up-branch", choice)
    assert exported(checkpoints / "good.pt", "-o", out, *flags) == 0
    graphs = {name for name in bytes_of(out) if name.endswith(".onnx")}
    everything = {"model.onnx", "model.unfused.onnx", "model.interleave.onnx"}
    assert graphs == (everything if choice == "all" else {"model.onnx"})
    assert {file for file, _ in builder.order} == graphs
    assert len(read_records(ModelDir.open(out))) == 1


def test_layers_that_overflow_stay_in_fp32_in_the_engine_too(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, capsys: Captured
) -> None:
    builder = plan()
    out = tmp_path / "model"
    flags = ("--data", data, "--fp16", "--up-branch", "k4")
    assert exported(checkpoints / "overflowing.pt", "-o", out, *flags) == 0
    parts = ["encoder.0.conv1", "encoder.0.conv2"]
    certificate = certificate_of(out)
    kept = {
        entry.get("built_from", entry["file"]) + " " + entry["backend"]: [
            part["part"] for part in entry["kept"]["kept_fp32"]
        ]
        for entry in certificate["artefacts"]
        if "kept" in entry
    }
    assert kept == {f"{HALF} emulation": parts, f"{HALF} trt": parts}
    stored = (out / HALF).read_bytes()
    weights = onnx.load_model_from_string(stored).graph.initializer
    assert {item.data_type for item in weights if "conv" in item.name} == {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
    }
    # The engine's graph is that very one, whose first layer takes float32 only.
    assert builder.order[:2] == [(HALF, "linear"), (HALF, "dhwc8")]
    assert builder.models[0] == stored
    (record,) = [one for one in read_records(ModelDir.open(out)) if one.key.precision == "fp16"]
    assert record.key.onnx_sha256 == sha256_of(stored)
    said = capsys.readouterr().err
    assert f"{HALF}: kept in fp32: {', '.join(parts)}\n" in said
    assert f"unusable: {HALF}, dhwc8 input: found dhwc8, expected an fp16 graph" in said


def test_strict_fp16_releases_nothing_where_a_layer_overflows(
    checkpoints: Path, data: Path, model: Path, plan: Plan, capsys: Captured
) -> None:
    builder = plan()
    before = bytes_of(model)
    flags = ("--data", data, "--fp16", "--strict-fp16")
    assert exported(checkpoints / "overflowing.pt", "-o", model, *flags) == 5
    assert bytes_of(model) == before
    rejected = model.with_name("model.rejected")
    assert {path.name for path in model.parent.iterdir()} == {"model", "model.rejected"}
    assert set(bytes_of(rejected)) == {"parity.json"}
    certificate = certificate_of(rejected)
    assert certificate["verdict"] == "fail"
    failed = [entry["file"] for entry in certificate["artefacts"] if entry["verdict"] == "fail"]
    assert failed == [HALF]
    # Nobody waits for engines of a model that is not released.
    assert builder.built == []
    said = capsys.readouterr().err
    assert "export again without --strict-fp16" in said
    assert f"{INTERLEAVED}: left out, as it fails the parity gate: tensor " in said


def test_bf16_has_a_graph_an_engine_and_a_certificate(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, capsys: Captured
) -> None:
    plan()
    out = tmp_path / "model"
    # The phantoms' truth is far from what this network says, so that its Dice changes much.
    flags = ("--data", data, "--bf16", "--up-branch", "k4", "--gate", "0.9")
    assert exported(checkpoints / "good.pt", "-o", out, *flags) == 0
    weights = onnx.load_model_from_string((out / "model.bf16.onnx").read_bytes()).graph.initializer
    assert onnx.TensorProto.BFLOAT16 in {item.data_type for item in weights}
    opened = ModelDir.open(out)
    precisions = {record.key.precision: record for record in read_records(opened)}
    assert set(precisions) == {"bf16", "fp32"}
    assert opened.verdict(precisions["bf16"].key.plan) == "pass"
    entries = certificate_of(out)["artefacts"]
    # ONNX Runtime has no such convolution, which is told and no reason to fail.
    assert [one["backend"] for one in entries if one["file"] == "model.bf16.onnx"] == ["emulation"]
    assert (
        "model.bf16.onnx: not certified with ONNX Runtime on the GPU: " in capsys.readouterr().err
    )
    backend = open_backend(opened, BackendOptions("trt"))
    assert backend.info.precision == "bf16"
    backend.close()


def test_a_cuda_provider_that_does_not_load_keeps_no_engine_from_being_built(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, machine: FakeGpu, capsys: Captured
) -> None:
    plan()
    machine.faults.cuda_provider = False
    assert not torch.cuda.is_available()  # nor has PyTorch to know of the GPU
    out = tmp_path / "model"
    assert exported(checkpoints / "good.pt", "-o", out, "--data", data, "--up-branch", "k4") == 0
    devices = {(one["backend"], one["device"]) for one in certificate_of(out)["artefacts"]}
    assert devices == {("openvino", "cpu"), ("ort", "cpu"), ("trt", "cuda:0")}
    assert "not certified with ONNX Runtime on the GPU: no working CUDA" in capsys.readouterr().err


@pytest.mark.usefixtures("three_cases_decide")
def test_a_graph_that_cudnn_spoils_is_refused_there_and_stops_nothing_else(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, machine: FakeGpu, capsys: Captured
) -> None:
    plan()
    machine.faults.non_finite = True
    out = tmp_path / "model"
    args = ("--fp16", "--data", data, "--up-branch", "k4")
    assert exported(checkpoints / "good.pt", "-o", out, *args) == 0
    found = certificate_of(out)
    (refused,) = found["refused"]
    assert (refused["file"], refused["backend"], refused["verdict"]) == (HALF, "ort", "fail")
    assert found["verdict"] == "pass"
    assert f"{HALF}: not to be run by ort on cuda:0" in capsys.readouterr().err
    opened = ModelDir.open(out)
    # The fp16 engine gives the same values that are not finite; the one in fp32 is there.
    assert [record.key.precision for record in read_records(opened)] == ["fp32"]
    backend = open_backend(opened, BackendOptions("ort", "cuda:0"))
    assert backend.info.precision == "fp32"
    backend.close()


def test_other_forms_are_tried_in_fp32_where_the_winner_cannot_be_built(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan
) -> None:
    winner = ("model.interleave.onnx", "linear")
    builder = plan(ms={(INTERLEAVED, "linear"): 0.25}, broken=frozenset({winner}))
    out = tmp_path / "model"
    assert exported(checkpoints / "good.pt", "-o", out, "--fp16", "--data", data) == 0
    tried = [source for source, _ in builder.order if not source.startswith("model.fp16")]
    assert tried[0] == "model.interleave.onnx"
    assert set(tried[1:]) == {"model.onnx", "model.unfused.onnx"}
    precisions = {record.key.precision for record in read_records(ModelDir.open(out))}
    assert precisions == {"fp16", "fp32"}


def test_a_static_engine_takes_the_batch_of_the_card(model: Path, data: Path, plan: Plan) -> None:
    plan()
    assert exported(model, "--data", data, "--engine-static") == 0
    profiles = [record.key.profile for record in read_records(ModelDir.open(model))]
    assert [(one.min_batch, one.opt_batch, one.max_batch) for one in profiles] == [(2, 2, 2)] * 2
    backend = open_backend(ModelDir.open(model), BackendOptions("trt"))
    backend.bind((32, 32, 16), 1)
    backend.close()


# Engines that fail


def test_without_a_passing_engine_the_onnx_models_are_released_and_it_is_said(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, capsys: Captured
) -> None:
    plan(wrong=HALVES | SINGLES)
    out = tmp_path / "model"
    assert exported(checkpoints / "good.pt", "-o", out, "--data", data, "--up-branch", "k4") == 0
    assert {name for name in bytes_of(out) if name.endswith((".onnx", ".plan"))} == {"model.onnx"}
    certificate = certificate_of(out)
    assert certificate["verdict"] == "pass"
    assert [one["verdict"] for one in certificate["engines"]["tried"]] == ["fail"]
    said = capsys.readouterr().err
    assert "model.onnx, linear input: not used: BraTSPhantom_0001: Dice of WT" in said


@pytest.mark.parametrize(
    ("planted", "code", "said"),
    [
        ({"wrong": HALVES}, 5, "the fastest engine of model.fp16"),
        ({"broken": HALVES}, 4, "no fp16 engine that could be built"),
        ({"broken": HALVES | SINGLES}, 4, "no fp16 and no fp32 engine"),
    ],
)
def test_required_engines_that_fail_end_the_export(
    model: Path, data: Path, plan: Plan, capsys: Captured, planted: Any, code: int, said: str
) -> None:
    plan(**planted)
    before = bytes_of(model)
    assert exported(model, "--data", data, "--engines", "require") == code
    assert bytes_of(model) == before
    rejected = model.with_name("model.rejected")
    assert rejected.exists() == (code == 5)
    if code == 5:
        certificate = certificate_of(rejected)
        assert certificate["verdict"] == "fail"
        assert [one["backend"] for one in certificate["artefacts"] if one["verdict"] == "fail"] == [
            "trt"
        ]
    error = capsys.readouterr().err
    assert said in error
    assert "Engines on Fake H100" in error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("host")])
def test_an_interrupted_build_leaves_nothing_behind(
    model: Path, data: Path, plan: Plan, own_cache: Path, capsys: Captured, error: BaseException
) -> None:
    plan(error=error)
    before = bytes_of(model)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert exported(model, "--data", data) == (130 if interrupted else ComputeError.exit_code)
    assert bytes_of(model.parent) == {f"model/{name}": data for name, data in before.items()}
    assert not own_cache.exists()
    assert "Traceback" not in capsys.readouterr().err


# A model directory gets engines


def test_engines_are_added_and_everything_else_stays(
    model: Path, data: Path, plan: Plan, capsys: Captured
) -> None:
    add_engine(model, EngineSpec(gpu=Gpu("Another GPU", "8.6")))
    add_engine(model, EngineSpec(max_batch=64))
    before = bytes_of(model)
    plan(ms={(HALF, "dhwc8"): 0.5})
    assert exported(model, "--data", data, "--engine-batch", "4") == 0
    after = bytes_of(model)
    changed = {name for name in before if before[name] != after.get(name)}
    new = set(after) - set(before)
    records = {record.key.plan: record for record in read_records(ModelDir.open(model))}
    assert len(new) == 4
    assert {name for name in new if name.endswith(".plan")} < set(records)
    old = set(before) - set(after)
    assert changed == {"manifest.json", "parity.json"} | old
    assert len(old) == 2
    assert all(name.startswith("engines/") for name in old)
    assert {(one.key.gpu.name, one.key.profile.max_batch) for one in records.values()} == {
        ("Another GPU", 8),
        ("Fake H100", 4),
    }
    earlier, later = json.loads(before["parity.json"]), certificate_of(model)
    for name in ("cases", "gate", "source", "reference"):
        assert later[name] == earlier[name]
    mine = [one for one in later["artefacts"] if "built_from" in one]
    assert [one["reference"]["backend"] for one in mine] == ["ort", "ort"]
    assert mine[0]["reference"]["sha256"] == sha256_of(before["model.onnx"])
    said = capsys.readouterr().err
    assert "Parity with fp32 " in said
    assert f"model directory {model}: {HALF}, model.onnx, 3 engines" in said


def test_engines_can_be_added_to_a_copy(
    model: Path, data: Path, tmp_path: Path, plan: Plan
) -> None:
    plan()
    before = bytes_of(model)
    assert exported(model, "-o", tmp_path / "copy", "--data", data, "--up-branch", "k4") == 0
    assert bytes_of(model) == before
    assert len(read_records(ModelDir.open(tmp_path / "copy"))) == 2


@pytest.mark.usefixtures("three_cases_decide")
def test_a_model_released_undecided_gets_engines_that_pass(
    checkpoints: Path, data: Path, tmp_path: Path, plan: Plan, capsys: Captured
) -> None:
    plan()
    out, few = tmp_path / "model", ("--data", data, "--cases", "1")
    flags = ("--engines", "no", "--allow-inconclusive")
    assert exported(checkpoints / "good.pt", "-o", out, *few, *flags) == 0
    # Cases that cannot decide on the engine either: that is asked again.
    assert exported(out, *few) == 5
    assert "--allow-inconclusive" in capsys.readouterr().err
    assert exported(out, "--data", data) == 0
    certificate = certificate_of(out)
    assert (certificate["verdict"], certificate["allow_inconclusive"]) == ("inconclusive", True)
    (record,) = read_records(ModelDir.open(out))
    assert ModelDir.open(out).verdict(record.key.plan) == "pass"
    (entry,) = [one for one in certificate["artefacts"] if "built_from" in one]
    assert len(entry["inputs"]) == 3


def test_a_damaged_model_directory_gets_no_engines(
    model: Path, plan: Plan, capsys: Captured
) -> None:
    builder = plan()
    (model / HALF).write_bytes(b"changed")
    assert exported(model) == 3
    assert HALF in capsys.readouterr().err
    assert builder.built == []


# Without a GPU, and with the wrong one


def no_tensorrt() -> Any:
    raise BackendUnavailableError("TensorRT", found="no such package", expected="x", remedy="y")


@pytest.mark.parametrize("missing", ["gpu", "tensorrt", "cupy"])
def test_without_what_engines_need(
    checkpoints: Path,
    model: Path,
    data: Path,
    tmp_path: Path,
    machine: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    missing: str,
) -> None:
    found = {
        "gpu": "no CUDA device",
        "tensorrt": "no such package",
        "cupy": "cupy is not installed",
    }
    if missing == "gpu":
        monkeypatch.setattr("export.run.cuda_devices", lambda: 0)
    elif missing == "tensorrt":
        monkeypatch.setattr("export.run.load_tensorrt", no_tensorrt)
    else:
        monkeypatch.setattr("export.run.find_spec", lambda name: None)
    before = bytes_of(model)
    assert exported(checkpoints / "good.pt", "-o", model, "--engines", "require") == 4
    assert found[missing] in capsys.readouterr().err
    assert exported(model) == 4
    assert found[missing] in capsys.readouterr().err
    assert bytes_of(model) == before
    if missing == "gpu":
        out = tmp_path / "fresh"
        assert exported(checkpoints / "good.pt", "-o", out, "--data", data, "--fp16") == 0
        assert "no TensorRT engines: no CUDA device here" in capsys.readouterr().err
        assert set(bytes_of(out)) >= {"model.onnx", HALF}
        assert "engines" not in certificate_of(out)


def test_a_device_that_is_not_there(
    checkpoints: Path, tmp_path: Path, machine: FakeGpu, capsys: Captured
) -> None:
    assert exported(checkpoints / "good.pt", "-o", tmp_path / "model", "--device", "1") == 4
    assert "--device: found 1 CUDA devices, expected cuda:1" in capsys.readouterr().err


def test_another_device_can_be_named(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(devices=2):
        asked: list[int] = []
        monkeypatch.setattr("export.run.gpu", lambda index: asked.append(index) or GPU)
        given: list[BuildOptions] = []

        def recorded(graph: bytes, library: Any, options: BuildOptions, *rest: Any) -> Any:
            given.append(options)
            return fake_build(graph, library, options, *rest)

        monkeypatch.setattr("export.engines.build_engine", recorded)
        assert exported(model, "--data", data, "--device", "1") == 0
    assert asked == [1]
    assert {options.device for options in given} == {1}
    entries = [one for one in certificate_of(model)["artefacts"] if one["backend"] == "trt"]
    assert {one["device"] for one in entries} == {"cuda:1"}


# The timing cache


def test_the_timing_cache_is_used_again_or_passed_over_with_a_sentence(
    model: Path, data: Path, tmp_path: Path, plan: Plan, own_cache: Path, capsys: Captured
) -> None:
    file = tmp_path / "kept" / "timings"
    flags = ("--data", data, "--timing-cache", file)
    first = plan()
    assert exported(model, *flags) == 0
    assert first.built[0][1].timing_cache is None
    assert TimingCacheFile(file, fake_tensorrt(), GPU).load() == (b"timings 3", None)
    assert not own_cache.exists()
    again = plan()
    assert exported(model, *flags) == 0
    assert again.built[0][1].timing_cache == b"timings 3"
    capsys.readouterr()
    TimingCacheFile(file, fake_tensorrt(), Gpu("Another GPU", "8.6")).save(b"foreign")
    third = plan()
    assert exported(model, *flags) == 0
    assert third.built[0][1].timing_cache is None
    assert f"{file}: made by TensorRT 11.0.0 on Another GPU" in capsys.readouterr().err
    assert TimingCacheFile(file, fake_tensorrt(), GPU).load()[0] == b"timings 3"


def test_a_timing_cache_that_cannot_be_written_loses_no_engine(
    model: Path, data: Path, tmp_path: Path, plan: Plan, capsys: Captured
) -> None:
    plan()
    (tmp_path / "file").write_text("in the way")
    assert exported(model, "--data", data, "--timing-cache", tmp_path / "file" / "cache") == 0
    assert len(read_records(ModelDir.open(model))) == 2
    said = capsys.readouterr().err
    assert "the timing cache was not kept: " in said


# What is seen


ENTRY = {"file": "engines/0123456789abcdef.plan", "verdict": "inconclusive", "backend": "trt"}


def test_the_tables_fit_80_columns_and_cut_no_name() -> None:
    longest = "model.fp16.interleave.onnx"
    record = {"non_finite": 0, "dice_to_fp32": {"WT": 0.99, "TC": 0.98765}, "changed_labels": 3e-4}
    broken = {"case_id": "one", "non_finite": 7}
    entries = [
        {**ENTRY, "built_from": longest, "device": "cuda:12", "cases": [record, broken]},
        {**ENTRY, "file": longest, "backend": "emulation", "device": "cpu", "cases": [broken]},
        {**ENTRY, "file": longest, "backend": "openvino", "device": "cpu", "cases": [record]},
    ]
    tried = {"file": longest, "input_layout": "linear", "window_ms": 1234.5678, "build_s": 1234.56}
    engines = {
        "gpu": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "library": "TensorRT-RTX 1.7.1.0",
        "tried": [{**tried, "verdict": "pass", "chosen": True}],
        "unusable": [{"file": longest, "input_layout": "dhwc8", "reason": "why"}],
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(parity_table({"artefacts": entries}, "Parity"))
    console.print(engine_table(engines))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    assert rows_of(lines) == [
        [longest, "trt cuda:12", "0.98765", "3.0e-04", "inconclusive"],
        [longest, "emulation", "", "", "inconclusive"],
        [longest, "openvino cpu", "0.98765", "3.0e-04", "inconclusive"],
        [longest, "linear", "1234.568", "1234.6", "pass, chosen"],
        [longest, "dhwc8", "", "", "unusable"],
    ]


def test_quiet_says_nothing(model: Path, data: Path, plan: Plan, capsys: Captured) -> None:
    plan(broken=frozenset({(HALF, "dhwc8")}))
    assert exported(model, "--data", data, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


# Usage


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--engine-level", "6"), "--engine-level: found 6, expected 0 to 5"),
        (("--engine-level", "-1"), "--engine-level"),
        (("--engine-batch", "0"), "--engine-batch: found 0"),
        (("--engine-static", "--engine-batch", "4"), "--engine-static: found --engine-batch 4"),
        (("--workspace-gib", "0"), "--workspace-gib: found 0.0"),
        (("--workspace-gib", "inf"), "--workspace-gib: found inf"),
        (("--workspace-gib", "nan"), "--workspace-gib: found nan"),
        (("--device", "-1"), "--device: found -1"),
        (("--strict-fp16",), "--strict-fp16: found neither --fp16 nor --bf16"),
        (("--cases", "0"), "--cases: found 0"),
        (("--threads", "0"), "--threads: found 0, expected 1 to 1024"),
        (("--threads", "99999999999999999999"), "--threads: found 99999999999999999999"),
    ],
)
def test_flags_that_mean_nothing_are_refused(
    checkpoints: Path, tmp_path: Path, capsys: Captured, flags: tuple[str, ...], said: str
) -> None:
    from export.cli import main

    args = [str(checkpoints / "good.pt"), "-o", str(tmp_path / "model"), *flags]
    assert main(args) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags", [("--engines", "maybe"), ("--up-branch", "k5"), ("--engine-batch", "many")]
)
def test_words_that_are_no_choice_are_refused(
    checkpoints: Path, capsys: Captured, flags: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as left:
        exported(checkpoints / "good.pt", *flags)
    assert left.value.code == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ("--half-weights",),
        ("--name", "another"),
        ("--runs", "elsewhere"),
        ("--engines", "no"),
    ],
)
def test_what_cannot_be_asked_of_a_model_directory_is_refused(
    model: Path, plan: Plan, capsys: Captured, flags: tuple[str, ...]
) -> None:
    builder = plan()
    before = bytes_of(model)
    assert exported(model, *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --")
    assert all(flag in said for flag in flags if flag.startswith("--"))
    assert bytes_of(model) == before
    assert builder.built == []


def test_what_can_be_asked_is_not_refused() -> None:
    check(ExportArgs())
    check_adding(
        ExportArgs(
            checkpoint=Path("model"),
            engines="require",
            up_branch="k4",
            engine_level=5,
            engine_batch=1,
            allow_inconclusive=True,
            gate=1.0,
        )
    )
    check_adding(ExportArgs(checkpoint=Path("model"), fp16=True, strict_fp16=True, engines="no"))
    with pytest.raises(UsageError, match="--half-weights --name"):
        check_adding(ExportArgs(checkpoint=Path("model"), half_weights=True, name="x"))


# Weights stored in fp16


def error_of(entry: Any) -> float:
    return float(entry["cases"][0]["mean_probability_error"])


def halved_model(
    checkpoints: Path, data: Path, out: Path, tracer: Tracer, *flags: str
) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.build.trace", tracer)
        code = exported(
            checkpoints / "good.pt", "-o", out, "--half-weights", "--data", data, *flags
        )
    assert code == 0
    return bytes_of(out)


@pytest.mark.usefixtures("three_cases_decide")
def test_halved_weights_are_certified_as_what_they_are(
    checkpoints: Path, data: Path, elsewhere: Path, tmp_path: Path, tracer: Tracer
) -> None:
    out = tmp_path / "model"
    files = halved_model(checkpoints, data, out, tracer, "--engines", "no")
    assert is_halved(files["model.onnx"])
    assert len(files["model.onnx"]) < 0.7 * len(bytes_of(elsewhere)["model.onnx"])
    entries = certificate_of(out)["artefacts"]
    assert [(one["backend"], one["arithmetic"], one["verdict"]) for one in entries] == [
        ("openvino", "fp32, weights stored in fp16", "pass"),
        ("ort", "fp32, weights stored in fp16", "pass"),
    ]
    # Rounded weights change probabilities by more than the order of sums does.
    exact = certificate_of(elsewhere)["artefacts"]
    assert all(
        error_of(mine) > 10 * error_of(plain) for mine, plain in zip(entries, exact, strict=False)
    )
    backend = open_backend(ModelDir.open(out), BackendOptions("openvino"))
    assert (backend.info.precision, backend.info.certificate) == ("fp32", "pass")
    backend.close()


@pytest.mark.usefixtures("three_cases_decide")
def test_engines_are_built_from_constants_and_known_by_the_file(
    checkpoints: Path, data: Path, tmp_path: Path, tracer: Tracer, plan: Plan
) -> None:
    builder = plan()
    out = tmp_path / "model"
    files = halved_model(checkpoints, data, out, tracer, "--up-branch", "k4")
    assert [is_halved(model) for model in builder.models] == [False]
    assert builder.models == [restored(files["model.onnx"])]
    (record,) = read_records(ModelDir.open(out))
    assert record.key.onnx_sha256 == sha256_of(files["model.onnx"])
    backend = open_backend(ModelDir.open(out), BackendOptions("trt"))
    assert backend.info.certificate == "pass"
    backend.close()


# A graph in reduced precision for a model that has none


@pytest.mark.usefixtures("three_cases_decide")
def test_an_fp16_graph_can_be_added_where_there_is_no_checkpoint(
    checkpoints: Path, data: Path, tmp_path: Path, tracer: Tracer
) -> None:
    out = tmp_path / "model"
    before = halved_model(checkpoints, data, out, tracer, "--engines", "no")
    assert exported(out, "--fp16", "--engines", "no", "--data", data) == 0
    after = bytes_of(out)
    assert set(after) - set(before) == {HALF}
    assert after["model.onnx"] == before["model.onnx"]
    types = {
        item.name: item.data_type
        for item in onnx.load_model_from_string(after[HALF]).graph.initializer
    }
    assert onnx.TensorProto.FLOAT not in types.values()
    (entry,) = (one for one in certificate_of(out)["artefacts"] if one["file"] == HALF)
    assert (entry["backend"], entry["verdict"]) == ("emulation", "pass")
    # What it was compared with is said, since the graph beside it was compared with PyTorch.
    assert entry["reference"] == {
        "backend": "ort",
        "device": "cpu",
        "arithmetic": "fp32",
        "file": "model.onnx",
        "sha256": sha256_of(before["model.onnx"]),
    }
    # A second time there is nothing to add.
    assert exported(out, "--fp16", "--engines", "no", "--data", data) == 0
    assert bytes_of(out) == after


@pytest.mark.usefixtures("three_cases_decide")
def test_engines_of_an_added_fp16_graph(
    checkpoints: Path, data: Path, tmp_path: Path, tracer: Tracer, plan: Plan
) -> None:
    out = tmp_path / "model"
    halved_model(checkpoints, data, out, tracer, "--engines", "no")
    builder = plan()
    assert exported(out, "--fp16", "--data", data) == 0
    assert {file for file, _ in builder.order} == {"model.onnx", HALF}
    backend = open_backend(ModelDir.open(out), BackendOptions("trt"))
    assert (backend.info.precision, backend.info.certificate) == ("fp16", "pass")
    backend.close()


def test_a_cpu_library_that_does_not_load_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name, _ in cpu_backends()] == ["openvino", "ort"]
    # What Python keeps of a module whose import is to fail.
    monkeypatch.setitem(sys.modules, "runtime.backends.openvino", None)
    assert [name for name, _ in cpu_backends()] == ["ort"]
