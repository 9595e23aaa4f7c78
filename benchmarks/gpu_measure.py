"""What `gpu_check` measures of our own backends: stages, patients, memory, throughput."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from runtime.backends import Backend, BackendOptions, open_backend
from runtime.case import Case
from runtime.cohort import plan_jobs, segment_cases
from runtime.model_card import Shape3
from runtime.model_dir import ModelDir
from runtime.nifti import Volume, load
from runtime.output_plan import OutputOptions, plan_output
from runtime.prediction import save
from runtime.segmenter import Segmenter, SegmentOptions

STAGES = ("prepare", "bind", "gather", "network", "stitch", "finish")


@dataclass(frozen=True)
class Setting:
    """One way to run a case.

    Attributes:
        title: for the table.
        backend, precision: as on the command line.
        whole: the full volume instead of the brain box.
        batch: windows at a time.
    """

    title: str
    backend: str
    precision: str
    whole: bool = False
    batch: int = 4


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one patient, on the device's clock unless said otherwise.

    Attributes:
        stages: per stage.
        total: all stages.
        spread: least and most total.
        wall: host clock, from voxels in memory to labels in memory.
        windows: of the plan.
        per_window: network time per window.
        memory_mib: device memory in use after the runs, above what was in use before.
        captured: whether batches ran as a CUDA graph; None where there is no choice.
    """

    stages: dict[str, float]
    total: float
    spread: tuple[float, float]
    wall: float
    windows: int
    per_window: float
    memory_mib: float
    captured: bool | None


def open_setting(model: ModelDir, setting: Setting, device: str) -> Backend:
    """The backend of a setting; artefacts without a certificate are run too, and measured."""
    return open_backend(
        model,
        BackendOptions(
            backend=setting.backend,  # type: ignore[arg-type]
            device=device,
            precision=setting.precision,  # type: ignore[arg-type]
            uncertified=True,
        ),
    )


def uncropped(volume: Volume) -> Volume:
    """The same case with two opposite corners lit, so that its brain box is the whole volume."""
    name, image = next(iter(volume.images.items()))
    voxels = image.voxels.copy(order="K")
    voxels[0, 0, 0] = voxels[-1, -1, -1] = 1
    return replace(volume, images={**volume.images, name: replace(image, voxels=voxels)})


def latency(
    model: ModelDir, setting: Setting, volume: Volume, device: str, rounds: int, warm_up: int = 3
) -> Latency:
    """Run a case ``rounds`` times with one warm backend."""
    before = used_mib(device)
    with closing(open_setting(model, setting, device)) as backend:
        overlap: float | Shape3 = model.card.inference.overlap
        segmenter = Segmenter(
            backend,
            SegmentOptions(
                overlap=overlap,
                placement="stride" if setting.whole else "fitted",
                batch=setting.batch,
            ),
        )
        case = uncropped(volume) if setting.whole else volume
        runs, walls = [], []
        for _ in range(warm_up + rounds):
            began = perf_counter()
            prediction = segmenter.segment(case)
            walls.append(1e3 * (perf_counter() - began))
            runs.append(prediction)
        memory = used_mib(device) - before
        timings = [
            {name: 1e3 * value for name, value in asdict(run.timings).items()}
            for run in runs[warm_up:]
        ]
        windows = len(runs[-1].plan)
        captured = getattr(backend, "captured", None)
    totals = [sum(timing.values()) for timing in timings]
    stages = {name: median(timing[name] for timing in timings) for name in STAGES}
    return Latency(
        stages=stages,
        total=median(totals),
        spread=(min(totals), max(totals)),
        wall=median(walls[warm_up:]),
        windows=windows,
        per_window=stages["network"] / windows,
        memory_mib=memory,
        captured=captured,
    )


def disk_to_disk(
    model: ModelDir, setting: Setting, case: Case, device: str, out: Path, rounds: int
) -> dict[str, float]:
    """Median seconds from four files to a label map and its sidecar, with a warm backend."""
    plan = plan_output(case, OutputOptions(out, overwrite=True))
    times: list[dict[str, float]] = []
    with closing(open_setting(model, setting, device)) as backend:
        segmenter = Segmenter(backend, SegmentOptions(batch=setting.batch))
        for _ in range(rounds + 1):
            began = perf_counter()
            volume = load(case)
            loaded = perf_counter()
            prediction = segmenter.segment(volume)
            segmented = perf_counter()
            save(prediction, plan, {}, loaded - began)
            ended = perf_counter()
            times.append(
                {
                    "load": loaded - began,
                    "segment": segmented - loaded,
                    "save": ended - segmented,
                    "total": ended - began,
                }
            )
    return {name: median(one[name] for one in times[1:]) for name in times[0]}


def patients_per_second(
    model: ModelDir, setting: Setting, cases: Sequence[Case], device: str, out: Path, count: int
) -> float:
    """Throughput of the cohort loop over ``count`` cases, opening the backend left out."""
    repeated = [
        Case(f"{case.case_id}-{number}", case.images, case.labels)
        for number, case in enumerate((list(cases) * (count // len(cases) + 1))[:count])
    ]
    jobs = plan_jobs(repeated, OutputOptions(out, overwrite=True))
    with closing(open_setting(model, setting, device)) as backend:
        segmenter = Segmenter(backend, SegmentOptions(batch=setting.batch))
        segmenter.segment(load(cases[0]))
        began = perf_counter()
        failed = [outcome.error for outcome in segment_cases(jobs, segmenter) if outcome.error]
        seconds = perf_counter() - began
    if failed:
        raise failed[0]
    return len(jobs) / seconds


def used_mib(device: str) -> float:
    """Device memory that is in use on ``device``, such as "cuda:1", by anyone."""
    import cupy

    free, total = cupy.cuda.Device(device_index(device)).mem_info
    return float((total - free) / 2**20)


def device_index(device: str) -> int:
    """1 of "cuda:1", 0 of "cuda"."""
    return int(device.partition(":")[2] or 0)


Timer = Callable[[Callable[[], Any]], float]
"""timer(step): median seconds of a step on the device."""


def timer_of(device: Any, rounds: int = 10, warm_up: int = 3) -> Timer:
    """A timer on the clock of a torch.device: events on a GPU, the host's clock on a CPU."""
    import torch

    def on_host(step: Callable[[], Any]) -> float:
        began = perf_counter()
        step()
        return perf_counter() - began

    def on_gpu(step: Callable[[], Any]) -> float:
        with torch.cuda.device(device):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            step()
            last.record()
            last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    once = on_gpu if device.type == "cuda" else on_host
    return lambda step: median([once(step) for _ in range(warm_up + rounds)][warm_up:])


def rates(
    device: Any, side: int = 8192, length: int = 1 << 32, timer: Timer | None = None
) -> dict[str, float]:
    """What a torch.device can do at most: the ceilings that a network is compared with.

    Args:
        device: a torch.device.
        side: of the square matrices, fp16.
        length: bytes that are copied.
        timer: of one step; by default the device's own.

    Returns:
        ``tflops`` of the matrix product, 1e12 operations a second, a multiply-add being two;
        ``tbytes`` of the copy within the device, 1e12 bytes read or written a second.
    """
    import torch

    timer = timer or timer_of(device)
    left, right = (torch.randn(side, side, device=device).half() for _ in range(2))
    product_s = timer(lambda: left @ right)
    source = torch.randint(0, 255, (length,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy_s = timer(lambda: target.copy_(source))
    return {"tflops": 2 * side**3 / product_s / 1e12, "tbytes": 2 * length / copy_s / 1e12}
