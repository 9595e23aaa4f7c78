"""The forecast against closed forms, and against the file that a run really writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.throughput import Costs, forecast, main, table
from runtime.cli.infer import main as infer
from runtime.phantom import write_phantoms

SECONDS = {
    "load": 0.1, "prepare": 0.2, "bind": 0.0, "gather": 0.01, "network": 4.0, "stitch": 0.05,
    "finish": 0.3, "save": 0.06,
}  # fmt: skip


def record_of(name: str, device: str, **more: Any) -> dict[str, Any]:
    case = {"status": "done", "backend": {"name": name, "device": device, "precision": "fp32"}}
    return {
        "cases": {"done": 2},
        "seconds": {stage: {"mean": mean} for stage, mean in SECONDS.items()},
        "results": {"K": {**case, "status": "kept"}, "X": case, "Y": case},
        "cases_per_min": 10.0,
        **more,
    }


@pytest.mark.parametrize(
    ("name", "device", "thread", "cores"),
    [
        # Of a CPU's network with two threads two cores, of all else one.
        ("openvino", "cpu", 4.06, 2 * 4.06 + 0.66),
        # A GPU does the whole case but for the disk, and keeps the core that waits for it.
        ("trt", "cuda:0", 4.56, 4.56 + 0.16),
        ("triton", "host:8001", 4.06, 4.06 + 0.66),
    ],
)
def test_costs_of_stages(name: str, device: str, thread: float, cores: float) -> None:
    costs = Costs.of(record_of(name, device), threads=2)
    assert costs.device == pytest.approx(thread)
    assert costs.cores == pytest.approx(cores)


def test_what_the_cores_did_is_believed_before_the_stages() -> None:
    assert Costs.of(record_of("openvino", "cpu", cpu_s=15.0), threads=2).cores == 7.5


def test_the_resource_that_is_used_up_first_sets_the_pace() -> None:
    costs = Costs(device=0.5, cores=2.0)
    assert forecast(costs, cores=4) == forecast(costs, cores=400)
    assert forecast(costs, cores=4).cases_per_hour == 7200
    assert forecast(costs, cores=4).bound == "device"
    assert forecast(costs, cores=2).cases_per_hour == 3600
    assert forecast(costs, cores=2, devices=8).bound == "cores"
    assert forecast(costs, cores=32, devices=8).cases_per_hour == 8 * 7200


@given(
    st.floats(0.01, 100), st.floats(0.01, 100), st.integers(1, 64), st.integers(1, 8)
)  # fmt: skip
def test_more_of_anything_is_never_slower(
    device: float, core: float, cores: int, devices: int
) -> None:
    costs = Costs(device, core)
    now = forecast(costs, cores, devices).cases_per_hour
    assert now <= forecast(costs, cores + 1, devices).cases_per_hour
    assert now <= forecast(costs, cores, devices + 1).cases_per_hour
    both = forecast(costs, 2 * cores, 2 * devices).cases_per_hour
    assert both == pytest.approx(2 * now)


def test_the_table_has_a_row_for_each_number_of_cores() -> None:
    lines = table(Costs(1.0, 4.0), [2, 8], [1, 2]).splitlines()
    assert lines[0] == "| cores | 1 x device | 2 x device |"
    assert lines[2:] == [
        "| 2 | 1800 (cores) | 1800 (cores) |",
        "| 8 | 3600 (device) | 7200 (device) |",
    ]


def test_a_runs_own_file_is_read(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_phantoms(tmp_path / "data", 3, shape=(40, 44, 36))
    out = tmp_path / "out"
    words = ["--model", str(tiny_model), "--backend", "ort", "--threads", "1", "-o", str(out)]
    assert infer([str(tmp_path / "data"), *words]) == 0
    record = json.loads((out / "cohort.json").read_text())
    # Everything was done in this process, on one core at least for as long as the network ran.
    worked = sum(one["seconds"]["network"] for one in record["results"].values())
    assert 0.5 * worked < record["cpu_s"]
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["throughput", str(out / "cohort.json"), "--cores", "1,2"])
    assert main() == 0
    told = capsys.readouterr().out
    costs = Costs.of(record, 1)
    assert f"{costs.device:.3f} s of the device, {costs.cores:.3f} s of a core" in told
    assert told.rstrip().endswith(table(costs, [1, 2], [1, 2, 4, 8]))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        ("{", "expecting property name"),
        ("[]", "json of something else"),
        ("{}", "no 'cases' in it"),
        (
            json.dumps(record_of("ort", "cpu") | {"cases": {"done": 0}}),
            "no case that was segmented",
        ),
    ],
)
def test_no_cohorts_file_is_told_in_a_sentence(
    tmp_path: Path,
    content: str | None,
    found: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "cohort.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["throughput", str(path)])
    assert main() == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert found in line.lower()


def test_costs_that_are_known_need_no_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["throughput", "--costs", "0.5,2", "--cores", "4"])
    assert main() == 0
    told = capsys.readouterr().out
    assert told.endswith(table(Costs(0.5, 2.0), [4], [1, 2, 4, 8]) + "\n")
    assert "that run" not in told


@pytest.mark.parametrize("costs", ["1", "0,1", "1,nan", "1,2,3", "a,b", "inf,1"])
def test_costs_that_are_none_are_a_usage_error(
    costs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["throughput", "--costs", costs])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "--costs" in capsys.readouterr().err
