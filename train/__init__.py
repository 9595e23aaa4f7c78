"""Train a 3D U-Net on BraTS: cached cases, TorchIO augmentation, validation through the served
`Segmenter`.
"""

from train.loss import CombinedLoss
from train.unet import UNet3D

__all__ = ["CombinedLoss", "UNet3D"]
