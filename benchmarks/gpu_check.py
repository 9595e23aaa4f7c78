"""Does all of it work on this GPU, and how fast? One command, correctness first.

    python -m benchmarks.gpu_check CHECKPOINT --data CASES [-o OUT]

In this order: environment and versions; the contract tests marked `gpu`; an export with engines and
their parity certificate on real cases; latency of one patient by stage, backend, batch and window
plan; disk to disk and throughput; PyTorch AMP, torch.compile and MONAI in the same run. Everything
goes to OUT/gpu_check.json after every section, so that what was measured survives a cut; a short
table comes last. `--rehearse` runs the same sections without a GPU, on fakes of CUDA and TensorRT
and a small network: it proves that the script runs, and its times mean nothing.
"""

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, Final, Literal

import onnx
import tyro
from rich.console import Console

from benchmarks.gpu_measure import (
    Setting,
    disk_to_disk,
    latency,
    open_setting,
    patients_per_second,
    same_labels,
)
from benchmarks.gpu_report import show
from runtime.case import Case, find_cases
from runtime.model_dir import ONNX_FP16, ONNX_FP32, ModelDir
from runtime.nifti import load
from runtime.phantom import Enhancement, write_phantom
from runtime.segmenter import Segmenter, SegmentOptions

PACKAGES: Final = (
    "torch", "cupy-cuda13x", "cupy-cuda12x", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx",
    "onnx", "numpy", "monai", "nibabel", "isal", "brats-deploy",
)  # fmt: skip
BATCHES: Final = (1, 4, 8, 16)
GPU_TESTS: Final = ("tests/test_backends.py", "tests/test_cupy_ops.py")
ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class CheckArgs:
    """Arguments of the check."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint of the network to check."""
    data: Path | None = None
    """Folder of cases; phantoms by default."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("gpu_check")
    """Folder for gpu_check.json, and the model directory."""
    device: str = "cuda:0"
    """Which GPU."""
    rounds: int = 20
    """Times each latency is taken, after warm-up."""
    cohort: int = 30
    """Cases of the throughput measurement."""
    up_branch: Literal["auto", "k4", "all"] = "auto"
    """Forms of the graph that engines are built from, as for brats-export."""
    engine_level: int = 3
    """TensorRT's optimisation level, 0 to 5."""
    skip: tuple[str, ...] = ()
    """Sections to leave out."""
    rehearse: bool = False
    """Run on fakes, without a GPU."""


@dataclass
class Check:
    """The run so far: what the sections share, and what they have found."""

    args: CheckArgs
    data: Path
    cases: list[Case] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def model_path(self) -> Path:
        return self.args.output / "model"

    @property
    def torch_device(self) -> str:
        return "cpu" if self.args.rehearse else self.args.device

    def settings(self) -> Iterator[Setting]:
        """Backends and precisions at the model's own batch and window plan."""
        for backend in ("ort", "trt"):
            for precision in ("fp32", "fp16"):
                yield Setting(f"{backend} {precision}", backend, precision)


def main(args: CheckArgs) -> int:
    """Run all sections; 0 if every one of them ran and everything agreed."""
    console = Console()
    args.output.mkdir(parents=True, exist_ok=True)
    with machine(args.rehearse), tempfile.TemporaryDirectory() as scratch:
        check = Check(args, args.data or _phantoms(Path(scratch), args.rehearse))
        check.cases = find_cases(check.data)
        check.report["command"] = " ".join(["python -m benchmarks.gpu_check", *sys.argv[1:]])
        check.report["rehearsal"] = args.rehearse
        failed = []
        for name, section in SECTIONS.items():
            if name in args.skip:
                continue
            console.rule(name)
            began = perf_counter()
            try:
                found = section(check)
            # One section that fails must not take the others with it: device time is dear.
            except Exception as error:
                failed.append(name)
                found = {"error": f"{type(error).__name__}: {error}"}
                console.print_exception(max_frames=8)
            found["seconds"] = round(perf_counter() - began, 2)
            check.report[name] = found
            text = json.dumps(check.report, indent=1, default=str)
            (args.output / "gpu_check.json").write_text(text)
    show(check.report, console)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


def machine(rehearse: bool) -> AbstractContextManager[Any]:
    """The real machine, or fakes of its GPU."""
    if not rehearse:
        return nullcontext()
    from tests.fake_gpu import fake_gpu

    return fake_gpu()


def _phantoms(folder: Path, small: bool) -> Path:
    shape = (72, 64, 56) if small else (240, 240, 155)
    for number in range(1, 4):
        write_phantom(folder, number, 20_201, shape=shape, enhancement=Enhancement.RIM)
    return folder


