"""A cohort on a local Ray cluster of two workers: the same bytes; a killed worker loses nothing."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from time import monotonic

import psutil
import pytest

pytest.importorskip("ray", reason="ray is in the extra ray")

from runtime.backends import BackendOptions
from runtime.case import Case, find_cases
from runtime.cluster import Cluster, segment_on_ray
from runtime.cohort import Job, Outcome, claim, segment_cases
from runtime.errors import (
    BackendUnavailableError,
    ComputeError,
    InputError,
    OutputError,
)
from runtime.model_dir import ModelDir
from runtime.output_plan import OutputOptions
from runtime.phantom import write_phantoms
from runtime.processes import Told
from runtime.work import Work

pytestmark = [
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers want two cores"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]
TWO = Cluster("auto", workers=2, threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    write_phantoms(root, 8, seed=5, shape=(48, 40, 32))
    return root


@pytest.fixture
def work(tiny_model: Path) -> Work:
    return Work(tiny_model, BackendOptions("ort", "cpu", threads=1))


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def alone(cases: list[Case], work: Work, out: Path) -> dict[str, bytes]:
    with claim(cases, OutputOptions(out)) as (jobs, _), work.opened() as segmenter:
        for one in segment_cases(jobs, segmenter):
            assert one.error is None
    return results(out)


def workers() -> list[psutil.Process]:
    """The processes of actors, below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and "ray::Segmenting" in process.cmdline()[0]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_killed_worker_loses_nothing(data: Path, work: Work, tmp_path: Path) -> None:
    cases = find_cases(data)
    broken = tmp_path / "bad" / "x_t2.nii.gz"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    bad = replace(cases[-1], case_id="bad", images={
        **cases[-1].images, "t2": replace(cases[-1].images["t2"], path=broken),
    })  # fmt: skip
    out, told = tmp_path / "ray", Told()
    ready: list[object] = []
    told.ready = lambda info, processes: ready.append((info.name, info.device, processes))
    found: list[Outcome] = []
    killed = 0
    with claim([*cases, bad], OutputOptions(out)) as (jobs, folder):
        for outcome in segment_on_ray(jobs, work, folder, TWO, told):
            found.append(outcome)
            if not killed:
                one, _ = workers()
                killed = one.pid
                os.kill(killed, signal.SIGKILL)
    assert killed
    assert ready == [("ort", "cpu", 2)]
    errors = {one.case.case_id: one.error for one in found if one.error is not None}
    assert set(errors) == {"bad"}
    assert isinstance(errors["bad"], InputError)
    done = sorted(one.case.case_id for one in found if one.sidecar is not None)
    assert done == [case.case_id for case in cases]
    assert results(out) == alone(cases, work, tmp_path / "alone")
    assert min(told.clock.read, told.clock.run, told.clock.write) > 0
    assert not workers()


class _Killer:
    """Unpickles to the death of whoever does it: a case that kills every worker that runs it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_die_in_a_worker, (os.getpid(),))


def _die_in_a_worker(parent: int) -> str:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_a_case_that_kills_takes_no_other_with_it(data: Path, work: Work, tmp_path: Path) -> None:
    cases = find_cases(data)
    notes: list[str] = []
    out, told = tmp_path / "ray", Told(note=lambda text, case: notes.append(text))
    with claim(cases, OutputOptions(out)) as (planned, folder):
        jobs: list[Job] = list(planned)
        # In hand beside others, on the first worker.
        deadly = replace(jobs[2], plan=replace(jobs[2].plan, warnings=(_Killer(),)))  # type: ignore[arg-type]
        jobs[2] = deadly
        found = {one.case.case_id: one for one in segment_on_ray(jobs, work, folder, TWO, told)}
    assert set(found) == {case.case_id for case in cases}
    (failed,) = [name for name, one in found.items() if one.error is not None]
    assert failed == cases[2].case_id
    error = found[failed].error
    assert isinstance(error, ComputeError)
    assert "the death of the worker that ran it, twice" in str(error)
    assert "\n" not in str(error)
    assert all(not one.kept for one in found.values())
    expected = alone(cases, work, tmp_path / "alone")
    del expected[found[failed].plan.labels.name]
    assert results(out) == expected
    assert len(notes) == 1
    assert "one by one" in notes[0]
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_a_folder_that_is_moved_meanwhile_is_not_made_anew(
    data: Path, work: Work, tmp_path: Path
) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    done: list[str] = []
    with claim(find_cases(data), OutputOptions(out)) as (jobs, folder):
        outcomes = segment_on_ray(jobs, work, folder, TWO)
        # Of a case that is being written just then the system may speak first.
        with pytest.raises(OutputError):  # noqa: PT012
            for one in outcomes:
                assert one.error is None
                done.append(one.case.case_id)
                if len(done) == 1:
                    out.rename(moved)
    assert 1 <= len(done) < len(jobs)
    assert not [path for path in out.glob("*") if not path.name.startswith(".")]
    assert {f"{case}.json" for case in done} <= {path.name for path in moved.glob("*.json")}
    assert not list(moved.glob(".run.*"))


@pytest.mark.slow
def test_workers_that_die_before_they_have_opened(data: Path, work: Work, tmp_path: Path) -> None:
    deadly = replace(work, as_good=(_Killer(),))  # type: ignore[arg-type]
    with (
        claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, folder),
        pytest.raises(BackendUnavailableError, match="does not start"),
    ):
        list(segment_on_ray(jobs, deadly, folder, TWO))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster that has the cores and never gives them: another's work is on them."""
    import ray

    from runtime import cluster

    monkeypatch.setattr(cluster, "core_limit", lambda: 1)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    return Cluster("auto", workers=2, threads=3)


