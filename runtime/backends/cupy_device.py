"""CuPy on one GPU, or a sentence that says why not."""

from typing import TYPE_CHECKING

from runtime.backends.loading import raise_interrupt
from runtime.errors import BackendUnavailableError, ComputeError, first_line

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
    except MemoryError:
        raise
    except Exception as error:  # whatever it may raise that is built for another machine
        raise_interrupt(error)
        raise _broken(where, error) from error
    try:
        return CupyOps(index)
    except ImportError as error:
        raise_interrupt(error)
        raise _broken(where, error) from error
    # CuPy's own classes are known only where it is imported; all are a RuntimeError.
    except RuntimeError as error:
        if "memory" in str(error).lower():
            raise ComputeError(
                where,
                found=f"no free GPU memory ({first_line(error)})",
                expected="enough to start on",
                remedy="wait for the process that holds it, or name another GPU with --device",
            ) from error
        raise BackendUnavailableError(
            where,
            found=f"a device that cannot be used ({first_line(error)})",
            expected="one that is free and healthy",
            remedy="check nvidia-smi, or use --device cpu",
        ) from error


def _broken(where: str, error: Exception) -> BackendUnavailableError:
    return BackendUnavailableError(
        where,
        found=f"a CuPy that cannot be imported ({first_line(error)})",
        expected="CuPy for this machine's CUDA",
        remedy="install brats-deploy[gpu] again, or use --device cpu",
    )
