"""The reference network: a 3D U-Net (Cicek et al. 2016) with batch normalisation and dropout.

Between an up-convolution, the concatenation and the next convolution stands neither bias,
normalisation nor non-linearity, so that the three compose exactly into one transposed convolution
at export (`export.fuse`).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Twice (3x3x3 convolution without bias, BN, ReLU, Dropout3d); optionally residual.

    With ``residual`` the block is relu(bn2(conv2(.)) + conv1x1x1(x)), the 1x1x1 without bias.
    Input and output are float (N, C, X, Y, Z) of equal spatial shape.
    """

    def __init__(self, channels_in: int, channels_out: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels_out)
        self.conv2 = nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels_out)
        self.shortcut = nn.Conv3d(channels_in, channels_out, 1, bias=False) if residual else None
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        out: Tensor = self.dropout(self.relu(y))
        return out


class UpBlock(nn.Module):
    """Upsample by 2, concatenate (upsampled, skip), then a `ConvBlock`."""

    def __init__(
        self, channels_low: int, channels_skip: int, dropout: float, residual: bool
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(channels_low, channels_low, 2, stride=2, bias=False)
        self.block = ConvBlock(channels_low + channels_skip, channels_skip, dropout, residual)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.block(torch.cat((self.up(low), skip), dim=1))
        return out


class UNet3D(nn.Module):
    """3D U-Net that maps normalised modalities to class logits.

    Args:
        in_channels: number of modalities.
        classes: number of labels, background included.
        features: channels per level, from full resolution to the bottleneck.
        dropout: probability of Dropout3d after each ReLU; 0 switches it off.
        residual: residual blocks (see `ConvBlock`).
        deep_supervision: number of coarser decoder levels with a head of their own, for training
            alone (`outputs`).

    Input: float (N, in_channels, X, Y, Z), each spatial size a multiple of ``divisor``.
    Output: logits, float (N, classes, X, Y, Z); the exported graph ends in a softmax, this module
    does not.
    """

    def __init__(
        self,
        in_channels: int = 4,
        classes: int = 4,
        features: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: float = 0.2,
        residual: bool = False,
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        if len(features) < 2:
            raise ValueError(f"a U-Net needs two levels or more, got features {tuple(features)}")
        if not 0 <= deep_supervision <= len(features) - 2:
            raise ValueError(f"{deep_supervision} coarser heads for features {tuple(features)}")
        self.in_channels = in_channels
        self.classes = classes
        self.features = tuple(features)
        widths = (in_channels, *features)
        self.encoder = nn.ModuleList(
            ConvBlock(a, b, dropout, residual) for a, b in itertools.pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            UpBlock(low, skip, dropout, residual)
            for low, skip in zip(features[:0:-1], features[-2::-1], strict=True)
        )
        self.pool = nn.MaxPool3d(2)
        self.head = nn.Conv3d(features[0], classes, 1)
        self.coarse_heads = nn.ModuleList(
            nn.Conv3d(width, classes, 1) for width in features[1 : deep_supervision + 1]
        )

    @property
    def divisor(self) -> int:
        """Every spatial size of the input must be a multiple of this."""
        return int(2 ** (len(self.features) - 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self._decoded(x)[-1])
        return logits

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Logits at full resolution, then those of each coarser head, half the size each time."""
        levels = self._decoded(x)[::-1]
        heads = (self.head, *self.coarse_heads)
        return [head(level) for head, level in zip(heads, levels, strict=False)]

    def _decoded(self, x: Tensor) -> list[Tensor]:
        """What each decoder level gives, the finest last."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        levels: list[Tensor] = []
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = block(x, skip)
            levels.append(x)
        return levels
