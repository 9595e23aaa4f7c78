"""Ctrl-C during a cohort: what is in flight is finished, nothing more is begun."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""From a person, and from a scheduler whose time is up."""


@contextmanager
def finishing(told: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Take the first Ctrl-C or SIGTERM for a wish; a second one interrupts at once.

    Where signals cannot be had, as beside the main thread, or are ignored, as behind nohup, they
    are left as they are.

    Args:
        told: called at the first, to say what happens now.

    Yields:
        Whether to stop.

    Raises:
        KeyboardInterrupt: at the second one.
    """
    stop = Event()
    before = {}

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        told()

    if current_thread() is main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, asked)
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
