"""Cross-entropy plus soft Dice from logits; training applies its softmax here and nowhere else."""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.labels import REGIONS
from train.unet import UNet3D

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share a batch, and passes gradients on."""

_REGIONS: Final = tuple(tuple(map(int, members)) for members in REGIONS.values())


class CombinedLoss(nn.Module):
    """Weighted sum of cross-entropy, 1 - mean Dice of classes, and 1 - mean Dice of regions.

    The soft Dice of a class is (2 I + s) / (P + T + s), where I, P and T are the sums over the
    whole batch of probability times truth, probability and truth. Batch-wise sums keep a patch
    without a class from dominating. A region (WT, TC, ET) is the sum of its classes' probabilities.

    Args:
        cross_entropy: weight of the mean cross-entropy in nats.
        dice: weight of the soft Dice loss over classes.
        classes: number of classes, background included.
        smooth: s, in voxels; decides what a class that is nowhere in the batch is worth.
        region_dice: weight of the soft Dice loss over regions.
        reduce: where several processes share a batch, makes their sums one.
    """

    def __init__(
        self,
        cross_entropy: float = 0.5,
        dice: float = 0.5,
        classes: int = 4,
        smooth: float = 1e-5,
        region_dice: float = 0.0,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.cross_entropy = cross_entropy
        self.dice = dice
        self.classes = classes
        self.smooth = smooth
        self.region_dice = region_dice
        self._reduce = reduce
        self._groups: list[tuple[int, ...]] = []
        if dice:
            self._groups += [(label,) for label in range(classes)]
        if region_dice:
            self._groups += _REGIONS

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            logits: float (N, classes, X, Y, Z), before any softmax.
            labels: integer (N, X, Y, Z), values 0..classes-1.

        Returns:
            Scalar float32, also inside an autocast region.

        Raises:
            ValueError: the shapes do not fit.
        """
        expected = (logits.shape[0], *logits.shape[2:])
        if logits.shape[1] != self.classes or tuple(labels.shape) != expected:
            raise ValueError(
                f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)} "
                f"and {self.classes} classes"
            )
        # Sums over millions of voxels overflow or stall in half precision.
        with torch.autocast(logits.device.type, enabled=False):
            target = labels.long()
            log_probabilities = F.log_softmax(logits.float(), dim=1)
            loss = self.cross_entropy * F.nll_loss(log_probabilities, target)
            if self._groups:
                scores = self._dice(log_probabilities.exp(), target)
                classes = self.classes if self.dice else 0
                for weight, part in (
                    (self.dice, scores[:classes]),
                    (self.region_dice, scores[classes:]),
                ):
                    if weight:
                        loss = loss + weight * (1 - part.mean())
            return loss

    def _dice(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """float32 (groups,): soft Dice of each group of classes."""
        # Together: each class taken by itself would cost the backward pass a tensor of noughts.
        by_class = probabilities.unbind(1)
        rows = []
        for group in self._groups:
            called = by_class[group[0]]
            true = target == group[0]
            for label in group[1:]:
                called = called + by_class[label]
                true = true | (target == label)
            rows.append(torch.stack(((called * true).sum(), called.sum() + true.sum())))
        sums = torch.stack(rows)
        if self._reduce is not None:
            sums = self._reduce(sums)
        return (2 * sums[:, 0] + self.smooth) / (sums[:, 1] + self.smooth)


class Objective(nn.Module):
    """Network and loss as one module: what is trained, compiled and distributed.

    With deep supervision the loss is the mean over the levels, each weighing half of the one above
    it; the labels of a coarser level are every second voxel of those above.
    """

    def __init__(self, network: UNet3D, loss: CombinedLoss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, voxels: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            voxels: float (N, C, X, Y, Z).
            labels: integer (N, X, Y, Z).

        Returns:
            Scalar float32.
        """
        outputs = self.network.outputs(voxels)
        total = self.loss(outputs[0], labels)
        weights = 1.0
        for level, logits in enumerate(outputs[1:], start=1):
            step = 2**level
            total = total + self.loss(logits, labels[:, ::step, ::step, ::step]) / step
            weights += 1 / step
        result: Tensor = total / weights
        return result
