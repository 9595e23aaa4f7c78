"""How much memory does one patient take, from the command line?"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import THREADS
from runtime.case import Case
from runtime.model_dir import ModelDir

_CHILD = """
import resource, sys
from runtime.cli.infer import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stdout)
sys.exit(code)
"""


@pytest.mark.parametrize("backend_name", ["openvino", "ort"])
def bench_peak_memory(
    benchmark: Any, backend_name: str, model: ModelDir, case: Case, tmp_path: Path
) -> None:
    """Peak resident memory of a fresh `brats-infer` process, interpreter and libraries included."""
    command = [
        *(sys.executable, "-c", _CHILD, str(case.folder), "--model", str(model.path)),
        *("-o", str(tmp_path), "--backend", backend_name, "--threads", str(THREADS)),
        *("--uncertified", "--quiet"),
    ]
    peak_kib = benchmark.pedantic(
        lambda: int(subprocess.run(command, check=True, capture_output=True).stdout), rounds=1
    )
    benchmark.extra_info |= {
        "question": "memory",
        "backend": backend_name,
        "case": case.case_id,
        "peak_mib": peak_kib / 1024,
    }
