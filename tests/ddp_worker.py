"""One of several processes that take ten steps together; see tests/test_distributed.py.

torchrun ddp_worker.py OUT frozen|live
"""

import sys
from pathlib import Path

import torch
from torch import nn

from train.checkpoint import Architecture
from train.config import TrainConfig
from train.device import Compute
from train.distributed import World, joined, place
from train.patches import Batch
from train.step import Stepper

STEPS = 10
GLOBAL_BATCH = 4
LR = 1e-3


def global_batch(step: int) -> Batch:
    """The same patches for everybody; labels that are unevenly spread over them."""
    generator = torch.Generator().manual_seed(step)
    voxels = torch.randn(2 * GLOBAL_BATCH, 4, 16, 16, 16, generator=generator)
    labels = torch.randint(0, 4, (2 * GLOBAL_BATCH, 16, 16, 16), generator=generator)
    labels[0] = 0
    labels[1][labels[1] == 3] = 1
    return Batch(voxels, labels.to(torch.uint8), torch.arange(2 * GLOBAL_BATCH) + 100 * step)


def share(batch: Batch, world: World) -> Batch:
    """What this process trains on: its part of each of two blocks, as `EpochSampler` deals them."""
    part = GLOBAL_BATCH // world.size
    rows = [
        block * GLOBAL_BATCH + world.rank * part + index
        for block in range(2)
        for index in range(part)
    ]
    return Batch(batch.voxels[rows], batch.labels[rows], batch.seeds[rows])


def freeze_statistics(network: nn.Module) -> None:
    """Batch norms keep the statistics of the first batch, in training as well."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(global_batch(0).voxels)
    for norm in norms:
        norm.eval()
        norm.train = lambda mode=True, norm=norm: norm  # type: ignore[method-assign, misc, assignment]


def train(world: World, frozen: bool) -> dict[str, torch.Tensor]:
    """Ten steps; the weights and the average."""
    network = Architecture(features=(4, 8, 16), dropout=0.0, deep_supervision=1).build()
    if frozen:
        freeze_statistics(network)
    config = TrainConfig(
        batch=GLOBAL_BATCH // world.size, accumulate=2, ema=0.9, region_dice=0.5, clip=1.0
    )
    stepper = Stepper(network, config, Compute(torch.device("cpu"), None), world=world)
    losses = [stepper.step(share(global_batch(step), world), LR) for step in range(STEPS)]
    state = {f"raw.{key}": value.clone() for key, value in network.state_dict().items()}
    state |= {f"average.{key}": value for key, value in stepper.served.state_dict().items()}
    state["losses"] = torch.tensor(losses)
    return state


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, kind = Path(sys.argv[1]), sys.argv[2]
    here = place()
    with joined(here, torch.device("cpu")):
        # Imports much of PyTorch, and only now: a run does so when its network is wrapped.
        torch.use_deterministic_algorithms(True)
        torch.save(train(here, kind == "frozen"), out / f"rank{here.rank}.pt")
    threads = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    (out / f"threads{here.rank}.txt").write_text("".join(threads))
