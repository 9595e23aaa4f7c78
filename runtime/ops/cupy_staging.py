"""Copies between ordinary host memory and a GPU, through pinned buffers."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import cupy
import numpy as np
import numpy.typing as npt

_STAGING_BYTES: Final = 4 << 20
_STAGING_SLOTS: Final = 4


@dataclass(frozen=True)
class _Slot:
    """A pinned buffer; `left` is when the last copy into or out of it was done."""

    memory: Any
    host: npt.NDArray[np.uint8]
    left: Any


class Staging:
    """Pinned buffers between ordinary host memory and the device, used in turn.

    Only a copy from or to pinned memory is asynchronous. Large arrays go through in pieces, so
    that the host fills one buffer while the device reads another, and so that little is pinned.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._free = deque(self._slot() for _ in range(_STAGING_SLOTS))

    def _slot(self) -> _Slot:
        memory = cupy.cuda.alloc_pinned_memory(_STAGING_BYTES)
        host = np.frombuffer(memory, np.uint8, _STAGING_BYTES)
        return _Slot(memory, host, cupy.cuda.Event(disable_timing=True))

    def send(self, source: npt.NDArray[np.uint8], target: Any) -> None:
        """Copy bytes to device memory; the source may change once this returns."""
        for first in range(0, source.size, _STAGING_BYTES):
            part = source[first : first + _STAGING_BYTES]
            slot = self._free.popleft()
            slot.left.synchronize()
            slot.host[: part.size] = part
            (target + first).copy_from_host_async(slot.memory.ptr, part.size, self._stream)
            slot.left.record(self._stream)
            self._free.append(slot)

    def receive(self, source: Any, target: npt.NDArray[np.uint8]) -> None:
        """Copy device memory to bytes; they are there once this returns."""
        pending: deque[tuple[_Slot, npt.NDArray[np.uint8]]] = deque()
        for first in range(0, target.size, _STAGING_BYTES):
            if not self._free:
                self._land(pending)
            part = target[first : first + _STAGING_BYTES]
            slot = self._free.popleft()
            # A copy on the stream waits for earlier ones out of the same buffer by itself.
            (source + first).copy_to_host_async(slot.memory.ptr, part.size, self._stream)
            slot.left.record(self._stream)
            pending.append((slot, part))
        while pending:
            self._land(pending)

    def _land(self, pending: deque[tuple[_Slot, npt.NDArray[np.uint8]]]) -> None:
        slot, part = pending.popleft()
        slot.left.synchronize()
        part[...] = slot.host[: part.size]
        self._free.append(slot)

    def close(self) -> None:
        self._free.clear()
