"""Augmentation in PyTorch, on whatever device the patches are."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from train.augment import BIAS_ORDER, Change, draw_change
from train.config import AugmentConfig

# scipy's Gaussian filter ends where its tail has no weight left; so does this one.
_TRUNCATE = 4.0


class DeviceAugment:
    """Applies what an `AugmentConfig` asks for, on the device.

    Args:
        config: probabilities and ranges.
        modalities: of the patches' channels, in order.
    """

    def __init__(self, config: AugmentConfig, modalities: tuple[str, ...]) -> None:
        self._config = config
        self._modalities = modalities

    def __call__(
        self, voxels: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            voxels: float32 (N, C, X, Y, Z); background 0. Not changed.
            labels: uint8 (N, X, Y, Z). Not changed.
            seeds: of the patches; they decide everything that is random.

        Returns:
            float32 (N, C, X, Y, Z) and uint8 (N, X, Y, Z) on the same device.
        """
        changed = [
            apply_change(image, truth, draw_change(self._config, self._modalities, seed))
            for image, truth, seed in zip(voxels, labels, seeds, strict=True)
        ]
        images, truths = zip(*changed, strict=True)
        return torch.stack(images), torch.stack(truths)


def apply_change(voxels: Tensor, labels: Tensor, change: Change) -> tuple[Tensor, Tensor]:
    """Change one patch.

    Args:
        voxels: float32 (C, X, Y, Z), background 0. Not changed.
        labels: uint8 (X, Y, Z). Not changed.
        change: what is done.

    Returns:
        float32 (C, X, Y, Z) and uint8 (X, Y, Z) on the same device.
    """
    if change.degrees is not None and change.scales is not None:
        voxels, labels = _affine(voxels, labels, change.degrees, change.scales)
    axes = [axis for axis, flip in enumerate(change.flips) if flip]
    if axes:
        voxels = voxels.flip([axis + 1 for axis in axes])
        labels = labels.flip(axes)
    inside = voxels != 0
    if change.bias is not None:
        voxels = voxels * _bias_fields(voxels, change.bias)
    if change.blur is not None and any(any(std) for std in change.blur):
        voxels = _blurred(voxels, change.blur) * inside
    if change.contrast is not None:
        factor, summand = (
            _per_modality(values, voxels) for values in zip(*change.contrast, strict=True)
        )
        voxels = (voxels * factor + summand) * inside
    if change.gamma is not None:
        voxels = voxels.sign() * voxels.abs() ** _per_modality(change.gamma, voxels)
    if change.noise is not None:
        std, seed = change.noise
        generator = torch.Generator(voxels.device).manual_seed(seed)
        noise = torch.randn(voxels.shape, generator=generator, device=voxels.device)
        voxels = voxels + std * noise
    if change.missing is not None:
        voxels = voxels.clone()
        voxels[change.missing] = 0
    return voxels, labels


def _per_modality(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)


def _affine(
    voxels: Tensor, labels: Tensor, degrees: Sequence[float], scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Rotate and scale about the centre: linear for voxels, nearest for labels, 0 outside."""
    shape = labels.shape
    matrix = inverse_affine(degrees, scales)
    # grid_sample counts in halves of the patch, and its coordinates run z, y, x.
    half = torch.tensor([(size - 1) / 2 for size in shape], dtype=torch.float64)
    theta = (matrix * half[None, :] / half[:, None]).flip(0, 1)
    theta = F.pad(theta, (0, 1)).float().to(voxels.device)
    grid = F.affine_grid(theta[None], [1, 1, *shape], align_corners=True)
    moved = F.grid_sample(voxels[None], grid, mode="bilinear", align_corners=True)[0]
    truth = F.grid_sample(labels[None, None].float(), grid, mode="nearest", align_corners=True)[
        0, 0
    ]
    return moved, truth.to(torch.uint8)


def inverse_affine(degrees: Sequence[float], scales: Sequence[float]) -> Tensor:
    """float64 (3, 3): where a voxel of the result comes from, both counted from the centre.

    The result is the patch rotated about z by the third angle, then about x, then about y, and then
    scaled: TorchIO's order, which is SimpleITK's of Euler angles.
    """
    x, y, z = (torch.deg2rad(torch.tensor(angle, dtype=torch.float64)) for angle in degrees)
    about_x, about_y, about_z = (torch.eye(3, dtype=torch.float64) for _ in range(3))
    for matrix, angle, (a, b) in (
        (about_x, x, (1, 2)),
        (about_y, y, (2, 0)),
        (about_z, z, (0, 1)),
    ):
        matrix[a, a] = matrix[b, b] = angle.cos()
        matrix[a, b], matrix[b, a] = -angle.sin(), angle.sin()
    forward = torch.diag(torch.tensor(scales, dtype=torch.float64)) @ about_z @ about_x @ about_y
    inverse: Tensor = torch.linalg.inv(forward)
    return inverse


def _bias_fields(voxels: Tensor, coefficients: Sequence[Sequence[float]]) -> Tensor:
    """(C, X, Y, Z): exp of a polynomial in coordinates that run from -1 to 1."""
    powers = []
    for size in voxels.shape[1:]:
        axis = torch.linspace(-1, 1, size, device=voxels.device)
        powers.append(torch.stack([axis**power for power in range(BIAS_ORDER + 1)], dim=1))
    table = torch.zeros(len(coefficients), *[BIAS_ORDER + 1] * 3)
    orders = [
        (x, y, z)
        for x in range(BIAS_ORDER + 1)
        for y in range(BIAS_ORDER + 1 - x)
        for z in range(BIAS_ORDER + 1 - x - y)
    ]
    for modality, terms in enumerate(coefficients):
        for (x, y, z), term in zip(orders, terms, strict=True):
            table[modality, x, y, z] = term
    logarithm = torch.einsum("mabc,xa,yb,zc->mxyz", table.to(voxels.device), *powers)
    return logarithm.exp()


def _blurred(voxels: Tensor, stds: Sequence[Sequence[float]]) -> Tensor:
    """Gaussian along each axis, mirrored at the ends: a product with one small matrix an axis."""
    modalities = []
    for image, three in zip(voxels, stds, strict=True):
        for axis, std in enumerate(three):
            if std > 0:
                matrix = gaussian_matrix(image.shape[axis], std).to(image)
                image = torch.tensordot(matrix, image, dims=([1], [axis])).movedim(0, axis)
        modalities.append(image)
    return torch.stack(modalities)


def gaussian_matrix(size: int, std: float) -> Tensor:
    """float64 (size, size): each row the weights of a Gaussian of ``std`` voxels about its voxel,
    cut at 4 standard deviations, with sum 1; what would lie outside is mirrored inside.
    """
    radius = int(_TRUNCATE * std + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / std) ** 2)
    weights /= weights.sum()
    rows = torch.arange(size).repeat_interleave(len(offsets))
    columns = (torch.arange(size)[:, None] + offsets).flatten() % (2 * size)
    columns = torch.minimum(columns, 2 * size - 1 - columns)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.index_put_((rows, columns), weights.repeat(size), accumulate=True)
