"""What runs on a machine of a cluster, without Ray: what it would wrap comes back as it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from runtime.backends import BackendInfo, BackendOptions
from runtime.case import find_cases
from runtime.cluster_actor import Segmenting
from runtime.cohort import plan_jobs
from runtime.errors import ComputeError, InputError, OutputError, ParityError
from runtime.output_plan import OutputOptions
from runtime.phantom import write_phantoms
from runtime.segmenter import Segmenter
from runtime.work import Work


@pytest.fixture
def work(tiny_model: Path) -> Work:
    return Work(tiny_model, BackendOptions("ort", "cpu", threads=1))


def test_an_actor_gives_errors_back(work: Work, tmp_path: Path) -> None:
    assert isinstance(Segmenting(work, tmp_path / "none").ready(), OutputError)
    other = replace(work, backend=replace(work.backend, precision="int8"))
    assert isinstance(Segmenting(other, tmp_path).ready(), InputError | ParityError)


def test_a_case_that_is_done_is_kept_when_asked(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantoms(tmp_path / "data", 1, seed=5, shape=(48, 40, 32))
    out = tmp_path / "out"
    out.mkdir()
    (job,) = plan_jobs(find_cases(tmp_path / "data"), OutputOptions(out))
    actor = Segmenting(work, out)
    info = actor.ready()
    assert isinstance(info, BackendInfo)
    first = actor.segment(job)
    assert (first.error, first.kept) == (None, False)
    assert min(first.spent) > 0
    (job,) = plan_jobs(find_cases(tmp_path / "data"), OutputOptions(out, resume=True))
    again = Segmenting(replace(work, resume=True), out).segment(job)
    assert again.kept
    assert again.sidecar == first.sidecar

    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Segmenter, "segment", too_large)
    assert isinstance(actor.segment(job).error, ComputeError)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(24, "Too many\nopen files"), "OSError: [Errno 24] Too many open files"),
        (KeyError("no such\tlabel"), r"KeyError: 'no such\tlabel'"),
    ],
)
def test_an_error_of_this_program_is_one_of_its_case(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, told: str
) -> None:
    write_phantoms(tmp_path / "data", 1, seed=5, shape=(48, 40, 32))
    out = tmp_path / "out"
    out.mkdir()
    (job,) = plan_jobs(find_cases(tmp_path / "data"), OutputOptions(out))
    actor = Segmenting(work, out)

    def failing(*_: object) -> None:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(Segmenter, "segment", failing)
        error = actor.segment(job).error
    assert isinstance(error, ComputeError)
    assert str(error) == (
        f"{job.case.case_id}: found an error of this program: {told}, expected a label map; "
        "report it with this line; the other cases are not affected."
    )
    assert actor.segment(job).error is None  # it goes on
