"""Bar: brats-infer is killed at random moments; what is there is whole, and a resumed run ends as
one that was left alone.
"""

import os
from pathlib import Path

import pytest

from runtime.phantom import Enhancement, write_phantoms
from tests.soak.bar import Figures, bar, times, worker

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

SIDES = (32, 40, 48, 36)  # of one axis of each case: none has another one's windows


@pytest.fixture(scope="module")
def killed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Figures:
    folder = tmp_path_factory.mktemp("kills")
    for number, side in enumerate(SIDES):
        root = folder / "cases" / str(number)
        (case,) = write_phantoms(root, 1, number, (48, side, 40), Enhancement.RIM)
        for path in case.iterdir():
            path.rename(case / path.name.replace("0001", f"{number:04d}"))
    with bar("kills") as figures:
        figures["cases"] = len(SIDES)
        figures |= worker(
            "tests.soak.kills", folder / "cases", tiny_model, folder, times(6, 200), 6
        )
    return figures


def test_every_kill_leaves_whole_files_or_none(killed: Figures) -> None:
    assert killed["kills"] == times(6, 200)
    assert killed["torn"] == []
    assert killed["untrue"] == []
    # The moments were in the midst of the work.
    assert 0 < killed["cases_finished_at_kill"] < len(SIDES) * killed["kills"]
    assert killed["cases_begun_at_kill"] > 0


def test_a_resumed_run_ends_as_one_that_was_left_alone(killed: Figures) -> None:
    assert killed["failed"] == []
    assert killed["differing"] == []


def test_no_finished_case_is_done_twice(killed: Figures) -> None:
    assert killed["done_twice"] == []


def test_nothing_is_left_over_after_the_resume(killed: Figures) -> None:
    assert killed["left_after_resume"] == []
