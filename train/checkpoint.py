"""What a training run leaves behind: tensors and JSON strings, so that loading runs no code."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor

from runtime.atomic import open_atomic
from runtime.errors import InputError
from runtime.model_card import ModelCard
from train.unet import UNet3D

FORMAT: Final = "brats-deploy.checkpoint"
SCHEMA: Final = 1
_KEYS: Final = ("model", "architecture", "card", "config", "progress", "optimizer")


@dataclass(frozen=True)
class Architecture:
    """The arguments of `UNet3D`."""

    in_channels: int = 4
    classes: int = 4
    features: tuple[int, ...] = (16, 32, 64, 128, 256)
    dropout: float = 0.2
    residual: bool = False
    deep_supervision: int = 0

    def build(self, seed: int = 0) -> UNet3D:
        """A network with fresh weights, a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet3D(**asdict(self))


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is needed to run or to resume it.

    Attributes:
        model: the state of the network that is served, name to tensor on the CPU: with averaged
            weights where the run averages them.
        architecture: how to build the network that takes it.
        card: the model's contract.
        epoch: epochs behind it.
        config: the resolved training configuration, as JSON values.
        progress: what the loop needs to go on (history, best score, ...), as JSON values.
        optimizer: what `train.step.Stepper.state` gave; empty where a run cannot resume from here.
    """

    model: Mapping[str, Tensor]
    architecture: Architecture
    card: ModelCard
    epoch: int
    config: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` atomically; ``torch.load(path, weights_only=True)`` reads it.

    Raises:
        OutputError: it cannot be written.
    """
    value = {
        "format": FORMAT,
        "schema": SCHEMA,
        "epoch": checkpoint.epoch,
        "model": {name: tensor.detach() for name, tensor in checkpoint.model.items()},
        "architecture": json.dumps(asdict(checkpoint.architecture)),
        "card": checkpoint.card.to_json(),
        "config": json.dumps(checkpoint.config),
        "progress": json.dumps(checkpoint.progress),
        "optimizer": dict(checkpoint.optimizer),
    }
    with open_atomic(path) as file:
        torch.save(value, file)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU.

    Raises:
        InputError: missing, truncated, damaged, not one of ours, or of another schema.
    """
    value = _read(path)
    if value.get("format") != FORMAT or any(key not in value for key in _KEYS):
        raise _bad(path, "a PyTorch file that is not a checkpoint of brats-train")
    if value.get("schema") != SCHEMA:
        raise _bad(path, f"a checkpoint of schema {value.get('schema')}")
    try:
        architecture = json.loads(value["architecture"])
        architecture["features"] = tuple(architecture["features"])
        return Checkpoint(
            model=value["model"],
            architecture=Architecture(**architecture),
            card=ModelCard.from_json(value["card"], path),
            epoch=int(value["epoch"]),
            config=json.loads(value["config"]),
            progress=json.loads(value["progress"]),
            optimizer=value["optimizer"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _bad(path, f"an unreadable checkpoint ({error})") from error


def load_model(path: Path) -> tuple[UNet3D, ModelCard]:
    """The network of a checkpoint in eval mode, float32 on the CPU, and its card.

    Raises:
        InputError: as for `load_checkpoint`, or the weights do not fit the architecture.
    """
    checkpoint = load_checkpoint(path)
    model = checkpoint.architecture.build()
    restore_weights(model, checkpoint, path)
    return model.eval(), checkpoint.card


def restore_weights(model: UNet3D, checkpoint: Checkpoint, path: Path) -> None:
    """Put the weights of ``checkpoint`` (read from ``path``) into ``model``.

    Raises:
        InputError: they do not fit.
    """
    try:
        model.load_state_dict(dict(checkpoint.model))
    except RuntimeError as error:
        raise _bad(path, "weights that do not fit the architecture beside them") from error


def newest_run(runs: Path) -> Path:
    """The run directory below ``runs`` whose checkpoints/best.pt was written last.

    Raises:
        InputError: there is none.
    """
    best = sorted(runs.glob("*/checkpoints/best.pt"), key=lambda path: path.stat().st_mtime_ns)
    if not best:
        raise InputError(
            runs,
            found="no run with checkpoints/best.pt",
            expected="the output of brats-train",
            remedy="train a model with brats-train, or name a checkpoint",
        )
    return best[-1].parent.parent


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            path,
            found="nothing",
            expected="a checkpoint of brats-train (.pt)",
            remedy="check the path, or train a model with brats-train",
        )
    try:
        if not is_zipfile(path):
            raise BadZipFile("truncated, or not a PyTorch file")
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _bad(path, "a PyTorch file that holds more than tensors and strings") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise _bad(path, f"an unreadable file ({first})") from error
    if not isinstance(value, dict):
        raise _bad(path, "a PyTorch file that is not a checkpoint of brats-train")
    return value


def _bad(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=found,
        expected=f"a checkpoint of schema {SCHEMA} as brats-train writes it",
        remedy="copy the file again, or choose another checkpoint of the run",
    )
