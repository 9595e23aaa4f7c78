"""Threads where the system has some to give, and the calling one where it has none.

A container's limit on processes, or on the address space that each thread's stack is taken from,
is no reason to leave a case undone.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Lock
from typing import Generic, Self, TypeGuard, TypeVar

_T = TypeVar("_T")
_S = TypeVar("_S")


class Threads:
    """Up to ``count`` threads, which start with work and end with `close` or with the object; work
    for which none can be had is done by the calling thread at once.
    """

    def __init__(self, count: int, name: str = "") -> None:
        self._pool = ThreadPoolExecutor(max(1, count), name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(drop=kind is not None)

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        """Have ``work`` done, once; the future holds what it returns or raises."""
        task = _Task(work)
        try:
            self._pool.submit(task.do)
        except RuntimeError as error:
            if not no_thread(error):
                raise
            # It has been queued all the same: a thread that started before may be at it.
            task.do()
        return task.future

    def map(self, work: Callable[[_S], _T], items: Iterable[_S]) -> list[_T]:
        """``work`` of each item, in order; raises the first error in that order."""
        return [one.result() for one in [self.submit(partial(work, item)) for item in items]]

    def share(self, works: Sequence[Callable[[], _T]]) -> list[_T]:
        """Have all of it done, by the calling thread too: what no other has begun by the time that
        the caller is free, it does itself, so that it never waits for work of others.

        Returns:
            What each returns, in order.

        Raises:
            BaseException: of the first that failed. By then none is at work any more.
        """
        tasks = [_Task(work) for work in works]
        for task in tasks[1:]:
            try:
                self._pool.submit(task.do)
            except RuntimeError as error:
                if not no_thread(error):
                    raise
        try:
            for task in tasks:
                task.do()
        finally:
            for task in tasks:
                task.drop()
            wait([task.future for task in tasks])
        return [task.future.result() for task in tasks]

    def close(self, drop: bool = False) -> None:
        """Wait for the threads and end them.

        Args:
            drop: leave undone what none of them has begun; nobody may wait for it. So does the
                end of a ``with`` block by an error.
        """
        self._pool.shutdown(cancel_futures=drop)


def no_thread(error: BaseException) -> TypeGuard[RuntimeError]:
    """Whether an error is that the system gave no thread, for which Python has no class."""
    return isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")


class _Task(Generic[_T]):
    """Work that is done by whoever comes first."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self.future: Future[_T] = Future()
        self._work: Callable[[], _T] | None = work
        self._lock = Lock()

    def do(self) -> None:
        work = None
        try:
            with self._lock:
                work, self._work = self._work, None
            if work is not None:
                self.future.set_result(work())
        except BaseException as error:
            # A wish to stop may come between any two steps: nobody is to wait for ever.
            if work is not None and not self.future.done():
                self.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            # The error's traceback holds this frame, which would hold the future that holds it.
            del self, work

    def drop(self) -> None:
        """Leave it undone, if nobody has begun it."""
        with self._lock:
            work, self._work = self._work, None
        if work is not None and not self.future.done():
            self.future.set_exception(CancelledError())
