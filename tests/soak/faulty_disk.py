"""Lets one of the operations of the writer go wrong, in Python: the portable form of `strace -e
inject`.

Every operation that changes a folder is counted while `Disk` is installed; the one of a given
number fails as the disk would, or kills the process. What is written elsewhere goes through.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

Fault = Literal["ENOSPC", "EIO", "half", "kill"]
FAULTS: Final[tuple[Fault, ...]] = ("ENOSPC", "EIO", "half", "kill")
_WRITING: Final = frozenset("wax+")


class Disk:
    """What is done below ``folder``, counted.

    Attributes:
        done: the operations so far, by name and file.
        at: the number, from 0, of the one that goes wrong; None lets all of them through.
        fault: how: an error of the system; "half", a write that runs out of space in its midst
            (any other operation: ENOSPC); or the end of the process, before the operation.
    """

    def __init__(self, folder: Path, at: int | None = None, fault: Fault = "ENOSPC") -> None:
        self.folder = Path(os.path.realpath(folder))
        self.at, self.fault = at, fault
        self.done: list[str] = []
        self._open_files: dict[int, str] = {}

    def install(self) -> None:
        """For the rest of this process: it is a fork."""
        for name in ("fsync", "fdatasync", "close", "ftruncate", "truncate"):
            if hasattr(os, name):
                setattr(os, name, self._of_descriptor(name, getattr(os, name)))
        for name in ("replace", "rename", "link", "symlink"):
            setattr(os, name, self._of_paths(name, getattr(os, name), (0, 1)))
        for name in ("unlink", "remove", "mkdir", "rmdir"):
            setattr(os, name, self._of_paths(name, getattr(os, name), (0,)))
        os.write = self._write(os.write)
        os.open = self._open(os.open)
        io.open = builtins.open = self._open_file(io.open)  # type: ignore[assignment]

    def step(self, name: str, path: str) -> bool:
        """One more operation; whether it is to stop in its midst.

        Raises:
            OSError: it goes wrong.
        """
        number = len(self.done)
        self.done.append(f"{name} {Path(path).name}")
        if number != self.at:
            return False
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "half" and name == "write":
            return True
        code = errno.EIO if self.fault == "EIO" else errno.ENOSPC
        raise OSError(code, os.strerror(code), path)

    def counts(self, path: Any) -> str | None:
        """The path, where it lies below the folder."""
        if isinstance(path, int):
            return self._open_files.get(path)
        text = os.path.abspath(os.fsdecode(path))
        text = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        inside = text == str(self.folder) or text.startswith(f"{self.folder}{os.sep}")
        return text if inside else None

    def _of_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: Any, *rest: Any) -> Any:
            path = self.counts(descriptor)
            if path is not None:
                if name == "close":
                    # As the system: the descriptor is gone even where closing fails.
                    real(descriptor)
                    self._open_files.pop(descriptor, None)
                    self.step(name, path)
                    return None
                self.step(name, path)
            return real(descriptor, *rest)

        return call

    def _of_paths(
        self, name: str, real: Callable[..., Any], places: tuple[int, ...]
    ) -> Callable[..., Any]:
        def call(*paths: Any, **more: Any) -> Any:
            found = [self.counts(paths[place]) for place in places]
            path = next((one for one in reversed(found) if one is not None), None)
            if path is not None:
                self.step(name, path)
            return real(*paths, **more)

        return call

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(descriptor: int, data: Any) -> int:
            path = self.counts(descriptor)
            if path is not None and self.step("write", path):
                real(descriptor, bytes(data)[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return real(descriptor, data)

        return write

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            found = self.counts(path)
            # A folder is opened to be synced; what is only read is no concern of the writer's.
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or os.path.isdir(path)
            if found is None or not writes:
                return real(path, flags, *rest, **more)
            self.step("open", found)
            descriptor = real(path, flags, *rest, **more)
            self._open_files[descriptor] = found
            return descriptor

        return opened

    def _open_file(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            found = None if isinstance(path, int) else self.counts(path)
            if found is None or not _WRITING & set(mode):
                return real(path, mode, *rest, **more)
            self.step("open", found)
            raw = _File(path, mode.replace("b", "").replace("t", ""), self, found)
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

        return opened


class _File(io.FileIO):
    """A file whose writes and whose close are counted."""

    def __init__(self, path: Any, mode: str, disk: Disk, name: str) -> None:
        super().__init__(path, mode)
        self._disk, self._name = disk, name
        disk._open_files[self.fileno()] = name

    def write(self, data: Any) -> int:
        if self._disk.step("write", self._name):
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._name)
        return super().write(data)

    def close(self) -> None:
        if self.closed:
            return
        self._disk._open_files.pop(self.fileno(), None)
        super().close()
        self._disk.step("close", self._name)
