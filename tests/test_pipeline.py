"""Reading ahead, running, writing behind: every item once, bounded, and nobody waits for ever."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Barrier, Event, Lock, current_thread, main_thread
from weakref import WeakSet, ref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.pipeline import Clock, Done, Limits, Stages, run_pipeline


class Counted:
    """Stages that count the bytes and the items in hand."""

    def __init__(self, costs: list[int], failing: dict[int, str]) -> None:
        self.costs = costs
        self.failing = failing
        self.most_bytes = self.most_items = 0
        self._bytes = self._items = 0
        self._lock = Lock()

    def stages(self) -> Stages[int, int, int, str]:
        return Stages(lambda item: self.costs[item], self.read, self.run, self.write)

    def read(self, item: int) -> int:
        with self._lock:
            self._bytes += self.costs[item]
            self._items += 1
            self.most_bytes = max(self.most_bytes, self._bytes)
            self.most_items = max(self.most_items, self._items)
        self._fail(item, "read")
        return 10 * item

    def run(self, item: int, read: int) -> int:
        assert read == 10 * item
        assert current_thread() is main_thread()
        self._fail(item, "run")
        return read + 1

    def write(self, item: int, made: int) -> str:
        self._fail(item, "write")
        self._over(item)
        return f"{item}:{made}"

    def _fail(self, item: int, stage: str) -> None:
        if self.failing.get(item) == stage:
            self._over(item)
            raise ValueError(f"{stage} {item}")

    def _over(self, item: int) -> None:
        with self._lock:
            self._bytes -= self.costs[item]
            self._items -= 1


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_item_ends_once_and_within_bounds(data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(0, 50), max_size=12))
    failing = data.draw(
        st.dictionaries(
            st.integers(0, max(0, len(costs) - 1)), st.sampled_from(["read", "run", "write"])
        )
    )
    memory = data.draw(st.none() | st.integers(0, 100))
    limits = Limits(
        readers=data.draw(st.integers(1, 3)),
        writers=data.draw(st.integers(1, 2)),
        ahead=data.draw(st.integers(1, 4)),
        room=lambda: math.inf if memory is None else memory,
    )
    counted = Counted(costs, failing)
    found = list(run_pipeline(range(len(costs)), counted.stages(), limits))
    assert sorted(one.item for one in found) == list(range(len(costs)))
    for one in found:
        if one.item in failing:
            assert str(one.error) == f"{failing[one.item]} {one.item}"
            assert one.written is None
        else:
            assert one == Done(one.item, f"{one.item}:{10 * one.item + 1}")
    if memory is not None:
        assert counted.most_bytes <= max(memory, max(costs, default=0))
    assert counted.most_items <= limits.ahead + 1 + limits.writers + 1


def test_the_three_stages_work_at_the_same_time() -> None:
    # Each stage waits for the other two, on another item each.
    together = Barrier(3, timeout=20)

    def meet(item: int, made: object = None) -> int:
        together.wait()
        return item

    stages: Stages[int, int, int, int] = Stages(
        lambda item: 1,
        lambda item: meet(item) if item >= 2 else item,
        lambda item, read: meet(item) if 1 <= item <= 3 else item,
        lambda item, made: meet(item) if item <= 2 else item,
    )
    found = list(run_pipeline(range(5), stages, Limits(readers=1, writers=1)))
    assert [one.written for one in found] == [0, 1, 2, 3, 4], found


def test_items_are_taken_no_sooner_than_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    stages: Stages[int, int, int, int] = Stages(
        lambda item: 1, lambda item: item, lambda item, read: read, lambda item, made: made
    )
    found = run_pipeline(items(), stages, Limits(ahead=3))
    assert next(found).written == 0
    assert len(taken) <= 8
    found.close()  # type: ignore[attr-defined]
    assert len(taken) <= 8


def test_nothing_is_kept_of_an_item_that_has_ended() -> None:
    class Voxels:
        pass

    alive: WeakSet[Voxels] = WeakSet()

    def read(item: int) -> Voxels:
        voxels = Voxels()
        alive.add(voxels)
        return voxels

    stages: Stages[int, Voxels, Voxels, int] = Stages(
        lambda item: 1, read, lambda item, voxels: voxels, lambda item, voxels: item
    )
    for _ in run_pipeline(range(40), stages, Limits(readers=1, ahead=2, writers=1)):
        assert len(alive) <= 7


def test_when_stopping_what_was_run_is_written_and_no_more_is_run() -> None:
    ran, wrote = [], []
    stop = Event()

    def run(item: int, read: int) -> int:
        ran.append(item)
        if len(ran) == 3:
            stop.set()
        return item

    def write(item: int, made: int) -> int:
        wrote.append(item)
        return item

    stages: Stages[int, int, int, int] = Stages(lambda item: 1, lambda item: item, run, write)
    found = list(run_pipeline(range(100), stages, stopping=stop.is_set))
    assert len(ran) == 3
    assert sorted(wrote) == sorted(ran) == sorted(one.item for one in found)


@pytest.mark.parametrize("memory", [math.inf, 0.0])
def test_an_error_of_the_callers_leaves_no_thread_behind(memory: float) -> None:
    stages: Stages[int, int, int, int] = Stages(
        lambda item: 1, lambda item: item, lambda item, read: _interrupt(), lambda item, made: made
    )
    with ThreadPoolExecutor(1) as aside:

        def begin() -> None:
            with pytest.raises(KeyboardInterrupt):
                list(run_pipeline(range(100), stages, Limits(3, 1, 5, lambda: memory)))

        aside.submit(begin).result(timeout=20)


def _interrupt() -> int:
    raise KeyboardInterrupt


def test_the_clock_tells_how_long_each_stage_works() -> None:
    clock = Clock()
    wait = Event().wait

    def pause(seconds: float) -> int:
        wait(seconds)
        return 0

    stages: Stages[int, int, int, int] = Stages(
        lambda item: 1,
        lambda item: pause(0.02),
        lambda item, read: pause(0.04),
        lambda item, made: pause(0.01),
    )
    list(run_pipeline(range(5), stages, clock=clock))
    assert clock.read >= 0.1
    assert clock.run >= 0.2
    assert clock.write >= 0.05
    assert clock.wall >= clock.run


def test_an_item_that_ended_is_not_held_by_the_record() -> None:
    class Item:
        pass

    items = [Item() for _ in range(3)]
    stages: Stages[Item, int, int, int] = Stages(
        lambda item: 1, lambda item: 1, lambda item, read: 1, lambda item, made: 1
    )
    first = ref(items[0])
    found = run_pipeline((items.pop(0) for _ in range(3)), stages)
    done = next(found)
    assert done.item is first()
    del done
    for last in found:
        assert first() is None, last


def test_a_source_that_has_nothing_yet_holds_up_nothing() -> None:
    """The next item comes only when the one before it has been written, as of a queue that waits
    for an answer.
    """
    inbox: SimpleQueue[int | None] = SimpleQueue()
    inbox.put(0)
    stages = Stages[int, int, int, int](
        lambda item: 1, lambda item: item, lambda item, read: read, lambda item, made: made
    )
    done = []
    for one in run_pipeline(
        iter(inbox.get, None), stages, Limits(), ready=lambda: not inbox.empty()
    ):
        done.append(one.item)
        inbox.put(len(done) if len(done) < 5 else None)
    assert done == [0, 1, 2, 3, 4]


def test_after_a_wish_to_stop_no_item_is_read_that_was_only_queued() -> None:
    begun: list[int] = []
    stop, queued = Event(), Event()

    def items() -> Iterator[int]:
        for item in range(9):
            yield item
            if item == 2:
                queued.set()

    def read(item: int) -> int:
        begun.append(item)
        assert queued.wait(20)
        stop.set()
        return item

    stages: Stages[int, int, int, int] = Stages(
        lambda item: 0, read, lambda item, got: got, lambda item, made: made
    )
    done = list(run_pipeline(items(), stages, Limits(1, 1, 4), stopping=stop.is_set))
    assert done == []
    assert begun == [0]
