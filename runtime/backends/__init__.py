"""What runs a network: the seam, and the opening of one backend of several; a file for each."""

from runtime.backends.opening import (
    BackendName,
    BackendOptions,
    Precision,
    may_take_gpu,
    open_backend,
    open_spare,
)
from runtime.backends.seam import MAX_THREADS, Backend, BackendInfo, Fill, Take, check_window

__all__ = [
    "MAX_THREADS",
    "Backend",
    "BackendInfo",
    "BackendName",
    "BackendOptions",
    "Fill",
    "Precision",
    "Take",
    "check_window",
    "may_take_gpu",
    "open_backend",
    "open_spare",
]
