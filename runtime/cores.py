"""How many CPU cores this process was given, by whoever started it."""

import os
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_VARIABLES: Final = ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")


def usable_cores(
    environ: Mapping[str, str] = os.environ, root: Path = _CGROUPS, own: Path | None = None
) -> int:
    """Cores to compute on, 1 or more.

    The least of what the scheduler's affinity mask, the quota of the control group (v2 and v1; also
    that of a container), ``SLURM_CPUS_PER_TASK`` and ``OMP_NUM_THREADS`` allow. Libraries that
    count the machine's cores would start that many threads, of which most wait for their turn.

    Args:
        environ: where the variables stand; what is no number above 0 says nothing.
        root: where control groups are mounted.
        own: which groups this process is in; /proc/self/cgroup by default.
    """
    most = [_affinity(), *_asked(environ), *_quotas(root, own or Path("/proc/self/cgroup"))]
    return max(1, min(most))


def core_limit() -> int | None:
    """`usable_cores` where it is less than what the machine has; None where nobody said so, so that
    libraries may choose for themselves, such as one thread for each physical core.
    """
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or 1) else None


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _asked(environ: Mapping[str, str]) -> list[int]:
    # OpenMP takes a list, of which the first is for its outermost level.
    given = [environ.get(name, "").split(",")[0].strip() for name in _VARIABLES]
    return [int(text) for text in given if text.isdecimal() and int(text) > 0]


def _quotas(root: Path, own: Path) -> list[int]:
    """Whole cores of every quota on the way from this process's groups up to the root."""
    try:
        lines = own.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        # In a container the path may be that of the host, which is not mounted; its root is.
        group = mount / path.strip("/")
        for directory in (group, *group.parents):
            quota = _version_1(directory) if controllers else _version_2(directory)
            if quota is not None:
                found.append(quota)
            if directory == mount:
                break
    return found


def _version_2(directory: Path) -> int | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return max(1, ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max" is no number


def _version_1(directory: Path) -> int | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
        return max(1, ceil(quota / period)) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
