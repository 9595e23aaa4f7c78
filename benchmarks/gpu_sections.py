"""What `gpu_check` finds out: the rows of its sections, the most valuable first."""

import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu_bench import SETTINGS, Bench
from benchmarks.gpu_contract import GPU_TESTS, ROOT, run_contract
from benchmarks.gpu_measure import (
    Setting,
    disk_to_disk,
    latency,
    open_setting,
    patients_per_second,
    rates,
)
from benchmarks.gpu_run import LeftOutError, Row, sentence
from export.build import file_of
from export.parity import Gate, changed_labels
from export.up_branch import UpBranch
from runtime.segmenter import Segmenter, SegmentOptions

PACKAGES: Final = (
    "torch", "cupy-cuda13x", "cupy-cuda12x", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx",
    "onnx", "numpy", "monai", "nibabel", "isal", "brats-deploy",
)  # fmt: skip
BATCHES: Final = (1, 4, 8, 16)


def rows(bench: Bench) -> Iterator[Row]:
    """All rows in the order of their worth: first whether it is right, then the latency that
    matters most and that of the peers, then the rest.
    """
    yield Row("environment", "", partial(environment, bench), 0)
    yield Row("contract", "", partial(contract, bench), 20, vital=True)
    yield Row("export", "", partial(export, bench), 30, vital=True)
    for setting in SETTINGS:
        work = partial(agreement, bench, setting)
        yield Row("agreement", setting.title, work, 5, vital=True)
    full = [replace(one, title=f"{one.title} full", whole=True) for one in SETTINGS[:2]]
    yield from _patient(bench, SETTINGS[0], full[0], SETTINGS[1])
    # Its cost, paid once, is not what a row of the peers takes.
    yield Row("peer_network", "", partial(peer_network, bench), 25)
    yield from _peers(bench, 5, "monai_full_ms", "monai_box_ms", "amp_patient_ms")
    yield from _patient(bench, full[1], *SETTINGS[2:])
    best = bench.headline
    for batch in (batch for batch in BATCHES if batch != best.batch):
        yield from _patient(bench, replace(best, title=f"{best.title} batch {batch}", batch=batch))
    yield from _peers(bench, 5, *(f"amp_window_{batch}_ms" for batch in BATCHES))
    yield Row("disk", "one_patient", partial(one_patient, bench), 10)
    yield Row("disk", "cohort", partial(cohort, bench), 10)
    yield from _peers(bench, 10, "monai_disk_to_disk_ms")
    yield from _peers(bench, 60, "compiled_patient_ms", "compiled_window_ms")
    for title in ORT_OPTIONS:
        yield Row("ort_options", title, partial(ort_options, bench, title), 10)
    yield Row("ceilings", "", partial(ceilings, bench), 5)


SECTIONS: Final = (
    "environment", "contract", "export", "agreement", "patient", "disk", "ort_options",
    "peer_network", "peers", "ceilings",
)  # fmt: skip


def _patient(bench: Bench, *settings: Setting) -> Iterator[Row]:
    for setting in settings:
        yield Row("patient", setting.title, partial(patient, bench, setting), 5)


def _peers(bench: Bench, expected_s: float, *titles: str) -> Iterator[Row]:
    for title in titles:
        yield Row("peers", title, partial(peer, bench, title), expected_s)


def environment(bench: Bench) -> dict[str, Any]:
    """Versions beside every figure; what cannot be told is told as such."""
    import torch

    from runtime.backends import driver, tensorrt_library

    return {
        "python": platform.python_version(),
        "gpu": _or_why(lambda: asdict(driver.gpu(bench.index))),
        "packages": {name: _version(name) for name in PACKAGES},
        "tensorrt": _or_why(lambda: str(tensorrt_library.load_tensorrt())),
        "torch_cuda": torch.version.cuda,
        "cudnn": _or_why(torch.backends.cudnn.version),
        "commit": _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "driver": _output(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        ),
        "cases": [case.case_id for case in bench.cases],
    }


def contract(bench: Bench) -> dict[str, Any]:
    """The tests that are marked `gpu`; they may take half of the time that is left."""
    if bench.args.rehearse:
        raise LeftOutError("a rehearsal has no GPU; the tests of the fakes are in the test suite")
    log = bench.args.output / "contract.log"
    return run_contract(GPU_TESTS, log, bench.index, bench.budget.left_s() / 2)


def export(bench: Bench) -> dict[str, Any]:
    """The model directory to measure, as brats-export makes it."""
    from benchmarks.gpu_export import export_model

    return export_model(bench)


