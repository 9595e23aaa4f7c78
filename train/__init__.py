"""Train a 3D U-Net on BraTS: cached cases, TorchIO augmentation, validation through the served
`Segmenter`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.loss import CombinedLoss
    from train.unet import UNet3D

__all__ = ["CombinedLoss", "UNet3D"]


def __getattr__(name: str) -> Any:
    """Import PyTorch only when a network is asked for: the command line need not wait for it."""
    if name == "CombinedLoss":
        from train.loss import CombinedLoss

        return CombinedLoss
    if name == "UNet3D":
        from train.unet import UNet3D

        return UNet3D
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
