"""Augmentation with TorchIO, for the processes that load patches."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchio
from torch import Tensor

from train.augment import BIAS_ORDER, Change, draw_change
from train.config import AugmentConfig


class PatchAugment:
    """Applies what an `AugmentConfig` asks for; can be sent to a worker.

    Args:
        config: probabilities and ranges.
        modalities: of the patch's channels, in order.
    """

    def __init__(self, config: AugmentConfig, modalities: tuple[str, ...]) -> None:
        self._config = config
        self._modalities = modalities

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
        change = draw_change(self._config, self._modalities, seed)
        # TorchIO draws whether it applies a transform, even one that always is.
        with torch.random.fork_rng(devices=[]):
            return apply_change(torch.from_numpy(voxels), torch.from_numpy(labels), change)


def apply_change(voxels: Tensor, labels: Tensor, change: Change) -> tuple[Tensor, Tensor]:
    """Change one patch.

    Args:
        voxels: float32 (C, X, Y, Z), background 0; may be changed in place.
        labels: uint8 (X, Y, Z); may be changed in place.
        change: what is done.

    Returns:
        float32 (C, X, Y, Z) and uint8 (X, Y, Z), contiguous.
    """
    spatial = _spatial(change)
    if spatial:
        patch = torchio.Subject(
            image=torchio.ScalarImage(tensor=voxels), labels=torchio.LabelMap(tensor=labels[None])
        )
        moved: Any = torchio.Compose(spatial, copy=False)(patch)
        voxels = moved["image"].data.float()
        labels = moved["labels"].data[0].to(torch.uint8)
    inside = voxels != 0
    # A modality an image, so that each has parameters of its own.
    subject: Any = torchio.Subject(
        {str(m): torchio.ScalarImage(tensor=image[None]) for m, image in enumerate(voxels)}
    )
    names = list(subject.get_images_dict())
    if change.bias is not None:
        coefficients = {name: list(change.bias[int(name)]) for name in names}
        order = dict.fromkeys(names, BIAS_ORDER)
        subject = torchio.BiasField(coefficients, order, copy=False)(subject)
    if change.blur is not None and any(any(std) for std in change.blur):
        blur = {name: change.blur[int(name)] for name in names}
        subject = torchio.Blur(blur, copy=False)(subject)
        for name in names:
            subject[name].set_data(subject[name].data * inside[int(name)])
    if change.contrast is not None:
        for name in names:
            factor, summand = change.contrast[int(name)]
            shifted = (subject[name].data * factor + summand) * inside[int(name)]
            subject[name].set_data(shifted)
    if change.gamma is not None:
        gamma: Any = {name: [change.gamma[int(name)]] for name in names}
        subject = torchio.Gamma(gamma, copy=False)(subject)
    voxels = torch.cat([subject[name].data for name in names])
    if change.noise is not None:
        std, seed = change.noise
        one: Any = torchio.Subject(image=torchio.ScalarImage(tensor=voxels))
        one = torchio.Noise(mean=0, std=std, seed=seed, copy=False)(one)
        voxels = one["image"].data
    if change.missing is not None:
        voxels[change.missing] = 0
    return voxels.float().contiguous(), labels.contiguous()


def _spatial(change: Change) -> list[torchio.Transform]:
    transforms: list[torchio.Transform] = []
    if change.degrees is not None and change.scales is not None:
        transforms.append(
            torchio.Affine(
                scales=change.scales,
                degrees=change.degrees,
                translation=(0, 0, 0),
                # The minimum of a normalised patch is dark tissue, not background.
                default_pad_value=0,
                copy=False,
            )
        )
    axes = tuple(axis for axis, flip in enumerate(change.flips) if flip)
    if axes:
        transforms.append(torchio.Flip(axes=axes, copy=False))
    return transforms
