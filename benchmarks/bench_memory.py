"""How much memory does one patient take, from the command line, on the host and on a device?"""

import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure
from benchmarks.gpu_measure import used_mib
from benchmarks.opened import EVERYWHERE, Where, open_or_skip
from runtime.case import Case
from runtime.model_dir import ModelDir

# Not getrusage: its peak of a child that was made by vfork begins with the parent's.
_CHILD = """
import sys
from runtime.cli.infer import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
sys.exit(code)
"""


class _DeviceMemory:
    """The most that is in use on a device beyond what was before, looked at every 10 ms."""

    def __init__(self, device: str) -> None:
        self._device, self._stop = device, Event()
        self._before = used_mib(device)
        self._peak = self._before
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._peak = max(self._peak, used_mib(self._device))

    def peak_mib(self) -> float:
        self._stop.set()
        self._thread.join()
        return self._peak - self._before


@pytest.mark.parametrize("where", EVERYWHERE, ids=str)
def bench_peak_memory(
    benchmark: Any,
    report: Report,
    where: Where,
    model: ModelDir,
    case: Case,
    tmp_path: Path,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    """Peak resident memory of a fresh `brats-infer` process, interpreter and libraries included."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc, where the peak of a process stands")
    open_or_skip(model, where).close()
    command = [
        *(sys.executable, "-c", _CHILD, str(case.folder), "--model", str(model.path)),
        *("-o", str(tmp_path), "--backend", where.name, "--device", where.device),
        *("--threads", str(THREADS), "--uncertified", "--quiet"),
    ]
    on_gpu = where.device != "cpu"
    watch = _DeviceMemory(where.device) if on_gpu else None
    peak_kib = benchmark.pedantic(
        lambda: int(subprocess.run(command, check=True, capture_output=True).stdout), rounds=1
    )
    device_mib = watch.peak_mib() if watch else None
    figures = {"peak": figure([peak_kib / 1024], "MiB")}
    if device_mib is not None:
        figures["on the device"] = figure([device_mib], "MiB")
    report(
        "memory",
        figures,
        backend=str(where),
        device=where.device,
        peak_mib=peak_kib / 1024,
        device_mib=device_mib,
        **case_facts,
        **network_facts,
    )