def agreement(bench: Bench, setting: Setting) -> dict[str, Any]:
    """Labels of a backend as it serves against fp32 ONNX Runtime on the CPU, and the gate."""
    gate, expected = Gate(), bench.expected
    bench.broken.add(setting.title)
    backend = open_setting(bench.model, setting, bench.args.device)
    try:
        prediction = Segmenter(backend, SegmentOptions()).segment(bench.volume)
    finally:
        backend.close()
    bench.broken.remove(setting.title)
    changed = changed_labels(prediction.labels, expected)
    limit = gate.changed_fp32 if setting.precision == "fp32" else gate.changed_reduced
    found = {"changed_labels": changed, "limit": limit, "backend": asdict(prediction.backend)}
    if changed > limit:
        found["error"] = f"changed labels {changed:.2e} > {limit:.0e}"
    else:
        bench.agreed.add(setting.title)
    return found


def patient(bench: Bench, setting: Setting) -> dict[str, Any]:
    """Latency of the first case in one setting."""
    args, base = bench.args, f"{setting.backend} {setting.precision}"
    if base in bench.broken:
        raise LeftOutError(f"agreement: {base} says why it gives no labels here")
    return asdict(latency(bench.model, setting, bench.volume, args.device, args.rounds))


def one_patient(bench: Bench) -> dict[str, Any]:
    """From four files to a label map, s."""
    args, case = bench.args, bench.cases[0]

    def measured(setting: Setting, out: Path) -> dict[str, Any]:
        return dict(disk_to_disk(bench.model, setting, case, args.device, out, args.rounds))

    return _first_that_works(measured)


def cohort(bench: Bench) -> dict[str, Any]:
    """Patients per second."""
    args = bench.args

    def measured(setting: Setting, out: Path) -> dict[str, Any]:
        rate = patients_per_second(bench.model, setting, bench.cases, args.device, out, args.cohort)
        return {"patients_per_s": rate}

    return _first_that_works(measured)


def _first_that_works(measured: Callable[[Setting, Path], dict[str, Any]]) -> dict[str, Any]:
    """The figures of the first of our settings that gives any, what it is, and as an error why it
    is not the one that matters most.
    """
    failed: list[str] = []
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = {"setting": setting.title, **measured(setting, Path(folder))}
            except Exception as error:
                failed.append(f"{setting.title}: {sentence(error)}")
                continue
        return found | ({"error": " ".join(failed)} if failed else {})
    return {"error": " ".join(failed)}


ORT_OPTIONS: Final[dict[str, tuple[UpBranch, dict[str, Any]]]] = {
    "exhaustive": ("k4", {}),
    "unfused": ("unfused", {}),
    "interleave": ("interleave", {}),
    "heuristic": ("k4", {"conv_search": "HEURISTIC"}),
    "exhaustive, prefer_nhwc": ("k4", {"prefer_nhwc": True}),
    "unfused, prefer_nhwc": ("unfused", {"prefer_nhwc": True}),
    "exhaustive, fuse_conv_bias": ("k4", {"fuse_conv_bias": True}),
}


def ort_options(bench: Bench, title: str) -> float:
    """ONNX Runtime's CUDA provider: what a switch or a form of the graph is worth here, ms per
    window.
    """
    from export.engines import window_seconds
    from runtime.backends import BackendInfo
    from runtime.backends.ort_cuda import CudaOptions, OrtCudaBackend
    from runtime.ops.cupy import CupyOps

    model = bench.model
    form, switches = ORT_OPTIONS[title]
    file = file_of("fp16", form)
    if file not in model.hashes:
        raise LeftOutError(f"the model directory holds no {file}")
    info = BackendInfo("ort", f"cuda:{bench.index}", "fp16", file)
    options = CudaOptions(**switches)
    backend = OrtCudaBackend(model.read(file), model.card, info, CupyOps(bench.index), options)
    try:
        return 1e3 * window_seconds(backend)
    finally:
        backend.close()


def peer_network(bench: Bench) -> dict[str, float]:
    """The peers' network on its device, its kernels chosen: ms of a window, the first ones left
    out.
    """
    batch = bench.peers.peer.card.inference.batch
    return {"window_ms": 1e3 * bench.peers.peer.window_seconds(batch, 1)}


def peer(bench: Bench, title: str) -> float:
    """PyTorch AMP, torch.compile or MONAI on the same case, weights, windows and device, ms."""
    try:
        return bench.peers.milliseconds(title)
    except ModuleNotFoundError as error:
        raise LeftOutError(str(error)) from error


def ceilings(bench: Bench) -> dict[str, Any]:
    """What this device can do at most, and what that leaves for a window of this network."""
    import torch

    from benchmarks.gpu_export import floor

    if bench.args.rehearse:
        raise LeftOutError("a rehearsal has no device to measure")
    found = rates(torch.device(bench.args.device))
    return found | floor(bench.model, found["tflops"], found["tbytes"])


def _or_why(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:
        return f"not known: {sentence(error)}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not known: {sentence(error)}"
    return done.stdout.strip()
