"""The button, the queue and the progress of a case."""

import streamlit as st

from runtime.app.choices import Wanted
from runtime.app.desk import Desk, Job, Order, Task
from runtime.app.models import FoundModel
from runtime.app.session import Session
from runtime.app.shared import desk_of
from runtime.app.text import escaped
from runtime.case import Case
from runtime.cli.app_options import AppOptions

_PERIOD_S = 0.3


def segment(
    visit: Session, options: AppOptions, case: Case | None, model: FoundModel, wanted: Wanted
) -> None:
    """Offer to segment the case; show how far it is; keep what it became."""
    desk = desk_of(options.device)
    offered = None
    if case is not None:
        offered = Order(
            case, model.model, wanted.backend, wanted.options, visit.store, wanted.truth_labels
        )
    job = visit.job
    if job is not None and not job.finished:
        _progress(job, desk)
        return
    if job is not None:
        visit.job = None
        if job.result is not None:
            visit.keep(job.result, options.max_cases)
        else:
            visit.last, visit.offered = job, offered
    if visit.last is not None:
        if offered == visit.offered:
            _tell(visit.last)
        else:
            # What failed is not what would be done now.
            visit.last = visit.offered = None
    if st.button("Segment", type="primary", disabled=offered is None, key="segment") and offered:
        visit.last = visit.offered = None
        visit.job = desk.submit(offered)
        visit.begun += 1
        st.rerun()


def _tell(job: Job) -> None:
    if job.error:
        st.error(escaped(job.error))
    elif job.cancelled:
        st.info("Cancelled: nothing was kept.")


def said(task: Task, before: int) -> str:
    """What a task is waiting for or busy with.

    Args:
        task: not finished.
        before: how many tasks are before it.
    """
    if task.cancelled:
        ends = "the window that is being computed" if task.stage == "windows" else task.stage
        return f"cancelling: {ends} ends first"
    if before:
        others = "other is" if before == 1 else "others are"
        return f"waiting: {before} {others} before this one"
    if isinstance(task, Job) and task.stage == "windows":
        return f"windows: {task.done} of {task.total}"
    return task.stage


@st.fragment(run_every=_PERIOD_S)
def _progress(job: Job, desk: Desk) -> None:
    if job.finished:
        st.rerun()
    bar, stop = st.columns([6, 1], vertical_alignment="bottom")
    # Asked for before the bar is drawn, which says at once that it was heard.
    stop.button(
        "Cancel",
        key="cancel",
        width="stretch",
        on_click=desk.cancel,
        args=(job,),
        disabled=job.cancelled,
    )
    bar.progress(job.done / job.total if job.total else 0.0, said(job, desk.place(job)))