@pytest.mark.slow
def test_a_cluster_without_room_is_told(
    full: Cluster, data: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import cluster_pool

    monkeypatch.setattr(cluster_pool, "_NOTED_S", 0.5)
    monkeypatch.setattr(cluster_pool, "_PLACED_S", 2.0)
    notes: list[str] = []
    told = Told(note=lambda text, case: notes.append(text))
    with (
        claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, folder),
        pytest.raises(BackendUnavailableError) as caught,
    ):
        list(segment_on_ray(jobs, work, folder, full, told))
    assert "1 of 8 cores free" in caught.value.found
    assert "3 cores" in caught.value.expected
    assert "--threads" in caught.value.remedy
    assert len(notes) == 1


@pytest.mark.slow
def test_a_wish_to_stop_is_heard_while_no_worker_has_room(
    full: Cluster, data: Path, work: Work, tmp_path: Path
) -> None:
    asked: list[float] = []

    def stopping() -> bool:
        asked.append(monotonic())
        return len(asked) > 5

    with claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, folder):
        assert not list(segment_on_ray(jobs, work, folder, full, stopping=stopping))
    assert asked[-1] - asked[0] < 30


def test_the_command_on_a_cluster(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, by relative paths, and once more with --resume."""
    from runtime.cli.infer import main

    monkeypatch.chdir(data.parent)
    flags = ["--model", str(tiny_model), "-o", str(tmp_path / "out"), "--backend", "ort"]
    ray = ["--ray", "auto", "--workers", "1", "--threads", "1", "--quiet"]
    assert main([data.name, *flags, *ray, "--part", "1/4"]) == 0
    assert len(results(tmp_path / "out")) == 2
    before = results(tmp_path / "out")
    assert main([data.name, *flags, *ray, "--part", "1/4", "--resume"]) == 0
    assert results(tmp_path / "out") == before


@pytest.mark.slow
def test_the_workers_of_a_cluster_ask_a_server(
    data: Path, work: Work, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient", reason="tritonclient is in the extra triton")
    from export.triton import write_repository
    from tests.fake_triton import serving

    cases, out = find_cases(data)[:3], tmp_path / "out"
    write_repository(ModelDir.open(tiny_model), tmp_path / "repository")
    with (
        serving(tmp_path / "repository") as (service, address),
        claim(cases, OutputOptions(out)) as (jobs, folder),
    ):
        asking = replace(work, backend=BackendOptions("triton", f"{address}/tiny"))
        found = list(segment_on_ray(jobs, asking, folder, TWO))
        assert service.batches
    assert [one.error for one in found] == [None] * 3
    told = [one.sidecar["backend"] for one in found if one.sidecar is not None]
    assert {(one["name"], one["device"]) for one in told} == {("triton", f"{address}/tiny")}
    assert results(out) == alone(cases, work, tmp_path / "alone")


def test_more_workers_than_there_is_room_for(data: Path, work: Work, tmp_path: Path) -> None:
    many = replace(TWO, workers=1000)
    with (
        claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, folder),
        pytest.raises(BackendUnavailableError, match="1000 workers"),
    ):
        list(segment_on_ray(jobs, work, folder, many))


def test_a_cluster_that_is_not_there(data: Path, work: Work, tmp_path: Path) -> None:
    nowhere = replace(TWO, address="127.0.0.1:1")
    with (
        claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, folder),
        pytest.raises(BackendUnavailableError, match="no cluster"),
    ):
        list(segment_on_ray(jobs, work, folder, nowhere))
