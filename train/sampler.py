"""Where patches are cut: every draw is a function of (seed, epoch, index), never of a worker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from runtime.errors import InputError, UsageError
from runtime.labels import Label
from runtime.model_card import Shape3
from runtime.windows import plan_windows
from train.config import SamplingConfig
from train.data import CachedCase
from train.distributed import ALONE, World

# Streams of random numbers; each draw has its own generator default_rng([seed, stream, ...]).
_ORDER, _PATCH, _BACKGROUND = 1, 2, 3
_TUMOUR = (Label.NCR, Label.ED, Label.ET)


@dataclass(frozen=True)
class Draw:
    """One patch to be loaded.

    Attributes:
        case: index of the case.
        start: first voxel (x, y, z) of the window in the case's box.
        seed: of the patch's augmentation.
    """

    case: int
    start: Shape3
    seed: int


class PatchSampler(Protocol):
    """Says which patches an epoch is made of."""

    def draws(self, epoch: int) -> list[Draw]:
        """The patches of one epoch, in order; the same list for the same epoch."""


class RandomSampler:
    """Tumour-aware random windows.

    Cases take turns in a random order, so that each is seen equally often. With probability
    ``foreground`` the window is centred on a random voxel of a tumour label drawn uniformly among
    those present (shifted where it would leave the box), else it lies anywhere in the box.
    """

    def __init__(
        self, cases: Sequence[CachedCase], patch: Shape3, config: SamplingConfig, seed: int
    ) -> None:
        self._cases = cases
        self._patch = patch
        self._config = config
        self._seed = seed

    def draws(self, epoch: int) -> list[Draw]:
        count = self._config.patches_per_epoch
        return [self._draw(epoch, index) for index in range(count)]

    def _draw(self, epoch: int, index: int) -> Draw:
        position = epoch * self._config.patches_per_epoch + index
        turn, place = divmod(position, len(self._cases))
        order = np.random.default_rng([self._seed, _ORDER, turn]).permutation(len(self._cases))
        chosen = int(order[place])
        rng = np.random.default_rng([self._seed, _PATCH, epoch, index])
        case = self._cases[chosen]
        room = [length - size for length, size in zip(case.shape, self._patch, strict=True)]
        present = [label for label in _TUMOUR if case.counts[label - 1]]
        if present and rng.random() < self._config.foreground:
            positions = case.positions(present[rng.integers(len(present))])
            voxel = np.unravel_index(int(positions[rng.integers(len(positions))]), case.shape)
            centred = [
                int(centre) - size // 2 for centre, size in zip(voxel, self._patch, strict=True)
            ]
            start = [min(max(first, 0), last) for first, last in zip(centred, room, strict=True)]
        else:
            start = [int(rng.integers(last + 1)) for last in room]
        return Draw(chosen, (start[0], start[1], start[2]), int(rng.integers(2**63)))


class GridSampler:
    """Windows of a stride grid, the last of each axis flush with the end of the box.

    All windows that hold tumour, and windows without drawn anew each epoch, up to
    ``background_ratio`` of their number; shuffled; cut to ``patches_per_epoch`` unless that is 0.
    """

    def __init__(
        self, cases: Sequence[CachedCase], patch: Shape3, config: SamplingConfig, seed: int
    ) -> None:
        self._config = config
        self._seed = seed
        self._tumour: list[tuple[int, Shape3]] = []
        self._background: list[tuple[int, Shape3]] = []
        for index, case in enumerate(cases):
            labels = case.labels()
            plan = plan_windows(case.shape, patch, config.stride, "stride")
            for x, y, z in plan.starts.tolist():
                window = labels[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
                kind = self._tumour if window.any() else self._background
                kind.append((index, (x, y, z)))
        if not self._tumour:
            raise InputError(
                "sampling.sampler grid",
                found=f"no tumour in {len(cases)} cases",
                expected="label maps with tumour",
                remedy="check the label maps and their convention (--labels)",
            )

    def draws(self, epoch: int) -> list[Draw]:
        rng = np.random.default_rng([self._seed, _BACKGROUND, epoch])
        wanted = int(self._config.background_ratio * len(self._tumour))
        chosen = rng.permutation(len(self._background))[:wanted]
        windows = self._tumour + [self._background[index] for index in chosen]
        order = rng.permutation(len(windows))[: self._config.patches_per_epoch or None]
        seeds = rng.integers(2**63, size=len(order))
        return [
            Draw(windows[index][0], windows[index][1], int(seed))
            for index, seed in zip(order, seeds, strict=True)
        ]


def make_sampler(
    cases: Sequence[CachedCase], patch: Shape3, config: SamplingConfig, seed: int
) -> PatchSampler:
    """The sampler that ``config`` names.

    Raises:
        InputError: the grid sampler finds no tumour.
    """
    kind = RandomSampler if config.sampler == "random" else GridSampler
    return kind(cases, patch, config, seed)


class EpochSampler(Sampler[Draw]):
    """Gives a `DataLoader` the draws of one epoch after another; set ``epoch`` before each.

    Several processes share every block of draws, each taking ``batch`` of them in a row: together
    they step on the draws that one process would with a batch as large. The last draws that do not
    fill a step are left out, unless there are no others and one process only.

    Args:
        sampler: says what an epoch is made of.
        batch: patches that a process trains on at a time.
        accumulate: how often before a step.
        world: the processes.

    Raises:
        UsageError: an epoch is too short for so many processes.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        batch: int = 1,
        accumulate: int = 1,
        world: World = ALONE,
    ) -> None:
        self._sampler = sampler
        self._batch = batch
        self._accumulate = accumulate
        self._world = world
        self.epoch = 0
        self._draws: tuple[int, list[Draw]] | None = None
        if self._world.size > 1 and not self._current():
            raise UsageError(
                "--sampling.patches-per-epoch",
                found=f"{len(sampler.draws(0))} patches for {self._world.size} processes",
                expected=f"at least {batch * accumulate * self._world.size}, a step of all of them",
                remedy="raise it, or start fewer processes",
            )

    def __iter__(self) -> Iterator[Draw]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def _current(self) -> list[Draw]:
        if self._draws is None or self._draws[0] != self.epoch:
            draws = self._sampler.draws(self.epoch)
            block = self._batch * self._world.size
            step = block * self._accumulate
            # Batch statistics of a lone patch differ from those of a whole batch.
            whole = len(draws) // step * step
            if whole or self._world.size > 1:
                draws = draws[:whole]
            first = self._batch * self._world.rank
            if self._world.size > 1:
                shares = [
                    draws[start + first : start + first + self._batch]
                    for start in range(0, len(draws), block)
                ]
                draws = [draw for share in shares for draw in share]
            self._draws = (self.epoch, draws)
        return self._draws[1]
