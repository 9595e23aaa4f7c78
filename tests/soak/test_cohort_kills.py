"""Bar: a whole cohort is killed 20 times, all of its processes or the first alone, and resumed each
time; label maps, sidecars and the cohort's tables are those of a run that was left alone, but for
times.
"""

import os
from pathlib import Path

import pytest

from runtime.phantom import Enhancement, write_phantoms
from tests.soak.bar import FULL, Figures, bar, times, worker
from tests.soak.cohort_kills import content

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the system has no process groups")

CASES = 8
SHAPE = (64, 56, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cohort_kills")


@pytest.fixture(scope="module")
def killed(tiny_model: Path, folder: Path) -> Figures:
    write_phantoms(folder / "cases", CASES, 5, SHAPE, Enhancement.RIM)
    with bar("cohort_kills") as figures:
        figures["cases"] = CASES
        given = (folder / "cases", tiny_model, folder, times(2, 20), 8)
        figures |= worker("tests.soak.cohort_kills", *given)
        assert figures["kills"] == times(2, 20)
        for name in (
            "torn", "untrue", "still_running", "failed", "differing", "done_twice",
            "left_after_resume", "locked",
        ):  # fmt: skip
            assert figures[name] == [], name
    return figures


def test_a_killed_cohort_resumed_is_one_that_was_left_alone(killed: Figures) -> None:
    by_way = killed["kills_by_way"]
    assert by_way["one process: all"] == times(1, 4)
    assert by_way["--device cpu,cpu: first alone"] == times(1, 8)
    if FULL:
        assert by_way == {
            "one process: all": 4,
            "--device cpu,cpu: first alone": 8,
            "--device cpu,cpu: all": 4,
            "--part 1/1: all": 4,
        }
        # The moments were before, in and after the work.
        finished = killed["cases_finished_at_kill"]
        assert min(finished) == 0
        assert any(0 < count < CASES for count in finished)
        assert max(finished) > CASES // 2


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("cohort*.csv", b",ort,", b",other,"),
        ("cohort*.csv", b"_seg.nii.gz,", b"_seg.nii.gz,1"),
        ("cohort*.json", b'"failed": 0', b'"failed": 1'),
        ("cohort*.html", b" ml", b" cl"),
        ("BraTS*.json", b'"sha256": "', b'"sha256": "0'),
        ("BraTS*_seg.nii.gz", b"\x00", b"\x01"),
    ],
)
def test_what_is_not_a_time_is_compared(
    killed: Figures, folder: Path, name: str, old: bytes, new: bytes
) -> None:
    predictions = folder / "predictions"
    before = content(predictions)
    path = min(predictions.glob(name))
    data = path.read_bytes()
    assert old in data
    try:
        path.write_bytes(data.replace(old, new, 1))
        now = content(predictions)
    finally:
        path.write_bytes(data)
    assert [one for one in before if now[one] != before[one]] == [path.name]
