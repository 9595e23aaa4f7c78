"""The only writer of files: complete under its final name, or not there at all."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from runtime.errors import OutputError
from runtime.lock import Held, try_lock

_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{8}\.brats\.tmp", re.DOTALL)
_MOST_OF_A_NAME: Final = 200
"""Bytes of a file's name that its hidden file keeps: with the rest it fits into the 255 of a name.
"""


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing; the name appears only when the block ends without an exception.

    The bytes go to a hidden file in the same directory, are synced, then renamed over ``path``.
    Parent directories are made.

    Raises:
        OutputError: the directory or the file cannot be written, or the disk is full.
    """
    try:
        make_directory(path.parent)
        temporary, file = _begin(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if os.name == "posix":
                    os.replace(temporary, path)  # while it is locked
            if os.name != "posix":
                os.replace(temporary, path)  # no open file can be renamed
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


class Together:
    """Files that take their places only when all of them have been written; see `together`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, BinaryIO, Path]] = []

    def write(self, path: Path, data: bytes) -> None:
        """Write what is to become ``path``, and sync it.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            make_directory(path.parent)
            temporary, file = _begin(path)
            self._waiting.append((temporary, file, path))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(path, error) from error

    def place(self) -> None:
        """Let the files take their places, in the order in which they were written.

        Raises:
            OutputError: one cannot.
        """
        folders: dict[Path, None] = {}
        while self._waiting:
            temporary, file, path = self._waiting[0]
            try:
                if os.name != "posix":
                    file.close()  # no open file can be renamed
                os.replace(temporary, path)
                file.close()
            except OSError as error:
                raise unwritable(path, error) from error
            del self._waiting[0]
            folders[path.parent] = None
        for folder in folders:
            try:
                sync_directory(folder)
            except OSError as error:
                raise unwritable(folder, error) from error

    def drop(self) -> None:
        """Remove what has not taken its place."""
        for temporary, file, _ in self._waiting:
            with suppress(OSError):  # a full disk refuses what was buffered once more
                file.close()
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._waiting.clear()


@contextmanager
def together() -> Iterator[Together]:
    """Write several files of which, until `Together.place`, none appears under its name."""
    files = Together()
    try:
        yield files
    finally:
        files.drop()


def sweep(directory: Path) -> None:
    """Remove the hidden files of writers that were killed; those of living ones are locked.

    Where the file system has no locks all are left.

    Args:
        directory: its own files only, not those of folders in it.

    Raises:
        OutputError: it cannot be listed.
    """
    if os.name != "posix":
        return
    try:
        entries = list(os.scandir(directory))
    except OSError as error:
        raise unwritable(directory, error) from error
    for entry in entries:
        if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            # Gone, not ours to open, or on a file system without locks: left as it is.
            with suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    if try_lock(descriptor):
                        os.unlink(entry.path)
                finally:
                    os.close(descriptor)


@contextmanager
def marked(folder: Held) -> Iterator[str]:
    """Let an empty hidden file lie in a folder, for others to look for; `sweep` removes that of a
    killed process.

    Yields:
        Its name, which no other file anywhere has.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        mark, file = _begin(folder.directory / "run")
    except OSError as error:
        raise unwritable(folder.directory, error) from error
    try:
        yield mark.name
    finally:
        file.close()
        # Wherever the folder may be by now. What cannot be removed is swept by the next run.
        with suppress(OSError):
            if folder.descriptor is None:
                mark.unlink()
            else:
                os.unlink(mark.name, dir_fd=folder.descriptor)


def _begin(path: Path) -> tuple[Path, BinaryIO]:
    """A new hidden file beside ``path``, locked so that `sweep` leaves it."""
    while True:
        temporary = hidden_name(path)
        file = temporary.open("xb")
        with suppress(OSError):
            # A sweep may have come between the two lines.
            if not try_lock(file.fileno()) or not os.fstat(file.fileno()).st_nlink:
                file.close()
                continue
        return temporary, file


def hidden_name(path: Path, kind: str = "brats.tmp") -> Path:
    """A name beside ``path`` that nobody else has, for what is to take its place."""
    return path.with_name(f".{kept_name(path)}.{secrets.token_hex(4)}.{kind}")


def kept_name(path: Path) -> str:
    """The part of a name that `hidden_name` keeps."""
    return os.fsdecode(os.fsencode(path.name)[:_MOST_OF_A_NAME])


def make_directory(directory: Path) -> None:
    """Make a directory and those it lies in, each known to the disk before what goes into it."""
    if directory.is_dir():
        return
    if directory.parent != directory:
        make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically; see `open_atomic`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as `as_json` gives it, atomically; see `open_atomic`."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """``value`` as indented JSON; NaN and infinity are refused, as JSON has none."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def check_writable(directory: Path) -> None:
    """Make ``directory`` and try a file in it, before any work is spent on what goes there.

    Raises:
        OutputError: it cannot be made or written.
    """
    # Of a name that `sweep` knows, should this process be killed in between.
    probe = hidden_name(directory / "probe")
    try:
        make_directory(directory)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(directory, error) from error


def sync_directory(directory: Path) -> None:
    """Let the disk know the names in a directory."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error of an output that the system would not take."""
    return OutputError(
        path,
        found=error.strerror or type(error).__name__,
        expected="a place that can be written",
        remedy="free space, change its permissions or choose another output",
    )
