"""The folder under which a server keeps those of its visits.

A server that is killed cannot delete its files: the next one that starts does. A lock on the
folder, which the system drops with the process however that ends, tells a dead server's from a
running one's.
"""

import os
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Final

from runtime.lock import try_lock

_PREFIX: Final = "brats-app-server-"


def sweep(parent: Path | None = None) -> None:
    """Delete what dead servers of this user have left.

    Args:
        parent: of their folders; None means the system's place for temporary files.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            if path.lstat().st_uid != os.getuid():
                continue
            lock = _lock(path)
        except (OSError, AttributeError):
            # It is in use, is no folder, or cannot be known to be a dead server's.
            continue
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            _unlock(lock)


class ServerFolder:
    """A folder of this process's own, locked, and deleted when the process ends.

    Attributes:
        path: mode 0700.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """
        Args:
            parent: of the folder; None means the system's place for temporary files.
        """
        self.path, lock = _claim(parent)
        self._finalizer = weakref.finalize(self, _leave, self.path, lock)

    def close(self) -> None:
        """Delete it now."""
        self._finalizer()


def _claim(parent: Path | None) -> tuple[Path, int | None]:
    """A new folder and its lock; None where the system or the file system has none."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            lock = _lock(path)
        except (BlockingIOError, FileNotFoundError):
            # A server that starts at the same moment took it for a dead one's.
            continue
        except OSError:
            return path, None
        if path.exists():
            return path, lock
        _unlock(lock)


def _lock(path: Path) -> int | None:
    """Lock a folder, not what a link leads to; None where there are no such locks.

    Raises:
        OSError: it is locked, no folder, or gone.
    """
    if sys.platform == "win32":
        return None
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not try_lock(opened):
            raise BlockingIOError(f"{path} is locked")
    except OSError:
        os.close(opened)
        raise
    return opened


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _leave(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _unlock(lock)
