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

from benchmarks import calibration, conftest
from benchmarks.calibration import WORK, calibrate, steady
from benchmarks.compare import IncomparableError, check_machine, compare, missing, read_run, shown
from benchmarks.figures import VERDICTS, figure, spread

ROOT = Path(__file__).parents[1]
SETTINGS = {"processor": "P", "cpus": 2, "threads": 2, "scale": "standard"}
FACTS = {"case": "A", "case_sha256": "a", "weights_sha256": "w", "patch": [128, 128, 64]}


def run(
    figures: dict[str, Any],
    calibration: Sequence[float] = (0.1, 0.1, 0.1),
    work: str = WORK,
    **facts: Any,
) -> dict[str, Any]:
    record = {"figures": figures, "calibration_s": list(calibration), "calibration": work}
    record = FACTS | record | facts
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


@pytest.mark.parametrize(
    ("unit", "before", "worse", "alike"),
    [
        # An fp16 graph that changed one label in 5000 and now changes one in 50.
        ("changed", 2e-4, 2e-2, 3.9e-4),
        ("changed", 0.0, 1.1e-4, 9e-5),
        ("verdict", VERDICTS["pass"], VERDICTS["fail"], VERDICTS["pass"]),
        ("verdict", VERDICTS["pass"], VERDICTS["inconclusive"], VERDICTS["pass"]),
        ("verdict", VERDICTS["inconclusive"], VERDICTS["fail"], VERDICTS["pass"]),
        # `balanced` to `exact`.
        ("Dice", 0.96, 0.85, 0.9585),
    ],
)
def test_labels_that_became_worse_are_caught_whatever_the_noise(
    unit: Any, before: float, worse: float, alike: float
) -> None:
    noisy = {f"other {n}": figure((5.0, 15.0), "s") for n in range(3)}
    old = run(noisy | {"it": figure((before,), unit)})
    new = run(noisy | {"it": figure((worse,), unit)})
    assert regressed(old, new) == ["it"]
    assert "it" in shown(compare(old, new))[1]
    assert regressed(old, run({"it": figure((alike,), unit)})) == []
    assert regressed(new, old) == []


@pytest.mark.parametrize(("key", "other"), [("scored_cases", ["A", "B"]), ("cohort", 16)])
def test_figures_over_other_cases_say_nothing_of_each_other(key: str, other: Any) -> None:
    figures = {"it": figure((0.9,), "Dice")}
    with pytest.raises(IncomparableError, match=f"the earlier run had {key}"):
        compare(run(figures, **{key: ["A"]}), run(figures, **{key: other}))


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


EARLIER = "convolution"
"""The work of calibrations that allocated: as they were recorded on a real machine."""
RECORDED = {
    "fresh process": (0.0194, 0.0191, 0.0172, 0.0088, 0.0089, 0.0088),
    "fresh, then warm": (0.0167, 0.0167, 0.0101, 0.0093, 0.0093, 0.0092),
    "warm process": (0.0092, 0.0093, 0.0093, 0.0094, 0.0094, 0.0094),
    "faster than most": (0.0153, 0.0151, 0.0150, 0.0083, 0.0082, 0.0081),
}
OVERLAPS = {
    "overlap 0": (6.4036, 6.2357),
    "overlap 0.5": (8.3674, 8.3732),
    "balanced": (1.9170, 1.8951),
    "fast": (0.7593, 0.7788),
}


def recorded(which: str, slower: float = 1.0) -> dict[str, Any]:
    times = {name: figure([slower * one for one in all_], "s") for name, all_ in OVERLAPS.items()}
    return run(times, RECORDED[which], EARLIER)


@pytest.mark.parametrize("before", list(RECORDED))
@pytest.mark.parametrize("after", list(RECORDED))
def test_with_calibrations_of_real_runs_half_as_much_again_is_caught(
    before: str, after: str
) -> None:
    assert regressed(recorded(before), recorded(after, 1.5)) == list(OVERLAPS)
    # A clock that was a tenth faster makes no regression of the same times.
    assert regressed(recorded(before), recorded(after)) == []


def test_a_machine_that_became_slower_meanwhile_allows_more_and_says_so() -> None:
    drifting = (0.0093, 0.0096, 0.0091, 0.0216, 0.0416, 0.0641)
    old = recorded("warm process")
    slower = {name: figure([1.5 * one for one in all_], "s") for name, all_ in OVERLAPS.items()}
    for work in (WORK, EARLIER):
        new = run(slower, drifting, work)
        old["benchmarks"][0]["extra_info"]["calibration"] = work
        assert regressed(old, new) == []
        assert "4 so noisy that half as much again would pass" in shown(compare(old, new))[-1]
    # Drift in the other direction is noise as well, where the work does not allocate.
    old["benchmarks"][0]["extra_info"]["calibration"] = WORK
    assert regressed(old, run(slower, drifting[::-1])) == []


def test_one_slow_round_of_many_hides_nothing() -> None:
    first = (0.1558, 0.0610, 0.0605, 0.0596, 0.0610)
    assert spread(first) == pytest.approx(1.4826 * 0.0005 / 0.0610)
    old = run({"open": figure(first, "s")})
    assert regressed(old, run({"open": figure([1.5 * one for one in first], "s")})) == ["open"]


