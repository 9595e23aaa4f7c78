"""The output folder of a cohort on a cluster, which all machines are to see as one."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from runtime.atomic import marked
from runtime.errors import OutputError
from runtime.lock import Held


@dataclass(frozen=True)
class Shared(Held):
    """A folder as another process or machine is told of it.

    Attributes:
        token: name of a hidden file in it, which is there for as long as the command runs.
    """

    token: str

    def check(self) -> None:
        """Make sure that the path leads to this folder here too, and still does.

        Raises:
            OutputError: it was moved or replaced, this machine does not see it, or the command that
                began it has ended.
        """
        if os.path.lexists(self.directory / self.token):
            return
        there = "another folder" if os.path.isdir(self.directory) else "no folder"
        raise OutputError(
            self.directory,
            found=f"{there} on {platform.node()}",
            expected="the one that this run writes into, on every machine of the cluster",
            remedy="choose one on a file system that all of them share, or, if it was moved, put "
            "it back and run again with --resume",
        )


@contextmanager
def shared(folder: Held) -> Iterator[Shared]:
    """Let others see in the block that they have the same folder.

    Args:
        folder: whose only writer this process is.

    Raises:
        OutputError: it is not in its place any more, or cannot be written.
    """
    folder.check()
    with marked(folder) as token:
        yield Shared(folder.directory.absolute(), None, token)
