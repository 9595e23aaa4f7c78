"""A cohort in several processes: the same files as in one, and nothing lost with a killed one."""

import json
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from runtime.backends import Backend, BackendInfo, BackendOptions
from runtime.case import Case, find_cases
from runtime.cohort import Job, Outcome, claim, segment_cases
from runtime.errors import (
    BackendUnavailableError,
    ComputeError,
    InputError,
    NonFiniteError,
    OutputError,
    UsageError,
)
from runtime.lock import Held
from runtime.output_plan import OutputOptions
from runtime.phantom import write_phantoms
from runtime.processes import _AHEAD, Told, _ignored, _Pool, _Worker, segment_in_processes
from runtime.segmenter import Segmenter
from runtime.work import Work

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and /proc are needed")
SHAPE = (48, 40, 32)
CASES = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    write_phantoms(root, CASES, seed=5, shape=SHAPE)
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
    with claim(cases, OutputOptions(out)) as (jobs, held):
        return list(segment_in_processes(jobs, works, held, told))


@dataclass
class Seen:
    """The pool of the last run, and the cases that each of its processes has ended."""

    pool: _Pool | None = None
    ended: dict[int, list[str]] = field(default_factory=dict)

    def counts(self) -> list[int]:
        return [len(cases) for cases in self.ended.values()]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    heard, found = _Pool.heard, Seen()

    def noted(pool: _Pool, worker: _Worker) -> Iterator[Outcome]:
        found.pool = pool
        for outcome in heard(pool, worker):
            if outcome.error is None:
                assert worker.process.pid is not None
                found.ended.setdefault(worker.process.pid, []).append(outcome.case.case_id)
            yield outcome

    monkeypatch.setattr(_Pool, "heard", noted)
    return found


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def alone(data: Path, work: Work, out: Path) -> dict[str, bytes]:
    with claim(find_cases(data), OutputOptions(out)) as (jobs, _), work.opened() as segmenter:
        assert all(one.error is None for one in segment_cases(jobs, segmenter))
    return results(out)


def test_two_processes_write_what_one_writes(
    data: Path, work: Work, tmp_path: Path, seen: Seen
) -> None:
    told = Told()
    ready: list[object] = []
    told.ready = lambda info, processes: ready.append((info.name, processes))
    found = run(find_cases(data), tmp_path / "two", [work, work], told)
    assert sorted(one.case.case_id for one in found) == [c.case_id for c in find_cases(data)]
    assert all(one.sidecar is not None and not one.kept for one in found)
    assert results(tmp_path / "two") == alone(data, work, tmp_path / "one")
    assert ready == [("ort", 2)]
    assert len(seen.ended) == 2
    assert min(seen.counts()) >= 2
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
    assert len(results(tmp_path / "out")) == CASES - 1


def test_a_backend_that_does_not_open_is_told(data: Path, work: Work, tmp_path: Path) -> None:
    wrong = replace(work, backend=BackendOptions("trt", "cuda:0"))
    with pytest.raises(BackendUnavailableError):
        run(find_cases(data), tmp_path / "out", [wrong, wrong], Told())
    assert not workers()


def test_a_killed_process_loses_nothing(data: Path, work: Work, tmp_path: Path, seen: Seen) -> None:
    notes: list[str] = []
    told = Told(note=lambda text, case: notes.append(text))
    out, killed = tmp_path / "out", 0
    lost: set[str] = set()
    found: list[Outcome] = []
    with claim(find_cases(data), OutputOptions(out)) as (jobs, held):
        for outcome in segment_in_processes(jobs, [work, work], held, told):
            found.append(outcome)
            if not killed:
                assert seen.pool is not None
                other, chosen = sorted(seen.pool.workers, key=lambda one: len(one.in_hand))
                assert other.in_hand  # both are at work
                lost = {job.case.case_id for job in chosen.in_hand.values()}
                killed = chosen.process.pid or 0
                os.kill(killed, signal.SIGKILL)
    assert killed
    assert len(lost) >= 2
    assert sorted(one.case.case_id for one in found) == [c.case_id for c in find_cases(data)]
    assert all(one.error is None for one in found)
    assert results(out) == alone(data, work, tmp_path / "one")
    # Two of whom one died, and a third in its place.
    assert set(seen.ended) - {killed}
    again = {case for pid, cases in seen.ended.items() if pid != killed for case in cases}
    assert lost & again
    assert ["signal 9" in note for note in notes] == [True]
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


