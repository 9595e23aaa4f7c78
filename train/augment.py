"""What is done to a patch at random: drawn here, from the patch's seed alone, and done elsewhere.

`train.augment_torchio` does it with TorchIO in the processes that load patches,
`train.augment_torch` in PyTorch on the device that trains. Both do the same to the same `Change`.

All of it acts on normalised intensities. Background, where a modality is 0, stays 0 but for noise,
as in the published tutorial.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from train.config import AugmentConfig

Augment = Callable[[npt.NDArray[np.float32], npt.NDArray[np.uint8], int], tuple[Tensor, Tensor]]
"""augment(voxels, labels, seed): float32 (C, X, Y, Z) and uint8 (X, Y, Z) to such tensors."""

Three = tuple[float, float, float]
BIAS_ORDER: Final = 3
"""Degree of the polynomial that is the logarithm of a bias field."""
BIAS_TERMS: Final = 20
"""Its coefficients: as many as there are monomials of that degree or less in three variables."""
# A stream of random numbers apart from those of `train.sampler` and `train.step`.
_STREAM: Final = 5


@dataclass(frozen=True)
class Change:
    """Everything that is done to one patch, in the order of the attributes; None leaves it out.

    Attributes:
        degrees, scales: rotation about the axes of the patch and relative size, about its centre.
        flips: which axes are mirrored.
        bias: per modality the coefficients of the logarithm of a smooth factor, a polynomial on
            [-1, 1] per axis; ordered by the powers of x, then y, then z.
        blur: per modality the standard deviation of a Gaussian along each axis, in voxels.
        contrast: per modality a factor and a summand.
        gamma: per modality an exponent of the absolute value.
        noise: standard deviation, and the seed of the noise itself.
        missing: the modality that is taken away.
    """

    degrees: Three | None = None
    scales: Three | None = None
    flips: tuple[bool, bool, bool] = (False, False, False)
    bias: tuple[tuple[float, ...], ...] | None = None
    blur: tuple[Three, ...] | None = None
    contrast: tuple[tuple[float, float], ...] | None = None
    gamma: tuple[float, ...] | None = None
    noise: tuple[float, int] | None = None
    missing: int | None = None


def draw_change(config: AugmentConfig, modalities: tuple[str, ...], seed: int) -> Change:
    """Draw what is done to one patch.

    Args:
        config: probabilities and ranges.
        modalities: of the patch's channels, in order.
        seed: decides everything.
    """
    rng = np.random.default_rng([_STREAM, seed])
    channels = range(len(modalities))

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    def three(low: float, high: float) -> Three:
        x, y, z = (float(value) for value in rng.uniform(low, high, 3))
        return (x, y, z)

    degrees, scales = None, None
    if happens(config.affine):
        degrees = three(-config.affine_degrees, config.affine_degrees)
        scales = three(1 - config.affine_scale, 1 + config.affine_scale)
    x, y, z = (happens(config.flip) for _ in range(3))
    bias = None
    if happens(config.bias_field):
        largest = config.bias_coefficient
        bias = tuple(tuple(rng.uniform(-largest, largest, BIAS_TERMS).tolist()) for _ in channels)
    # Scanners differ sequence by sequence, so each modality has its own chance.
    blur, contrast, gamma = None, None, None
    if config.blur > 0:
        blur = tuple(
            three(*config.blur_std) if happens(config.blur) else (0.0, 0.0, 0.0) for _ in channels
        )
    if config.contrast > 0:
        contrast = tuple(
            (
                float(rng.uniform(1 - config.contrast_scale, 1 + config.contrast_scale)),
                float(rng.uniform(-config.contrast_shift, config.contrast_shift)),
            )
            if happens(config.contrast)
            else (1.0, 0.0)
            for _ in channels
        )
    if config.gamma > 0:
        gamma = tuple(
            float(np.exp(rng.uniform(*config.log_gamma))) if happens(config.gamma) else 1.0
            for _ in channels
        )
    noise = None
    if happens(config.noise):
        noise = (float(rng.uniform(*config.noise_std)), int(rng.integers(2**31)))
    missing = None
    if happens(config.modality_dropout):
        missing = modalities.index(str(rng.choice(config.droppable or modalities)))
    return Change(degrees, scales, (x, y, z), bias, blur, contrast, gamma, noise, missing)
