"""The button, the queue and the progress of a case."""

import streamlit as st

from runtime.app.choices import Wanted
from runtime.app.desk import Desk, Job, Order
from runtime.app.models import FoundModel
from runtime.app.session import Session
from runtime.app.text import escaped
from runtime.case import Case
from runtime.cli.app_options import AppOptions

_PERIOD_S = 0.3


@st.cache_resource(show_spinner=False)
def _desk(device: str) -> Desk:
    """The one of the server's device."""
    return Desk()


def segment(
    visit: Session, options: AppOptions, case: Case | None, model: FoundModel, wanted: Wanted
) -> None:
    """Offer to segment the case; show how far it is; keep what it became."""
    desk = _desk(options.device)
    job = visit.job
    if job is not None and not job.finished:
        _progress(job, desk)
        return
    if job is not None:
        visit.job, visit.last = None, job
        if job.result is not None:
            visit.keep(job.result, options.max_cases)
    if visit.last is not None:
        _tell(visit.last)
    if st.button("Segment", type="primary", disabled=case is None, key="segment") and case:
        visit.job = desk.submit(
            Order(
                case,
                model.model,
                wanted.backend,
                wanted.options,
                visit.store,
                wanted.truth_labels,
            )
        )
        st.rerun()


def _tell(job: Job) -> None:
    if job.error:
        st.error(escaped(job.error))
    elif job.cancelled and job.result is None:
        st.info("Cancelled: nothing was kept.")


@st.fragment(run_every=_PERIOD_S)
def _progress(job: Job, desk: Desk) -> None:
    if job.finished:
        st.rerun()
    before = desk.place(job)
    if before:
        cases = "case is" if before == 1 else "cases are"
        text, share = f"waiting: {before} {cases} before this one", 0.0
    elif job.total:
        text = f"{job.stage}: {job.done} of {job.total}" if job.stage == "windows" else job.stage
        share = job.done / job.total
    else:
        text, share = job.stage, 0.0
    bar, stop = st.columns([6, 1], vertical_alignment="bottom")
    bar.progress(share, text)
    if stop.button("Cancel", key="cancel", width="stretch"):
        desk.cancel(job)