@pytest.mark.parametrize("at", [1, CASES - 1])
def test_a_case_that_kills_is_found_and_told(
    data: Path, work: Work, tmp_path: Path, at: int
) -> None:
    cases = find_cases(data)
    out = tmp_path / "out"
    with claim(cases, OutputOptions(out)) as (planned, held):
        jobs: list[Job] = list(planned)
        deadly = replace(jobs[at], plan=replace(jobs[at].plan, warnings=(_Killer(),)))  # type: ignore[arg-type]
        jobs[at] = deadly
        found = {one.case.case_id: one for one in segment_in_processes(jobs, [work], held)}
    assert set(found) == {case.case_id for case in cases}
    failed = [name for name, one in found.items() if one.error is not None]
    assert failed == [cases[at].case_id]
    assert "signal 9" in str(found[failed[0]].error)
    assert len(results(out)) == CASES - 1


def test_a_wish_to_stop_lets_the_cases_in_hand_be_finished(
    data: Path, work: Work, tmp_path: Path
) -> None:
    found: list[Outcome] = []
    one, *_ = find_cases(data)
    many = [replace(one, case_id=f"c{number:02}") for number in range(40)]
    with claim(many, OutputOptions(tmp_path / "out")) as (jobs, held):
        for outcome in segment_in_processes(jobs, [work], held, stopping=lambda: bool(found)):
            found.append(outcome)
    assert 1 <= len(found) < len(jobs)
    for outcome in found:
        assert outcome.plan.sidecar.is_file()
    sidecars = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert sidecars == {one.plan.sidecar.name for one in found}


def test_whoever_stops_listening_leaves_no_process(data: Path, work: Work, tmp_path: Path) -> None:
    with claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, held):
        outcomes = segment_in_processes(jobs, [work, work], held)
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


def test_the_command_on_two_devices(
    data: Path, tiny_model: Path, tmp_path: Path, seen: Seen
) -> None:
    from runtime.cli.infer import main

    out = tmp_path / "out"
    flags = ["--model", str(tiny_model), "-o", str(out), "--backend", "ort", "--quiet"]
    assert main([str(data), *flags, "--device", "cpu,cpu", "--threads", "2"]) == 0
    told = json.loads((out / "cohort.json").read_text())
    assert told["cases"]["done"] == CASES
    assert len(seen.ended) == 2
    assert min(seen.counts()) >= 2
    assert main([str(data), *flags, "--device", "cpu,cpu", "--resume"]) == 0
    told = json.loads((out / "cohort.json").read_text())
    assert (told["cases"]["done"], told["cases"]["kept"]) == (0, CASES)


def test_a_wish_to_stop_reaches_those_who_have_been_told_of_all_cases(
    work: Work, tmp_path: Path
) -> None:
    sent: list[object] = []

    class Line:
        def send(self, message: object) -> None:
            sent.append(message)

    pool = _Pool(deque(), Held(tmp_path, None), Told(), 1)
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


class _Line:
    """A connection of a worker that is none."""

    def send(self, message: object) -> None: ...

    def close(self) -> None: ...


class _Process:
    exitcode = 0

    def kill(self) -> None: ...

    def join(self) -> None: ...


def pool_of(count: int, jobs: int, work: Work, folder: Path) -> _Pool:
    """As many workers that are open, and cases that are no more than their names."""
    waiting = [SimpleNamespace(plan=SimpleNamespace(sidecar=Path(str(n)))) for n in range(jobs)]
    pool = _Pool(deque(waiting), Held(folder, None), Told(), count, begun=True)  # type: ignore[arg-type]
    for _ in range(count):
        one = _Worker(work, _Process(), _Line(), ready=True)  # type: ignore[arg-type]
        pool.workers.append(one)
    return pool


def in_hand(pool: _Pool) -> list[int]:
    return [len(worker.in_hand) for worker in pool.workers]


def test_cases_are_dealt_in_turn(work: Work, tmp_path: Path) -> None:
    pool = pool_of(4, 7, work, tmp_path)
    pool.feed()
    assert in_hand(pool) == [2, 2, 2, 1]
    pool = pool_of(3, 1000, work, tmp_path)
    pool.feed()
    assert in_hand(pool) == [_AHEAD] * 3


