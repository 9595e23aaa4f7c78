"""Read what anybody may have written: regular files only, no longer than allowed, JSON no deeper
than a program can walk.
"""

import hashlib
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

MIB: Final = 1 << 20
JSON_BYTES: Final = 64 * MIB
JSON_DEPTH: Final = 64


def read_bounded(path: Path, at_most: int, exactly: int | None = None) -> bytes:
    """The bytes of a regular file; nothing is waited for, and a file of a wrong size is not read.

    Args:
        path: of the file; a link is followed.
        at_most: bytes that a file may have.
        exactly: bytes that it must have, where that is known.

    Raises:
        OSError: the system does not open or read it.
        ValueError: a folder, a device, a pipe or a socket; or longer, or not as long; in words.
    """
    with _opened(path) as file:
        found = os.fstat(file.fileno())
        if exactly is not None and found.st_size != exactly:
            raise ValueError(f"{found.st_size} bytes instead of {exactly}")
        if found.st_size > at_most:
            raise ValueError(f"{found.st_size} bytes, {at_most} at most")
        # One more than there are: a file that grows meanwhile is not the one that was measured.
        data = file.read(found.st_size + 1)
    if len(data) != found.st_size:
        raise ValueError("a file that changes while it is read")
    return data


def digest_of(path: Path) -> str:
    """Hex SHA-256 of a regular file, of which no more than a part is in memory.

    Raises:
        OSError, ValueError: as of `read_bounded`, whatever its size.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    # Opened without waiting: a pipe that nobody writes to would hold a program for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            folder = stat.S_ISDIR(mode)
            raise ValueError("a folder" if folder else "a pipe, a device or a socket")
        yield file


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON (which has no NaN), nested deeper than `JSON_DEPTH`, or a key twice in
            one object, of which readers take one or the other.
    """
    try:
        value = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError(f"nested deeper than {JSON_DEPTH}") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"nested deeper than {JSON_DEPTH}")


def read_json(path: Path, at_most: int = JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OSError, ValueError: as of `read_bounded` and `parse_json`.
    """
    return parse_json(read_bounded(path, at_most))


def words(error: Exception) -> str:
    """What an error of this module's functions says, in one line."""
    text = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return " ".join(text.split())[:200]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        doubled = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {doubled!r} twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON has not")
