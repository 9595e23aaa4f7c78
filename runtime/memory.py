"""What this process takes of the machine's memory, and how many cases that leaves room for."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")


def peak_resident() -> int:
    """The most bytes that this process has had resident so far; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0


class Room:
    """The bytes that cases in hand may take, so that a process stays below a given size.

    How much a network takes is known once it has run: the first case is alone in hand. From then on
    what the process has taken at most, less that case, is taken for the price of any other.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: bytes that the process may take in all.
        """
        self._size = size
        self._fixed: int | None = None

    def __call__(self) -> float:
        """Bytes for cases in hand; 0, which is one at a time, until one has been run."""
        return 0.0 if self._fixed is None else max(0, self._size - self._fixed)

    def ran(self, size: int) -> None:
        """A case of so many bytes has been run; later ones than the first say nothing new."""
        if self._fixed is None:
            self._fixed = max(0, peak_resident() - size)