# Sections


def environment(check: Check) -> dict[str, Any]:
    """Versions beside every figure."""
    import torch

    from runtime.backends.driver import gpu
    from runtime.backends.tensorrt_library import load_tensorrt

    index = int(check.args.device.partition(":")[2] or 0)
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "gpu": asdict(gpu(index)),
        "packages": {name: _version(name) for name in PACKAGES},
        "tensorrt": str(load_tensorrt()),
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "commit": _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "driver": _output(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        ),
        "cases": [case.case_id for case in check.cases],
    }
    return found


def contract(check: Check) -> dict[str, Any]:
    """The tests that are marked `gpu`, in a process of their own."""
    if check.args.rehearse:
        return {"summary": "left out: the tests of the fakes are part of the test suite"}
    done = subprocess.run(
        # Only these files, and no warning an error: the libraries are that machine's.
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-W", "default", *GPU_TESTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    (check.args.output / "contract.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(lines[-1] if lines else done.stderr[-500:])
    return {"summary": lines[-1]}


def export(check: Check) -> dict[str, Any]:
    """brats-export with engines: which form of the graph is the fastest, and the certificate."""
    from export import cli

    args = ["--fp16", "-o", str(check.model_path), "--allow-inconclusive"]
    args += ["--engine-level", str(check.args.engine_level), "--up-branch", check.args.up_branch]
    args += ["--data", str(check.data)]
    code = cli.main([str(check.args.checkpoint), *args])
    if code:
        raise RuntimeError(f"brats-export left with {code}")
    certificate = ModelDir.open(check.model_path).certificate
    return {
        "engines": certificate.get("engines"),
        "verdict": certificate["verdict"],
        "artefacts": [
            {name: entry.get(name) for name in ("file", "backend", "arithmetic", "verdict")}
            | {"worst": _worst(entry)}
            for entry in certificate["artefacts"]
        ],
    }


def agreement(check: Check) -> dict[str, Any]:
    """Labels of every backend as it serves against fp32 ONNX Runtime on the CPU."""
    model = ModelDir.open(check.model_path)
    found: dict[str, Any] = {}
    volume = load(check.cases[0])
    options = SegmentOptions()
    cpu = open_setting(model, Setting("cpu", "ort", "fp32"), "cpu")
    expected = Segmenter(cpu, options).segment(volume).labels
    cpu.close()
    for setting in check.settings():
        backend = open_setting(model, setting, check.args.device)
        prediction = Segmenter(backend, options).segment(volume)
        backend.close()
        found[setting.title] = {
            "changed_labels": same_labels(prediction.labels, expected),
            "backend": asdict(prediction.backend),
        }
    return found


def patient(check: Check) -> dict[str, Any]:
    """Latency of one patient: backends at the default plan, batches, and the full volume."""
    model = ModelDir.open(check.model_path)
    volume = load(check.cases[0])
    found: dict[str, Any] = {"case": check.cases[0].case_id}
    settings = list(check.settings())
    settings += [
        Setting(f"trt fp16 batch {batch}", "trt", "fp16", batch=batch)
        for batch in BATCHES
        if batch != settings[-1].batch
    ]
    settings.append(Setting("trt fp16 full", "trt", "fp16", whole=True))
    settings.append(Setting("ort fp16 full", "ort", "fp16", whole=True))
    for setting in settings:
        measured = latency(model, setting, volume, check.args.device, check.args.rounds)
        found[setting.title] = asdict(measured)
    return found


def disk(check: Check) -> dict[str, Any]:
    """From four files to a label map, and patients per second."""
    model = ModelDir.open(check.model_path)
    setting = Setting("trt fp16", "trt", "fp16")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        return {
            "one_patient_s": disk_to_disk(
                model, setting, check.cases[0], check.args.device, out / "one", check.args.rounds
            ),
            "patients_per_s": patients_per_second(
                model, setting, check.cases, check.args.device, out / "many", check.args.cohort
            ),
        }


def ceilings(check: Check) -> dict[str, Any]:
    """What this device can do at most, and what that leaves for a window of this network."""
    import torch

    from benchmarks.roofline import work_of

    if check.args.rehearse:
        return {"summary": "left out: there is no device to measure"}
    rates = _rates(torch.device(check.args.device))
    model = ModelDir.open(check.model_path)
    work = work_of(onnx.load_from_string(model.read(ONNX_FP32)), model.card.patch)
    arithmetic, memory = work.microseconds(rates["tflops"], rates["tbytes"])
    return rates | {"arithmetic_us": arithmetic, "memory_us": memory, **asdict(work)}


def _rates(device: Any) -> dict[str, float]:
    """fp16 matrix product, TFLOP/s, and device-to-device copy, TB/s read and written."""
    import torch

    size = 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.float16) for _ in range(2))
    source = torch.randint(0, 255, (1 << 32,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for step in (lambda: left @ right, lambda: target.copy_(source)):
        times = []
        for _ in range(13):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            step()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        seconds.append(median(times[3:]))
    return {
        "tflops": 2 * size**3 / seconds[0] / 1e12,
        "tbytes": 2 * source.numel() / seconds[1] / 1e12,
    }


def ort_options(check: Check) -> dict[str, Any]:
    """ONNX Runtime's CUDA provider: what its switches are worth here, ms per window."""
    from export.engines import window_seconds
    from runtime.backends import BackendInfo
    from runtime.backends.ort_cuda import CudaOptions, OrtCudaBackend
    from runtime.ops.cupy import CupyOps

    model = ModelDir.open(check.model_path)
    index = int(check.args.device.partition(":")[2] or 0)
    found: dict[str, Any] = {}
    for title, options in {
        "exhaustive": CudaOptions(),
        "heuristic": CudaOptions(conv_search="HEURISTIC"),
        "exhaustive, prefer_nhwc": CudaOptions(prefer_nhwc=True),
        "exhaustive, fuse_conv_bias": CudaOptions(fuse_conv_bias=True),
    }.items():
        info = BackendInfo("ort", f"cuda:{index}", "fp16", ONNX_FP16)
        backend = OrtCudaBackend(model.read(ONNX_FP16), model.card, info, CupyOps(index), options)
        try:
            found[title] = 1e3 * window_seconds(backend)
        finally:
            backend.close()
    return found


def peers(check: Check) -> dict[str, Any]:
    """PyTorch AMP, torch.compile and MONAI on the same case, weights, windows and device."""
    import torch

    from benchmarks.gpu_peers import Peer, normalised
    from train.checkpoint import load_model

    network, card = load_model(check.args.checkpoint)
    half = torch.bfloat16 if check.args.rehearse else torch.float16
    peer = Peer.of(network, card, check.torch_device, half)
    rounds, batch = check.args.rounds, card.inference.batch
    prepared, full = normalised(load(check.cases[0]), card)
    found: dict[str, Any] = {
        "autocast": str(half),
        "amp_window_ms": {
            str(size): 1e3 * peer.window_seconds(size, rounds)
            for size in BATCHES[: 1 if check.args.rehearse else None]
        },
        "amp_patient_ms": 1e3 * peer.seconds(peer.windows(prepared.voxels, batch), rounds),
    }
    try:
        compiled = peer.compiled()
        found["compiled_window_ms"] = 1e3 * compiled.window_seconds(batch, rounds)
        found["compiled_patient_ms"] = 1e3 * compiled.seconds(
            compiled.windows(prepared.voxels, batch), rounds
        )
    except RuntimeError as error:
        found["compiled"] = f"torch.compile failed: {str(error).splitlines()[0][:200]}"
    try:
        for title, voxels in (("box", prepared.voxels), ("full", full)):
            found[f"monai_{title}_ms"] = 1e3 * peer.seconds(peer.monai(voxels, batch), rounds)
        with tempfile.TemporaryDirectory() as folder:
            step = peer.monai_disk_to_disk(check.cases[0], Path(folder) / "labels.nii.gz", batch)
            found["monai_disk_to_disk_ms"] = 1e3 * peer.seconds(step, max(3, rounds // 4), 1)
    except ImportError as error:
        found["monai"] = f"left out: {error}"
    return found


SECTIONS: Final[dict[str, Callable[[Check], dict[str, Any]]]] = {
    "environment": environment,
    "contract": contract,
    "export": export,
    "agreement": agreement,
    "patient": patient,
    "disk": disk,
    "ort_options": ort_options,
    "peers": peers,
    "ceilings": ceilings,
}


def _worst(entry: dict[str, Any]) -> dict[str, float]:
    records = [case for case in entry["cases"] if not case["non_finite"]]
    if not records:
        return {}
    return {
        "dice": min(min(record["dice_to_fp32"].values()) for record in records),
        "changed_labels": max(record["changed_labels"] for record in records),
        "probability": max(record["max_probability_error"] for record in records),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError as error:
        return f"absent ({error.strerror})"
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(CheckArgs, description=__doc__)))
