"""The table of the soak shows what was measured in full, and a bar that was not met as such."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak_table import ROWS, soak


def bar(**figures: Any) -> dict[str, Any]:
    where = {"processor": "P", "cores": 2, "python": "3.11", "date": "2026-01-02"}
    return {
        "met": True,
        "full": True,
        "seconds": 61.4,
        "commit": "0123456789abc",
        **where,
        **figures,
    }


LEAKS = {"cases": 2000, "growth_mib": 3.25, "descriptors": 0, "threads": 0, "temporary_files": 0}
SIZES = {"resident_before_mib": 118.04, "resident_mib": 121.29, "peak_growth_mib": 4.06}
FLAT = {**LEAKS, "cases": 980, "from_case": 20, **SIZES}


def test_a_row_holds_the_figures_and_the_place() -> None:
    lines = soak({"leaks": bar(**LEAKS)}).splitlines()
    assert lines[2] == (
        "| a cohort | 2000 cases in one process | at most 20 MB more, nothing else | +3.2 MiB, "
        "descriptors +0, threads +0, temporary files +0 | yes | 61 |"
    )
    assert lines[-1] == "P, 2 cores, Python 3.11; 2026-01-02, commit 0123456789."


def test_bars_of_several_runs_name_each_its_own() -> None:
    other = bar(**LEAKS) | {"commit": "fedcba9876543"}
    bars = {"leaks": other, "leaks_commands": bar(**LEAKS), "leaks_from_20": bar(**FLAT)}
    places = soak(bars).splitlines()[-3:]
    assert places == [
        "A cohort: P, 2 cores, Python 3.11; 2026-01-02, commit fedcba9876.",
        "",
        "All others: P, 2 cores, Python 3.11; 2026-01-02, commit 0123456789.",
    ]


def test_a_flat_cohort_is_shown_from_case_to_case() -> None:
    row = soak({"leaks_from_20": bar(**FLAT)})
    assert row.splitlines()[2] == (
        "| a cohort, early to late | a cohort in one process from its case 20 to its case 1000 | "
        "at most 20 MB more, nothing else | 118.0 to 121.3 MiB resident: +3.2 MiB, descriptors "
        "+0, threads +0, temporary files +0; peak, tables included, +4.1 MiB | yes | 61 |"
    )


def test_readers_stand_side_by_side() -> None:
    readers = {
        "ours": {"flips refused": 1999, "flips harmless": 1, "cuts refused": 500},
        "nibabel": {
            "flips silent": 1700,
            "flips refused": 300,
            "cuts refused": 490,
            "cuts silent": 10,
        },
    }
    text = soak(
        {"bit_flips": bar(file="real", flips=2000, cuts=500, absent=["SimpleITK"], readers=readers)}
    )
    assert "ours: 0 silent (flips 1 harmless, 1999 refused; cuts 500 refused)" in text
    assert (
        "nibabel: 1710 silent (flips 300 refused, 1700 silent; cuts 490 refused, 10 silent)" in text
    )
    assert "SimpleITK: not installed" in text


def test_what_a_killed_cohort_left_is_counted() -> None:
    lists = {name: [] for name in ("torn", "done_twice", "left_after_resume", "still_running")}
    found = {"differing": ["cohort.csv"], "locked": [], "others_ended_after_s": 0.034, **lists}
    ways = {"one process: all": 1, "--device cpu,cpu: first alone": 2}
    killed = {"kills": 3, "kills_by_way": ways, "kills_that_left_temporary_files": 2, "cases": 8}
    row = soak({"cohort_kills": bar(**killed, **found, met=False)}).splitlines()[2]
    assert row == (
        "| kills of a whole cohort | SIGKILL to a cohort of 8 cases 3 times (1 one process: all, "
        "2 --device cpu,cpu: first alone) | resumed: all as of a run left alone, but for times | "
        "0 torn, 1 files that differ, 0 cases done twice, 0 left over (2 kills had left temporary "
        "files), 0 locks left, 0 processes left (all ended 0.03 s after the first at the latest) | "
        "**no** | 61 |"
    )


def test_a_bar_that_was_not_met_is_shown() -> None:
    missed = bar(runs=30, missed=["nan"], masks=1, met=False)
    row = "| 30 runs | all detected, 0 masks | 1 missed, 1 masks | **no** | 61 |"
    assert row in soak({"non_finite_weights_openvino": missed})


def test_a_short_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not run in full: leaks"):
        soak({"leaks": bar(**LEAKS) | {"full": False}})


def test_what_is_measured_elsewhere_is_left_out() -> None:
    assert soak({"other": bar(), "leaks": bar(**LEAKS)}) == soak({"leaks": bar(**LEAKS)})


def test_every_bar_of_the_soak_has_its_row() -> None:
    texts = [path.read_text() for path in (Path(__file__).parent / "soak").glob("test_*.py")]
    names = {name for text in texts for name in re.findall(r'with bar\("(\w+)"\)', text)}
    assert len(names) > 10
    assert names <= ROWS.keys()


def test_the_models_files_are_one_row() -> None:
    one = bar(file="card.json", mutations=1000, refused=1000)
    other = bar(file="model.onnx", mutations=1000, refused=999, met=False)
    (row,) = [
        line for line in soak({"models_1": other, "models_0": one}).splitlines() if "of 2" in line
    ]
    assert row == (
        "| models | 1000 mutations of each of 2 model files | all refused before a parser runs | "
        "refused: card.json 1000, model.onnx 999 | **no** | 123 |"
    )
    with pytest.raises(ValueError, match="not run in full: models"):
        soak({"models_0": one | {"full": False}})
