"""What a training run leaves behind: tensors and JSON strings, so that loading runs no code."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from runtime.atomic import open_atomic
from runtime.bounded import parse_json, words
from runtime.errors import InputError, UsageError
from runtime.labels import MODALITIES, Label
from runtime.model_card import ModelCard, Shape3
from train.memory import room_for
from train.state_dict import fill
from train.torch_file import Wanted, read_torch_file
from train.tutorial import (
    PATCH,
    TutorialArchitecture,
    TutorialUNet3D,
    card_of,
    looks_like_tutorial,
    state_of,
)
from train.unet import UNet3D

FORMAT: Final = "brats-deploy.checkpoint"
SCHEMA: Final = 1
_WIDEST: Final = 8192
_MOST_LEVELS: Final = 10
_KEYS: Final = ("model", "architecture", "card", "config", "progress", "optimizer")
_OURS: Final = Wanted(
    f"a checkpoint of schema {SCHEMA} as brats-train writes it",
    "copy the file again, or choose another checkpoint of the run",
)
_TUTORIALS: Final = Wanted(
    "a checkpoint of the published tutorial",
    "copy the file again, or choose another checkpoint",
    "save its weights alone, with torch.save({'model_state_dict': model.state_dict()}, FILE)",
)


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
        """A network with fresh weights, a function of the seed.

        Raises:
            ComputeError: memory is too small for it.
        """
        what = f"a network of features {', '.join(map(str, self.features))}"
        remedy = "lower --model.features, or use a machine with more memory"
        with room_for(what, "cpu", remedy), torch.random.fork_rng(devices=[]):
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
    # In memory first: PyTorch's own writer hides what the system says of a full disk.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with open_atomic(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU.

    Raises:
        InputError: missing, truncated, damaged, not one of ours, or of another schema.
    """
    value = read_torch_file(path, _OURS)
    if looks_like_tutorial(value):
        raise _OURS.error(
            path,
            "what looks like a checkpoint of the published tutorial",
            "export it with brats-export --from tutorial",
        )
    if not _is_ours(value) or any(key not in value for key in _KEYS):
        raise _OURS.error(path, "a PyTorch file that is not a checkpoint of brats-train")
    if value.get("schema") != SCHEMA:
        raise _OURS.error(path, f"a checkpoint of schema {value.get('schema')}")
    try:
        card = ModelCard.from_json(value["card"], path)
        return Checkpoint(
            model=dict(value["model"]),
            architecture=_architecture(parse_json(value["architecture"]), card),
            card=card,
            epoch=int(value["epoch"]),
            # Not parse_json: a score may be -Infinity so far, which Python writes and reads.
            config=json.loads(value["config"]),
            progress=json.loads(value["progress"]),
            optimizer=value["optimizer"],
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _OURS.error(path, f"an unreadable checkpoint ({words(error)})") from error


def _architecture(value: dict[str, Any], card: ModelCard) -> Architecture:
    """The network that a checkpoint describes.

    Raises:
        ValueError, TypeError, KeyError: none of ours, or not one of the card's modalities and
            labels.
    """
    found = Architecture(**{**value, "features": tuple(value["features"])})
    sizes = (found.in_channels, found.classes, *found.features)
    if any(type(size) is not int or not 1 <= size <= _WIDEST for size in sizes):
        raise ValueError(f"a network with sizes that are not integers from 1 to {_WIDEST}")
    if not 2 <= len(found.features) <= _MOST_LEVELS or not 0 <= found.dropout < 1:
        raise ValueError("a network of no use")
    if type(found.deep_supervision) is not int or type(found.residual) is not bool:
        raise ValueError("a network of no use")
    if not 0 <= found.deep_supervision <= len(found.features) - 2:
        raise ValueError(f"{found.deep_supervision} coarser heads")
    if (found.in_channels, found.classes) != (len(card.modalities), len(card.labels)):
        raise ValueError(
            f"a network of {found.in_channels} channels and {found.classes} classes, a card of "
            f"{len(card.modalities)} modalities and {len(card.labels)} labels"
        )
    return found


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
        InputError: they do not fit; it names the first keys that differ.
    """
    wrong = "weights that do not fit the architecture beside them"
    fill(model, checkpoint.model, path, _OURS, wrong)


def load_tutorial(
    path: Path, modalities: Sequence[str] | None = None, patch: Shape3 = PATCH
) -> tuple[TutorialUNet3D, ModelCard]:
    """The network of a checkpoint of the published tutorial in eval mode, float32 on the CPU, and a
    card for it.

    Args:
        path: as the tutorial leaves it: a table with the weights under ``model_state_dict``, or the
            weights alone.
        modalities: of the channels in order, which the file does not say; None for flair, t1,
            t1ce, t2.
        patch: (X, Y, Z) of a window in voxels, which it does not say either.

    Raises:
        InputError: missing, truncated, damaged, or of another architecture.
        UsageError: ``modalities`` or ``patch`` do not suit the network.
    """
    value = read_torch_file(path, _TUTORIALS)
    if _is_ours(value):
        raise _TUTORIALS.error(path, "a checkpoint of brats-train", "drop --from tutorial")
    state = state_of(value)
    if state is None:
        raise _TUTORIALS.error(path, "a PyTorch file without weights under model_state_dict")
    architecture = TutorialArchitecture.of(state)
    with torch.device("meta"):
        network = TutorialUNet3D(architecture)
    another = "choose another, or train one with brats-train --config tutorial"
    fill(network, state, path, _TUTORIALS, "weights of another architecture", another)
    if architecture.classes != len(Label):
        found = f"a network of {architecture.classes} classes for {len(Label)} labels"
        raise _TUTORIALS.error(path, found, another)
    names = tuple(modalities or MODALITIES)
    if len(names) != architecture.in_channels:
        raise UsageError(
            "--channels",
            found=", ".join(names),
            expected=f"a modality for each of the {architecture.in_channels} channels that the "
            f"network in {path} takes",
            remedy="name them in the order in which they were stacked for training",
        )
    if any(size < 1 or size % network.divisor for size in patch):
        raise UsageError(
            "--patch",
            found=",".join(map(str, patch)),
            expected=f"multiples of {network.divisor}, as the network in {path} needs",
            remedy="name the patch that it was trained on",
        )
    return network.eval(), card_of(value, network, path.stem, names, patch)


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


def _is_ours(value: Any) -> bool:
    return isinstance(value, dict) and value.get("format") == FORMAT
