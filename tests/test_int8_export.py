"""brats-export --int8 from the command line, and brats-infer's backends on what it writes."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.calibrate import Calibration, calibrate
from export.int8_search import quantize_until_it_passes
from export.parity import Gate
from runtime.backends import BackendInfo, BackendOptions, open_backend, open_spare
from runtime.errors import InputError, ParityError, UsageError
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_dir import ONNX_INT8, ModelDir, sha256_of
from tests.tiny_export import Tracer, bytes_of, exported, write_cases, write_checkpoints

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Traced once, and decided by one case: both are the subject of other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.build.trace", Tracer())
        patch.setattr("export.run.Gate", partial(Gate, informative_cases=1))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and cases in ``data``; read-only."""
    root = tmp_path_factory.mktemp("int8")
    write_checkpoints(root)
    write_cases(root / "data")
    return root


@pytest.fixture(scope="module")
def exported_int8(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with an int8 graph; read-only."""
    out = tmp_path_factory.mktemp("out") / "model"
    code = exported(
        place / "good.pt", "-o", out, "--int8", "--engines", "no", "--data", place / "data"
    )
    assert code == 0
    return out


@pytest.fixture
def model(exported_int8: Path, tmp_path: Path) -> Path:
    """A copy of that model directory."""
    return Path(shutil.copytree(exported_int8, tmp_path / "place" / "model"))


def certificate_of(directory: Path) -> Any:
    return json.loads((directory / "parity.json").read_text())


def entries_of(directory: Path) -> list[Any]:
    found = certificate_of(directory)["artefacts"]
    return [entry for entry in found if entry["file"] == ONNX_INT8]


def test_a_checkpoint_becomes_a_model_with_an_int8_graph(exported_int8: Path, place: Path) -> None:
    files = bytes_of(exported_int8)
    assert set(files) == {
        "card.json", "manifest.json", "parity.json", "model.onnx", ONNX_INT8,
    }  # fmt: skip
    entries = entries_of(exported_int8)
    assert [entry["backend"] for entry in entries] == ["openvino", "ort"]
    graph = onnx.load_model_from_string(files[ONNX_INT8])
    convolutions = sum(node.op_type in ("Conv", "ConvTranspose") for node in graph.graph.node)
    kept = len(entries[0]["kept"]["kept_fp32"])
    assert kept < convolutions / 2 + 1
    assert entries[0]["arithmetic"] == (
        f"int8 in {convolutions - kept} of {convolutions} convolutions, fp32 elsewhere"
    )
    for entry in entries:
        assert entry["verdict"] == "pass"
        assert entry["sha256"] == sha256_of(files[ONNX_INT8])
        # Its own gate is said; reference and source are those of the whole certificate.
        assert (entry["gate"]["dice"], entry["gate"]["truth"]) == (0.98, 0.99)
        assert "reference" not in entry
        calibration = entry["calibration"]
        assert calibration["source"] == "data"
        # Three cases are what the gate needs.
        assert calibration["apart_from_gate"] is False
        assert len(calibration["cases"]) == 3
    assert certificate_of(exported_int8)["gate"]["dice"] == 0.995
    assert len(files[ONNX_INT8]) < 0.6 * len(files["model.onnx"])


def test_it_can_be_added_to_a_model_without_one(
    place: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "model"
    data = place / "data"
    assert exported(place / "good.pt", "-o", out, "--engines", "no", "--data", data) == 0
    before = bytes_of(out)
    own = tmp_path / "own"
    name = sorted(path.name for path in data.iterdir() if path.is_dir())[-1]
    shutil.copytree(data / name, own / name)
    capsys.readouterr()
    wanted = (out, "--int8", "--engines", "no", "--data", data, "--calibrate", own)
    assert exported(*wanted) == 0
    assert f"calibration on {name}" in capsys.readouterr().err
    after = bytes_of(out)
    assert set(after) - set(before) == {ONNX_INT8}
    assert after["model.onnx"] == before["model.onnx"]
    for entry in entries_of(out):
        assert entry["verdict"] == "pass"
        assert entry["reference"]["file"] == "model.onnx"
        assert entry["calibration"]["source"] == "cases of its own"
        assert [case["case_id"] for case in entry["calibration"]["cases"]] == [name]
        # What calibrated it does not judge it.
        assert name not in [case["case_id"] for case in entry["cases"]]
    # A second time there is nothing to add, and nothing that could be calibrated.
    assert exported(*wanted[:-2]) == 0
    assert bytes_of(out) == after
    assert exported(*wanted) == 2
    assert "is there already and stays as it is" in capsys.readouterr().err
    assert bytes_of(out) == after


def hopeless(*args: Any, **kwargs: Any) -> Calibration:
    """Limits that leave nothing of any activation."""
    found = calibrate(*args, **kwargs)
    return Calibration(dict.fromkeys(found.limits, 1e-6), found.cases, found.record)


def test_a_failed_gate_releases_nothing(
    model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("export.produce.calibrate", hopeless)
    once = partial(quantize_until_it_passes, evaluations=1)
    monkeypatch.setattr("export.produce.quantize_until_it_passes", once)
    before = bytes_of(model)
    arguments = ("--int8", "--engines", "no", "--data", place / "data")
    assert exported(place / "good.pt", "-o", model, *arguments) == 5
    assert bytes_of(model) == before
    said = " ".join(capsys.readouterr().err.split())
    assert "model.int8.onnx on openvino" in said
    assert "export again without --int8" in said
    (entry,) = entries_of(model.with_name("model.rejected"))
    assert entry["verdict"] == "fail"
    assert entry["reasons"][-1] == "bisection: 1 evaluations did not suffice"


def test_flags_of_int8(model: Path, place: Path, capsys: Captured) -> None:
    assert exported(place / "good.pt", "--calibrate", place / "data") == 2
    assert "--calibrate" in capsys.readouterr().err
    assert exported(place / "good.pt", "--int8", "--calibrate", place / "nothing") == 3
    assert "nothing" in capsys.readouterr().err


# What it serves


@pytest.mark.parametrize("name", ["auto", "openvino", "ort"])
def test_int8_runs_where_its_certificate_is(
    exported_int8: Path, name: Any, rng: np.random.Generator
) -> None:
    opened = ModelDir.open(exported_int8)
    image = rng.normal(size=(1, 4, *opened.card.patch)).astype(np.float32)
    results = {}
    for precision in ("fp32", "int8"):
        backend = open_backend(
            opened,
            BackendOptions(name, precision=precision, device="cpu", threads=1),  # type: ignore[arg-type]
        )
        info = backend.info
        assert (info.precision, info.certificate, info.device) == (precision, "pass", "cpu")
        assert info.artefact == (ONNX_INT8 if precision == "int8" else "model.onnx")
        assert info.name == ("openvino" if name == "auto" else name)
        backend.bind(opened.card.patch, 1)
        found: list[Any] = []
        backend.run(
            1,
            lambda i, j, inputs: inputs.__setitem__(slice(None), image),
            lambda i, j, outputs, found=found: found.append(outputs.copy()),  # type: ignore[misc]
        )
        backend.close()
        results[precision] = found[0]
    error = np.abs(results["int8"] - results["fp32"])
    assert 0 < error.mean() < 0.02


def test_int8_stays_on_the_cpu_of_a_machine_with_a_gpu(
    exported_int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.backends.opening.cuda_devices", lambda: 1)
    opened = ModelDir.open(exported_int8)
    backend = open_backend(opened, BackendOptions(precision="int8", threads=1))
    assert (backend.info.name, backend.info.device) == ("openvino", "cpu")
    spare = open_spare(opened, BackendOptions(precision="int8", threads=1), backend.info)
    assert spare is not None
    found = spare.info
    assert (found.name, found.device, found.precision) == ("openvino", "cpu", "fp32")
    for one in (backend, spare):
        one.close()
    for options in (
        BackendOptions("ort", device="cuda:0", precision="int8"),
        BackendOptions("auto", device="cuda", precision="int8"),
        BackendOptions("trt", precision="int8"),
    ):
        with pytest.raises(UsageError, match="int8 on a GPU"):
            open_backend(opened, options)


def test_a_spare_of_onnx_runtime_is_onnx_runtime(exported_int8: Path) -> None:
    opened = ModelDir.open(exported_int8)
    failed = BackendInfo("ort", "cpu", "int8")
    spare = open_spare(opened, BackendOptions("ort", precision="int8", threads=1), failed)
    assert spare is not None
    assert (spare.info.name, spare.info.precision) == ("ort", "fp32")
    spare.close()


def changed(model: Path, change: Callable[[dict[str, Any]], None]) -> ModelDir:
    certificate = certificate_of(model)
    change(certificate)
    (model / "parity.json").write_text(json.dumps(certificate))
    (model / MANIFEST).write_bytes(manifest_of(model))
    return ModelDir.open(model)


def fail_on_one(certificate: dict[str, Any]) -> None:
    entry = next(one for one in certificate["artefacts"] if one["file"] == ONNX_INT8)
    entry["verdict"] = "fail"


def forget(certificate: dict[str, Any]) -> None:
    entries = certificate["artefacts"]
    certificate["artefacts"] = [one for one in entries if one["file"] != ONNX_INT8]


@pytest.mark.parametrize("change", [fail_on_one, forget])
def test_without_a_certificate_it_is_refused(
    model: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    opened = changed(model, change)
    for name in ("openvino", "ort"):
        options = BackendOptions(name, precision="int8", device="cpu", threads=1)  # type: ignore[arg-type]
        with pytest.raises(ParityError, match="certificate"):
            open_backend(opened, options)
    backend = open_backend(
        opened, BackendOptions(precision="int8", device="cpu", threads=1, uncertified=True)
    )
    assert backend.info.certificate == ("fail" if change is fail_on_one else "none")
    backend.close()
    # What is not asked for in int8 does not become it.
    backend = open_backend(opened, BackendOptions(device="cpu", threads=1))
    assert backend.info.precision == "fp32"
    backend.close()


def test_a_model_without_an_int8_graph_names_the_flag(model: Path) -> None:
    (model / ONNX_INT8).unlink()
    opened = changed(model, forget)
    with pytest.raises(InputError, match="brats-export --int8"):
        open_backend(opened, BackendOptions(precision="int8", device="cpu"))


def test_a_scale_that_is_not_finite_gives_no_label_map(model: Path) -> None:
    graph = onnx.load_model_from_string((model / ONNX_INT8).read_bytes())
    quantizer = next(node for node in graph.graph.node if node.op_type == "QuantizeLinear")
    scale = next(item for item in graph.graph.initializer if item.name == quantizer.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), scale.name))
    (model / ONNX_INT8).write_bytes(graph.SerializeToString())
    opened = changed(model, lambda certificate: None)
    options = BackendOptions("openvino", precision="int8", device="cpu", uncertified=True)
    with pytest.raises(InputError):
        open_backend(opened, options)
