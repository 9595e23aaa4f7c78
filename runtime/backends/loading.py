"""Import what a backend is made of: its library is here only once it is wanted."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from runtime.errors import BackendUnavailableError, first_line, interrupted

_EXTRAS: Final = {"cupy": "[gpu]", "tritonclient": "[triton]"}


def require(module: str, name: str) -> None:
    """See that a library is installed, without importing it.

    Args:
        module: the library's name in Python.
        name: of the backend that needs it.

    Raises:
        BackendUnavailableError: it is not.
    """
    if find_spec(module) is None:
        raise BackendUnavailableError(
            f"--backend {name}",
            found=f"{module} is not installed",
            expected="its package",
            remedy=f"install brats-deploy{_EXTRAS.get(module, ' again')}",
        )


@contextmanager
def loading(module: str, name: str) -> Iterator[None]:
    """Around the import of what imports a library; for ``module`` and ``name`` see `require`.

    Raises:
        BackendUnavailableError: it does not load, for want of another library, or in any other way.
        KeyboardInterrupt: also where the library made an error of its own of it.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # whatever a package of other people may raise
        raise_interrupt(error)
        raise BackendUnavailableError(
            f"--backend {name}",
            found=f"{module} is installed and cannot be imported ({first_line(error)})",
            expected="a package that is whole, and the libraries that it needs",
            # Not which: onnxruntime comes in two packages that must never stand beside each other.
            remedy="reinstall the package that it came with, or choose another --backend",
        ) from error


def raise_interrupt(error: Exception) -> None:
    """Ctrl-C, where it is behind ``error``: a library that was interrupted is not broken.

    Raises:
        KeyboardInterrupt: it is.
    """
    if interrupted(error):
        raise KeyboardInterrupt from error
