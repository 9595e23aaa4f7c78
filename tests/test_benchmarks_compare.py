"""`--compare`: a regression is caught, noise is not, and what cannot be compared is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import conftest
from benchmarks.compare import IncomparableError, check_machine, compare, read_run, shown
from benchmarks.figures import figure, spread

ROOT = Path(__file__).parents[1]
SETTINGS = {"processor": "P", "cpus": 2, "threads": 2, "scale": "standard"}
FACTS = {"case": "A", "case_sha256": "a", "weights_sha256": "w", "patch": [128, 128, 64]}


def run(
    figures: dict[str, Any], calibration: Sequence[float] = (0.1, 0.1, 0.1), **facts: Any
) -> dict[str, Any]:
    record = FACTS | facts | {"figures": figures, "calibration_s": list(calibration)}
    return {
        "machine_info": {"settings": dict(SETTINGS)},
        "benchmarks": [{"fullname": "benchmarks/bench_x.py::bench_x", "extra_info": record}],
    }


def regressed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [row.name for row in compare(old, new) if row.regressed]


@pytest.mark.parametrize(
    ("unit", "before", "worse", "alike"),
    [
        ("s", (10.0, 10.1, 10.2), (11.5, 11.6, 11.7), (10.3, 10.4, 10.5)),
        ("ratio", (4.0, 4.02, 4.04), (3.5, 3.52, 3.54), (3.9, 3.95, 3.98)),
        ("1/s", (2.0, 2.01, 2.02), (1.7, 1.71, 1.72), (1.95, 1.97, 1.99)),
        ("MiB", (700.0,), (760.0,), (720.0,)),
        ("Dice", (0.90,), (0.897,), (0.899,)),
    ],
)
def test_what_is_worse_is_caught_and_what_is_alike_is_not(
    unit: Any, before: Sequence[float], worse: Sequence[float], alike: Sequence[float]
) -> None:
    old = run({"it": figure(before, unit)})
    assert regressed(old, run({"it": figure(worse, unit)})) == ["it"]
    assert regressed(old, run({"it": figure(alike, unit)})) == []
    # As far in the other direction is better, and no regression.
    assert regressed(run({"it": figure(worse, unit)}), run({"it": figure(before, unit)})) == []


def test_rounds_that_disagree_allow_more() -> None:
    quiet, noisy = (10.0, 10.1, 10.2), (9.0, 10.1, 11.2)
    slower = (11.4, 11.5, 11.6)
    assert regressed(run({"it": figure(quiet, "s")}), run({"it": figure(slower, "s")})) == ["it"]
    assert regressed(run({"it": figure(noisy, "s")}), run({"it": figure(slower, "s")})) == []


def test_two_rounds_that_agree_by_chance_do_not_hide_the_noise_of_the_run() -> None:
    noisy = {f"other {n}": figure((9.0, 11.0), "s") for n in range(3)}
    old = run(noisy | {"it": figure((10.0, 10.0), "s")})
    new = run(noisy | {"it": figure((11.0, 11.0), "s")})
    assert regressed(old, new) == []


def test_a_slower_machine_is_no_regression_and_no_excuse() -> None:
    old = run({"time": figure((10.0, 10.1), "s"), "rate": figure((2.0, 2.02), "1/s")})
    half = (0.2, 0.2, 0.2)
    slow = {"time": figure((20.0, 20.2), "s"), "rate": figure((1.0, 1.01), "1/s")}
    assert regressed(old, run(slow, calibration=half)) == []
    assert regressed(old, run(slow)) == ["time", "rate"]
    # A machine twice as fast that gains nothing hides a program twice as slow.
    same = run(old["benchmarks"][0]["extra_info"]["figures"], calibration=(0.05, 0.05, 0.05))
    assert regressed(old, same) == ["time", "rate"]
    # A ratio was taken in turn on one machine: how fast that was does not matter.
    ratio = {"ratio": figure((4.0, 4.1), "ratio")}
    assert regressed(run(ratio), run(ratio, calibration=half)) == []


def test_noise_alone_seldom_raises_an_alarm_and_a_fifth_slower_nearly_always_does() -> None:
    generator = np.random.default_rng(0)

    def drawn(slower: float) -> dict[str, Any]:
        times = 10 * (1 + 0.02 * generator.standard_normal((50, 3)))
        times[0] *= slower
        clock = 0.1 * (1 + 0.02 * generator.standard_normal(6))
        return run(
            {f"{n}": figure(row, "s") for n, row in enumerate(times.tolist())}, clock.tolist()
        )

    alarms = [len(regressed(drawn(1.0), drawn(1.0))) for _ in range(20)]
    assert sum(alarms) <= 0.01 * 50 * 20
    caught = sum("0" in regressed(drawn(1.0), drawn(1.2)) for _ in range(20))
    assert caught >= 18


def test_a_stage_of_a_millisecond_may_double() -> None:
    old, new = (run({"argmax": figure((value, value), "s")}) for value in (0.002, 0.004))
    assert regressed(old, new) == []
    new = run({"argmax": figure((0.02, 0.02), "s")})
    assert regressed(old, new) == ["argmax"]


@pytest.mark.parametrize("key", list(SETTINGS))
def test_another_machine_is_refused(key: str) -> None:
    figures = {"it": figure((1.0, 1.0), "s")}
    other = run(figures)
    other["machine_info"]["settings"][key] = "another"
    with pytest.raises(IncomparableError, match=f"{key} .*say nothing of each other"):
        compare(run(figures), other)
    with pytest.raises(IncomparableError):
        check_machine(SETTINGS, other["machine_info"]["settings"])


@pytest.mark.parametrize("key", list(FACTS))
def test_another_case_and_other_weights_are_refused(key: str) -> None:
    figures = {"it": figure((1.0, 1.0), "s")}
    with pytest.raises(IncomparableError, match=f"bench_x: the earlier run had {key}"):
        compare(run(figures), run(figures, **{key: "another"}))


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(IncomparableError, match="no figure in common"):
        compare(run({"a": figure((1.0,), "s")}), run({"b": figure((1.0,), "s")}))


@pytest.mark.parametrize("text", ["", "[]", '{"machine_info": {}}'])
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(IncomparableError, match=r"run\.json"):
        read_run(path)
    with pytest.raises(IncomparableError, match="cannot be read"):
        read_run(tmp_path / "absent.json")


def test_the_table_names_what_moved_the_worst_first() -> None:
    old = run({name: figure((10.0, 10.0), "s") for name in ("a", "b", "c", "d")})
    times = {"a": 12.0, "b": 15.0, "c": 7.0, "d": 10.1}
    new = run({name: figure((seconds, seconds), "s") for name, seconds in times.items()})
    lines = shown(compare(old, new))
    assert [line.split("bench_x: ")[1][0] for line in lines[1:-1]] == ["b", "a", "c"]
    assert lines[1].startswith("REGRESSED")
    assert "+50.0%" in lines[1]
    assert lines[-1] == "4 figures compared: 2 regressed, 1 better, 1 within their noise"
    assert shown(compare(old, old)) == [
        "4 figures compared: 0 regressed, 0 better, 4 within their noise"
    ]


def test_spread_is_half_the_range_over_the_median() -> None:
    assert spread([9.0, 10.0, 12.0]) == pytest.approx(0.15)
    assert spread([3.0]) is None
    assert spread([0.0, 0.0]) == 0.0


BENCH = """
from benchmarks.figures import figure

