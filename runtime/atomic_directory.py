"""Directories that are whole under their name, or not there; what is not ours is left alone."""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from runtime.atomic import hidden_name, kept_name, make_directory, sync_directory, unwritable
from runtime.errors import OutputError
from runtime.lock import try_lock

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def replace_directory(path: Path, fill: Callable[[Path], None], owned_by: str) -> None:
    """Let ``fill`` write a temporary sibling directory, then put it in the place of ``path``.

    The two change places in one step, so that there is a directory at any moment. Where the file
    system cannot do that, a writer that is killed between two renames leaves `set_aside` of it,
    which the next writer puts back.

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
    temporary, old = hidden_name(path), hidden_name(path, "old")
    held = ExitStack()
    try:
        try:
            make_directory(path.parent)
            left = set_aside(path)
            if left is not None:
                os.replace(left, path)
            for killed in _siblings(path, "brats.tmp"):
                if not _is_held(killed):
                    shutil.rmtree(killed, ignore_errors=True)
            temporary.mkdir()
            held.enter_context(_hold(temporary))
            fill(temporary)
            if not path.exists():
                os.replace(temporary, path)
            elif not _exchange(temporary, path):
                os.replace(path, old)
                try:
                    os.replace(temporary, path)
                except OSError:
                    os.replace(old, path)
                    raise
            sync_directory(path.parent)
        finally:
            held.close()
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise unwritable(path, error) from error


def set_aside(path: Path) -> Path | None:
    """Where a directory is that a killed `replace_directory` has taken from its place; None where
    it is in its place, or never was anywhere.
    """
    if os.path.lexists(path) or not path.parent.is_dir():
        return None
    return max(_siblings(path, "old"), key=lambda one: one.stat().st_mtime_ns, default=None)


def _siblings(path: Path, kind: str) -> list[Path]:
    """Hidden directories that `hidden_name` has named for ``path``."""
    named = re.compile(re.escape(f".{kept_name(path)}.") + rf"[0-9a-f]{{8}}\.{re.escape(kind)}")
    return [
        one
        for one in path.parent.iterdir()
        if named.fullmatch(one.name) and one.is_dir() and not one.is_symlink()
    ]


@contextmanager
def _hold(directory: Path) -> Iterator[bool]:
    """Lock a directory; False where another holds it, or where nobody can."""
    if os.name != "posix":
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            locked = try_lock(descriptor)
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _is_held(directory: Path) -> bool:
    with _hold(directory) as locked:
        return not locked


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places in one step; False where the system cannot."""
    if os.name != "posix":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


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
    temporary = hidden_name(path)
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
            sync_directory(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _set_aside(path: Path, is_whole: Callable[[Path], bool]) -> None:
    """Remove a damaged directory from its name in one step, if nobody else has done so."""
    old = hidden_name(path, "old")
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
