"""Does loading keep up with the step, and how does a step compare with a plain MONAI script's?

Both loops train the same network on patches of the same size of the same case, with flips and a
random contrast, cross-entropy and soft Dice, AdamW. MONAI's is written as its BraTS tutorial is:
`CacheDataset` holds the normalised case, random transforms, `DiceCELoss`, PyTorch as it comes; on a
GPU with its fp16 autocast and gradient scaler. Ours is `train.step.Stepper` on the loader of
`train.loop`. Steps are timed in turn, on the first GPU where there is one; MONAI's once a round for
ours in either arithmetic.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import pytest
import torch
from torch import nn

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure, ratios
from benchmarks.scale import STANDARD, Scale
from runtime.case import Case
from runtime.labels import MODALITIES
from train.augment_torch import DeviceAugment
from train.augment_torchio import PatchAugment
from train.config import AugmentConfig, Config
from train.config_file import find_config, read_config
from train.data import CachedCase, cached
from train.device import Compute, choose
from train.memory import keep_freed_memory
from train.patches import Batch, PatchDataset, patch_loader
from train.sampler import EpochSampler, RandomSampler
from train.step import Stepper

Step = Callable[[], None]
PATCHES = 10_000
ALIKE = AugmentConfig(flip=0.5, contrast=1.0, contrast_scale=0.1, contrast_shift=0.1)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:monai"),
]


def _config(name: str) -> Config:
    return read_config(find_config(name))


@pytest.fixture(scope="session", params=["small_cpu", "brats2020"])
def config(request: pytest.FixtureRequest, scale: Scale) -> Config:
    if request.param != "small_cpu" and scale is not STANDARD:
        pytest.skip(f"{request.param}: left out with --quick")
    keep_freed_memory()
    config = _config(request.param)
    if scale is not STANDARD:
        return replace(config, model=replace(config.model, patch=scale.patch))
    return config


@pytest.fixture(scope="session")
def entry(config: Config, case: Case, tmp_path_factory: pytest.TempPathFactory) -> CachedCase:
    if case.labels is None:
        pytest.skip(f"case {case.case_id} has no label map to train on")
    (found,) = cached([case], config.card("benchmark"), tmp_path_factory.mktemp("cache"))
    return found


@dataclass(frozen=True)
class OwnStep:
    """Our training step as a configuration has it.

    Attributes:
        seconds: one per round.
        peak_gib: most memory on the device; None on a CPU.
    """

    seconds: list[float]
    peak_gib: float | None


@pytest.fixture(scope="session")
def own_step(config: Config, entry: CachedCase, rounds: int, scale: Scale) -> OwnStep:
    """Taken once for all ways of loading: the step is the same."""
    compute = choose("auto", "auto", THREADS)
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
    step = _ours(config, entry, compute)
    step()
    taken = [_seconds(step, scale.steps) for _ in range(rounds)]
    return OwnStep(taken, _peak_gib(compute.device))


def _batches(config: Config, entry: CachedCase, augment: PatchAugment | None) -> Iterator[Batch]:
    """Our loader, in this process, without end."""
    patch, batch = config.model.patch, config.train.batch
    sampling = replace(config.sampling, patches_per_epoch=PATCHES)
    sampler = EpochSampler(RandomSampler([entry], patch, sampling, 0), batch)
    dataset = PatchDataset([entry], patch, augment)
    return iter(patch_loader(dataset, sampler, batch, workers=0, pin=False))


@pytest.mark.parametrize("where", ["loader", "device"])
def bench_loading(
    benchmark: Any,
    report: Report,
    config: Config,
    entry: CachedCase,
    own_step: OwnStep,
    where: Literal["loader", "device"],
    rounds: int,
    scale: Scale,
    case_facts: dict[str, Any],
) -> None:
    """Patches a second of one process, as the configuration augments them; and of the step."""
    if where == "device" and scale is not STANDARD:
        pytest.skip("augmentation on the device: left out with --quick")
    compute = choose("auto", "auto", THREADS)
    on_device = DeviceAugment(config.augment, MODALITIES)
    batches = _batches(
        config, entry, None if where == "device" else PatchAugment(config.augment, MODALITIES)
    )
    # A patch's changes are drawn: enough patches to see the usual mix of them.
    count = scale.load_batches

    def load() -> None:
        for _ in range(count):
            batch = next(batches)
            if where == "device":
                voxels, labels = batch.voxels.to(compute.device), batch.labels.to(compute.device)
                on_device(voxels.float(), labels, batch.seeds.tolist())
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)

    load()
    benchmark.pedantic(load, rounds=rounds, iterations=1)
    patches = count * config.train.batch
    rate = patches / benchmark.stats["median"]
    step_rate = config.train.batch / statistics.median(own_step.seconds)
    report(
        "loading against the step",
        {
            "loader": figure([patches / one for one in benchmark.stats.stats.data], "1/s"),
            "step": figure([config.train.batch / one for one in own_step.seconds], "1/s"),
        },
        augmentation="TorchIO" if where == "loader" else "PyTorch",
        features=list(config.model.features),
        patch=list(config.model.patch),
        loader_patches_s=rate,
        step_patches_s=step_rate,
        processes_to_feed_it=step_rate / rate,
        peak_gib=own_step.peak_gib,
        **case_facts,
    )


def bench_step_against_monai(
    benchmark: Any,
    report: Report,
    config: Config,
    entry: CachedCase,
    case: Case,
    rounds: int,
    scale: Scale,
    case_facts: dict[str, Any],
) -> None:
    """A step of a plain MONAI loop and one of ours in either arithmetic, loading included, in turn.
    Without the slower one with --quick.
    """
    pytest.importorskip("monai", reason="MONAI is in the extra bench")
    config = replace(
        config,
        augment=ALIKE,
        model=replace(config.model, deep_supervision=0, dropout=0.0),
        train=replace(config.train, region_dice=0.0, cross_entropy=0.5, dice=0.5, ema=0.0),
    )
    asked = ("auto", "fp32") if scale is STANDARD else ("auto",)
    # Where there is no faster arithmetic the two are one.
    computes = {one.precision: one for one in (choose("auto", kind, THREADS) for kind in asked)}
    usual, *others = computes
    steps = {precision: _ours(config, entry, one) for precision, one in computes.items()}
    peer = _monai(config, case, computes[usual].device)
    peer_s: list[float] = []
    seconds: dict[str, list[float]] = {precision: [] for precision in computes}

    def run(precision: str) -> None:
        seconds[precision].append(_seconds(steps[precision], scale.steps))

    def in_turn() -> None:
        peer_s.append(_seconds(peer, scale.steps))
        for precision in others:
            run(precision)

    for step in (peer, *steps.values()):
        step()
    benchmark.pedantic(lambda: run(usual), setup=in_turn, rounds=rounds, iterations=1)
    over = {precision: ratios(peer_s, taken) for precision, taken in seconds.items()}
    report(
        "a training step against MONAI",
        {f"ratio, {precision}": figure(found, "ratio") for precision, found in over.items()}
        | {f"ours, {precision}": figure(taken, "s") for precision, taken in seconds.items()},
        features=list(config.model.features),
        patch=list(config.model.patch),
        peer_s=statistics.median(peer_s),
        rounds=rounds,
        rows=[
            {
                "precision": precision,
                "ours_s": statistics.median(seconds[precision]),
                "ratio_min": min(found),
                "ratio_median": statistics.median(found),
                "ratio_max": max(found),
            }
            for precision, found in over.items()
        ],
        device=str(computes[usual].device),
        **case_facts,
    )


def _seconds(step: Step, times: int) -> float:
    """Of one step, the mean of ``times``."""
    began = perf_counter()
    for _ in range(times):
        step()
    return (perf_counter() - began) / times


def _peak_gib(device: torch.device) -> float | None:
    """Of everything so far in this process; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