def test_no_case_is_dealt_before_all_are_open(work: Work, tmp_path: Path) -> None:
    pool = pool_of(2, 7, work, tmp_path)
    pool.begun = pool.workers[1].ready = False
    pool.feed()
    assert in_hand(pool) == [0, 0]
    info = BackendInfo("ort", "cpu", "fp32", "model.onnx", "a" * 64)
    pool._opened(pool.workers[1], info)
    pool.feed()
    assert min(in_hand(pool)) >= 2


def test_a_slow_process_does_not_sit_on_what_others_could_do(work: Work, tmp_path: Path) -> None:
    pool = pool_of(3, 100, work, tmp_path)
    for tick in range(1000):
        pool.feed()
        if not pool.waiting:
            break
        for slower, worker in zip((1, 1, 5), pool.workers, strict=True):
            if tick % slower == 0 and worker.in_hand:
                worker.in_hand.pop(next(iter(worker.in_hand)))
    assert not pool.waiting
    assert max(in_hand(pool)) <= 3


def test_one_that_has_nothing_to_do_stays_for_what_another_may_lose(
    work: Work, tmp_path: Path
) -> None:
    pool = pool_of(2, 1, work, tmp_path)
    pool.feed()
    assert in_hand(pool) == [1, 0]
    assert not pool.workers[1].dismissed
    pool.lost.extend(pool.workers[0].in_hand.values())
    pool._forget(pool.workers[0])
    pool.feed()
    assert in_hand(pool) == [1]
    assert pool.workers[0].careful
    pool.workers[0].in_hand.clear()
    pool.feed()
    assert pool.workers[0].dismissed


@pytest.mark.parametrize(
    "other",
    [("ort", "fp16", "model.fp16.onnx", "b" * 64), ("openvino", "fp32", "model.onnx", "a" * 64)],
)
def test_devices_that_open_something_else_are_refused(
    work: Work, tmp_path: Path, other: tuple[str, str, str, str]
) -> None:
    name, precision, artefact, sha256 = other
    one = BackendInfo("ort", "cpu", "fp32", "model.onnx", "a" * 64)
    two = BackendInfo(name, "cuda:0", precision, artefact, sha256)
    pool = pool_of(2, 7, work, tmp_path)
    pool.begun = pool.workers[0].ready = pool.workers[1].ready = False
    pool._opened(pool.workers[0], one)
    with pytest.raises(UsageError, match=f"{artefact} in {name} on cuda:0") as caught:
        pool._opened(pool.workers[1], two)
    assert "model.onnx in ort on cpu" in str(caught.value)
    # Of a process in another's place, when cases have been run, the others do without.
    notes: list[str] = []
    told = Told(note=lambda text, case: notes.append(text))
    pool = pool_of(2, 7, work, tmp_path)
    pool.told, pool.info = told, one
    pool._opened(pool.workers[1], two)
    assert len(pool.workers) == len(notes) == 1
    with pytest.raises(UsageError):
        pool._opened(pool.workers[0], two)


def test_an_error_that_ends_a_process_is_one_of_what_it_ran(
    data: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Work] = []
    monkeypatch.setattr(_Pool, "start", lambda pool, work, deaths: begun.append(work))
    monkeypatch.setattr("runtime.processes._end", lambda process: None)
    notes: list[str] = []
    pool = pool_of(2, 7, work, tmp_path)
    pool.told = Told(note=lambda text, case: notes.append(text))
    worker, other = pool.workers
    with claim(find_cases(data)[:1], OutputOptions(tmp_path)) as ((job,), _):
        worker.in_hand[job.plan.sidecar] = job
    error = BackendUnavailableError("cpu", found="KeyError: 'x'", expected="none", remedy="look")
    worker.connection = SimpleNamespace(recv=lambda: ("failed", error), close=lambda: None)  # type: ignore[assignment]
    assert list(pool.heard(worker)) == []
    assert pool.workers == [other]
    assert [one.case for one in pool.lost] == [job.case]
    assert notes == ["a process died (KeyError: 'x'); its cases are run again one by one"]
    assert len(begun) == 1
    full = OutputError("out", found="a full disk", expected="room", remedy="make some")
    other.connection = SimpleNamespace(recv=lambda: ("failed", full), close=lambda: None)  # type: ignore[assignment]
    with pytest.raises(OutputError, match="a full disk"):
        list(pool.heard(other))


