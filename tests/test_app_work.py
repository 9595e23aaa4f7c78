"""What the page says of a case that waits, runs, fails or is cancelled."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")

from streamlit.testing.v1 import AppTest

from runtime.app.choices import Wanted
from runtime.app.desk import Job, Order
from runtime.app.session import Session
from runtime.app.uploads import Store
from runtime.app.work import said
from runtime.backends import BackendOptions
from runtime.case import Case
from runtime.segmenter import SegmentOptions

pytestmark = pytest.mark.usefixtures("main_module")


class Fake:
    """A desk that only takes orders, and a model."""

    model = None

    def __init__(self) -> None:
        self.cancelled: list[Job] = []

    def submit(self, order: Order) -> Job:
        return Job(order)

    def cancel(self, job: Job) -> None:
        self.cancelled.append(job)
        job.cancel()

    def place(self, job: Job) -> int:
        return 0


def job_at(stage: str, done: int = 0, total: int = 0) -> Job:
    order: Any = None
    job = Job(order)
    job.stage, job.done, job.total = stage, done, total
    return job


def test_what_is_said_of_a_job() -> None:
    assert said(job_at("waiting"), 1) == "waiting: 1 other is before this one"
    assert said(job_at("waiting"), 2) == "waiting: 2 others are before this one"
    assert said(job_at("opening the model"), 0) == "opening the model"
    assert said(job_at("windows", 3, 8), 0) == "windows: 3 of 8"


def test_a_cancelled_job_says_so_until_it_has_stopped() -> None:
    job = job_at("windows", 3, 8)
    job.cancel()
    assert said(job, 0) == "cancelling: the window that is being computed ends first"
    job = job_at("reading the files")
    job.cancel()
    assert said(job, 0) == "cancelling: reading the files ends first"


def page() -> None:
    """The page's part, with everything that it needs from the test."""
    import streamlit as st

    from runtime.app import work
    from runtime.cli.app_options import AppOptions

    work.segment(
        st.session_state.visit,
        AppOptions(),
        st.session_state.case,
        st.session_state.desk,
        st.session_state.wanted,
    )


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    desk = Fake()
    monkeypatch.setattr("runtime.app.work.desk_of", lambda device: desk)
    made: Any = AppTest.from_function(page, default_timeout=120)
    made.session_state.desk = desk
    made.session_state.visit = Session(Store(tmp_path))
    made.session_state.case = Case("A", {})
    made.session_state.wanted = Wanted(BackendOptions(), SegmentOptions(), None)
    return made


def test_pressing_cancel_is_answered_at_once(app: Any) -> None:
    app.run()
    app.button(key="segment").click().run()
    job = app.session_state.visit.job
    job.stage, job.done, job.total = "windows", 3, 8
    app.button(key="cancel").click().run()
    assert app.session_state.desk.cancelled == [job]
    assert app.button(key="cancel").disabled
    (bar,) = app.get("progress")
    assert bar.proto.text == "cancelling: the window that is being computed ends first"


@pytest.mark.parametrize("change", ["case", "no case", "settings"])
def test_an_error_goes_when_something_else_is_offered(app: Any, change: str) -> None:
    app.run()
    app.button(key="segment").click().run()
    job = app.session_state.visit.job
    job.error = "Y_t2.nii.gz: found a fault, expected none; mend it."
    job.finish()
    app.run()
    assert [one.value for one in app.error] != []
    app.run()
    assert [one.value for one in app.error] != []
    if change == "settings":
        app.session_state.wanted = Wanted(BackendOptions(), SegmentOptions(overlap=0.1), None)
    else:
        app.session_state.case = Case("B", {}) if change == "case" else None
    app.run()
    assert not app.error
    assert app.session_state.visit.last is None
