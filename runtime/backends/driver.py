"""Ask the NVIDIA driver, and nothing else, how many CUDA devices there are and what they are.

TensorRT can crash a process that has no driver, so that this is asked before any GPU library is
imported.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import BackendUnavailableError

# cuda.h, enum CUdevice_attribute.
_COMPUTE_CAPABILITY_MAJOR: Final = 75
_COMPUTE_CAPABILITY_MINOR: Final = 76
_NAME_BYTES: Final = 256


@dataclass(frozen=True)
class Gpu:
    """What an engine depends on of a GPU.

    Attributes:
        name: as the driver gives it, such as "NVIDIA H200".
        compute_capability: major and minor, such as "9.0".
    """

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def cuda_devices(driver: Any = None) -> int:
    """Number of CUDA devices that the driver reports; 0 where there is no driver.

    Args:
        driver: the loaded driver library; by default that of this machine.
    """
    driver = _driver() if driver is None else driver
    if driver is None:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu(index: int, driver: Any = None) -> Gpu:
    """Name and compute capability of a CUDA device.

    Args:
        index: as in "cuda:0", counted among the devices that CUDA_VISIBLE_DEVICES leaves.
        driver: the loaded driver library; by default that of this machine.

    Raises:
        BackendUnavailableError: there is no driver or no such device, or it does not answer.
    """
    driver = _driver() if driver is None else driver
    devices = 0 if driver is None else cuda_devices(driver)
    if driver is None or not 0 <= index < devices:
        raise _unavailable(index, f"{devices} CUDA devices" if driver else "no NVIDIA driver")
    device = ctypes.c_int(0)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    version = [ctypes.c_int(0), ctypes.c_int(0)]
    attributes = (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR)
    code = driver.cuDeviceGet(ctypes.byref(device), index)
    code = code or driver.cuDeviceGetName(name, _NAME_BYTES, device)
    for number, attribute in zip(version, attributes, strict=True):
        code = code or driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    if code:
        raise _unavailable(index, f"CUDA driver error {code}")
    return Gpu(
        name.value.decode("utf-8", "replace").strip(), ".".join(str(n.value) for n in version)
    )


def _driver() -> Any:
    """The driver's library; None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _unavailable(index: int, found: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"cuda:{index}",
        found=found,
        expected="a CUDA device of that number",
        remedy="check nvidia-smi, or use --device cpu",
    )