def test_calibration_waits_until_it_is_steady_but_not_for_ever() -> None:
    runs = [30.0, 20.0, 15.0, 10.1, 10.0, 10.2, 10.0, 10.3, 10.0, 99.0]
    assert steady(iter(runs).__next__, 3) == [10.0, 10.3, 10.0]
    restless = iter(range(1, 100))
    assert steady(lambda: float(2 ** next(restless)), 2) == [2.0**11, 2.0**12]


def test_calibration_touches_no_new_pages_while_it_is_timed() -> None:
    resource = pytest.importorskip("resource", reason="only POSIX counts page faults")
    faults: list[int] = []

    def counted(work: Any) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_timed", counted)
        assert calibrate(9) == [1.0] * 9
    # The convolution it was before took 5000 a run.
    assert max(faults[-9:]) < 50


def test_a_figure_that_is_gone_is_lost() -> None:
    both = {"kept": figure((1.0, 1.0), "s"), "gone": figure((2.0, 2.0), "s")}
    old, new = run(both), run({"kept": both["kept"]})
    (one,) = missing(old, new)
    assert one.lost
    assert one.what == "benchmarks/bench_x.py::bench_x: gone"
    assert shown(compare(old, new), [one]) == [
        "LOST  bench_x.py::bench_x: gone: is gone",
        "1 figures compared: 0 regressed, 0 better, 1 within their noise; 1 lost",
    ]
    assert missing(new, old) == []


def test_a_time_that_was_calibrated_otherwise_is_not_compared() -> None:
    both = {"time": figure((1.0, 1.0), "s"), "ratio": figure((2.0, 2.0), "ratio")}
    old, new = run(both, [0.01] * 6, EARLIER), run(both)
    assert [row.name for row in compare(old, new)] == ["ratio"]
    (one,) = missing(old, new)
    assert one.lost
    assert "take the earlier run again" in one.why


def test_a_benchmark_that_was_not_asked_for_is_listed_and_one_that_was_is_lost() -> None:
    figures = {"it": figure((1.0, 1.0), "s")}
    old, new = run(figures), run(figures)
    other = run(figures)["benchmarks"][0] | {"fullname": "benchmarks/bench_y.py::bench_y"}
    old["benchmarks"].append(other)
    ran = "benchmarks/bench_x.py::bench_x"
    (one,) = missing(old, new, [ran], whole=False)
    assert not one.lost
    assert shown(compare(old, new), [one])[0] == (
        "not run  bench_y.py::bench_y: is not in this run"
    )
    (one,) = missing(old, new, [ran], whole=True)
    assert one.lost
    (one,) = missing(old, new, [ran, other["fullname"]], whole=False)
    assert one.lost
    assert one.why == "was skipped, or failed"


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


def test_figures_of_another_graph_are_not_compared() -> None:
    figures = {"it": figure((1.0, 1.0), "s")}
    slow = {"it": figure((2.0, 2.0), "s")}
    old = run(figures, model_sha256={"model.onnx": "a" * 64, "model.int8.onnx": "b" * 64})
    same = run(slow, model_sha256={"model.onnx": "a" * 64})
    assert regressed(old, same) == ["it"]
    assert missing(old, same) == []
    other = run(slow, model_sha256={"model.onnx": "c" * 64})
    with pytest.raises(IncomparableError, match=r"in common: .*bench_x was of another model\.onnx"):
        compare(old, other)
    (one,) = missing(old, other)
    assert one.lost
    assert one.why == "was of another model.onnx (aaaaaaaaaa, now cccccccccc)"
    # Where both runs exported it themselves, the export is what has changed.
    for record in (old, other):
        record["benchmarks"][0]["extra_info"]["exported_here"] = True
    assert regressed(old, other) == ["it"]
    # Runs of earlier versions do not say which graph it was.
    assert regressed(run(figures), other) == ["it"]


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
    assert len(written["benchmarks"][0]["extra_info"]["calibration_s"]) == 10


def _config(path: Path | None, quick: bool = False, **options: Any) -> Any:
    given = {"--compare": path, "--quick": quick} | options
    return SimpleNamespace(getoption=given.get, stash=pytest.Stash(), args=["benchmarks"])


@pytest.mark.parametrize(
    ("args", "options", "whole"),
    [
        (["benchmarks"], {}, True),
        ([str(ROOT / "benchmarks")], {}, True),
        (["benchmarks/bench_x.py"], {}, False),
        (["benchmarks"], {"keyword": "peers"}, False),
        (["benchmarks"], {"deselect": ["benchmarks/bench_x.py::bench_x"]}, False),
    ],
)
def test_single_files_and_names_are_no_whole_run(
    args: list[str], options: dict[str, Any], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = _config(None, **options)
    config.args = args
    assert conftest._whole(config) is whole


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
    item = SimpleNamespace(nodeid=record["fullname"])
    session: Any = SimpleNamespace(config=config, exitstatus=0, items=[item])
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
