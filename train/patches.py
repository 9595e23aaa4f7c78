"""Patches in batches: cut from the cache, augmented, the same whichever process loads them."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.model_card import Shape3
from train.augment import Augment
from train.data import CachedCase
from train.sampler import Draw, EpochSampler


class Batch(NamedTuple):
    """Patches.

    Attributes:
        voxels: float16 or float32 (N, C, X, Y, Z), normalised.
        labels: uint8 (N, X, Y, Z).
        seeds: int64 (N,), of what is random about each patch.
    """

    voxels: Tensor
    labels: Tensor
    seeds: Tensor


Item = tuple[Tensor, Tensor, int]
"""One patch of a `Batch`."""


class PatchDataset(Dataset[Item]):
    """Patches by `Draw`; reads only the voxels of the window.

    Args:
        cases: prepared.
        patch: (X, Y, Z) in voxels.
        augment: makes voxels float32; None leaves them as the cache holds them, for the device.
    """

    def __init__(self, cases: Sequence[CachedCase], patch: Shape3, augment: Augment | None) -> None:
        self._cases = cases
        self._patch = patch
        self._augment = augment

    def __getitem__(self, draw: Draw) -> Item:
        case = self._cases[draw.case]
        window = tuple(
            slice(first, first + size) for first, size in zip(draw.start, self._patch, strict=True)
        )
        voxels = np.array(case.voxels()[:, *window], order="C")
        labels = np.array(case.labels()[window], order="C")
        if self._augment is None:
            return torch.from_numpy(voxels), torch.from_numpy(labels), draw.seed
        return *self._augment(voxels.astype(np.float32), labels, draw.seed), draw.seed


def patch_loader(
    dataset: PatchDataset, sampler: EpochSampler, batch: int, workers: int, pin: bool
) -> DataLoader[Item]:
    """Gives each `Batch` of the sampler's epoch; workers stay alive between epochs."""
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        collate_fn=_batch,
    )


def _batch(items: Sequence[Item]) -> Batch:
    voxels, labels, seeds = zip(*items, strict=True)
    return Batch(torch.stack(voxels), torch.stack(labels), torch.tensor(seeds))


def worker_count(wanted: int, on_gpu: bool) -> int:
    """Resolve -1: none beside a CPU, whose step takes a hundred times as long as loading."""
    if wanted >= 0:
        return wanted
    return min(8, max(1, (os.cpu_count() or 2) - 1)) if on_gpu else 0
