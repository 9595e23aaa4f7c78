"""Which TensorRT is here: the one place where it is imported.

TensorRT 10 and 11 (``tensorrt``) and TensorRT for RTX (``tensorrt_rtx``) have almost the same
Python interface. What differs is told apart by the flavour.
"""

import functools
import importlib
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from runtime.backends.loading import raise_interrupt
from runtime.errors import BackendUnavailableError

Flavour = Literal["tensorrt", "tensorrt_rtx"]

# With only the two wheels of library and bindings installed, the last name is all there is.
_MODULES: Final[tuple[tuple[str, Flavour], ...]] = (
    ("tensorrt", "tensorrt"),
    ("tensorrt_rtx", "tensorrt_rtx"),
    ("tensorrt_rtx_bindings", "tensorrt_rtx"),
)
_NEEDED: Final = ("Builder", "Runtime", "OnnxParser", "__version__")
_QUOTED: Final = 400


@dataclass(frozen=True)
class TensorRt:
    """An imported TensorRT.

    Attributes:
        module: its Python module.
        flavour: "tensorrt", or "tensorrt_rtx" for TensorRT for RTX.
        version: as the module states it, such as "10.9.0.34".
    """

    module: Any
    flavour: Flavour
    version: str

    def __str__(self) -> str:
        return f"{title(self.flavour)} {self.version}"


def title(flavour: Flavour) -> str:
    """The product's name as people know it."""
    return "TensorRT" if flavour == "tensorrt" else "TensorRT-RTX"


def load_tensorrt() -> TensorRt:
    """Import TensorRT, or else TensorRT for RTX.

    A package that is there but does not import, or that holds no builder and no runtime (as that
    of the ordinary package index does before it has fetched its library), is passed over. Ask
    `runtime.backends.driver` for a device before any object of the module is made: without a driver
    TensorRT can crash the process.

    Raises:
        BackendUnavailableError: none is here that works; says what is wrong with those found.
    """
    broken: list[str] = []
    for name, flavour in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                broken.append(f"{name} ({_one_line(str(error))})")
            continue
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise_interrupt(error)
            broken.append(f"{name} ({_one_line(str(error)) or type(error).__name__})")
            continue
        missing = [needed for needed in _NEEDED if not hasattr(module, needed)]
        if not missing:
            return TensorRt(module, flavour, str(module.__version__))
        broken.append(f"{name} (a package without {missing[0]})")
    raise BackendUnavailableError(
        "TensorRT",
        found=f"{' and '.join(broken)}, which cannot be used" if broken else "no such package",
        expected="tensorrt 10.9 or later, or tensorrt_rtx",
        remedy=f"{'mend it or ' if broken else ''}install brats-deploy[trt], whose packages come "
        "from NVIDIA's index, or brats-deploy[rtx], beside an NVIDIA GPU",
    )


@dataclass(eq=False)
class Messages:
    """What TensorRT has said since this was handed to `collecting_logger`, in its own words.

    Attributes:
        errors: in the order in which they came; the first is most often the cause.
        warnings: likewise.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """The first error, or else the last warning, as one line without a full stop.

        The errors are forgotten with it, so that a later failure is told by its own.
        """
        said = self.errors[:1] or self.warnings[-1:] or ["no message from TensorRT"]
        self.errors.clear()
        return _one_line(said[0])


def collecting_logger(library: TensorRt, messages: Messages) -> Any:
    """A logger for ``library`` that prints nothing and collects warnings and errors.

    TensorRT registers one logger for the whole process, that of the first object that is made, and
    ignores all others. It is therefore always the same one that is returned here, and every
    `Messages` that is still referred to gets what is said, from whichever object.

    Args:
        library: makes the objects that the logger is for.
        messages: collects for as long as the caller keeps it.
    """
    logger, listeners = _process_logger(library.module)
    listeners.add(messages)
    return logger


class _Listeners:
    """The `Messages` that are alive; TensorRT's threads tell while others add."""

    def __init__(self) -> None:
        # Reentrant: an append can collect garbage, and an object of TensorRT's that is destroyed
        # may have something to say.
        self._lock = threading.RLock()
        self._alive: weakref.WeakSet[Messages] = weakref.WeakSet()

    def add(self, messages: Messages) -> None:
        with self._lock:
            self._alive.add(messages)

    def tell(self, *, error: bool, text: str) -> None:
        with self._lock:
            for messages in self._alive:
                (messages.errors if error else messages.warnings).append(text)


@functools.cache
def _process_logger(module: Any) -> tuple[Any, _Listeners]:
    base: Any = module.ILogger
    listeners = _Listeners()

    class CollectingLogger(base):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            # pybind11 wants its own constructor called by name, or refuses the object.
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.INTERNAL_ERROR, base.ERROR, base.WARNING):
                listeners.tell(error=severity != base.WARNING, text=message)

    return CollectingLogger(), listeners


def _one_line(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= _QUOTED else f"{line[:_QUOTED]} ..."
