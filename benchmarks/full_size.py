"""Make a checkpoint of a plain state dict of the reference network.

    python -m benchmarks.full_size STATE_DICT CHECKPOINT

Keys, as a plain PyTorch loop left them: `e.L.{0,1,3,4}` encoder block L (0 is full resolution): 0
and 3 convolutions, 1 and 4 batch norms; `u.L` the up-convolution to level L; `d.L.{0,1,3,4}` the
decoder block at level L; `h` the head.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runtime.model_card import ModelCard
from train.checkpoint import Architecture, Checkpoint, save_checkpoint

_PARTS = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}


def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The state in the names of `train.unet.UNet3D`, float32."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        kind, *rest = key.split(".")
        if kind == "h":
            name = f"head.{rest[0]}"
        elif kind == "u":
            name = f"decoder.{levels - 2 - int(rest[0])}.up.{rest[1]}"
        elif kind == "e":
            name = f"encoder.{rest[0]}.{_PARTS[rest[1]]}.{rest[2]}"
        else:
            name = f"decoder.{levels - 2 - int(rest[0])}.block.{_PARTS[rest[1]]}.{rest[2]}"
        found[name] = value.float() if value.is_floating_point() else value
    return found


def main(source: Path, target: Path) -> None:
    """Read ``source``, check that it fits, write ``target``."""
    architecture = Architecture()
    state = renamed(torch.load(source, weights_only=True), len(architecture.features))
    architecture.build().load_state_dict(state)
    save_checkpoint(target, Checkpoint(state, architecture, ModelCard(name=source.stem), epoch=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
