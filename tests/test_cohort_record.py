"""What a cohort comes to: outliers against a formula by hand, spreads against NumPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.case import Case
from runtime.cohort import Outcome
from runtime.cohort_record import Entry, Record, modified_z, spread, to_look_at
from runtime.errors import InputError


def sidecar(wt: float = 100.0, tc: float = 40.0, et: float = 20.0, **more: Any) -> dict[str, Any]:
    return {
        "output": {"file": "x_seg.nii.gz", "sha256": ""},
        "volumes_ml": {
            "regions": {"WT": wt, "TC": tc, "ET": et},
            "labels": {"NCR": tc - et, "ED": wt - tc, "ET": et},
        },
        "timings_s": {"load": 0.5, "network": 2.0},
        "warnings": [],
        "backend": {"name": "ort", "device": "cpu", "precision": "fp32", "fell_back_from": None},
        "run": {},
    } | more


def entries(*volumes: float) -> list[Entry]:
    return [Entry.of(f"c{i:03}", "done", sidecar(wt=v)) for i, v in enumerate(volumes)]


def test_an_entry_is_what_its_sidecar_says() -> None:
    run = {"preview": {"file": "x.png"}, "report": {"file": "x.html"}}
    found = Entry.of("x", "kept", sidecar(run=run, warnings=["thin"]))
    assert (found.volume("WT"), found.volume("NCR"), found.volume("ED")) == (100, 20, 60)
    assert found.total_s == 2.5
    assert (found.labels, found.shown, found.warnings) == ("x_seg.nii.gz", "x.html", ("thin",))
    assert Entry.of("x", "kept", sidecar(run={"preview": {"file": "x.png"}})).shown == "x.png"


def test_outcomes_are_counted_by_what_became_of_them() -> None:
    record = Record(5)
    error = InputError("x", found="a", expected="b", remedy="c")
    for name, what in (
        ("b", {"sidecar": sidecar()}),
        ("a", {"sidecar": sidecar(), "kept": True}),
        ("c", {"error": error}),
    ):
        record.add(Outcome(Case(name, {}), None, **what))  # type: ignore[arg-type]
    record.problem(error)
    assert [record.count(one) for one in ("done", "kept", "failed")] == [1, 1, 2]
    assert [entry.case_id for entry in record.of("done", "kept")] == ["a", "b"]
    assert [entry.error for entry in record.of("failed")] == [error, error]


def test_modified_z_by_hand() -> None:
    """Logarithms 0 to 8 and 40: median 4.5, absolute deviations 0.5 to 4.5 twice less one and 35.5,
    whose median is 2.5.
    """
    values = [float(np.exp(i)) for i in range(9)] + [float(np.exp(40))]
    found = modified_z(values)
    assert found[-1] == pytest.approx(0.6745 * 35.5 / 2.5)
    assert found[0] == pytest.approx(0.6745 * -4.5 / 2.5)


def test_few_cases_or_equal_ones_say_nothing() -> None:
    assert modified_z([1.0, 1.0, 1.0, 1e9]) == [0] * 4
    assert modified_z([5.0] * 9 + [1e9]) == [0] * 10
    assert modified_z([]) == []


def test_the_most_pressing_comes_first() -> None:
    usual = [90.0 + i for i in range(20)]
    found = entries(*usual, 0.0, 2.0, 5000.0)
    found.append(Entry.of("warned", "done", sidecar(wt=95, warnings=["skull?"])))
    found.append(Entry.of("coreless", "done", sidecar(wt=95, tc=0, et=0)))
    told = [(one.case.case_id, one.text) for one in to_look_at(found)]
    assert told[0] == ("c020", "no tumour was found")
    assert {told[1][0], told[2][0]} == {"c021", "c022"}
    assert dict(told)["c021"] == "WT of 2.0 ml is unusually small"
    assert dict(told)["c022"] == "WT of 5000.0 ml is unusually large"
    assert told[3:] == [("coreless", "no tumour core was found"), ("warned", "skull?")]


def test_a_usual_cohort_has_nothing_to_look_at() -> None:
    assert to_look_at(entries(*(90.0 + i for i in range(30)))) == []


def test_a_case_is_told_once_with_all_reasons() -> None:
    (one,) = to_look_at([Entry.of("x", "done", sidecar(wt=0, tc=0, et=0, warnings=["a", "b"]))])
    assert one.text == "no tumour was found; a; b"


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_spreads_are_numpys(values: list[float]) -> None:
    found = spread(values)
    wanted = np.percentile(values, [0, 25, 50, 75, 100])
    np.testing.assert_allclose(list(found.values())[:5], wanted, rtol=1e-9, atol=1e-9)
    assert found["mean"] == pytest.approx(np.mean(values))


def test_nothing_has_no_spread() -> None:
    assert spread([]) == {}