@dataclass(frozen=True)
class _Fragile(Work):
    """Opens so many times, and then no more."""

    marks: Path = Path()
    times: int = 1
    dies: bool = False

    @contextmanager
    def opened(self, given: Backend | None = None) -> Iterator[Segmenter]:
        count = len(list(self.marks.iterdir()))
        (self.marks / str(count)).touch()
        if count >= self.times:
            if self.dies:
                os._exit(3)
            # Long enough for a case or two of whoever has been given some already.
            time.sleep(1.0)
            raise BackendUnavailableError("cuda:7", found="no", expected="yes", remedy="wait")
        with super().opened(given) as segmenter:
            yield segmenter


@pytest.fixture
def fragile(work: Work, tmp_path: Path) -> Callable[..., _Fragile]:
    marks = tmp_path / "marks"
    marks.mkdir()
    return lambda **given: _Fragile(work.model, work.backend, marks=marks, **given)


def killing(
    jobs: Sequence[Job], works: Sequence[Work], held: Held, told: Told, seen: Seen
) -> Iterator[Outcome]:
    """Kills the last process at the first case that is done."""
    killed = False
    for outcome in segment_in_processes(jobs, works, held, told):
        yield outcome
        if not killed:
            killed = True
            assert seen.pool is not None
            os.kill(seen.pool.workers[-1].process.pid or 0, signal.SIGKILL)


def test_one_device_that_does_not_open_ends_it_before_any_case(
    data: Path, work: Work, fragile: Any, tmp_path: Path
) -> None:
    with pytest.raises(BackendUnavailableError, match="cuda:7"):
        run(find_cases(data), tmp_path / "out", [work, fragile(times=0)], Told())
    assert not results(tmp_path / "out")
    assert not workers()


@pytest.mark.parametrize("dies", [False, True])
def test_a_device_that_is_lost_leaves_its_cases_to_the_others(
    data: Path, work: Work, fragile: Any, tmp_path: Path, seen: Seen, dies: bool
) -> None:
    notes: list[str] = []
    told = Told(note=lambda text, case: notes.append(text))
    one, *_ = find_cases(data)
    cases = [replace(one, case_id=f"c{number:03}") for number in range(60)]
    found: list[Outcome] = []
    with claim(cases, OutputOptions(tmp_path / "out")) as (jobs, held):
        works = [work, fragile(dies=dies)]
        for outcome in killing(jobs, works, held, told, seen):
            found.append(outcome)
            # The other one is to be at work still when the device is given up.
            time.sleep(0 if any("is lost" in note for note in notes) else 0.2)
    assert sorted(one.case.case_id for one in found) == [case.case_id for case in cases]
    assert all(one.error is None for one in found)
    assert sum("a process died" in note for note in notes) == 1
    assert sum("a device is lost" in note for note in notes) == 1
    assert not workers()


@pytest.mark.parametrize("dies", [False, True])
def test_without_any_device_it_ends_and_the_others_are_not_begun(
    data: Path, fragile: Any, tmp_path: Path, seen: Seen, dies: bool
) -> None:
    found: list[Outcome] = []
    with claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, held):
        with pytest.raises(ComputeError if dies else BackendUnavailableError):
            found.extend(killing(jobs, [fragile(dies=dies)], held, Told(), seen))
        assert not workers()
    assert len(results(tmp_path / "out")) < CASES


@pytest.mark.parametrize("anew", [False, True])
def test_a_process_writes_into_no_other_folder(
    data: Path, work: Work, tmp_path: Path, anew: bool
) -> None:
    out = tmp_path / "out"
    with claim(find_cases(data), OutputOptions(out)) as (jobs, held):
        out.rename(tmp_path / "aside")
        if anew:
            out.mkdir()
        with pytest.raises(OutputError, match="no longer the folder"):
            list(segment_in_processes(jobs, [work, work], held))
    assert not anew or not list(out.iterdir())
    assert not workers()


def test_a_folder_that_is_gone_when_a_process_dies_is_told(
    data: Path, work: Work, tmp_path: Path, seen: Seen
) -> None:
    out = tmp_path / "out"
    with claim(find_cases(data), OutputOptions(out)) as (jobs, held):
        outcomes = segment_in_processes(jobs, [work, work], held)
        next(outcomes)
        assert seen.pool is not None
        for worker in seen.pool.workers:
            worker.process.kill()
        out.rename(tmp_path / "aside")
        with pytest.raises(OutputError, match="no longer the folder"):
            list(outcomes)
    assert not workers()
