"""Arguments that are one word on the command line and more than a number."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import tyro

from runtime.cli.console import optional
from runtime.model_card import Shape3
from runtime.parts import Part
from runtime.windows import Patch


def _word(metavar: str, read: Callable[[str], Any]) -> Any:
    """One word, or nothing; a ValueError of ``read`` is what a person is told."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        # Only its default is ever looked at, and that is None.
        is_instance=lambda value: value is None,
        str_from_instance=lambda value: [str(value)],
    )


def read_shape(text: str) -> Shape3:
    """128,128,64.

    Raises:
        ValueError: it is not three whole numbers.
    """
    try:
        x, y, z = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"three whole numbers are needed, such as 128,128,64; got {text}"
        ) from None
    return (x, y, z)


def read_patch(text: str) -> Patch:
    """A shape, or box.

    Raises:
        ValueError: it is neither.
    """
    return "box" if text == "box" else read_shape(text)


def read_seconds(text: str) -> float:
    """10 or 10s, 300ms, 1.5min.

    Raises:
        ValueError: it is no time above 0.
    """
    for unit, size in (("ms", 1e-3), ("min", 60.0), ("s", 1.0), ("", 1.0)):
        if text.endswith(unit):
            try:
                value = float(text.removesuffix(unit)) * size
            except ValueError:
                break
            if 0 < value < math.inf:
                return value
            break
    raise ValueError(f"a time above 0 is needed, such as 10s, 300ms or 2min; got {text}")


def read_bytes(text: str) -> int:
    """4GB, 512MiB, 3.5G: powers of 1000, with an i of 1024; a plain number counts bytes.

    Raises:
        ValueError: it is no size of a byte or more.
    """
    match = re.fullmatch(r"([0-9.]+) *(?:([kmgt])(i?))?b?", text.strip().lower())
    if match:
        number, prefix, binary = match.groups()
        power = 1 + "kmgt".index(prefix) if prefix else 0
        with suppress(ValueError):
            size = float(number) * (1024 if binary else 1000) ** power
            if 1 <= size < math.inf:
                return int(size)
    raise ValueError(f"a size is needed, such as 8GB, 512MiB or 2.5G; got {text}")


def read_part(text: str) -> Part:
    """2/8: the second of eight parts.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    try:
        if match:
            return Part(int(match[1]), int(match[2]))
    except ValueError:
        pass
    raise ValueError(f"one of n parts is needed, such as 2/8; got {text}")


ShapeFlag = Annotated[Shape3 | None, _word("X,Y,Z", read_shape), optional("X,Y,Z")]
"""Three numbers as one word."""
PatchFlag = Annotated[Patch | None, _word("X,Y,Z|box", read_patch), optional("X,Y,Z|box")]
"""The shape of a window, or "box"."""
SecondsFlag = Annotated[float | None, _word("SECONDS", read_seconds), optional("SECONDS")]
"""A time."""
BytesFlag = Annotated[int | None, _word("SIZE", read_bytes), optional("SIZE")]
"""An amount of memory."""
PartFlag = Annotated[Part | None, _word("I/N", read_part), optional("I/N")]
"""One of N parts."""
