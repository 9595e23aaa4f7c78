"""The network of the published BraTS2020 tutorial, and what its checkpoints say.

It differs from `train.unet` where a graph cannot be rewritten the same way: a batch norm and a ReLU
follow every transposed convolution, which halves the channels, and the residual is added after the
second ReLU.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from runtime.model_card import ModelCard, Shape3

PATCH: Final[Shape3] = (128, 128, 64)
"""Windows of the tutorial, (X, Y, Z) in voxels."""
_LEVELS: Final = 5
_CONTAINERS: Final = ("model_state_dict", "state_dict")
# What DataParallel and torch.compile put before every name.
_WRAPPERS: Final = ("module.", "_orig_mod.")
_BLOCK: Final = re.compile(r"(conv|deconv|dec_conv)_blk(\d)\.")
_FIRST: Final = "conv_blk1.conv1.0.weight"


@dataclass(frozen=True)
class TutorialArchitecture:
    """What the tensors of a checkpoint say of its network.

    Attributes:
        in_channels: number of modalities.
        classes: number of labels, background included.
        features: channels per level, from full resolution to the bottleneck.
        conv_bias, up_bias, residual_bias, head_bias: whether the convolutions of each kind have a
            bias.
        head: name of the last convolution.
    """

    in_channels: int
    classes: int
    features: tuple[int, ...]
    conv_bias: bool
    up_bias: bool
    residual_bias: bool
    head_bias: bool
    head: str = "final_conv"

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "TutorialArchitecture":
        """Read it from names and shapes; the tutorial's own value where the tensor is not there.

        Whether the state fits what is read is not looked at: compare it with the network's.
        """
        levels = 1
        for kind, number in (match.groups() for match in map(_BLOCK.match, state) if match):
            # A lost block is missed, and not taken for a shallower network.
            levels = max(levels, int(number) + (kind != "conv"))
        if levels == 1:
            levels = _LEVELS
        head = "final_conv.0" if "final_conv.0.weight" in state else "final_conv"

        def size(name: str, axis: int, usual: int) -> int:
            tensor = state.get(f"{name}.weight")
            return (isinstance(tensor, Tensor) and tensor.ndim == 5 and tensor.shape[axis]) or usual

        return cls(
            in_channels=size("conv_blk1.conv1.0", 1, 4),
            classes=size(head, 0, 4),
            features=tuple(
                size(f"conv_blk{level + 1}.conv1.0", 0, 16 << level) for level in range(levels)
            ),
            conv_bias="conv_blk1.conv1.0.bias" in state,
            up_bias=any(name.endswith(".deconv.0.bias") for name in state),
            residual_bias=any(name.endswith(".residual_upsampler.bias") for name in state),
            head_bias=f"{head}.bias" in state,
            head=head,
        )


class TutorialBlock(nn.Module):
    """Twice (3x3x3 convolution, BN, ReLU), and the input added to the result.

    Where the numbers of channels differ, a 1x1x1 convolution brings the input to those of the
    result. Float (N, channels_in, X, Y, Z) to (N, channels_out, X, Y, Z).
    """

    def __init__(
        self, channels_in: int, channels_out: int, conv_bias: bool, residual_bias: bool
    ) -> None:
        super().__init__()
        self.conv1 = _convolved(channels_in, channels_out, conv_bias)
        self.conv2 = _convolved(channels_out, channels_out, conv_bias)
        self.residual_upsampler: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.residual_upsampler = nn.Conv3d(channels_in, channels_out, 1, bias=residual_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x)) + self.residual_upsampler(x)
        return out


class TutorialUNet3D(nn.Module):
    """The tutorial's 3D U-Net for inference, its parts named as in its checkpoints.

    Input: float (N, in_channels, X, Y, Z), each spatial size a multiple of ``divisor``.
    Output: logits, float (N, classes, X, Y, Z). Dropout does nothing at inference and is left out.
    """

    def __init__(self, architecture: TutorialArchitecture) -> None:
        super().__init__()
        a = architecture
        self.levels = len(a.features)
        widths = (a.in_channels, *a.features)
        for level in range(1, self.levels + 1):
            block = TutorialBlock(widths[level - 1], widths[level], a.conv_bias, a.residual_bias)
            self.add_module(f"conv_blk{level}", block)
        for level in range(self.levels - 1, 0, -1):
            low, high = widths[level + 1], widths[level]
            self.add_module(f"deconv_blk{level}", _Up(low, high, a.up_bias))
            block = TutorialBlock(2 * high, high, a.conv_bias, a.residual_bias)
            self.add_module(f"dec_conv_blk{level}", block)
        self.pool = nn.MaxPool3d(2)
        head: nn.Module = nn.Conv3d(a.features[0], a.classes, 1, bias=a.head_bias)
        self.final_conv = nn.Sequential(head) if a.head == "final_conv.0" else head

    @property
    def divisor(self) -> int:
        """Every spatial size of the input must be a multiple of this."""
        return int(2 ** (self.levels - 1))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level in range(1, self.levels + 1):
            x = self.get_submodule(f"conv_blk{level}")(x if level == 1 else self.pool(x))
            skips.append(x)
        for level in range(self.levels - 1, 0, -1):
            up = self.get_submodule(f"deconv_blk{level}")(x)
            both = torch.cat((up, skips[level - 1]), dim=1)
            x = self.get_submodule(f"dec_conv_blk{level}")(both)
        logits: Tensor = self.final_conv(x)
        return logits


class _Up(nn.Module):
    """Float (N, low, X, Y, Z) to (N, high, 2X, 2Y, 2Z), normalised and rectified."""

    def __init__(self, low: int, high: int, bias: bool) -> None:
        super().__init__()
        self.deconv = nn.Sequential(
            nn.ConvTranspose3d(low, high, 2, stride=2, bias=bias), nn.BatchNorm3d(high), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.deconv(x)
        return out


def _convolved(channels_in: int, channels_out: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=bias),
        nn.BatchNorm3d(channels_out),
        nn.ReLU(),
    )


def state_of(value: Any) -> Mapping[str, Any] | None:
    """The weights in a file's content, without what wrappers put before the names.

    They stand under ``model_state_dict``, as the tutorial saves them, or are all that the file
    holds. None if there are none.
    """
    if not isinstance(value, Mapping):
        return None
    state = next((value[name] for name in _CONTAINERS if name in value), value)
    if not isinstance(state, Mapping) or not any(isinstance(one, Tensor) for one in state.values()):
        return None
    named = {str(name): one for name, one in state.items()}
    while all(name.startswith(_WRAPPERS) for name in named):
        named = {name.partition(".")[2]: one for name, one in named.items()}
    return named


def looks_like_tutorial(value: Any) -> bool:
    """Whether a file's content has the names of the tutorial's network."""
    return _FIRST in (state_of(value) or {})


def card_of(
    value: Mapping[Any, Any],
    network: TutorialUNet3D,
    name: str,
    modalities: Sequence[str],
    patch: Shape3,
) -> ModelCard:
    """The contract of a tutorial's network, which its checkpoint leaves unsaid.

    Args:
        value: the file's content; plain numbers in it are kept as what the checkpoint claims.
        network: as built from it.
        name: of the model.
        modalities: the input channels, in order.
        patch: (X, Y, Z) of a window.
    """
    training: dict[str, Any] = {"source": "published tutorial"}
    claims = dict(_numbers(value))
    if claims:
        training["claimed_by_checkpoint"] = claims
    return ModelCard(
        name=name,
        modalities=tuple(modalities),
        normalisation="zscore-volume",
        patch=patch,
        divisor=network.divisor,
        training=training,
    )


def _numbers(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Finite numbers beside the weights, those of a table in it by dotted names."""
    for key, one in value.items():
        if isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one):
            yield f"{prefix}{key}", one
        elif isinstance(one, Mapping) and not prefix and not _is_state(str(key)):
            yield from _numbers(one, f"{key}.")


def _is_state(key: str) -> bool:
    return any(word in key for word in ("state", "optimizer", "scheduler", "scaler"))
