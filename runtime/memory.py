"""What this process takes of the machine's memory, and how many cases that leaves room for."""

import sys
from collections.abc import Callable
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

    How much a network takes is known once it has run: the first case is alone in hand until it is
    written. From then on what the process has taken at most, less that case, is taken for the price
    of any other; where a later one takes more than there was room for, by that much less is given.
    """

    def __init__(self, size: int, note: Callable[[str], None] = lambda text: None) -> None:
        """
        Args:
            size: bytes that the process may take in all.
            note: is told where that is not enough.
        """
        self._size = size
        self._note = note
        self._fixed: int | None = None
        self._peak = size

    def __call__(self) -> float:
        """Bytes for cases in hand; 0, which is one at a time, until one has been written."""
        return 0.0 if self._fixed is None else max(0, self._size - self._fixed)

    def done(self, size: int) -> None:
        """A case that was to take so many bytes has been run and written."""
        peak, before = peak_resident(), self._peak
        self._peak = max(before, peak)
        if self._fixed is None:
            self._fixed = max(0, peak - size)
            told = " for one case alone; cases are taken one at a time"
        else:
            self._fixed += self._peak - before
            told = "; fewer cases are in hand from now on"
        if peak > self._size >= before:
            self._note(
                f"this process takes {_gb(peak)} where --memory says {_gb(self._size)}{told}"
            )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"
