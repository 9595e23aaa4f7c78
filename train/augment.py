"""TorchIO augmentation of one patch, a function of the patch's seed alone.

Transforms act on normalised intensities of the whole patch. Mirroring, gamma, the bias field and
the affine map leave background at 0; noise does not, as in the published tutorial.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchio
from torch import Tensor

from train.config import AugmentConfig

Augment = Callable[[npt.NDArray[np.float32], npt.NDArray[np.uint8], int], tuple[Tensor, Tensor]]
"""augment(voxels, labels, seed): float32 (C, X, Y, Z) and uint8 (X, Y, Z) to such tensors."""


class PatchAugment:
    """Applies what an `AugmentConfig` asks for; can be sent to a worker."""

    def __init__(self, config: AugmentConfig) -> None:
        self._transforms = torchio.Compose(_transforms(config), copy=False)
        self._idle = not self._transforms.transforms

    def __call__(
        self, voxels: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        """Augment one patch; the global random state of PyTorch is as before afterwards.

        Args:
            voxels: float32 (C, X, Y, Z); may be changed in place.
            labels: uint8 (X, Y, Z); may be changed in place.
            seed: decides everything that is random.

        Returns:
            float32 (C, X, Y, Z) and uint8 (X, Y, Z), contiguous.
        """
        image, truth = torch.from_numpy(voxels), torch.from_numpy(labels)
        if self._idle:
            return image, truth
        subject = torchio.Subject(
            image=torchio.ScalarImage(tensor=image), labels=torchio.LabelMap(tensor=truth[None])
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed: Any = self._transforms(subject)
        return (
            changed["image"].data.float().contiguous(),
            changed["labels"].data[0].to(torch.uint8).contiguous(),
        )


def _transforms(config: AugmentConfig) -> list[torchio.Transform]:
    transforms: list[torchio.Transform] = []
    if config.affine > 0:
        transforms.append(
            torchio.RandomAffine(
                scales=config.affine_scale,
                degrees=config.affine_degrees,
                # The minimum of a normalised patch is dark tissue, not background.
                default_pad_value=0,
                p=config.affine,
                copy=False,
            )
        )
    if config.flip > 0:
        transforms.append(
            torchio.RandomFlip(axes=(0, 1, 2), flip_probability=config.flip, copy=False)
        )
    if config.bias_field > 0:
        transforms.append(
            torchio.RandomBiasField(config.bias_coefficient, p=config.bias_field, copy=False)
        )
    if config.gamma > 0:
        transforms.append(torchio.RandomGamma(config.log_gamma, p=config.gamma, copy=False))
    if config.noise > 0:
        transforms.append(torchio.RandomNoise(std=config.noise_std, p=config.noise, copy=False))
    return transforms
