"""Who speaks while processes that train together have not met yet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Final

from runtime.errors import BratsError

LAST_WORD: Final = 1.0
"""Seconds that those who have nothing to say stay behind: as soon as one process has left with an
error, torchrun ends all of them, also the one that is about to say which."""


@contextmanager
def one_voice() -> Iterator[None]:
    """Let the first process of each machine tell an error: of a flag, a file, a device.

    Raises:
        BratsError: what went wrong, in that process.
        SystemExit: with its exit code, in the others.
    """
    try:
        yield
    except BratsError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        sleep(LAST_WORD)
        raise SystemExit(error.exit_code) from None
