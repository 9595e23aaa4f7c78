"""Ctrl-C for a long call into C++ that asks from time to time whether it should stop."""

import threading
from collections.abc import Callable
from typing import Final, TypeVar

Result = TypeVar("Result")

_POLL_S: Final = 0.1
_START_S: Final = 1.0


class Stop:
    """Asks the work to stop; keeps the error, where a callback of the work is what failed."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.error: BaseException | None = None

    @property
    def asked(self) -> bool:
        """Whether the work should stop."""
        return self._asked.is_set()

    def ask(self, error: BaseException | None = None) -> None:
        """Ask it to, because of ``error`` if there is one; the first error is kept."""
        self.error = self.error or error
        self._asked.set()


def interruptibly(work: Callable[[], Result], stop: Stop) -> Result:
    """Do ``work`` in a thread of its own while this one waits and can be interrupted.

    Python handles a signal only between two bytecodes of its main thread, so that a main thread
    inside a long call would not notice Ctrl-C, or would notice it in one of the call's own
    callbacks, where an exception goes nowhere. Here it asks ``work`` to stop and waits until it
    has; a second one does not wait.

    Args:
        work: asks ``stop`` from time to time, and ends early once it is asked to.
        stop: what ``work`` asks.

    Returns:
        What ``work`` returns.

    Raises:
        KeyboardInterrupt: interrupted.
        BaseException: that of ``stop``, or else that of ``work``.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    began, ended = threading.Event(), threading.Event()

    def body() -> None:
        began.set()
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    def wait() -> None:
        while not ended.wait(_POLL_S):  # without a limit Windows would not deliver Ctrl-C
            pass

    # A daemon, so that the process can end although the work does not ask any more.
    thread = threading.Thread(target=body, daemon=True)
    try:
        thread.start()
        wait()
    except BaseException:
        stop.ask()
        # It may have come while the thread was being started, or before there was one.
        if began.wait(_START_S):
            wait()
        raise
    for error in (stop.error, *errors):
        if error is not None:
            raise error
    return results[0]
