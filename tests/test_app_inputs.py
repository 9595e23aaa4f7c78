"""The part of the page where a case comes from, run by Streamlit without a browser."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")

import streamlit
from streamlit.testing.v1 import AppTest

from runtime.app import inputs
from runtime.app.session import Session
from runtime.app.uploads import Store
from runtime.case import Case
from runtime.cli.app_options import AppOptions
from runtime.labels import MODALITIES

pytestmark = pytest.mark.usefixtures("main_module")


@dataclass(frozen=True)
class Sent:
    """A file as the uploader hands it on."""

    file_id: str
    name: str
    data: bytes

    def getvalue(self) -> bytes:
        return self.data


def nifti(seed: int, shape: tuple[int, ...] = (5, 4, 3)) -> bytes:
    voxels = np.random.default_rng(seed).integers(1, 99, shape).astype(np.int16)
    return gzip.compress(nib.Nifti1Image(voxels, np.eye(4)).to_bytes())


def sent(name: str, seed: int | None = None) -> Sent:
    return Sent(f"id of {name}", name, nifti(sum(map(ord, name)) if seed is None else seed))


def page() -> None:
    """The page's part, with everything that it needs from the test."""
    import streamlit as st

    from runtime.app import inputs
    from runtime.labels import MODALITIES

    st.session_state.found = inputs.choose_case(
        st.session_state.visit, st.session_state.options, MODALITIES
    )


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = AppTest.from_function(page, default_timeout=120)
    made.session_state.visit = Session(Store(tmp_path))
    made.session_state.options = AppOptions()
    made.session_state.sent = []
    made.session_state.asked = ""

    def uploader(label: str, **_: Any) -> list[Sent]:
        streamlit.session_state.asked = label
        files: list[Sent] = streamlit.session_state.sent
        return files

    monkeypatch.setattr(streamlit, "file_uploader", uploader)
    return made


def roles(app: Any) -> list[str]:
    return [box.value for box in app.selectbox]


def sources(case: Case) -> dict[str, bytes]:
    return {name: source.path.read_bytes() for name, source in case.images.items()}


def test_the_files_of_a_visit_become_a_case(app: Any) -> None:
    app.session_state.sent = [sent(f"X_{name}.nii.gz") for name in MODALITIES]
    app.run()
    assert roles(app) == list(MODALITIES)
    assert app.session_state.found.case_id == "X"


def test_what_was_corrected_stays_when_a_file_before_it_goes(app: Any) -> None:
    files = [sent(name) for name in ("notes_t1.nii.gz", "a.nii.gz", "b.nii.gz")]
    app.session_state.sent = files
    app.run()
    app.selectbox[1].set_value("flair").run()
    app.selectbox[2].set_value("t2").run()
    assert roles(app) == ["t1", "flair", "t2"]
    app.session_state.sent = files[1:]
    app.run()
    assert roles(app) == ["flair", "t2"]


def test_of_a_file_that_came_twice_one_row_is_left_out(app: Any) -> None:
    files = [sent(f"X_{name}.nii.gz", seed) for seed, name in enumerate(MODALITIES)]
    app.session_state.sent = [*files, Sent("another", "X_t1.nii.gz", files[1].data)]
    app.run()
    assert "t1 twice" in app.warning[0].value
    assert app.session_state.found is None
    app.selectbox[4].set_value("leave out").run()
    assert roles(app) == [*MODALITIES, "leave out"]
    assert sources(app.session_state.found) == dict(
        zip(MODALITIES, (file.data for file in files), strict=True)
    )


def test_frames_of_a_4d_file_have_rows_of_their_own(app: Any) -> None:
    app.session_state.sent = [Sent("one", "all.nii.gz", nifti(0, (5, 4, 3, 4)))]
    app.run()
    assert roles(app) == ["leave out"] * 4
    for row, name in enumerate(("t2", "flair", "t1ce", "t1")):
        app.selectbox[row].set_value(name).run()
    assert {name: one.channel for name, one in app.session_state.found.images.items()} == {
        "flair": 1,
        "t1": 3,
        "t1ce": 2,
        "t2": 0,
    }


@pytest.mark.parametrize("limit", [512, 3])
def test_the_true_limit_is_told(app: Any, limit: int) -> None:
    app.session_state.options = AppOptions(max_upload_mb=limit)
    app.run()
    assert f"at most {limit} MiB each" in app.session_state.asked


def test_choosing_the_sample_makes_it(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def phantom(folder: Path, index: int, seed: int) -> None:
        made.append(seed)
        for name in (*MODALITIES, "seg"):
            (folder / "P").mkdir(exist_ok=True)
            (folder / "P" / f"P_{name}.nii.gz").write_bytes(nifti(index))

    monkeypatch.setattr(inputs, "write_phantom", phantom)
    app.run()
    assert app.session_state.found is None
    app.session_state.source = "Sample"
    app.run()
    case = app.session_state.found
    assert (case.case_id, case.labels is not None) == ("P", True)
    assert list(app.button) == []
    app.run()
    assert app.session_state.found == case
    assert len(made) == 1


def test_a_folder_is_not_walked_for_every_change(
    app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in ("A", "B"):
        (tmp_path / "data" / case).mkdir(parents=True)
        for name in MODALITIES:
            (tmp_path / "data" / case / f"{case}_{name}.nii.gz").write_bytes(nifti(0))
    walked: list[Any] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *args, **kw: walked.append(args) or walk(*args, **kw))
    app.session_state.options = AppOptions(data=str(tmp_path / "data"))
    app.session_state.source = "Folder"
    app.run()
    assert app.selectbox(key="case").options == ["A", "B"]
    before = len([where for (where, *_) in walked if Path(where) == tmp_path / "data"])
    app.selectbox(key="case").set_value("B").run()
    assert app.session_state.found.case_id == "B"
    after = len([where for (where, *_) in walked if Path(where) == tmp_path / "data"])
    assert (before, after) == (1, 1)


def test_a_folder_without_cases_is_looked_into_again(app: Any, tmp_path: Path) -> None:
    (tmp_path / "data" / "A").mkdir(parents=True)
    app.session_state.options = AppOptions(data=str(tmp_path / "data"))
    app.session_state.source = "Folder"
    app.run()
    assert "found no MR images in it" in app.error[0].value
    for name in MODALITIES:
        (tmp_path / "data" / "A" / f"A_{name}.nii.gz").write_bytes(nifti(0))
    app.run()
    assert app.selectbox(key="case").options == ["A"]
