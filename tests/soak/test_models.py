"""No changed byte of a model directory reaches a parser: of whatever file, by whatever accident."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import onnxruntime
import openvino
import pytest

from runtime.backends import BackendOptions, open_backend
from runtime.errors import InputError
from runtime.manifest import MANIFEST
from runtime.model_card import ModelCard
from runtime.model_dir import CARD, ONNX_FP16, ONNX_FP32, PARITY, ModelDir
from tests.fake_gpu import EngineSpec, Runtime, add_engine, fake_gpu
from tests.soak.bar import bar, times
from tests.soak.mutations import mutations

MUTATIONS = times(40, 1000)  # of each file

ON_CPU: Final = ("ort", "openvino")


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every kind of file: both graphs, an engine and its record."""
    copied = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("whole") / "model"))
    add_engine(copied, EngineSpec())
    return copied


def names(model: Path) -> list[str]:
    return sorted([*ModelDir.open(model).hashes, MANIFEST])


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was called of all that would parse a model's bytes."""
    called: list[str] = []

    def record(name: str) -> Callable[..., Any]:
        def called_now(*_: Any, **__: Any) -> None:
            called.append(name)
            raise AssertionError(f"{name} was called")

        return called_now

    monkeypatch.setattr(onnxruntime, "InferenceSession", record("onnxruntime"))
    monkeypatch.setattr(openvino.Core, "read_model", record("openvino"))
    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", record("tensorrt"))
    return called


def use(model: Path, changed: str) -> None:
    """What a run does until it has the changed file."""
    opened = ModelDir.open(model)
    if changed in (CARD, PARITY, MANIFEST):
        return
    if changed == ONNX_FP32:
        for name in ON_CPU:
            with pytest.raises(InputError):
                open_backend(opened, BackendOptions(name, device="cpu", uncertified=True))
        open_backend(opened, BackendOptions("ort", "cuda:0", "fp32", uncertified=True))
    elif changed == ONNX_FP16:
        open_backend(opened, BackendOptions("ort", "cuda:0", "fp16", uncertified=True))
    else:
        open_backend(opened, BackendOptions("trt", precision="fp16", uncertified=True))


def test_what_is_whole_reaches_its_parser(model: Path, parsers: list[str]) -> None:
    """The check of the checks: with nothing changed, each of them would have been called."""
    opened = ModelDir.open(model)
    expected = []
    with fake_gpu():
        for options, parser in (
            (BackendOptions("ort", device="cpu"), "onnxruntime"),
            (BackendOptions("openvino"), "openvino"),
            (BackendOptions("ort", "cuda:0", "fp16"), "onnxruntime"),
            (BackendOptions("trt", precision="fp16"), "tensorrt"),
        ):
            expected.append(parser)
            with pytest.raises((AssertionError, InputError)):
                open_backend(opened, options)
            assert parsers == expected


@pytest.mark.parametrize("index", range(7))
def test_no_changed_byte_reaches_a_parser(
    model: Path,
    parsers: list[str],
    monkeypatch: pytest.MonkeyPatch,
    index: int,
) -> None:
    everything = names(model)
    assert len(everything) == 7
    name = everything[index]
    path, whole = model / name, (model / name).read_bytes()
    if name == CARD:
        monkeypatch.setattr(ModelCard, "from_json", lambda *_: parsers.append("card"))
    elif name == MANIFEST:
        monkeypatch.setattr("runtime.manifest.parse_json", lambda *_: parsers.append("manifest"))
    elif name == PARITY:
        monkeypatch.setattr("runtime.model_dir.parse_json", lambda *_: parsers.append("parity"))
    refused = 0
    with bar(f"models_{index}") as figures:
        try:
            with fake_gpu():
                for what, changed in mutations(whole, MUTATIONS, seed=index):
                    path.write_bytes(changed)
                    with pytest.raises(InputError) as caught:
                        use(model, name)
                    assert name in caught.value.where, what
                    assert caught.value.exit_code == 3
                    assert parsers == [], what
                    refused += 1
        finally:
            path.write_bytes(whole)
            figures |= {"file": name, "mutations": MUTATIONS, "refused": refused}
        assert refused == MUTATIONS


def test_no_two_files_can_change_places(model: Path, parsers: list[str]) -> None:
    everything = {name: (model / name).read_bytes() for name in names(model)}
    for one in everything:
        for other in everything:
            if one >= other:
                continue
            (model / one).write_bytes(everything[other])
            (model / other).write_bytes(everything[one])
            try:
                for name in (one, other):
                    with fake_gpu(), pytest.raises(InputError):
                        use(model, name)
            finally:
                for name in (one, other):
                    (model / name).write_bytes(everything[name])
            assert parsers == []


def test_mutations_are_changed_repeatable_and_of_every_kind() -> None:
    data = bytes(range(256)) * 8
    made = list(mutations(data, 90, seed=1))
    assert made == list(mutations(data, 90, seed=1))
    assert made != list(mutations(data, 90, seed=2))
    assert len(made) == 90
    assert all(changed != data for _, changed in made)
    assert len({what.split()[0] for what, _ in made}) == 9
    sizes = {len(changed) - len(data) for _, changed in made}
    assert min(sizes) < 0 < max(sizes)
    assert all(changed for _, changed in mutations(b"", 9, seed=0))
    assert len(list(mutations(b"\0", 50, seed=0))) == 50
