"""One writer at a time: files and folders that are held until their holder ends, however."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from runtime.errors import OutputError


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Hold an open file or folder until its descriptor is closed; the system forgets it with the
    process.

    Args:
        descriptor: of the file or folder.
        shared: beside others who hold it so, instead of alone.

    Returns:
        False where somebody else holds it; True too where the system knows no such locks.

    Raises:
        OSError: the file system has none.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_PROBED_S: Final = 1.0
"""How long a part's file may look held while others see whether its run was killed."""
_LOOK_S: Final = 0.05


@dataclass(frozen=True)
class Held:
    """A folder that this process writes into.

    Attributes:
        directory: its path.
        descriptor: by which it is open; None where the system opens no folders.
    """

    directory: Path
    descriptor: int | None

    def check(self) -> None:
        """Make sure that the path still leads to this folder, as a lock holds the folder alone.

        Raises:
            OutputError: it was removed, renamed or replaced.
        """
        if self.descriptor is None:
            return
        try:
            same = os.path.samestat(os.stat(self.directory), os.fstat(self.descriptor))
        except OSError:
            same = False
        if not same:
            raise _moved(self.directory)

    @property
    def identity(self) -> tuple[int, int] | None:
        """By which another process knows the folder again, whatever its path leads to by then."""
        if self.descriptor is None:
            return None
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    @classmethod
    def again(cls, directory: Path, identity: tuple[int, int] | None) -> "Held":
        """The folder that another process holds and this one writes into on its behalf.

        Args:
            directory: its path.
            identity: of the other process's `Held`; open in this one until it ends.

        Raises:
            OutputError: the path no longer leads to it.
        """
        if identity is None:
            return cls(directory, None)
        try:
            held = cls(directory, os.open(directory, os.O_RDONLY))
        except OSError as error:
            raise _moved(directory) from error
        if held.identity == identity:
            return held
        if held.descriptor is not None:
            os.close(held.descriptor)
        raise _moved(directory)


@contextmanager
def only_writer(directory: Path, part: tuple[int, int] | None = None) -> Iterator[Held]:
    """Keep every other command that asks for the same out of a folder.

    Where the file system has no locks nobody is kept out.

    Args:
        directory: an existing folder.
        part: i of n, where this is the only writer of one part of what goes there: other parts of
            the same n may be written beside it.

    Returns:
        What is held, which says whether it is still in its place.

    Raises:
        OutputError: another process holds it, or it cannot be opened.
    """
    if sys.platform == "win32":  # a folder cannot be opened there
        yield Held(directory, None)
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutputError(
            directory,
            found=error.strerror or type(error).__name__,
            expected="a folder that can be opened",
            remedy="check its permissions, or choose another output",
        ) from error
    try:
        if not held(descriptor, shared=part is not None):
            raise _taken(directory)
        with nullcontext() if part is None else _only_writer_of(directory, *part):
            yield Held(directory, descriptor)
    finally:
        # Nothing was written through it that a failure to close could lose.
        with suppress(OSError):
            os.close(descriptor)


def held(descriptor: int, shared: bool = False) -> bool:
    """As `try_lock`; True too where the file system has no locks: then nobody is kept out."""
    try:
        return try_lock(descriptor, shared)
    except OSError:
        return True


@contextmanager
def _only_writer_of(directory: Path, index: int, count: int) -> Iterator[None]:
    """Hold a hidden file for a part; it is removed in the end, and those of killed runs with it."""
    own = directory / f".part-{index}-of-{count}.lock"
    descriptor = _soon_held_file(own)
    if descriptor is None:
        raise _taken(directory)
    try:
        for other in sorted(directory.glob(".part-*-of-*.lock")):
            if other == own:
                continue
            beside = other.name.endswith(f"-of-{count}.lock")
            freed = _held_file(other) if beside else _soon_held_file(other)
            if freed is not None:  # its run was killed
                other.unlink(missing_ok=True)
                os.close(freed)
            elif not beside:
                raise _taken(directory)
        yield
    finally:
        own.unlink(missing_ok=True)
        os.close(descriptor)


def _soon_held_file(path: Path) -> int | None:
    """As `_held_file`; one that others only look at is waited for."""
    until = monotonic() + _PROBED_S
    descriptor = _held_file(path)
    while descriptor is None and monotonic() < until:
        sleep(_LOOK_S)
        descriptor = _held_file(path)
    return descriptor


def _held_file(path: Path) -> int | None:
    """The descriptor of a file that this process alone holds now; None where another one does.

    Raises:
        OutputError: it cannot be opened.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise OutputError(
                path,
                found=error.strerror or type(error).__name__,
                expected="a file by which this part of the cases is held",
                remedy="remove it if no run writes there, or check the folder's permissions",
            ) from error
        if not held(descriptor):
            os.close(descriptor)
            return None
        # Its last holder may have removed it between the two lines.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def _moved(directory: Path) -> OutputError:
    return OutputError(
        directory,
        found="no longer the folder that this run began to write into",
        expected="it to stay in its place until the run ends",
        remedy="put it back if it was moved, and run again with --resume",
    )


def _taken(directory: Path) -> OutputError:
    return OutputError(
        directory,
        found="another process that writes into it",
        expected="one writer at a time",
        remedy="wait for it, or choose another output",
    )
