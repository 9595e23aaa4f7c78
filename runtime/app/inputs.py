"""The part of the page where a case comes from: uploads, a sample, or a folder of the server."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import streamlit as st

from runtime.app.session import Session
from runtime.app.text import code, escaped
from runtime.app.uploads import ROLES, TRUTH, Upload, assemble
from runtime.case import Case, find_cases
from runtime.cli.app_options import AppOptions
from runtime.errors import BratsError, InputError
from runtime.phantom import write_phantom

_LEFT_OUT: Final = "leave out"
_SAMPLE_SEED: Final = 7
_LOOK_AGAIN_S: Final = 10.0


def choose_case(session: Session, options: AppOptions, needed: Sequence[str]) -> Case | None:
    """Ask for a case.

    Args:
        session: of the visitor.
        options: of the server.
        needed: modalities that the model cannot do without.

    Returns:
        A case that can be segmented, or None as long as there is none.
    """
    sources = ["Upload", "Sample"] + (["Folder"] if options.data is not None else [])
    source = st.segmented_control(
        "Where the case comes from",
        sources,
        default="Upload",
        required=True,
        label_visibility="collapsed",
        key="source",
    )
    if source == "Sample":
        return _sample(session)
    if source == "Folder" and options.data is not None:
        return _folder(Path(options.data))
    return _uploaded(session, options.max_upload_mb, needed)


def _uploaded(session: Session, max_mb: int, needed: Sequence[str]) -> Case | None:
    # page.css hides the uploader's own words: they round the limit to whole GB.
    files = st.file_uploader(
        "Drop FLAIR, T1, T1CE and T2 of one visit here, and the truth if there is one: "
        f".nii or .nii.gz, at most {max_mb} MiB each",
        type=["nii", "gz"],
        accept_multiple_files=True,
        key="files",
    )
    if not files:
        return None
    rows: list[tuple[str, Upload]] = []
    for file in files:
        if file.file_id not in session.taken:
            try:
                session.taken[file.file_id] = session.store.add(file.name, file.getvalue())
            except InputError as error:
                session.taken[file.file_id] = error
        taken = session.taken[file.file_id]
        if isinstance(taken, InputError):
            st.error(_plain(taken))
        else:
            # Neither place nor bytes: files before it go, and others hold the same.
            rows += [(f"{file.file_id} {upload.frame}", upload) for upload in taken]
    if not rows:
        return None
    chosen = _table(rows)
    try:
        return assemble(chosen, needed)
    except InputError as error:
        st.warning(_plain(error))
        return None


def _table(rows: Sequence[tuple[str, Upload]]) -> list[tuple[Upload, str | None]]:
    """Which file is which, corrected by the user.

    Args:
        rows: files, each after a key of its own.
    """
    chosen: list[tuple[Upload, str | None]] = []
    for key, upload in rows:
        name, size, role = st.columns([5, 1.2, 2], vertical_alignment="center")
        name.markdown(code(upload.title))
        size.caption(f"{upload.path.stat().st_size / 2**20:.1f} MiB")
        choices = [_LEFT_OUT, *ROLES]
        said = role.selectbox(
            f"What {upload.title} is",
            choices,
            index=choices.index(upload.role) if upload.role else 0,
            format_func=lambda one: one.upper() if one not in (_LEFT_OUT, TRUTH) else one,
            label_visibility="collapsed",
            key=f"role {key}",
        )
        chosen.append((upload, None if said == _LEFT_OUT else said))
    return chosen


def _sample(session: Session) -> Case:
    st.caption("A synthetic case with its truth: a brain-like phantom with a tumour, made here.")
    if session.sample is None:
        with st.spinner("making a phantom"):
            folder = Path(tempfile.mkdtemp(dir=session.store.folder))
            write_phantom(folder, 1, _SAMPLE_SEED)
            session.sample = find_cases(folder)[0]
    case = session.sample
    st.success(f"{case.case_id}: {', '.join(name.upper() for name in case.images)} and truth")
    return case


def _folder(root: Path) -> Case | None:
    try:
        cases, problems = _cases_below(root)
    except BratsError as error:
        st.error(_plain(error))
        return None
    for problem in problems:
        st.warning(_plain(problem))
    ids = [case.case_id for case in cases]
    chosen = st.selectbox("Case", ids, index=None, placeholder="choose a case", key="case")
    if chosen is None:
        return None
    case = cases[ids.index(chosen)]
    if case.labels is not None and not st.toggle("compare with its truth", value=True, key="truth"):
        return replace(case, labels=None)
    return case


@st.cache_resource(ttl=_LOOK_AGAIN_S, show_spinner=False)
def _cases_below(root: Path) -> tuple[tuple[Case, ...], tuple[InputError, ...]]:
    """Where files lie, and nothing of what is in them: a tree is not walked for every change."""
    problems: list[InputError] = []
    cases = find_cases(root, None, problems)
    return tuple(cases), tuple(problems)


def _plain(error: BratsError) -> str:
    """A message as text: what comes from file names is no markup."""
    return escaped(str(error))
