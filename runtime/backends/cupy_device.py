"""CuPy on one GPU, or a sentence that says why not."""

from typing import TYPE_CHECKING

from runtime.backends.loading import raise_interrupt
from runtime.errors import BackendUnavailableError, ComputeError

if TYPE_CHECKING:
    from runtime.ops.cupy import CupyOps


def cupy_ops(index: int) -> "CupyOps":
    """The arrays of a GPU.

    Raises:
        BackendUnavailableError: CuPy or the device does not work.
        ComputeError: others have taken the device's memory.
    """
    where = f"cuda:{index}"
    try:
        from runtime.ops.cupy import CupyOps

        return CupyOps(index)
    except ImportError as error:
        raise_interrupt(error)
        raise BackendUnavailableError(
            where,
            found=f"a CuPy that cannot be imported ({_line(error)})",
            expected="CuPy for this machine's CUDA",
            remedy="install brats-deploy[gpu] again, or use --device cpu",
        ) from error
    # CuPy's own classes are known only where it is imported; all are a RuntimeError.
    except RuntimeError as error:
        if "memory" in str(error).lower():
            raise ComputeError(
                where,
                found=f"no free GPU memory ({_line(error)})",
                expected="enough to start on",
                remedy="wait for the process that holds it, or name another GPU with --device",
            ) from error
        raise BackendUnavailableError(
            where,
            found=f"a device that cannot be used ({_line(error)})",
            expected="one that is free and healthy",
            remedy="check nvidia-smi, or use --device cpu",
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
