"""NumPy scalars in a PyTorch file, read without NumPy's own unpickling.

A training history often holds ``numpy.float64`` where a number is meant, and
``torch.load(weights_only=True)`` refuses the file for it. Here the two names that such a pickle
uses stand for code of ours, which makes plain Python numbers of them and takes nothing else.
"""

from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from torch.serialization import safe_globals

# Booleans, integers, and floats up to float64, as a pickle names their types.
_CODES: Final = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


class NumberType:
    """Stands for ``numpy.dtype``: which kind of number, in which byte order.

    NumPy's own would hand out, and let a pickle alter, types that the whole process shares.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        self._code = code
        self._order: Any = "|"

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    def read(self, data: Any) -> bool | int | float:
        """The number that ``data``, its bytes in memory, stands for.

        Raises:
            ValueError: not a plain number.
        """
        if self._code not in _CODES or self._order not in ("<", ">", "|"):
            raise ValueError(f"a numpy value of type {self._code!s:.20}, which is not a number")
        kind = np.dtype(f"{self._order}{self._code}")
        if not isinstance(data, bytes) or len(data) != kind.itemsize:
            raise ValueError(f"a damaged numpy value of type {self._code}")
        number: bool | int | float = np.frombuffer(data, kind)[0].item()
        return number


def _scalar(kind: Any, data: Any) -> bool | int | float:
    if not isinstance(kind, NumberType):
        raise ValueError("a numpy value of no type")
    return kind.read(data)


def numpy_numbers() -> AbstractContextManager[None]:
    """While open, ``torch.load(weights_only=True)`` reads NumPy scalars as Python numbers."""
    allowed: AbstractContextManager[None] = safe_globals(
        [
            (NumberType, "numpy.dtype"),
            NumberType,
            (_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
            (_scalar, "numpy._core.multiarray.scalar"),
        ]
    )
    return allowed
