"""What all bars share: how often a thing is done, the line that is printed, the figures kept.

`make soak` sets BRATS_SOAK=full for the counts that the bars name; the ordinary suite runs the same
code less often. Where BRATS_SOAK_JSON names a file, the figures of each bar are put into it, for
`python -m benchmarks.soak_table`.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
FULL: Final = os.environ.get("BRATS_SOAK") == "full"
LINUX: Final = sys.platform == "linux"
Figures = dict[str, Any]


def times(short: int, full: int) -> int:
    """How often: the short form's number, or the bar's own."""
    return full if FULL else short


@contextlib.contextmanager
def bar(name: str) -> Iterator[Figures]:
    """Takes the figures of one bar; prints and keeps them, whether the block ends well or not."""
    figures: Figures = {}
    start = perf_counter()
    met = False
    try:
        yield figures
        met = True
    finally:
        kept = {"met": met, "full": FULL, "seconds": round(perf_counter() - start, 1), **figures}
        print(f"\n{name}: {json.dumps(kept)}", file=sys.stderr)
        if target := os.environ.get("BRATS_SOAK_JSON"):
            _keep(Path(target), name, {**kept, **_here()})


def worker(module: str, *arguments: object, timeout: float = 14_400) -> Figures:
    """Run ``python -m module ARGUMENTS`` with the checkout as it stands; the JSON it prints last.

    A process of its own: what is measured, limited or killed there is not pytest with PyTorch in
    it.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{module} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextlib.contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Give this process no more than ``more`` bytes beyond what it has mapped already.

    What asks for more meets MemoryError, not the machine's end.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def status_bytes(field: str) -> int:
    """A size out of /proc/self/status, such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


def _keep(path: Path, name: str, figures: Figures) -> None:
    bars = json.loads(path.read_text()) if path.is_file() else {}
    bars[name] = figures
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bars, indent=1) + "\n")


def _here() -> Figures:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
