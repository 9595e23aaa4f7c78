"""How much memory does one patient take, from the command line, on the host and on a device?"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure
from benchmarks.gpu_measure import used_mib
from benchmarks.opened import EVERYWHERE, Where, graphs_of, open_or_skip
from benchmarks.scale import Scale
from export.modes import PROPOSED
from runtime.case import Case
from runtime.model_dir import ModelDir
from runtime.modes import EXACT, Mode

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


@dataclass(frozen=True)
class Way:
    """A backend, and how it is asked to segment.

    Attributes:
        where: the backend.
        mode: `EXACT`, or one of the modes that are certified by name.
    """

    where: Where
    mode: Mode = EXACT

    def __str__(self) -> str:
        return str(self.where) if self.mode == EXACT else f"{self.where}, {self.mode.quality}"

    @property
    def flags(self) -> list[str]:
        """The mode's terms; its name would ask for a certificate."""
        window = ["--patch", "box"] if self.mode.box else []
        return [*window, "--precision", self.mode.precision]


WAYS = (
    *map(Way, EVERYWHERE),
    *(Way(where, mode) for where in EVERYWHERE if where.device == "cpu" for mode in PROPOSED),
)


@pytest.mark.parametrize("way", WAYS, ids=str)
def bench_peak_memory(
    benchmark: Any,
    report: Report,
    way: Way,
    model: ModelDir,
    case: Case,
    tmp_path: Path,
    scale: Scale,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    """Peak resident memory of a fresh `brats-infer` process, interpreter and libraries included.
    The modes of one window over the brain box hold the activations of all of it at once.
    """
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc, where the peak of a process stands")
    where, mode = way.where, way.mode
    if mode != EXACT and not scale.thorough:
        pytest.skip(f"{way}: left out with --quick")
    if mode.artefact not in model.hashes:
        pytest.skip(f"{way}: the model has no {mode.artefact}")
    backend = open_or_skip(model, where, mode.precision)
    backend.close()
    command = [
        *(sys.executable, "-c", _CHILD, str(case.folder), "--model", str(model.path)),
        *("-o", str(tmp_path), "--backend", where.name, "--device", where.device),
        *("--threads", str(THREADS), "--uncertified", "--quiet", *way.flags),
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
        backend=str(way),
        device=where.device,
        quality=mode.quality,
        model_sha256=graphs_of(backend.info),
        peak_mib=peak_kib / 1024,
        device_mib=device_mib,
        **case_facts,
        **network_facts,
    )
