"""Triton: what is written for a server against its own schema, and our client against a server that
speaks its protocol.
"""

import json
import shutil
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="tritonclient is in the extra triton")

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.cli import main as export
from export.triton import MARK, Served, config, write_repository
from runtime.backends import BackendOptions, open_backend
from runtime.case import Case
from runtime.cli.infer import main as infer
from runtime.errors import (
    BackendUnavailableError,
    ComputeError,
    InputError,
    OutputError,
    ParityError,
    UsageError,
)
from runtime.model_card import CARD_KEY, ModelCard
from runtime.model_dir import ONNX_FP16, ONNX_FP32, ModelDir
from runtime.nifti import load
from runtime.phantom import write_phantoms
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.serving import SHA256_KEY, split_address
from tests.fake_gpu import EngineSpec, add_engine
from tests.fake_triton import FakeTriton, read_config, serving


@pytest.fixture
def repository(tiny_model: Path, tmp_path: Path) -> Path:
    write_repository(ModelDir.open(tiny_model), tmp_path / "repository")
    return tmp_path / "repository"


def phantom(folder: Path) -> Case:
    (written,) = write_phantoms(folder, 1, seed=3, shape=(48, 40, 32))
    return Case.from_dir(written)


def triton(address: str, **more: object) -> BackendOptions:
    return BackendOptions("triton", f"{address}/tiny", **more)  # type: ignore[arg-type]


def test_the_configuration_is_one_of_tritons(repository: Path, tiny_model: Path) -> None:
    model = ModelDir.open(tiny_model)
    found = {path.name: read_config(path / "config.pbtxt") for path in repository.iterdir()}
    assert set(found) == {"tiny", "tiny_fp16"}
    for name, file in (("tiny", ONNX_FP32), ("tiny_fp16", ONNX_FP16)):
        told = found[name]
        assert (told.name, told.platform) == (name, "onnxruntime_onnx")
        assert told.max_batch_size == model.card.inference.batch
        (one,), (other,) = told.input, told.output
        assert list(one.dims) == [4, -1, -1, -1] == list(other.dims)
        assert other.label_filename == "labels.txt"
        parameters = {key: value.string_value for key, value in told.parameters.items()}
        assert json.loads(parameters[CARD_KEY]) == json.loads(model.card.to_json())
        assert parameters[SHA256_KEY] == model.hashes[file]
        folder = repository / name
        assert (folder / "1" / "model.onnx").read_bytes() == model.read(file)
        labels = (folder / "labels.txt").read_text().splitlines()
        assert labels == list(model.card.labels)


def test_an_engine_is_for_one_window_and_one_kind_of_gpu(tiny_card: ModelCard) -> None:
    engine = Served(
        "tiny_trt_fp16_sm90", "engines/x.plan", "fp16", "tensorrt_plan", "in", "out",
        (128, 128, 64), 16, "9.0",
    )  # fmt: skip
    card = replace(tiny_card, name='a "b" \\ é\n')
    told = config(engine, card, {"engines/x.plan": "ab" * 32})
    found = text_format.Parse(told, model_config_pb2.ModelConfig())
    assert list(found.input[0].dims) == [4, 128, 128, 64]
    assert (found.platform, found.max_batch_size) == ("tensorrt_plan", 16)
    assert found.default_model_filename == "model.plan"
    assert dict(found.cc_model_filenames) == {"9.0": "model.plan"}
    assert json.loads(found.parameters[CARD_KEY].string_value)["name"] == card.name


def test_a_model_of_somebody_else_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "1").mkdir(parents=True)
    (tmp_path / "tiny" / "config.pbtxt").write_text('name: "tiny"')
    with pytest.raises(OutputError, match="not ours"):
        write_repository(ModelDir.open(tiny_model), tmp_path)
    assert not (tmp_path / "tiny_fp16").exists()
    assert (tmp_path / "tiny" / "config.pbtxt").read_text() == 'name: "tiny"'


def test_ours_is_replaced(repository: Path, tiny_model: Path) -> None:
    (repository / "tiny" / "1" / "model.onnx").write_bytes(b"")
    write_repository(ModelDir.open(tiny_model), repository)
    model = ModelDir.open(tiny_model)
    assert (repository / "tiny" / "1" / "model.onnx").read_bytes() == model.read(ONNX_FP32)
    assert (repository / "tiny" / MARK).is_file()


def test_what_failed_its_certificate_is_not_served(tiny_model: Path, tmp_path: Path) -> None:
    model = ModelDir.open(tiny_model)
    artefacts = [
        entry | {"verdict": "fail" if entry["file"] == ONNX_FP16 else entry["verdict"]}
        for entry in model.certificate["artefacts"]
    ]
    failed = replace(model, certificate={**model.certificate, "artefacts": artefacts})
    assert [one.name for one in write_repository(failed, tmp_path)] == ["tiny"]
    every = [entry | {"verdict": "fail"} for entry in artefacts]
    with pytest.raises(UsageError, match="nothing in"):
        write_repository(
            replace(model, certificate={**model.certificate, "artefacts": every}), tmp_path
        )


