"""Patches in batches: cut from the cache, augmented, the same whichever process loads them."""

import os
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.model_card import Shape3
from train.augment import Augment
from train.data import CachedCase
from train.sampler import Draw, EpochSampler

Batch = tuple[Tensor, Tensor]
"""float32 (N, C, X, Y, Z) and uint8 (N, X, Y, Z)."""


class PatchDataset(Dataset[Batch]):
    """Patches by `Draw`; reads only the voxels of the window.

    An item is float32 (C, X, Y, Z) and uint8 (X, Y, Z).
    """

    def __init__(self, cases: Sequence[CachedCase], patch: Shape3, augment: Augment) -> None:
        self._cases = cases
        self._patch = patch
        self._augment = augment

    def __getitem__(self, draw: Draw) -> Batch:
        case = self._cases[draw.case]
        window = tuple(
            slice(first, first + size) for first, size in zip(draw.start, self._patch, strict=True)
        )
        voxels = np.array(case.voxels()[:, *window], order="C")
        labels = np.array(case.labels()[window], order="C")
        return self._augment(voxels, labels, draw.seed)


def patch_loader(
    dataset: PatchDataset, sampler: EpochSampler, batch: int, workers: int, pin: bool
) -> DataLoader[Batch]:
    """Batches of the sampler's epoch; workers stay alive between epochs."""
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
    )


def worker_count(wanted: int, on_gpu: bool) -> int:
    """Resolve -1: none beside a CPU, whose step takes a hundred times as long as loading."""
    if wanted >= 0:
        return wanted
    return min(8, max(1, (os.cpu_count() or 2) - 1)) if on_gpu else 0
