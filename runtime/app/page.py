"""The page. Streamlit runs this file from top to bottom on every visit and every change."""

import sys
from pathlib import Path

import streamlit as st

from runtime import DISCLAIMER, __version__
from runtime.cli.app_options import AppOptions

HERE = Path(__file__).parent

st.set_page_config(page_title="brats-deploy", page_icon=str(HERE / "icon.png"), layout="wide")
st.html(HERE / "page.css")
st.html(f"<header class='top'><h1>Brain tumour segmentation</h1><p>{DISCLAIMER}</p></header>")

# Only now what takes longer to import: the page is there while it does.
from runtime.app import choices, followup, inputs, results, session, work  # noqa: E402

OPTIONS = AppOptions.from_arguments(sys.argv[1:])


def main() -> None:
    visit = session.current(OPTIONS)
    model = choices.choose_model(OPTIONS)
    if model is None:
        st.stop()
    wanted = choices.choose_settings(model, OPTIONS)
    worked = visit.job is not None or bool(visit.results)
    # What was found in a case is looked at longer than the case is chosen: it folds whenever one
    # begins to run.
    place = st.expander(
        "Choose another case" if worked else "The case",
        expanded=not worked,
        key=f"case after {visit.begun}",
    )
    with place:
        case = inputs.choose_case(visit, OPTIONS, choices.needed(model))
    work.segment(visit, OPTIONS, case, model, wanted)
    if not visit.results:
        return
    st.divider()
    shown = results.choose(list(visit.results))
    if shown is None:
        followup.show(visit)
    else:
        results.show_result(visit, shown)


main()
st.html(f"<footer>brats-deploy {__version__} &middot; {DISCLAIMER}</footer>")
