"""A visit's state: what is kept, what is forgotten, and when its files are deleted."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")

from runtime.app.desk import Job
from runtime.app.session import Janitor, Session
from runtime.app.uploads import Store


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_files_go_when_nobody_has_been_there_for_the_time_of_grace(tmp_path: Path) -> None:
    clock, active = Clock(), {"one": True, "other": True}
    janitor = Janitor(active.__getitem__, grace_s=60, clock=clock)
    one, other = Store(tmp_path), Store(tmp_path)
    janitor.watch("one", Session(one))
    janitor.watch("other", Session(other))
    clock.now += 1000
    janitor.sweep()
    assert not one.closed
    active["one"] = False
    clock.now += 60
    janitor.sweep()
    assert not one.closed
    clock.now += 1
    janitor.sweep()
    assert one.closed
    assert not one.folder.exists()
    assert not other.closed
    assert other.folder.is_dir()
    other.close()


def test_a_browser_that_comes_back_in_time_finds_its_files(tmp_path: Path) -> None:
    clock, active = Clock(), {"one": False}
    janitor = Janitor(active.__getitem__, grace_s=60, clock=clock)
    store = Store(tmp_path)
    janitor.watch("one", Session(store))
    clock.now += 50
    janitor.sweep()
    active["one"] = True
    clock.now += 50
    janitor.sweep()
    active["one"] = False
    clock.now += 50
    janitor.sweep()
    assert not store.closed
    store.close()


def test_a_store_that_is_gone_is_asked_for_no_more(tmp_path: Path) -> None:
    asked: list[str] = []

    def is_active(session_id: str) -> bool:
        asked.append(session_id)
        return True

    janitor = Janitor(is_active, 60)
    store = Store(tmp_path)
    janitor.watch("one", Session(store))
    store.close()
    janitor.sweep()
    janitor.sweep()
    assert asked == []


def result(case_id: str) -> Any:
    """As much of a result as `Session.keep` looks at."""

    class Anything:
        pass

    made: Any = Anything()
    made.prediction = Anything()
    made.prediction.volume = Anything()
    made.prediction.volume.case = Anything()
    made.prediction.volume.case.case_id = case_id
    return made


def test_results_have_titles_of_their_own_and_the_oldest_go(tmp_path: Path) -> None:
    session = Session(Store(tmp_path))
    titles = [session.keep(result("A"), 3), session.keep(result("A"), 3)]
    assert titles == ["A", "A (2)"]
    session.packets["A"] = b"x"
    session.made = {("A", "report"): b"a", ("A (2)", "report"): b"b"}
    session.keep(result("B"), 3)
    session.keep(result("C"), 3)
    assert list(session.results) == ["A (2)", "B", "C"]
    assert session.packets == {}
    assert session.made == {("A (2)", "report"): b"b"}
    session.store.close()


def test_a_visit_that_ends_keeps_nothing(tmp_path: Path) -> None:
    clock, forgotten = Clock(), list[str]()
    janitor = Janitor(lambda _: False, 60, clock, forgotten.append)
    visit = Session(Store(tmp_path))
    order: Any = object()
    job = Job(order)
    shown: Any = result("A")
    shown.prediction.probabilities = np.zeros(8, np.float32)
    left = [weakref.ref(shown), weakref.ref(shown.prediction.probabilities), weakref.ref(job)]
    visit.keep(shown, 3)
    visit.job = visit.last = job
    job.result = shown
    visit.offered = order
    visit.sample = shown.prediction.volume.case
    visit.packets["A"] = b"x"
    visit.measurements["A"] = shown
    visit.scores["A"] = {}
    visit.made["A", "report"] = b"x"
    visit.taken["id"] = ()
    janitor.watch("one", visit)
    clock.now += 61
    janitor.sweep()
    assert job.cancelled
    # As long as Streamlit holds the job: nothing of the patient hangs on it.
    assert job.result is None
    del shown, job
    gc.collect()
    assert [one() for one in left] == [None] * 3
    assert visit == Session(visit.store, visit.token)
    assert visit.store.closed
    # Streamlit's own copies of the uploaded files.
    assert forgotten == ["one"]


def test_a_page_that_is_loaded_again_takes_its_visit_over(tmp_path: Path) -> None:
    clock, active = Clock(), {"one": False, "again": True}
    janitor = Janitor(active.__getitem__, grace_s=60, clock=clock)
    visit = Session(Store(tmp_path))
    janitor.watch("one", visit)
    clock.now += 59
    assert janitor.take_over(visit.token, "again") is visit
    assert janitor.owns("again", visit)
    assert not janitor.owns("one", visit)
    clock.now += 1000
    janitor.sweep()
    assert not visit.store.closed
    janitor.end(visit)
    assert visit.store.closed
    assert not janitor.owns("again", visit)
    assert not janitor.knows(visit.token)


def test_a_visit_is_taken_over_only_when_its_browser_has_gone(tmp_path: Path) -> None:
    clock, active = Clock(), {"one": True}

    def pause(seconds: float) -> None:
        clock.now += seconds

    janitor = Janitor(active.__getitem__, 60, clock, pause=pause)
    visit = Session(Store(tmp_path))
    janitor.watch("one", visit)
    assert janitor.take_over(visit.token, "copy") is None
    assert janitor.owns("one", visit)
    assert janitor.take_over("guessed", "copy") is None

    def leave(seconds: float) -> None:
        pause(seconds)
        active["one"] = False

    # The page is loaded again before its old connection is known to be gone.
    janitor = Janitor(active.__getitem__, 60, clock, pause=leave)
    janitor.watch("one", visit)
    assert janitor.take_over(visit.token, "again") is visit
    janitor.end(visit)


def test_a_visit_that_has_ended_is_not_taken_over(tmp_path: Path) -> None:
    clock = Clock()
    janitor = Janitor(lambda _: False, 60, clock)
    visit = Session(Store(tmp_path))
    janitor.watch("one", visit)
    clock.now += 61
    janitor.sweep()
    assert janitor.take_over(visit.token, "again") is None
    assert not janitor.knows(visit.token)


def test_tokens_cannot_be_guessed_and_are_not_shown(tmp_path: Path) -> None:
    one, other = Session(Store(tmp_path)), Session(Store(tmp_path))
    assert one.token != other.token
    assert len(one.token) >= 43
    assert one.token not in repr(one)
    one.end()
    other.end()
