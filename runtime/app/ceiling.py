"""A ceiling on memory: what does not fit becomes an error.

What a window takes is the network's secret until it runs, so nothing is estimated here. Linux,
though, grants memory that it does not have and kills a process that uses it, with the cases of
everybody. Under a limit on its data it refuses instead, which NumPy, ONNX Runtime and OpenVINO
report.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_STATUS: Final = Path("/proc/self/status")
_CGROUP: Final = Path("/sys/fs/cgroup")
# Left to the page itself and to everything else on the machine.
_RESERVE: Final = 256 << 20


def available(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be had without swapping; None where that cannot be known.

    Args:
        meminfo: the system's account.
        cgroup: folder of the container's account, version 2, where there is one.
    """
    try:
        free = _kibibytes(meminfo, "MemAvailable") << 10
    except (OSError, ValueError):
        return None
    try:
        limit = int((cgroup / "memory.max").read_text())
        taken = int((cgroup / "memory.current").read_text())
        pages = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # Pages of files that nobody uses are given back when they are needed.
        return max(0, min(free, limit - taken + int(pages["inactive_file"])))
    except (OSError, ValueError, KeyError):
        # No container, or one without a limit, of which it says "max".
        return free


@contextmanager
def ceiling(free: int | None) -> Iterator[None]:
    """Let this process take no more than ``free`` bytes more, less a reserve, while a block runs.

    Args:
        free: from `available`; None sets no limit. Only Linux has such a limit.
    """
    if sys.platform != "linux" or free is None:
        yield
        return
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = (_kibibytes(_STATUS, "VmData") << 10) + max(0, free - _RESERVE)
    for other in (before, hard):
        if other != resource.RLIM_INFINITY:
            limit = min(limit, other)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _kibibytes(account: Path, name: str) -> int:
    """A figure of one of the kernel's accounts.

    Raises:
        OSError: there is no such account.
        ValueError: it has no such figure.
    """
    for line in account.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise ValueError(name)
