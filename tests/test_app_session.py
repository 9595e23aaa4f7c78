"""A visit's state: what is kept, what is forgotten, and when its files are deleted."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")

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
    janitor.watch("one", one)
    janitor.watch("other", other)
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
    janitor.watch("one", store)
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
    janitor.watch("one", store)
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