def test_a_case_through_a_server_is_the_case_here(
    repository: Path, tiny_model: Path, tmp_path: Path
) -> None:
    case = phantom(tmp_path / "data")
    volume, model = load(case), ModelDir.open(tiny_model)
    with closing(open_backend(model, BackendOptions("ort", "cpu", threads=1))) as here:
        expected = Segmenter(here, SegmentOptions(probabilities=True)).segment(volume)
    with serving(repository) as (service, address):
        with closing(open_backend(model, triton(address, threads=1))) as there:
            options = SegmentOptions(probabilities=True, batch=3)
            found = Segmenter(there, options).segment(volume)
            assert there.info.artefact == ONNX_FP32
            assert there.info.precision == "fp32"
            assert there.info.certificate == "inconclusive"
        assert sum(service.batches) == len(found.plan)
        assert max(service.batches) == 2 == model.card.inference.batch
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(
        np.asarray(found.probabilities), np.asarray(expected.probabilities), atol=1e-6
    )


def test_the_commands_serve_and_ask(tiny_model: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 1, seed=3, shape=(48, 40, 32))
    repository, out = tmp_path / "repository", tmp_path / "out"
    assert export([str(tiny_model), "--triton", str(repository), "--quiet"]) == 0
    with serving(repository) as (_, address):
        asked = ["--backend", "triton", "--device", f"{address}/tiny", "--model", str(tiny_model)]
        assert infer([str(tmp_path / "data"), *asked, "-o", str(out), "--quiet"]) == 0
    (sidecar,) = out.glob("*[0-9].json")
    told = json.loads(sidecar.read_text())
    assert told["backend"]["name"] == "triton"
    assert told["model"]["sha256"] == ModelDir.open(tiny_model).hashes[ONNX_FP32]


def test_a_server_that_is_not_there(tiny_model: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"--device 127\.0\.0\.1:9/tiny"):
        open_backend(ModelDir.open(tiny_model), triton("127.0.0.1:9"))


def test_a_model_that_is_not_there_or_not_ready(repository: Path, tiny_model: Path) -> None:
    model = ModelDir.open(tiny_model)
    with serving(repository) as (service, address):
        with pytest.raises(BackendUnavailableError, match="no model other"):
            open_backend(model, BackendOptions("triton", f"{address}/other"))
        service.ready = False
        with pytest.raises(BackendUnavailableError, match="ready are: none"):
            open_backend(model, triton(address))


def test_a_name_that_the_server_does_not_know_is_answered_with_those_it_has(
    repository: Path, tiny_model: Path
) -> None:
    with serving(repository) as (_, address), pytest.raises(BackendUnavailableError) as caught:
        open_backend(ModelDir.open(tiny_model), BackendOptions("triton", f"{address}/other"))
    assert "tiny, tiny_fp16" in caught.value.found


