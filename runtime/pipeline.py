"""Three stages at work at the same time over a stream of items: read ahead, run, write behind.

The middle stage, which owns the device, runs in the caller's thread, one item after another. What
is read and not yet written is bounded, in bytes and in number, however long the stream is.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from time import perf_counter
from typing import Final, Generic, Literal, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Made = TypeVar("Made")
Written = TypeVar("Written")

_BACKLOG: Final = 2
"""Items that may wait for a writer, beside those being written."""


@dataclass(frozen=True)
class Limits:
    """How much is in hand at once.

    Attributes:
        readers, writers: threads, 1 or more each.
        ahead: items that may be read, or be read from, before the middle stage needs them.
        memory: bytes that items in hand may take together; None is no bound but ``ahead``. One item
            is taken in hand however large it is.
    """

    readers: int = 2
    writers: int = 1
    ahead: int = 3
    memory: int | None = None


@dataclass(frozen=True)
class Stages(Generic[Item, Read, Made, Written]):
    """What is done to every item.

    Attributes:
        cost: bytes that the item takes from reading to writing; called in a reader's thread.
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

    @property
    def wall(self) -> float:
        return perf_counter() - self._begun


class _Room:
    """Bytes that are left for items in hand."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._taken = 0
        self._holders = 0
        self._closed = False
        self._changed = Condition()

    def take(self, size: int) -> None:
        """Wait until there is room; one holder always has it.

        Raises:
            CancelledError: the pipeline has ended meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(size))
            if self._closed:
                raise CancelledError
            self._taken += size
            self._holders += 1

    def _fits(self, size: int) -> bool:
        return self._size is None or self._holders == 0 or self._taken + size <= self._size

    def give_back(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._holders -= 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def run_pipeline(
    items: Iterable[Item],
    stages: Stages[Item, Read, Made, Written],
    limits: Limits | None = None,
    clock: Clock | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Done[Item, Written]]:
    """Give each item as soon as it is written or has failed.

    Args:
        items: taken one by one, no sooner than there is room for them.
        stages: what is done; an ``Exception`` of a stage ends its item alone.
        limits: how much is in hand at once.
        clock: is told how long the stages work.
        stopping: asked before an item is run: once it is true no further one is, and what has been
            run is written.

    Yields:
        Items in the order in which they end, which need not be the order in which they came.
    """
    limits = limits or Limits()
    clock = clock or Clock()
    room = _Room(limits.memory)
    source = iter(items)
    reading: dict[Future[tuple[Read, int]], Item] = {}
    writing: dict[Future[Written], Item] = {}

    def read(item: Item) -> tuple[Read, int]:
        size = stages.cost(item)
        room.take(size)
        try:
            with clock.measured("read"):
                return stages.read(item), size
        except BaseException:
            room.give_back(size)
            raise

    def run(item: Item, future: Future[tuple[Read, int]]) -> Done[Item, Written] | None:
        try:
            found, size = future.result()
        except Exception as error:
            return Done(item, error=error)
        try:
            with clock.measured("run"):
                made = stages.run(item, found)
        except Exception as error:
            room.give_back(size)
            return Done(item, error=error)
        writing[writers.submit(write, item, made, size)] = item
        return None

    def write(item: Item, made: Made, size: int) -> Written:
        try:
            with clock.measured("write"):
                return stages.write(item, made)
        finally:
            room.give_back(size)

    def written() -> Iterator[Done[Item, Written]]:
        for future in [one for one in writing if one.done()]:
            item = writing.pop(future)
            error = future.exception()
            if error is None:
                yield Done(item, future.result())
            elif isinstance(error, Exception):
                yield Done(item, error=error)
            else:
                raise error

    with (
        ThreadPoolExecutor(limits.writers) as writers,
        ThreadPoolExecutor(limits.readers) as readers,
    ):
        try:
            more = True
            while not stopping():
                while more and len(reading) < limits.ahead:
                    try:
                        item = next(source)
                    except StopIteration:
                        more = False
                    else:
                        reading[readers.submit(read, item)] = item
                if not reading:
                    break
                yield from written()
                backlog = len(writing) >= limits.writers + _BACKLOG
                wait([*writing, *(() if backlog else reading)], return_when=FIRST_COMPLETED)
                ready = next((one for one in reading if one.done()), None)
                if ready is None or backlog or stopping():
                    continue
                failed = run(reading.pop(ready), ready)
                # It holds what was read.
                del ready
                if failed is not None:
                    yield failed
        finally:
            # Whoever leaves does not wait for what has not begun.
            room.close()
            for future in reading:
                future.cancel()
        while writing:
            wait(writing, return_when=FIRST_COMPLETED)
            yield from written()
