"""Memory: what training frees is kept, and where there is too little of it a sentence says so."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from runtime.errors import ComputeError

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1
# How PyTorch says it elsewhere than in an OutOfMemoryError: the allocator of the CPU, a size beyond
# 64 bits, the CUDA driver, cuDNN and cuBLAS.
_TOO_LITTLE: Final = (
    "can't allocate memory",
    "Storage size calculation overflowed",
    "out of memory",
    "ALLOC_FAILED",
)


def keep_freed_memory() -> bool:
    """Let the C library reuse freed memory, instead of giving it back and asking for it again.

    A step on a CPU frees and takes gigabytes in pieces that glibc maps one by one; clearing their
    pages anew each time took a fifth of it. Only glibc knows this; elsewhere nothing changes.

    Returns:
        Whether it was set.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch failed for want of memory, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TOO_LITTLE)


@contextmanager
def room_for(what: str, where: str, remedy: str) -> Iterator[None]:
    """Say in a sentence that a block failed for want of memory; other errors pass.

    Args:
        what: the block makes.
        where: the device.
        remedy: for whoever reads it.

    Raises:
        ComputeError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ComputeError(
            where, found=f"not enough memory for {what}", expected="room for it", remedy=remedy
        ) from error