def test_a_port_that_says_nothing_is_not_waited_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody listens there who is no gRPC server, such as one that hangs."""
    from runtime.backends import triton as backend

    monkeypatch.setattr(backend, "_ASKED_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(BackendUnavailableError, match="8001"):
            open_backend(ModelDir.open(tiny_model), triton(f"127.0.0.1:{port}"))


def test_an_engine_takes_the_window_that_it_was_built_for(
    repository: Path, tiny_model: Path
) -> None:
    path = repository / "tiny" / "config.pbtxt"
    path.write_text(path.read_text().replace("4, -1, -1, -1", "4, 16, 12, 8"))
    with (
        serving(repository) as (_, address),
        closing(open_backend(ModelDir.open(tiny_model), triton(address))) as backend,
    ):
        with pytest.raises(UsageError, match="16,12,8") as caught:
            backend.bind((8, 12, 8), 1)
        assert caught.value.found == "8,12,8"
        backend.bind((16, 12, 8), 1)


def test_a_request_is_no_larger_than_a_message_may_be(
    repository: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.backends import triton as backend_file

    case, model = phantom(tmp_path / "data"), ModelDir.open(tiny_model)
    window = 4 * 4 * 16 * 12 * 8
    monkeypatch.setattr(backend_file, "_MESSAGE_BYTES", window + 10)
    with (
        serving(repository) as (service, address),
        closing(open_backend(model, triton(address))) as backend,
    ):
        Segmenter(backend, SegmentOptions(patch=(16, 12, 8), batch=2)).segment(load(case))
        assert set(service.batches) == {1}


def test_reduced_precision_on_a_server_without_a_gpu_is_refused(
    repository: Path, tiny_model: Path
) -> None:
    """A CPU computes such a graph in fp32, and its certificate says nothing of that."""
    model = ModelDir.open(tiny_model)
    with serving(repository) as (service, address):
        half = BackendOptions("triton", f"{address}/tiny_fp16", uncertified=True)
        open_backend(model, half).close()
        service.on = "KIND_CPU"
        with pytest.raises(UsageError, match="fp16 on a CPU"):
            open_backend(model, half)
        open_backend(model, triton(address)).close()


def test_another_precision_than_the_served_one_is_refused(
    repository: Path, tiny_model: Path
) -> None:
    with serving(repository) as (_, address):
        with pytest.raises(UsageError, match="fp32") as caught:
            open_backend(ModelDir.open(tiny_model), triton(address, precision="fp16"))
        assert caught.value.where == "--precision"
        open_backend(ModelDir.open(tiny_model), triton(address, precision="fp32")).close()


def test_what_is_not_finite_in_fp16_is_done_here_in_fp32(
    repository: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from runtime.backends import open_spare

    case, model = phantom(tmp_path / "data"), ModelDir.open(tiny_model)
    with serving(repository) as (service, address):
        service.spoiling = True
        options = BackendOptions("triton", f"{address}/tiny_fp16", threads=1, uncertified=True)
        with closing(open_backend(model, options)) as there:
            spare = lambda: open_spare(model, options, there.info)  # noqa: E731
            found = Segmenter(there, spare=spare).segment(load(case))
    with closing(open_backend(model, BackendOptions("ort", "cpu", threads=1))) as here:
        np.testing.assert_array_equal(found.labels, Segmenter(here).segment(load(case)).labels)


def test_what_failed_on_a_gpu_is_not_served(tiny_model: Path, tmp_path: Path) -> None:
    model = ModelDir.open(tiny_model)
    refused = [{"file": ONNX_FP16, "sha256": model.hashes[ONNX_FP16], "backend": "ort"}]
    failed = replace(model, certificate={**model.certificate, "refused": refused})
    assert [one.name for one in write_repository(failed, tmp_path)] == ["tiny"]


@pytest.mark.parametrize(("fewest", "served"), [(1, True), (2, False)])
def test_an_engine_is_served_that_takes_a_single_window(
    tiny_model: Path, tmp_path: Path, fewest: int, served: bool
) -> None:
    """A server sends what has come when its delay is over, be it one window."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    add_engine(folder, EngineSpec("fp16", "linear", (16, 12, 8), 4, min_batch=fewest))
    names = [one.name for one in write_repository(ModelDir.open(folder), tmp_path / "repository")]
    assert any("_trt_fp16_" in name for name in names) == served


def test_a_model_of_another_card_is_refused(
    repository: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = ModelDir.open(tiny_model)
    with serving(repository) as (_, address):
        other = replace(model, card=replace(model.card, normalisation="zscore-volume"))
        with pytest.raises(InputError, match=r"card\.json"):
            open_backend(other, triton(address))
        retrained = replace(model, hashes={**model.hashes, ONNX_FP32: "cd" * 32})
        with pytest.raises(InputError, match="does not hold"):
            open_backend(retrained, triton(address))


def test_a_graph_without_certificate_is_refused(repository: Path, tiny_model: Path) -> None:
    model = replace(ModelDir.open(tiny_model), certificate={"artefacts": []})
    with serving(repository) as (_, address):
        with pytest.raises(ParityError, match="no parity certificate"):
            open_backend(model, triton(address))
        open_backend(model, triton(address, uncertified=True)).close()


def test_a_server_that_fails_is_told(repository: Path, tiny_model: Path, tmp_path: Path) -> None:
    case = phantom(tmp_path / "data")
    model = ModelDir.open(tiny_model)
    with (
        serving(repository) as (service, address),
        closing(open_backend(model, triton(address))) as backend,
    ):
        service.failing = "out of memory on the server"
        with pytest.raises(ComputeError, match="out of memory on the server"):
            Segmenter(backend).segment(load(case))
        service.failing = ""
        again = Segmenter(backend).segment(load(case)).labels
    with closing(open_backend(model, BackendOptions("ort", "cpu", threads=1))) as here:
        np.testing.assert_array_equal(again, Segmenter(here).segment(load(case)).labels)


@pytest.mark.parametrize(
    "address", ["", "host", "host:1", ":1/m", "host:0/m", "h:99999/m", "h:1/a/b"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT/MODEL"):
        split_address(address)


def test_addresses() -> None:
    assert split_address("localhost:8001/brats") == ("localhost:8001", "brats")
    assert split_address("[::1]:8001/m") == ("[::1]:8001", "m")


def test_the_fake_speaks_for_its_repository(repository: Path) -> None:
    assert set(FakeTriton(repository).configs) == {"tiny", "tiny_fp16"}
    shutil.rmtree(repository / "tiny")
    assert set(FakeTriton(repository).configs) == {"tiny_fp16"}
