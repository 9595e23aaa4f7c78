"""The network, the checkpoint that carries it, and the backend that serves it while it trains."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.errors import InputError, UsageError
from runtime.model_card import ModelCard
from runtime.ops import Array
from train.backend import TorchBackend
from train.checkpoint import (
    Architecture,
    Checkpoint,
    load_checkpoint,
    load_model,
    newest_run,
    save_checkpoint,
)
from train.unet import UNet3D

TINY = Architecture(features=(4, 8), dropout=0.2)
CARD = ModelCard("tiny", patch=(16, 16, 16), divisor=2)


def _network() -> UNet3D:
    torch.manual_seed(3)
    return TINY.build()


def _checkpoint() -> Checkpoint:
    model = _network()
    return Checkpoint(
        model=model.state_dict(),
        architecture=TINY,
        card=CARD,
        epoch=7,
        config={"train": {"lr": 1e-3}},
        progress={"best": 0.5},
        optimizer={"optimizer": torch.optim.AdamW(model.parameters()).state_dict()},
    )


@pytest.mark.parametrize(("residual", "parameters"), [(False, 6_583_172), (True, 6_692_036)])
def test_the_reference_network_has_its_size(residual: bool, parameters: int) -> None:
    # By hand: 27 x 130880 (encoder) + 27 x 87040 (decoder) + 8 x 87040 (up-convolutions) + 2944
    # (batch norms) + 68 (head), and 108864 for the residual 1x1x1 convolutions.
    model = UNet3D(residual=residual)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.divisor == 16


@pytest.mark.parametrize("shape", [(2, 4, 6), (16, 8, 4)])
def test_output_has_the_shape_of_the_input(shape: tuple[int, int, int]) -> None:
    logits = _network()(torch.zeros(2, 4, *shape))
    assert logits.shape == (2, 4, *shape)


def test_the_network_ends_in_logits() -> None:
    logits = _network().eval()(torch.randn(1, 4, 8, 8, 8))
    assert not torch.allclose(logits.sum(1), torch.ones(1, 8, 8, 8))


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    written = _checkpoint()
    save_checkpoint(path, written)
    read = load_checkpoint(path)
    assert read.architecture == TINY
    assert read.card == CARD
    assert (read.epoch, read.config, read.progress) == (7, written.config, written.progress)
    for name, tensor in written.model.items():
        assert torch.equal(read.model[name], tensor)
    model, card = load_model(path)
    assert card == CARD
    assert not model.training
    x = torch.randn(1, 4, 8, 8, 8)
    assert torch.equal(model(x), _network().eval()(x))


def test_loading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, _checkpoint())
    value = torch.load(path, weights_only=True)
    assert isinstance(value["card"], str)
    assert isinstance(value["architecture"], str)
    torch.save({"code": Path("x")}, path)
    with pytest.raises(InputError, match="more than tensors and strings"):
        load_checkpoint(path)


DEEP = '{"a":' * 100_000


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("architecture", "[]"),
        ("architecture", DEEP),
        ("architecture", '{"features": 3}'),
        ("architecture", '{"features": [4, 8], "more": 1}'),
        ("architecture", '{"features": [4, -8]}'),
        ("architecture", '{"features": ["4", "8"]}'),
        ("architecture", '{"features": [4, 1000000000000]}'),
        ("architecture", '{"features": [4]}'),
        ("architecture", '{"features": [4, 8], "residual": "no"}'),
        ("architecture", '{"features": [4, 8], "dropout": 2}'),
        ("architecture", '{"features": [4, 8], "dropout": "x"}'),
        ("architecture", '{"features": [4, 8], "deep_supervision": 5}'),
        ("architecture", '{"features": [4, 8], "in_channels": 3}'),
        ("architecture", '{"features": [4, 8], "classes": 5}'),
        ("config", DEEP),
        ("progress", DEEP),
        ("progress", "{"),
        ("card", DEEP),
        ("card", "{}"),
    ],
)
def test_text_of_a_checkpoint_that_says_something_else_is_an_input_error(
    tmp_path: Path, key: str, text: str
) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, _checkpoint())
    value = torch.load(path, weights_only=True)
    torch.save({**value, key: text}, path)
    with pytest.raises(InputError, match=r"x\.pt") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_a_score_that_is_not_there_yet_comes_back(tmp_path: Path) -> None:
    written = replace(_checkpoint(), progress={"best": float("-inf")})
    save_checkpoint(tmp_path / "x.pt", written)
    assert load_checkpoint(tmp_path / "x.pt").progress == written.progress


@pytest.mark.parametrize("part", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_an_input_error(tmp_path: Path, part: float) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, _checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data)) if part < 1 else int(part)])
    with pytest.raises(InputError, match=r"x\.pt"):
        load_checkpoint(path)


def test_damage_within_a_checkpoint_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, _checkpoint())
    data = bytearray(path.read_bytes())
    at = data.index(b"brats-deploy.checkpoint")
    data[at : at + 5] = b"\xff\xfe\xfd\xfc\xfb"
    path.write_bytes(data)
    with pytest.raises(InputError):
        load_checkpoint(path)


def test_foreign_files_are_input_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(InputError, match="found nothing"):
        load_checkpoint(path)
    torch.save(_network().state_dict(), path)
    with pytest.raises(InputError, match="not a checkpoint of brats-train"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a checkpoint of brats-train"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"format": "x"}))
    with pytest.raises(InputError, match="unreadable"):
        load_checkpoint(path)


def test_weights_of_another_shape_are_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, replace(_checkpoint(), architecture=Architecture(features=(4, 16))))
    with pytest.raises(InputError, match="do not fit"):
        load_model(path)


def test_newest_run_is_that_of_the_newest_best(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(("b", "c", "a")):
        path = tmp_path / name / "checkpoints" / "best.pt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 + age, 1000 + age))
    (tmp_path / "d" / "checkpoints").mkdir(parents=True)
    assert newest_run(tmp_path) == tmp_path / "a"
    with pytest.raises(InputError, match="brats-train"):
        newest_run(tmp_path / "empty")


def _run(backend: TorchBackend, windows: np.ndarray) -> np.ndarray:
    out = np.empty((len(windows), 4, *windows.shape[2:]), np.float32)

    def fill(first: int, last: int, inputs: Array) -> None:
        inputs[...] = windows[first:last]

    def take(first: int, last: int, probabilities: Array) -> None:
        out[first:last] = probabilities

    backend.run(len(windows), fill, take)
    return out


@pytest.mark.parametrize("training", [True, False])
def test_backend_applies_softmax_once_and_keeps_the_mode(training: bool) -> None:
    model = _network().train(training)
    windows = np.random.default_rng(0).normal(size=(3, 4, 16, 8, 16)).astype(np.float32)
    backend = TorchBackend(model, CARD)
    backend.bind((16, 8, 16), 2)
    found = _run(backend, windows)
    assert model.training is training
    with torch.inference_mode():
        expected = torch.softmax(model.eval()(torch.from_numpy(windows)), 1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert not np.allclose(found, torch.softmax(expected, 1).numpy(), atol=1e-2)
    assert (backend.info.name, backend.info.precision) == ("torch", "fp32")


def test_backend_does_not_touch_weights_or_statistics() -> None:
    model = _network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backend = TorchBackend(model, CARD)
    backend.bind((16, 16, 16), 1)
    _run(backend, np.ones((1, 4, 16, 16, 16), np.float32))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_backend_refuses_windows_that_cannot_be_halved() -> None:
    with pytest.raises(UsageError, match="multiples of 2"):
        TorchBackend(_network(), CARD).bind((16, 15, 16), 1)


def test_backend_halves_its_batch_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _network()
    backend = TorchBackend(model, CARD)
    whole = model.forward
    sizes = []

    def small(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("no memory")
        return whole(x)

    monkeypatch.setattr(model, "forward", small)
    backend.bind((16, 16, 16), 4)
    assert np.isfinite(_run(backend, np.ones((3, 4, 16, 16, 16), np.float32))).all()
    assert sizes == [3, 2, 1, 1, 1]