def bench_x(benchmark, report):
    benchmark.pedantic(lambda: None, rounds=2)
    report("x", {"kept": figure([4.0, 4.0], "ratio"), "lost": figure([3.0, 3.0], "ratio")})
"""


def test_the_option_fails_a_run_that_regressed(tmp_path: Path) -> None:
    """A whole run of pytest with the benchmarks' conftest."""
    (tmp_path / "bench_x.py").write_text(BENCH)
    saved, new = tmp_path / "old.json", tmp_path / "new.json"
    old = run({"kept": figure((4.0, 4.0), "ratio"), "lost": figure((4.0, 4.0), "ratio")})
    old["machine_info"]["settings"] = conftest._settings(_config(saved))
    old["benchmarks"][0]["fullname"] = "bench_x.py::bench_x"
    for key in FACTS:
        del old["benchmarks"][0]["extra_info"][key]
    saved.write_text(json.dumps(old))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "bench_x.py", "--benchmark-only", "-q"),
            *("-p", "benchmarks.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)),
            *("-o", "python_functions=bench_*", "--benchmark-json", str(new)),
            *("--compare", str(saved)),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "REGRESSED  bench_x.py::bench_x: lost  4 ratio  3 ratio  +33.3%" in done.stdout
    assert "2 figures compared: 1 regressed, 0 better, 1 within their noise" in done.stdout
    # What it wrote can be compared with in turn.
    written = read_run(new)
    assert written["machine_info"]["settings"] == old["machine_info"]["settings"]
    assert len(written["benchmarks"][0]["extra_info"]["calibration_s"]) == 6


def _config(path: Path | None, quick: bool = False) -> Any:
    options = {"--compare": path, "--quick": quick}
    return SimpleNamespace(getoption=options.get, stash=pytest.Stash())


def test_the_option_lets_a_run_pass_that_did_not_regress(tmp_path: Path) -> None:
    saved = tmp_path / "old.json"
    config = _config(saved)
    old = run({"it": figure((4.0, 4.0), "ratio")})
    old["machine_info"]["settings"] = conftest._settings(config)
    saved.write_text(json.dumps(old))
    conftest.pytest_configure(config)
    (record,) = old["benchmarks"]
    done = SimpleNamespace(as_dict=lambda: record)
    config._benchmarksession = SimpleNamespace(benchmarks=[done])
    session: Any = SimpleNamespace(config=config, exitstatus=0)
    conftest.pytest_sessionfinish(session)
    assert session.exitstatus == 0
    # Nothing to compare is no success.
    config._benchmarksession = SimpleNamespace(benchmarks=[])
    conftest.pytest_sessionfinish(session)
    assert session.exitstatus == 1


def test_the_option_refuses_another_scale_before_anything_runs(tmp_path: Path) -> None:
    saved = tmp_path / "old.json"
    old = run({"it": figure((4.0, 4.0), "ratio")})
    old["machine_info"]["settings"] = conftest._settings(_config(saved))
    saved.write_text(json.dumps(old))
    with pytest.raises(pytest.UsageError, match="had scale standard, this one has quick"):
        conftest.pytest_configure(_config(saved, quick=True))
