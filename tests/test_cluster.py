"""A cohort on a local Ray cluster of two workers: the same bytes; a killed worker loses nothing."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="ray is in the extra ray")

from runtime.backends import BackendOptions
from runtime.case import Case, find_cases
from runtime.cluster import Cluster, Segmenting, segment_on_ray
from runtime.cohort import Outcome, claim, segment_cases
from runtime.errors import BackendUnavailableError, InputError, OutputError, ParityError
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
    with claim([*cases, bad], OutputOptions(out)) as (jobs, _):
        for outcome in segment_on_ray(jobs, work, out, TWO, told):
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


def test_more_workers_than_there_is_room_for(data: Path, work: Work, tmp_path: Path) -> None:
    many = replace(TWO, workers=1000)
    with (
        claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, _),
        pytest.raises(BackendUnavailableError, match="1000 workers"),
    ):
        list(segment_on_ray(jobs, work, tmp_path / "out", many))


def test_a_cluster_that_is_not_there(data: Path, work: Work, tmp_path: Path) -> None:
    nowhere = replace(TWO, address="127.0.0.1:1")
    with (
        claim(find_cases(data), OutputOptions(tmp_path / "out")) as (jobs, _),
        pytest.raises(BackendUnavailableError, match="no cluster"),
    ):
        list(segment_on_ray(jobs, work, tmp_path / "out", nowhere))


def test_an_actor_gives_errors_back(work: Work, tmp_path: Path) -> None:
    """Without Ray: what it would wrap comes back as it is."""
    assert isinstance(Segmenting(work, tmp_path / "none").ready(), OutputError)
    other = replace(work, backend=replace(work.backend, precision="int8"))
    assert isinstance(Segmenting(other, tmp_path).ready(), InputError | ParityError)
