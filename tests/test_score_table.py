"""Tables, CSV and JSON of an evaluation show its figures, and say what is missing."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from runtime.evaluate import Evaluation
from runtime.labels import REGIONS, Label, LabelMap
from runtime.metrics import LESION_METRICS, METRICS, PROFILES, SCORED, Missing, score_case
from runtime.score_table import TITLES, render_summary, render_table, write_csv, write_json

ISO = (1.0, 1.0, 1.0)


def labels(planes: int) -> LabelMap:
    """36 voxels of edema, and so many planes of 36 voxels of ET."""
    made = np.zeros((16, 6, 6), np.uint8)
    made[1] = Label.ED
    made[2 : 2 + planes] = Label.ET
    return made


def evaluation(profile: str, *planes: int, missing: tuple[str, ...] = ()) -> Evaluation:
    rules = PROFILES[profile]
    scores = {
        f"case{index}": score_case(labels(count), labels(4), ISO, rules)
        for index, count in enumerate(planes)
    }
    return Evaluation(rules, scores, missing)


def shown(table: Table, width: int = 170) -> dict[str, str]:
    """Lines of a printed table by their first cell; those without cells under an empty name."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    lines = {}
    for line in console.file.getvalue().splitlines():
        cells = line.split("│")
        name = cells[1].strip() if len(cells) > 2 else ""
        lines[name] = lines.get(name, "") + line
    return lines


def test_the_table_shows_cases_and_what_they_come_to() -> None:
    lines = shown(render_table(evaluation("brats2020", 4, 0, missing=("case1",))))
    assert lines["case0"].count("1.0000") == 3
    assert "0.0000" in lines["case1 (no prediction)"]
    assert "373.13" in lines["case1 (no prediction)"]
    assert "0.5000" in lines["mean"]
    assert "[0.0000, 1.0000]" in lines["95% interval"]
    assert {"median", "std"} <= set(lines)
    assert "2 cases, profile brats2020; 1 without prediction, counted as empty" in lines[""]


def test_lesions_lead_where_the_profile_scores_them() -> None:
    text = " ".join(shown(render_table(evaluation("brats2023", 4, 2))).values())
    assert "lesion Dice WT" in text
    assert "lesion HD95 mm ET" in text


def test_what_is_left_out_is_said() -> None:
    made = evaluation("brats2020", 4, missing=("lost",))
    made = replace(made, profile=replace(made.profile, missing=Missing.LEAVE_OUT))
    assert (
        "1 case, profile brats2020; 1 without prediction, left out" in shown(render_table(made))[""]
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_the_summary_shows_every_figure(profile: str) -> None:
    made = evaluation(profile, 4, 2, 1)
    lines = shown(render_summary(made))
    titles = {TITLES[metric][0] for metric in made.profile.metrics} - {"NSD"} | {"NSD at 1 mm"}
    assert titles <= set(lines)
    et = made.to_json()["summary"]["ET"]["dice"]
    low, high = et["interval"]
    assert f"{et['mean']:.4f} [{low:.4f}, {high:.4f}]" in lines["Dice"]
    assert "single case" not in "".join(lines.values())


def test_a_single_case_says_that_it_has_no_interval() -> None:
    lines = shown(render_summary(evaluation("brats2020", 3)))
    assert "no interval" in lines[""]
    assert "[" not in lines["Dice"]


def test_a_case_id_is_not_taken_for_markup() -> None:
    made = evaluation("brats2020", 4)
    odd = replace(made, cases={"[bold]x": made.cases["case0"]})
    assert "[bold]x" in shown(render_table(odd))


@pytest.mark.parametrize("profile", PROFILES)
def test_json_and_csv_hold_the_same_figures(tmp_path: Path, profile: str) -> None:
    made = evaluation(profile, 4, 0, missing=("case1",))
    write_json(tmp_path / "e.json", made)
    write_csv(tmp_path / "e.csv", made)
    stored = json.loads((tmp_path / "e.json").read_text())
    assert list(stored) == [
        "profile", "cases", "summary", "bootstrap", "missing", "missing_count_as", "warnings",
    ]  # fmt: skip
    assert stored["summary"]["ET"]["dice"]["mean"] == 0.5
    rows = list(csv.DictReader(io.StringIO((tmp_path / "e.csv").read_text())))
    assert [(row["case"], row["region"]) for row in rows] == [
        (case, name) for case in ("case0", "case1") for name in SCORED
    ]
    lesions = LESION_METRICS if profile == "brats2023" else ()
    assert tuple(rows[0])[3:] == (*METRICS, *lesions)
    for row in rows:
        assert row["predicted"] == ("no" if row["case"] == "case1" else "yes")
        found = stored["cases"][row["case"]][row["region"]]
        for metric in (*METRICS, *lesions):
            expected = found.get(metric)
            if expected is None:
                assert row[metric] == ""
                assert metric in lesions
                assert row["region"] not in REGIONS
            else:
                assert float(row[metric]) == pytest.approx(expected, rel=1e-5)


def test_a_case_whose_name_is_a_formula_is_none_in_the_table(tmp_path: Path) -> None:
    made = evaluation("brats2020", 4)
    names = ("=cmd|' /C calc'!A1", "-2+3", "@SUM(A1)", "plain")
    odd = Evaluation(made.profile, dict.fromkeys(names, made.cases["case0"]), ("-2+3",))
    write_csv(tmp_path / "e.csv", odd)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "e.csv").read_text())))
    found = dict.fromkeys(row["case"] for row in rows)
    assert list(found) == ["'=cmd|' /C calc'!A1", "'-2+3", "'@SUM(A1)", "plain"]
    assert {row["case"] for row in rows if row["predicted"] == "no"} == {"'-2+3"}
