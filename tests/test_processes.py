"""A cohort in several processes: the same files as in one, and nothing lost with a killed one."""

import json
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from runtime.backends import BackendOptions
from runtime.case import Case, find_cases
from runtime.cohort import Job, Outcome, claim, segment_cases
from runtime.errors import BackendUnavailableError, InputError, NonFiniteError
from runtime.output_plan import OutputOptions
from runtime.phantom import write_phantoms
from runtime.processes import Told, _ignored, _Pool, _Worker, segment_in_processes
from runtime.work import Work

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and /proc are needed")
SHAPE = (48, 40, 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    write_phantoms(root, 6, seed=5, shape=SHAPE)
    return root


@pytest.fixture
def work(tiny_model: Path) -> Work:
    return Work(tiny_model, BackendOptions("ort", "cpu", threads=1))


def workers() -> list[psutil.Process]:
    """Zombies too; Python's own tracker of what processes share is none."""
    found = []
    for process in psutil.Process().children():
        gone = process.status() == psutil.STATUS_ZOMBIE
        if gone or "resource_tracker" not in " ".join(process.cmdline()):
            found.append(process)
    return found


def run(cases: Sequence[Case], out: Path, works: Sequence[Work], told: Told) -> list[Outcome]:
    with claim(cases, OutputOptions(out)) as (jobs, _):
        return list(segment_in_processes(jobs, works, out, told))


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def alone(data: Path, work: Work, out: Path) -> dict[str, bytes]:
    with claim(find_cases(data), OutputOptions(out)) as (jobs, _), work.opened() as segmenter:
        assert all(one.error is None for one in segment_cases(jobs, segmenter))
    return results(out)


def test_two_processes_write_what_one_writes(data: Path, work: Work, tmp_path: Path) -> None:
    told = Told()
    ready: list[object] = []
    told.ready = lambda info, processes: ready.append((info.name, processes))
    found = run(find_cases(data), tmp_path / "two", [work, work], told)
    assert sorted(one.case.case_id for one in found) == [c.case_id for c in find_cases(data)]
    assert all(one.sidecar is not None and not one.kept for one in found)
    assert results(tmp_path / "two") == alone(data, work, tmp_path / "one")
    assert ready == [("ort", 2)]
    assert min(told.clock.read, told.clock.run, told.clock.write) > 0


def test_a_bad_case_fails_alone(data: Path, work: Work, tmp_path: Path) -> None:
    cases = find_cases(data)
    broken = tmp_path / "bad" / "x_t2.nii.gz"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    images = {**cases[2].images, "t2": replace(cases[2].images["t2"], path=broken)}
    cases[2] = replace(cases[2], images=images)
    found = run(cases, tmp_path / "out", [work, work], Told())
    errors = {one.case.case_id: one.error for one in found if one.error}
    assert set(errors) == {cases[2].case_id}
    assert isinstance(errors[cases[2].case_id], InputError)
    assert len(results(tmp_path / "out")) == 5


def test_a_backend_that_does_not_open_is_told(data: Path, work: Work, tmp_path: Path) -> None:
    wrong = replace(work, backend=BackendOptions("trt", "cuda:0"))
    with pytest.raises(BackendUnavailableError):
        run(find_cases(data), tmp_path / "out", [wrong, wrong], Told())
    assert not workers()


def test_a_killed_process_loses_nothing(data: Path, work: Work, tmp_path: Path) -> None:
    notes: list[str] = []
    told = Told(note=lambda text, case: notes.append(text))
    out, killed = tmp_path / "out", 0
    found: list[Outcome] = []
    with claim(find_cases(data), OutputOptions(out)) as (jobs, _):
        for outcome in segment_in_processes(jobs, [work, work], out, told):
            found.append(outcome)
            if not killed:
                child = workers()[0]
                os.kill(child.pid, signal.SIGKILL)
                killed = child.pid
    assert killed
    assert sorted(one.case.case_id for one in found) == [c.case_id for c in find_cases(data)]
    assert all(one.error is None for one in found)
    assert results(out) == alone(data, work, tmp_path / "one")
    assert not list(out.glob(".*"))
    assert not workers()


class _Killer:
    """Unpickles to the death of whoever does it: a case that kills every process that runs it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_die_in_a_worker, (os.getpid(),))


def _die_in_a_worker(parent: int) -> str:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_a_case_that_kills_is_found_and_told(data: Path, work: Work, tmp_path: Path) -> None:
    cases = find_cases(data)
    out = tmp_path / "out"
    with claim(cases, OutputOptions(out)) as (planned, _):
        jobs: list[Job] = list(planned)
        deadly = replace(jobs[1], plan=replace(jobs[1].plan, warnings=(_Killer(),)))  # type: ignore[arg-type]
        jobs[1] = deadly
        found = {one.case.case_id: one for one in segment_in_processes(jobs, [work], out)}
    assert set(found) == {case.case_id for case in cases}
    failed = [name for name, one in found.items() if one.error is not None]
    assert failed == [cases[1].case_id]
    assert "signal 9" in str(found[failed[0]].error)
    assert len(results(out)) == 5


def test_a_wish_to_stop_lets_the_cases_in_hand_be_finished(
    data: Path, work: Work, tmp_path: Path
) -> None:
    found: list[Outcome] = []
    one, *_ = find_cases(data)
    many = [replace(one, case_id=f"c{number:02}") for number in range(40)]
    with claim(many, OutputOptions(tmp_path / "out")) as (jobs, _):
        out = tmp_path / "out"
        for outcome in segment_in_processes(jobs, [work], out, stopping=lambda: bool(found)):
            found.append(outcome)
    assert 1 <= len(found) < len(jobs)
    for outcome in found:
        assert outcome.plan.sidecar.is_file()
    sidecars = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert sidecars == {one.plan.sidecar.name for one in found}


def test_whoever_stops_listening_leaves_no_process(data: Path, work: Work, tmp_path: Path) -> None:
    with claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, _):
        outcomes = segment_in_processes(jobs, [work, work], tmp_path / "out")
        next(outcomes)
        outcomes.close()  # type: ignore[attr-defined]
    for _ in range(50):
        if not workers():
            break
        time.sleep(0.1)
    assert not workers()


def test_errors_travel_whole() -> None:
    error = NonFiniteError.counted(7, "x", "fp16")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.count) == (NonFiniteError, str(error), 7)


def test_the_command_on_two_devices(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    from runtime.cli.infer import main

    out = tmp_path / "out"
    flags = ["--model", str(tiny_model), "-o", str(out), "--backend", "ort", "--quiet"]
    assert main([str(data), *flags, "--device", "cpu,cpu", "--threads", "2"]) == 0
    told = json.loads((out / "cohort.json").read_text())
    assert told["cases"]["done"] == 6
    assert main([str(data), *flags, "--device", "cpu,cpu", "--resume"]) == 0
    told = json.loads((out / "cohort.json").read_text())
    assert (told["cases"]["done"], told["cases"]["kept"]) == (0, 6)


def test_a_wish_to_stop_reaches_those_who_have_been_told_of_all_cases(
    work: Work, tmp_path: Path
) -> None:
    sent: list[object] = []

    class Line:
        def send(self, message: object) -> None:
            sent.append(message)

    pool = _Pool(deque(), tmp_path, Told())
    pool.workers.append(_Worker(work, None, Line(), dismissed=True))  # type: ignore[arg-type]
    pool.stop()
    pool.stop()
    assert sent == ["stop"]


def test_processes_are_started_deaf_to_ctrl_c_and_this_one_is_not() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGINT, mine)
    try:
        with _ignored():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == mine
    finally:
        signal.signal(signal.SIGINT, before)
