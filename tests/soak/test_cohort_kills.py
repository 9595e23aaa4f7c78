"""Bar: a whole cohort is killed 20 times, all of its processes or the first alone, and resumed each
time; label maps, sidecars and the cohort's tables are those of a run that was left alone, but for
times.
"""

import os
from pathlib import Path

import pytest

from runtime.phantom import Enhancement, write_phantoms
from tests.soak.bar import FULL, bar, times, worker
from tests.soak.cohort_kills import content
from tests.soak.forks import run_main
from tests.soak.outputs import untrue

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the system has no process groups")

CASES = 8
SHAPE = (64, 56, 48)
SEED = 16  # some of the moments are before the first case is done, some after the last
EMPTY = (
    "torn", "untrue", "still_running", "went_on", "failed", "differing", "done_twice",
    "left_after_resume", "locked",
)  # fmt: skip


@pytest.mark.slow
def test_a_killed_cohort_resumed_is_one_that_was_left_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_phantoms(tmp_path / "cases", CASES, 5, SHAPE, Enhancement.RIM)
    with bar("cohort_kills") as figures:
        figures["cases"] = CASES
        given = (tmp_path / "cases", tiny_model, tmp_path, times(2, 20), SEED)
        figures |= worker("tests.soak.cohort_kills", *given)
        assert figures["kills"] == times(2, 20)
        assert {name: figures[name] for name in EMPTY} == {name: [] for name in EMPTY}
        by_way = figures["kills_by_way"]
        assert by_way["one process: all"] == times(1, 4)
        assert by_way["--device cpu,cpu: first alone"] == times(1, 8)
        if FULL:
            assert by_way["--device cpu,cpu: all"] == by_way["--part 1/1: all"] == 4
            # The moments were before, in and after the work.
            finished = figures["cases_finished_at_kill"]
            assert min(finished) == 0
            assert max(finished) == CASES
            assert len({*finished}) > CASES // 2


@pytest.fixture(scope="module")
def predictions(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort's output."""
    folder = tmp_path_factory.mktemp("cohort")
    write_phantoms(folder / "cases", 2, 5, (48, 40, 32), Enhancement.RIM)
    flags = ["--backend", "ort", "--threads", 1, "--overlap", 0, "--preview", "--quiet"]
    out = folder / "predictions"
    assert run_main([folder / "cases", "--model", tiny_model, "-o", out, *flags]) == 0
    return out


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("cohort.csv", b",ort,", b",other,"),
        ("cohort.csv", b"_seg.nii.gz,", b"_seg.nii.gz,1"),
        ("cohort.json", b'"failed": 0', b'"failed": 1'),
        ("cohort.html", b" ml", b" cl"),
        ("BraTSPhantom_0001.json", b'"sha256": "', b'"sha256": "0'),
        ("BraTSPhantom_0001_seg.nii.gz", b"\x00", b"\x01"),
    ],
)
def test_what_is_not_a_time_is_compared(
    predictions: Path, name: str, old: bytes, new: bytes
) -> None:
    before = content(predictions)
    data = (predictions / name).read_bytes()
    assert old in data
    try:
        (predictions / name).write_bytes(data.replace(old, new, 1))
        now = content(predictions)
        told = untrue(predictions)
    finally:
        (predictions / name).write_bytes(data)
    assert [one for one in before if now[one] != before[one]] == [name]
    assert told or not name.startswith("cohort")


def test_times_are_not_compared(tiny_model: Path, predictions: Path) -> None:
    before = content(predictions)
    table = (predictions / "cohort.csv").read_bytes()
    flags = ["--backend", "ort", "--threads", 1, "--overlap", 0, "--preview", "--quiet", "--resume"]
    case = predictions.with_name("cases")
    assert run_main([case, "--model", tiny_model, "-o", predictions, *flags]) == 0
    # Now both are kept, and nothing is told of this run's times.
    assert (predictions / "cohort.csv").read_bytes() != table
    assert content(predictions) == before