def _ours(config: Config, entry: CachedCase, compute: Compute) -> Step:
    network = config.architecture().build(0)
    stepper = Stepper(network, config.train, compute, DeviceAugment(config.augment, MODALITIES))
    batches = _batches(config, entry, None)

    def step() -> None:
        if stepper.step(next(batches), 1e-4) is None:
            raise ValueError("a loss that is not finite")

    return step


def _monai(config: Config, case: Case, device: torch.device) -> Step:
    """MONAI's BraTS tutorial with our network and patch."""
    import monai.transforms as mt
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DiceCELoss

    network: nn.Module = config.architecture().build(0).to(device)
    files = {
        "image": [str(Path(case.images[name].path)) for name in MODALITIES],
        "label": str(case.labels),
    }
    transforms = mt.Compose(
        [
            mt.LoadImaged(keys=["image", "label"]),
            mt.EnsureChannelFirstd(keys=["image", "label"]),
            mt.EnsureTyped(keys=["image", "label"]),
            mt.Lambdad(keys="label", func=lambda label: torch.where(label == 4, 3, label)),
            mt.CropForegroundd(keys=["image", "label"], source_key="image"),
            mt.NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
            # A brain may be smaller than a patch; ours is extended too.
            mt.SpatialPadd(keys=["image", "label"], spatial_size=config.model.patch),
            mt.RandSpatialCropd(
                keys=["image", "label"], roi_size=config.model.patch, random_size=False
            ),
            *[mt.RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=a) for a in range(3)],
            mt.RandScaleIntensityd(keys="image", factors=0.1, prob=1.0),
            mt.RandShiftIntensityd(keys="image", offsets=0.1, prob=1.0),
        ]
    )
    dataset = CacheDataset([files] * PATCHES, transforms, cache_num=1, progress=False)
    # The first item is the cached one: every batch draws from it.
    loader = DataLoader(dataset, batch_size=config.train.batch, sampler=[0] * PATCHES)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=1e-5)
    on_gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    batches = iter(loader)
    network.train()

    def step() -> None:
        batch = next(batches)
        image, label = (batch[key].as_tensor().to(device) for key in ("image", "label"))
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            value = loss(network(image), label)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        # Ours waits for its loss at each step; so does whoever prints one.
        float(value.detach())

    return step
