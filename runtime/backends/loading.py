"""Import what a backend is made of: its library is here only once it is wanted."""

import signal
import threading
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
def interrupted_later() -> Iterator[None]:
    """Keep Ctrl-C waiting until the block has ended: a C++ library that is interrupted while it is
    initialised may end the process.

    Raises:
        KeyboardInterrupt: after the block, if Ctrl-C came in it.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


@contextmanager
def loading(module: str, name: str) -> Iterator[None]:
    """Around the import of what imports a library; for ``module`` and ``name`` see `require`.

    Raises:
        BackendUnavailableError: it does not load, for want of another library, or in any other way.
        KeyboardInterrupt: also where the library made an error of its own of it.
    """
    try:
        with interrupted_later():
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
