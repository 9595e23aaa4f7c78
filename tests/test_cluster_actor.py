"""What runs on a machine of a cluster, without Ray: what it would wrap comes back as it is."""

import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.backends import BackendInfo, BackendOptions
from runtime.case import find_cases
from runtime.cluster_actor import Segmenting
from runtime.cluster_folder import Shared, shared
from runtime.cohort import claim, error_of, plan_jobs
from runtime.errors import ComputeError, InputError, OutputError, ParityError
from runtime.lock import only_writer
from runtime.output_plan import OutputOptions
from runtime.phantom import write_phantoms
from runtime.segmenter import Segmenter
from runtime.work import Work


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Shared]:
    """An empty one of this process, tmp_path / "out"."""
    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out") as held, shared(held) as folder:
        yield folder


@pytest.fixture
def work(tiny_model: Path) -> Work:
    return Work(tiny_model, BackendOptions("ort", "cpu", threads=1))


def test_an_actor_gives_errors_back(work: Work, tmp_path: Path) -> None:
    elsewhere = Shared(tmp_path / "none", None, ".run")
    assert isinstance(Segmenting(work, elsewhere).ready(), OutputError)
    other = replace(work, backend=replace(work.backend, precision="int8"))
    with only_writer(tmp_path) as held, shared(held) as folder:
        assert isinstance(Segmenting(other, folder).ready(), InputError | ParityError)


def test_a_folder_of_the_same_name_on_another_machine_is_another(
    work: Work, tmp_path: Path
) -> None:
    """As /tmp/out is, which every machine has."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with only_writer(here) as held, shared(held) as folder:
        assert isinstance(Segmenting(work, folder).ready(), BackendInfo)
        error = Segmenting(work, replace(folder, directory=there)).ready()
    assert isinstance(error, OutputError)
    assert error.exit_code == 7
    assert str(error) == (
        f"{there}: found another folder on {platform.node()}, expected the one that this run "
        "writes into, on every machine of the cluster; choose one on a file system that all of "
        "them share, or, if it was moved, put it back and run again with --resume."
    )
    assert not [*here.iterdir(), *there.iterdir()]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_moved_is_not_written_into(
    work: Work, tmp_path: Path, replaced: bool
) -> None:
    write_phantoms(tmp_path / "data", 2, seed=5, shape=(48, 40, 32))
    out, moved = tmp_path / "out", tmp_path / "moved"
    with claim(find_cases(tmp_path / "data"), OutputOptions(out)) as (jobs, held):
        with shared(held) as folder:
            actor = Segmenting(work, folder)
            assert actor.segment(jobs[0]).error is None
            out.rename(moved)
            if replaced:
                out.mkdir()
            error = actor.segment(jobs[1]).error
            assert isinstance(error, OutputError)
            if replaced:
                out.rmdir()  # nothing is in it
            assert not out.exists()
            moved.rename(out)
            assert actor.segment(jobs[1]).error is None
            out.rename(moved)
        # The hidden file goes with its folder.
        assert not list(moved.glob(".*"))


def test_a_worker_that_outlives_its_command_writes_nothing(work: Work, tmp_path: Path) -> None:
    """The next command has swept the hidden file of the one that was killed, not that of another
    that lives.
    """
    write_phantoms(tmp_path / "data", 1, seed=5, shape=(48, 40, 32))
    cases, options = find_cases(tmp_path / "data"), OutputOptions(tmp_path / "out")
    options.directory.mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(options.directory)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = options.directory.iterdir()
    with claim(cases, options, (2, 2)) as (_, other), shared(other) as living:
        assert not left.exists()
        with claim(cases, options, (1, 2)) as (jobs, _):
            late = Segmenting(work, replace(living, token=left.name))
            assert isinstance(late.segment(jobs[0]).error, OutputError)
            assert Segmenting(work, living).segment(jobs[0]).error is None
    assert len(list(options.directory.iterdir())) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from runtime.cluster_folder import shared
from runtime.lock import only_writer
with only_writer(Path(sys.argv[1])) as held, shared(held):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_case_that_is_done_is_kept_when_asked(
    work: Work, folder: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantoms(tmp_path / "data", 1, seed=5, shape=(48, 40, 32))
    out = folder.directory
    (job,) = plan_jobs(find_cases(tmp_path / "data"), OutputOptions(out))
    actor = Segmenting(work, folder)
    info = actor.ready()
    assert isinstance(info, BackendInfo)
    first = actor.segment(job)
    assert (first.error, first.kept) == (None, False)
    assert min(first.spent) > 0
    (job,) = plan_jobs(find_cases(tmp_path / "data"), OutputOptions(out, resume=True))
    again = Segmenting(replace(work, resume=True), folder).segment(job)
    assert again.kept
    assert again.sidecar == first.sidecar

    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Segmenter, "run", too_large)
    assert isinstance(actor.segment(job).error, ComputeError)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(24, "Too many\nopen files"), "a path: found Too many"),
        (
            ZeroDivisionError("by zero"),
            "found an error of this program (ZeroDivisionError: by zero; ",
        ),
    ],
    ids=["files", "zero"],
)
def test_an_error_of_this_program_is_one_of_its_case(
    work: Work,
    folder: Shared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    told: str,
) -> None:
    write_phantoms(tmp_path / "data", 1, seed=5, shape=(48, 40, 32))
    out = folder.directory
    (job,) = plan_jobs(find_cases(tmp_path / "data"), OutputOptions(out))
    actor = Segmenting(work, folder)

    def failing(*_: object) -> None:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(Segmenter, "run", failing)
        error = actor.segment(job).error
    # In the words of a cohort on one machine.
    assert str(error) == str(error_of(job.case, raised))
    assert told in str(error)
    assert actor.segment(job).error is None  # it goes on
