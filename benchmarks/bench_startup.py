"""How soon is there a first result: what do imports cost, and what a process around its network?"""

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure, ratios
from benchmarks.scale import Scale
from runtime.case import Case
from runtime.model_dir import ModelDir

IMPORTS: Final = {
    "interpreter": "pass",
    "runtime": "import runtime.segmenter, runtime.nifti, runtime.prediction",
    "runtime with OpenVINO": (
        "import runtime.segmenter, runtime.nifti, runtime.prediction, runtime.backends.openvino"
    ),
    "command line": "import runtime.cli.infer",
    "torch": "import torch",
    "MONAI's inferers": "import monai.inferers",
}
"""What a fresh interpreter does; the last two are what a PyTorch script begins with."""
OURS: Final = "runtime with OpenVINO"
COSTLY: Final = ("MONAI's inferers",)


def _seconds(arguments: list[str]) -> float:
    start = perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return perf_counter() - start


def bench_imports(benchmark: Any, report: Report, rounds: int, scale: Scale) -> None:
    """Fresh processes, each with the interpreter's own start in it, in turn within each round."""
    # The first import after an installation compiles, the first one after a boot reads the disk.
    left_out = {}
    for name, code in IMPORTS.items():
        if name in COSTLY and not scale.thorough:
            left_out[name] = "left out with --quick"
            continue
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
        if done.returncode:
            left_out[name] = done.stderr.decode(errors="replace").strip().splitlines()[-1]
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS if name not in left_out}

    def in_turn() -> None:
        for name, values in seconds.items():
            values.append(_seconds(["-W", "ignore", "-c", IMPORTS[name]]))

    benchmark.pedantic(in_turn, rounds=max(2, rounds), iterations=1)
    over = {
        f"{name} over {OURS}": figure(ratios(seconds[name], seconds[OURS]), "ratio")
        for name in ("torch", "MONAI's inferers")
        if name in seconds and OURS in seconds
    }
    report(
        "imports",
        {name: figure(values, "s") for name, values in seconds.items()} | over,
        left_out=left_out,
    )


@pytest.mark.parametrize("backend_name", ["openvino", "ort"])
def bench_first_result(
    benchmark: Any,
    report: Report,
    backend_name: str,
    model: ModelDir,
    case: Case,
    tmp_path: Path,
    rounds: int,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    """From the start of a `brats-infer` process to its end, less the network's own time."""
    pytest.importorskip(
        {"ort": "onnxruntime"}.get(backend_name, backend_name),
        reason=f"the backend {backend_name} is not installed",
    )
    command = [
        *("-c", "import sys; from runtime.cli.infer import main; sys.exit(main(sys.argv[1:]))"),
        *(str(case.folder), "--model", str(model.path), "-o", str(tmp_path), "--overwrite"),
        *("--backend", backend_name, "--threads", str(THREADS), "--uncertified", "--quiet"),
    ]
    whole: list[float] = []
    timings: list[dict[str, float]] = []
    graphs: set[str] = set()

    def first_result() -> None:
        whole.append(_seconds(command))
        sidecar = json.loads((tmp_path / f"{case.case_id}.json").read_text())
        timings.append(sidecar["timings_s"])
        graphs.add(sidecar["model"]["sha256"])

    benchmark.pedantic(first_result, rounds=max(2, rounds), iterations=1)
    around = [all_ - one["network"] for all_, one in zip(whole, timings, strict=True)]
    report(
        "first result",
        {"process less network": figure(around, "s"), "process": figure(whole, "s")},
        backend=backend_name,
        model_sha256={name: one for name, one in model.hashes.items() if one in graphs},
        bind_s=[one["bind"] for one in timings],
        case_s=[sum(one.values()) - one["network"] - one["bind"] for one in timings],
        **case_facts,
        **network_facts,
    )
