"""Ask the NVIDIA driver, and nothing else, how many CUDA devices there are.

TensorRT can crash a process that has no driver, so that this is asked before any GPU library is
imported.
"""

import ctypes
import sys


def cuda_devices() -> int:
    """Number of CUDA devices that the driver reports; 0 where there is no driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
