"""Cross-entropy plus soft Dice from logits; training applies its softmax here and nowhere else."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CombinedLoss(nn.Module):
    """cross_entropy * CE + dice * (1 - mean soft Dice over the classes).

    The Dice of a class is (2 I + s) / (P + T + s), where I, P and T are the sums over the whole
    batch of probability times truth, probability and truth. Batch-wise sums keep a patch without a
    class from dominating.

    Args:
        cross_entropy: weight of the mean cross-entropy in nats.
        dice: weight of the soft Dice loss.
        classes: number of classes, background included.
        smooth: s, in voxels; decides what a class that is nowhere in the batch is worth.
    """

    def __init__(
        self,
        cross_entropy: float = 0.5,
        dice: float = 0.5,
        classes: int = 4,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.cross_entropy = cross_entropy
        self.dice = dice
        self.classes = classes
        self.smooth = smooth

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
            entropy = F.nll_loss(log_probabilities, target)
            return self.cross_entropy * entropy + self.dice * self._dice(
                log_probabilities.exp(), target
            )

    def _dice(self, probabilities: Tensor, target: Tensor) -> Tensor:
        axes = (0, 2, 3, 4)
        truth = torch.stack([target == label for label in range(self.classes)], dim=1)
        overlap = (probabilities * truth).sum(axes)
        total = probabilities.sum(axes) + truth.sum(axes)
        return 1 - ((2 * overlap + self.smooth) / (total + self.smooth)).mean()
