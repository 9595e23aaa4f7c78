"""A network with random weights that gives every label, for runs that have no trained one.

As it is initialised it gives one label for every voxel of every case, so that any two ways to run
it agree whatever they do. This one is fitted to the case of the run, as far as its label maps need
it: batch norms get the statistics of a window of it, and the head is shifted and scaled so that
each logit has mean 0 and variance 1 there. All four labels occur, in specks that mean nothing; it
takes as long as a trained one. What is set is rounded to a few bits, so that another version of
PyTorch, which differs in the last digits, makes the same network.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from runtime.model_card import ModelCard
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import prepare
from train.unet import UNet3D

_STEPS = 16
"""Of a standard deviation: what a mean is rounded to, and of the octave a deviation is."""


def middle_window(volume: Volume, card: ModelCard) -> Tensor:
    """Float32 (1, C, X, Y, Z): the patch in the middle of the case's box, normalised."""
    voxels = prepare(volume, card, NumpyOps(), card.patch).voxels
    box = [
        slice((length - size) // 2, (length - size) // 2 + size)
        for length, size in zip(voxels.shape[1:], card.patch, strict=True)
    ]
    return torch.from_numpy(np.ascontiguousarray(voxels[:, *box]))[None]


def random_network(features: Sequence[int], window: Tensor) -> UNet3D:
    """The same one for the same window, in eval mode.

    Args:
        features: channels by level.
        window: float32 (1, C, X, Y, Z), as `middle_window` gives it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet3D(features=tuple(features), dropout=0.0)
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm3d)]
    with torch.inference_mode():
        for norm in norms:
            norm.momentum = 1.0
        network.train()(window)
    network.eval()
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 0.1
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, deviation = _rounded(norm.running_mean, norm.running_var.sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(deviation**2)
        logits = network(window)[0].flatten(1)
        mean, deviation = _rounded(logits.mean(1), logits.std(1))
        head = network.head
        assert head.bias is not None
        head.weight.copy_(head.weight / deviation[:, None, None, None, None])
        head.bias.copy_((head.bias - mean) / deviation)
    return network


def _rounded(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    mantissa, exponent = torch.frexp(deviation.clamp(min=1e-6))
    deviation = torch.ldexp(torch.round(mantissa * 2 * _STEPS) / (2 * _STEPS), exponent)
    return torch.round(mean / deviation * _STEPS) / _STEPS * deviation, deviation
