"""Where the system gives few threads or none, all is done that would have been done, and once."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from runtime.case import Case
from runtime.cli.infer import main as infer
from runtime.labels import MODALITIES
from runtime.nifti import load
from runtime.ops.numpy import NumpyOps
from runtime.threads import Threads

Few = Callable[[int], None]
SHAPE = (36, 32, 20)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Few:
    """few(n): from now on n more threads can be started, and then none."""

    def only(count: int) -> None:
        start, left = threading.Thread.start, [count]

        def limited(thread: threading.Thread) -> None:
            if left[0] < 1:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)

    return only


def voxels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.integers(100, 900, SHAPE, dtype=np.int16)
    values[:4] = values[-4:] = 0
    return values


@pytest.fixture
def case(tmp_path: Path, write_case: Callable[..., Path]) -> Path:
    images = {name: voxels(index) for index, name in enumerate(MODALITIES)}
    return write_case(tmp_path / "data" / "X", images)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_each_piece_of_work_is_done_once(few: Few, count: int) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.002)  # so that others are still to be done when a thread is wanted for one
        done.append(number)
        return number * number

    few(count)
    with Threads(4) as threads:
        assert threads.map(work, range(40)) == [number * number for number in range(40)]
    assert sorted(done) == list(range(40))


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_is_told_where_the_result_is_asked_for(few: Few, count: int) -> None:
    few(count)
    with Threads(2) as threads:
        bad = threads.submit(partial(int, "x"))
        good = threads.submit(partial(int, "7"))
        assert good.result() == 7
        with pytest.raises(ValueError, match="invalid literal"):
            bad.result()


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_what_is_shared_is_done_once_and_in_order(few: Few, count: int) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.002)
        done.append(number)
        return number * number

    few(count)
    with Threads(3) as threads:
        works = [partial(work, number) for number in range(20)]
        assert threads.share(works) == [number * number for number in range(20)]
    assert sorted(done) == list(range(20))


def test_who_shares_does_not_wait_for_the_work_of_others() -> None:
    held, freed = threading.Event(), threading.Event()
    with Threads(1) as threads:

        def other() -> None:
            held.set()
            freed.wait(20)

        threads.submit(other)
        assert held.wait(20)
        # The only thread is taken: all of it is done here.
        here = threading.get_ident()
        assert threads.share([threading.get_ident] * 3) == [here] * 3
        freed.set()


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_when_shared_work_fails_none_is_at_work_any_more(bad: int) -> None:
    working = [0]
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            working[0] += 1
        try:
            time.sleep(0.01)
            if number == bad:
                raise MemoryError(str(number))
            return number
        finally:
            with lock:
                working[0] -= 1

    with Threads(2) as threads:
        with pytest.raises(MemoryError, match=str(bad)):
            threads.share([partial(work, number) for number in range(3)])
        assert working == [0]


def test_a_wish_to_stop_leaves_shared_work_undone() -> None:
    done: list[int] = []
    held, freed = threading.Event(), threading.Event()

    def stopped() -> None:
        raise KeyboardInterrupt

    def other() -> None:
        held.set()
        freed.wait(20)

    with Threads(1) as threads:
        threads.submit(other)
        assert held.wait(20)
        with pytest.raises(KeyboardInterrupt):
            threads.share([stopped, partial(done.append, 1)])
        freed.set()
    assert done == []


@pytest.mark.parametrize("failed", [False, True])
def test_an_error_leaves_undone_what_nobody_has_begun(failed: bool) -> None:
    done: list[int] = []
    held, freed = threading.Event(), threading.Event()

    def first() -> None:
        held.set()
        freed.wait(20)
        done.append(0)

    with suppress(KeyboardInterrupt), Threads(1) as threads:
        threads.submit(first)
        for number in (1, 2):
            threads.submit(partial(done.append, number))
        assert held.wait(20)
        threading.Timer(0.05, freed.set).start()
        if failed:
            raise KeyboardInterrupt
    assert done == ([0] if failed else [0, 1, 2])


def test_after_the_end_nothing_is_taken() -> None:
    threads = Threads(1)
    threads.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(int)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_case_is_read_without_threads(few: Few, case: Path, count: int) -> None:
    few(count)
    volume = load(Case.from_dir(case))
    for index, name in enumerate(MODALITIES):
        np.testing.assert_array_equal(volume.images[name].voxels, voxels(index))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_windows_are_added_once_without_threads(few: Few, count: int) -> None:
    few(count)
    ops = NumpyOps(4)
    total = np.zeros((4, 8, 8, 8), np.float32)
    values = np.ones((3, 4, 8, 8, 8), np.float32)
    starts, bad = np.zeros((3, 3), np.int64), np.zeros(1, np.uint64)
    for _ in range(5):
        ops.accumulate(total, values, np.ones((8, 8, 8), np.float32), starts, bad)
    ops.close()
    assert (total == 15).all()
    assert not bad.any()


@pytest.mark.parametrize("count", [0, 1])
def test_a_cohort_is_segmented_without_threads(
    few: Few, tiny_model: Path, case: Path, tmp_path: Path, count: int
) -> None:
    words = [str(case.parent), "--model", str(tiny_model), "--backend", "ort", "--threads", "2"]
    assert infer([*words, "-o", str(tmp_path / "many")]) == 0
    few(count)
    assert infer([*words, "-o", str(tmp_path / "few")]) == 0
    many, less = ((tmp_path / name / "X_seg.nii.gz").read_bytes() for name in ("many", "few"))
    assert many == less


def test_cases_are_checked_without_threads(few: Few, case: Path) -> None:
    few(0)
    assert infer([str(case.parent), "--check", "--quiet"]) == 0
