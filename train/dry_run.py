"""What a run would do and need: checks, one step, and the plan; nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from runtime.case import Case
from runtime.errors import ComputeError
from runtime.labels import MODALITIES, Label, LabelMap
from runtime.preprocess import Prepared
from train.augment_torchio import PatchAugment
from train.config import Config
from train.data import prepare_case
from train.device import Compute
from train.patches import Batch
from train.split import Split
from train.step import Stepper

# Cases are read for so long, and two at least; all of them are when they are prepared.
_SECONDS = 10.0
_LEAST = 2
# A voxel of the cache is a float16.
_BYTES = 2


@dataclass(frozen=True)
class Plan:
    """What a dry run found.

    Attributes:
        parameters: of the network.
        seconds_per_step: of a whole step, the second of two.
        memory_gib: weights, gradients, moments, and what the forward pass keeps for the backward
            pass; on a GPU the peak that was measured.
        free_gib: memory that is free now.
        loss: of the step.
        read: cases that were read and found usable.
        cache_gib: what the prepared cases will take on disk, by those that were read.
    """

    parameters: int
    seconds_per_step: float
    memory_gib: float
    free_gib: float
    loss: float
    read: int
    cache_gib: float


def dry_run(
    config: Config, cases: Sequence[Case], split: Split, compute: Compute, console: Console
) -> Plan:
    """Read cases for some seconds, train one batch twice, and print the plan.

    Raises:
        InputError: a case that was read is bad.
        ComputeError: the step fails, or its loss is not finite.
    """
    by_id = {case.case_id: case for case in cases}
    # One of each side, then whichever: the first of a data set are often alike.
    names = [*split.train, *split.validation]
    order = np.random.default_rng(config.seed).permutation(len(names)).tolist()
    chosen = list(dict.fromkeys([*split.train[:1], *split.validation[:1]]))
    chosen += [names[index] for index in order if names[index] not in chosen]
    patches: list[tuple[Tensor, Tensor]] = []
    sizes: list[int] = []
    augment = PatchAugment(config.augment, MODALITIES)
    began = monotonic()
    for name in chosen:
        if len(sizes) >= _LEAST and monotonic() - began > _SECONDS:
            break
        prepared, truth = prepare_case(by_id[name], config.card("dry run"), config.convention())
        sizes.append(_BYTES * prepared.voxels.size + truth.size)
        if len(patches) < _LEAST:
            patches.append(_patch(prepared, truth, config, augment))
    images, truths = (list(part) for part in zip(*patches, strict=True))
    repeats = -(-config.train.batch // len(images))
    voxels = torch.stack(images * repeats)[: config.train.batch]
    labels = torch.stack(truths * repeats)[: config.train.batch]
    batch = Batch(voxels, labels, torch.arange(len(voxels)))
    cache = fmean(sizes) * len(names) / 2**30
    plan = replace(_measure(config, compute, batch), read=len(sizes), cache_gib=cache)
    console.print(_table(config, split, compute, plan))
    return plan


def _patch(
    prepared: Prepared, labels: LabelMap, config: Config, augment: PatchAugment
) -> tuple[Tensor, Tensor]:
    """One window of a case, centred on tumour where there is any."""
    tumour = np.argwhere(labels != Label.BACKGROUND)
    centre = tumour[len(tumour) // 2] if len(tumour) else np.array(labels.shape) // 2
    window = []
    for middle, size, length in zip(centre, config.model.patch, labels.shape, strict=True):
        start = min(max(int(middle) - size // 2, 0), length - size)
        window.append(slice(start, start + size))
    voxels = np.ascontiguousarray(prepared.voxels[:, *window])
    return augment(voxels, np.ascontiguousarray(labels[tuple(window)]), config.seed)


def _measure(config: Config, compute: Compute, batch: Batch) -> Plan:
    model = config.architecture().build(config.seed)
    stepper = Stepper(model, config.train, compute)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, _unchanged):
        first = stepper.step(batch, config.train.lr)
    began = monotonic()
    loss = stepper.step(batch, config.train.lr)
    seconds = monotonic() - began
    if first is None or loss is None or not isfinite(loss):
        raise ComputeError(
            "the trial step",
            found="a loss that is not finite",
            expected="a finite one",
            remedy="lower --train.lr, or check the intensities of the cases",
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if compute.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(compute.device)
        free = torch.cuda.mem_get_info(compute.device)[0] + memory
    else:
        # Four float32 values a parameter: weight, gradient, two moments.
        memory = 16 * parameters + sum(kept.values())
        free = _free_memory()
    return Plan(parameters, seconds, memory / 2**30, free / 2**30, loss, 0, 0.0)


def _free_memory() -> int:
    """Bytes that the system could give now; what it does not tell counts as enough."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return 2**62


def _unchanged(tensor: Any) -> Any:
    return tensor


def _table(config: Config, split: Split, compute: Compute, plan: Plan) -> Table:
    sampling, batch = config.sampling, config.train.batch
    count = sampling.patches_per_epoch
    # How many windows the grid has is known only once every case has been read.
    patches = f"{count}" if count else "all windows of the grid"
    table = Table(title="Dry run: nothing was written", show_header=False)
    table.add_row("cases", f"{len(split.train)} train, {len(split.validation)} validate")
    table.add_row("read", f"{plan.read} of {len(split.train) + len(split.validation)}: usable")
    table.add_row("excluded", ", ".join(split.excluded) or "none")
    table.add_row("patch", "x".join(map(str, config.model.patch)) + f", {batch} a step")
    table.add_row("patches an epoch", f"{patches} ({sampling.sampler})")
    table.add_row("network", f"{plan.parameters / 1e6:.2f} M parameters {config.model.features}")
    table.add_row("device", f"{compute.device}, {compute.precision}")
    memory = f"about {plan.memory_gib:.1f} GiB for a step"
    if plan.free_gib < 2**20:
        memory += f", {plan.free_gib:.1f} GiB free"
    if plan.memory_gib > plan.free_gib:
        memory += ": too little, lower --train.batch or --model.patch"
    table.add_row("memory", memory)
    table.add_row("cache", f"about {plan.cache_gib:.1f} GiB on disk")
    table.add_row("step", f"{plan.seconds_per_step:.2f} s, loss {plan.loss:.3f}")
    if count:
        epoch = plan.seconds_per_step * count / batch
        total = epoch * config.train.epochs / 3600
        table.add_row("epoch", f"{epoch:.0f} s; {config.train.epochs} epochs {total:.1f} h")
    return table
