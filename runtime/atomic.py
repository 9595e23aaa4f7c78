"""The only writer of files: complete under its final name, or not there at all."""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from runtime.errors import OutputError
from runtime.lock import try_lock

_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{8}\.brats\.tmp", re.DOTALL)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing; the name appears only when the block ends without an exception.

    The bytes go to a hidden file in the same directory, are synced, then renamed over ``path``.
    Parent directories are made.

    Raises:
        OutputError: the directory or the file cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        _sync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


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


def _begin(path: Path) -> tuple[Path, BinaryIO]:
    """A new hidden file beside ``path``, locked so that `sweep` leaves it."""
    while True:
        temporary = _temporary(path)
        file = temporary.open("xb")
        with suppress(OSError):
            # A sweep may have come between the two lines.
            if not try_lock(file.fileno()) or not os.fstat(file.fileno()).st_nlink:
                file.close()
                continue
        return temporary, file


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.brats.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically; see `open_atomic`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def replace_directory(path: Path, fill: Callable[[Path], None], owned_by: str) -> None:
    """Let ``fill`` write a temporary sibling directory, then put it in the place of ``path``.

    Args:
        path: the directory to make or to replace.
        fill: writes the files into the directory it is given.
        owned_by: a file name by which an existing ``path`` is known as ours; any other
            directory is left alone.

    Raises:
        OutputError: ``path`` exists and is not ours, or cannot be written. ``path`` is then as
            it was.
    """
    check_replaceable(path, owned_by)
    temporary = _temporary(path)
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            fill(temporary)
            if path.exists():
                os.replace(path, old)
                try:
                    os.replace(temporary, path)
                except OSError:
                    os.replace(old, path)
                    raise
            else:
                os.replace(temporary, path)
            _sync_directory(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise unwritable(path, error) from error


def add_directory(
    path: Path, fill: Callable[[Path], None], is_whole: Callable[[Path], bool]
) -> None:
    """Let ``fill`` write a directory that appears whole under its name, whoever else adds it too.

    Of several writers one wins, and what the others wrote is thrown away; a directory that is
    whole is never touched again, so that nobody reads one that vanishes.

    Args:
        path: the directory to add; its content is a function of its name.
        fill: writes the files into the directory it is given.
        is_whole: whether a directory that is there already is what ``fill`` would write.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = _temporary(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            fill(temporary)
            while not is_whole(path):
                try:
                    os.rename(temporary, path)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                if not is_whole(path):
                    _set_aside(path, is_whole)
            _sync_directory(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _set_aside(path: Path, is_whole: Callable[[Path], bool]) -> None:
    """Remove a damaged directory from its name in one step, if nobody else has done so."""
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    with suppress(FileNotFoundError):
        os.rename(path, old)
        if is_whole(old):
            # Another writer had put it right meanwhile; or a third has by now, which is as good.
            with suppress(OSError):
                os.rename(old, path)
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(path: Path, owned_by: str) -> None:
    """Refuse to put a directory in the place of something that is not ours.

    Raises:
        OutputError: ``path`` exists, is not empty and holds no file ``owned_by``.
    """
    if (
        path.exists()
        and not (path / owned_by).is_file()
        and (not path.is_dir() or any(path.iterdir()))
    ):
        raise OutputError(
            path,
            found=f"something that is not ours (no {owned_by} in it)",
            expected="a free name or a directory written by this toolkit",
            remedy="choose another output with -o or move it away",
        )


def check_writable(directory: Path) -> None:
    """Make ``directory`` and try a file in it, before any work is spent on what goes there.

    Raises:
        OutputError: it cannot be made or written.
    """
    # Of a name that `sweep` knows, should this process be killed in between.
    probe = _temporary(directory / "probe")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(directory, error) from error


def _sync_directory(directory: Path) -> None:
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
