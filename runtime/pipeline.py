"""Three stages at work at the same time over a stream of items: read ahead, run, write behind.

The middle stage, which owns the device, runs in the caller's thread, one item after another. What
is read and not yet written is bounded, in bytes and in number, however long the stream is.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from threading import Lock
from time import perf_counter
from typing import Generic, Literal, TypeVar

from runtime.threads import Threads

Item = TypeVar("Item")
Read = TypeVar("Read")
Made = TypeVar("Made")
Written = TypeVar("Written")


@dataclass(frozen=True)
class Limits:
    """How much is in hand at once.

    Attributes:
        readers, writers: threads, 1 or more each.
        ahead: items that may be read, or being read, before the middle stage needs them: one more
            than there are readers, so that one lies ready whenever it is free. Beside them one is
            run, and one more than there are writers is written or waits for that.
        room: asked before an item is taken in hand: bytes that those in hand may take together.
            One item is taken however large it is.
    """

    readers: int = 2
    writers: int = 1
    ahead: int = 3
    room: Callable[[], float] = lambda: inf


@dataclass(frozen=True)
class Stages(Generic[Item, Read, Made, Written]):
    """What is done to every item.

    Attributes:
        cost: bytes that the item takes from reading to writing; quick, in the caller's thread.
        read: in a reader's thread.
        run: in the caller's thread.
        write: in a writer's thread.
    """

    cost: Callable[[Item], int]
    read: Callable[[Item], Read]
    run: Callable[[Item, Read], Made]
    write: Callable[[Item, Made], Written]


@dataclass(frozen=True)
class Done(Generic[Item, Written]):
    """What became of an item: the last stage's result, or the error of whichever failed."""

    item: Item
    written: Written | None = None
    error: Exception | None = None


@dataclass
class Clock:
    """Seconds in which each stage was at work, summed over its threads, and since the start."""

    read: float = 0.0
    run: float = 0.0
    write: float = 0.0
    _begun: float = field(default_factory=perf_counter)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @contextmanager
    def measured(self, stage: Literal["read", "run", "write"]) -> Iterator[None]:
        """Add the time that the block takes."""
        start = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - start
            with self._lock:
                setattr(self, stage, getattr(self, stage) + seconds)

    def restart(self) -> None:
        """Begin the time since the start anew."""
        self._begun = perf_counter()

    @property
    def wall(self) -> float:
        return perf_counter() - self._begun


def run_pipeline(
    items: Iterable[Item],
    stages: Stages[Item, Read, Made, Written],
    limits: Limits | None = None,
    clock: Clock | None = None,
    stopping: Callable[[], bool] = lambda: False,
    ready: Callable[[], bool] = lambda: True,
) -> Iterator[Done[Item, Written]]:
    """Give each item as soon as it is written or has failed.

    Args:
        items: taken one by one, no sooner than there is room for them.
        stages: what is done; an ``Exception`` of a stage ends its item alone.
        limits: how much is in hand at once.
        clock: is told how long the stages work.
        stopping: asked before an item is read, in a reader's thread, and before it is run: once it
            is true no further one is, and what has been run is written.
        ready: whether ``items`` would give one, or end, without waiting. While it would not, it is
            waited for only where nothing is in hand.

    Yields:
        Items in the order in which they end, which need not be the order in which they came.
    """
    limits = limits or Limits()
    clock = clock or Clock()
    source = _Source(iter(items), stages.cost, ready)
    reading: dict[Future[Read], tuple[Item, int]] = {}
    writing: dict[Future[Written], tuple[Item, int]] = {}

    def read(item: Item) -> Read:
        if stopping():
            raise _StoppingError
        with clock.measured("read"):
            return stages.read(item)

    def write(item: Item, made: Made) -> Written:
        with clock.measured("write"):
            return stages.write(item, made)

    def written() -> Iterator[Done[Item, Written]]:
        for future in [one for one in writing if one.done()]:
            item, _ = writing.pop(future)
            error = future.exception()
            if error is None:
                yield Done(item, future.result())
            elif isinstance(error, Exception):
                yield Done(item, error=error)
            else:
                raise error

    def fits(size: int) -> bool:
        in_hand = [taken for _, taken in (*reading.values(), *writing.values())]
        return not in_hand or sum(in_hand) + size <= limits.room()

    with Threads(limits.writers) as writers, Threads(limits.readers) as readers:
        while not stopping():
            while len(reading) < limits.ahead:
                following = source.first(waiting=not (reading or writing))
                if following is None or not fits(following[1]):
                    break
                reading[readers.submit(partial(read, following[0]))] = following
                source.take()
            if source.ended and not reading:
                break
            yield from written()
            backlog = len(writing) > limits.writers
            chosen = None if backlog else next((one for one in reading if one.done()), None)
            if chosen is None:
                in_hand = [*writing, *(() if backlog else reading)]
                wait(in_hand, return_when=FIRST_COMPLETED)
                continue
            item, size = reading.pop(chosen)
            try:
                with clock.measured("run"):
                    made = stages.run(item, chosen.result())
            except _StoppingError:
                continue
            except Exception as error:
                yield Done(item, error=error)
            else:
                writing[writers.submit(partial(write, item, made))] = item, size
                del made
            # It holds what was read.
            del chosen
        while writing:
            wait(writing, return_when=FIRST_COMPLETED)
            yield from written()


class _StoppingError(Exception):
    """No item is begun any more."""


class _Source(Generic[Item]):
    """The items, of which the first is looked at before it is taken."""

    def __init__(
        self, items: Iterator[Item], cost: Callable[[Item], int], ready: Callable[[], bool]
    ) -> None:
        self._items = items
        self._cost = cost
        self._ready = ready
        self._first: tuple[Item, int] | None = None
        self.ended = False

    def first(self, waiting: bool) -> tuple[Item, int] | None:
        """The first item and what it costs; None where there is none, or none yet.

        Args:
            waiting: for one, where there is none yet.
        """
        if self._first is None and not self.ended and (waiting or self._ready()):
            for item in self._items:
                self._first = item, self._cost(item)
                break
            else:
                self.ended = True
        return self._first

    def take(self) -> None:
        """Go on to the next."""
        self._first = None
