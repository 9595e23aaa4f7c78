"""Segment one case after another; others are read, prepared, finished and written while the network
runs.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from runtime.atomic import check_writable, sweep
from runtime.bounded import read_json
from runtime.case import Case
from runtime.errors import (
    BratsError,
    ComputeError,
    DeviceLostError,
    InputError,
    OutputError,
    ProgramError,
    UsageError,
    as_ours,
)
from runtime.lock import Held, only_writer
from runtime.memory import Room
from runtime.nifti import load, promised_sizes
from runtime.output_plan import OutputOptions, OutputPlan, is_complete, plan_outputs
from runtime.pipeline import Clock, Limits, Stages, run_pipeline
from runtime.prediction import Look, save
from runtime.segmented import Ran, Ready
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.threads import no_thread

WindowProgress = Callable[[Case, int, int], None]
"""progress(case, done, total) in windows."""


@dataclass(frozen=True)
class Job:
    """A case and the files it becomes."""

    case: Case
    plan: OutputPlan


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case, plan: which case, and its files.
        sidecar: what lies beside its label map; None where it failed.
        error: why it failed.
        kept: whether it was done before, and its result stands.
    """

    case: Case
    plan: OutputPlan
    sidecar: dict[str, Any] | None = None
    error: BratsError | None = None
    kept: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be told of a case that was done now."""
        if self.sidecar is None or self.kept:
            return ()
        removed = ", ".join(self.sidecar["run"].get("removed", ()))
        told = f"removed, as it showed an earlier result that is replaced: {removed}"
        return (*self.sidecar["warnings"], *((told,) if removed else ()))


def plan_jobs(cases: Sequence[Case], options: OutputOptions) -> list[Job]:
    """Decide and check every output before the first case is run.

    Raises:
        UsageError: as for `plan_outputs`, or two cases would write one file.
    """
    plans = plan_outputs(cases, options)
    jobs = [Job(case, plan) for case, plan in zip(cases, plans, strict=True)]
    names: dict[Path, str] = {}
    for job in jobs:
        for path in job.plan.written():
            other = names.setdefault(path, job.case.case_id)
            if other != job.case.case_id:
                raise UsageError(
                    path,
                    found=f"the name of what case {job.case.case_id} and case {other} become",
                    expected="names that differ",
                    remedy="rename one of the two cases, or give each an output folder of its own",
                )
    return jobs


@contextmanager
def claim(
    cases: Sequence[Case], options: OutputOptions, part: tuple[int, int] | None = None
) -> Iterator[tuple[list[Job], Held]]:
    """Plan every case as its output folder's only writer, which this process stays in the block.

    What is planned was looked at under the lock: another writer may come and go before it is held.

    Args:
        cases: all that are to be written.
        options: where and how.
        part: i of n, where other parts are written into the same folder; see `only_writer`.

    Raises:
        UsageError: as for `plan_jobs`; a folder that was not there is then not made.
        OutputError: another process writes into the folder, or it cannot be made or written.
    """
    # Not `Path.is_dir`, which raises where the system does not take the name: planning says so.
    if not os.path.isdir(options.directory):
        plan_jobs(cases, options)
        check_writable(options.directory)
    with only_writer(options.directory, part) as held:
        jobs = plan_jobs(cases, options)
        check_writable(options.directory)
        sweep(options.directory)
        yield jobs, held


@dataclass(frozen=True)
class How:
    """How a cohort is segmented, beside what its `Segmenter` knows.

    Attributes:
        resume: leave out cases whose earlier result still stands.
        as_good: other graphs, by their hashes, and options whose results stand as well.
        progress: called after each step of windows.
        look: draws the pages that lie beside a label map.
        held: the output folder, as of `claim`.
        limits: how many cases are in hand at once.
        room: a bound on the process's memory; None leaves it to ``limits``.
        stopping: asked before each case; once it is true no further one is begun.
        ready: whether the next job is there, or known not to come; see `run_pipeline`.
    """

    resume: bool = False
    as_good: Sequence[tuple[str, SegmentOptions]] = ()
    progress: WindowProgress | None = None
    look: Look | None = None
    held: Held | None = None
    limits: Limits = field(default_factory=Limits)
    room: Room | None = None
    stopping: Callable[[], bool] = lambda: False
    ready: Callable[[], bool] = lambda: True


def settings_of(backend: str, options: SegmentOptions) -> dict[str, Any]:
    """What shapes a result beside input and model, as a sidecar records it.

    Args:
        backend: name of the one that runs.
        options: how it segments.
    """
    return {"backend": backend, **asdict(options)}


@dataclass(frozen=True)
class _Read:
    """A case that waits for the network, and the seconds that reading it took."""

    ready: Ready
    seconds: float


@dataclass(frozen=True)
class _Kept:
    """The sidecar of an earlier result that stands."""

    sidecar: dict[str, Any]


def segment_cases(
    jobs: Iterable[Job], segmenter: Segmenter, how: How | None = None, clock: Clock | None = None
) -> Iterator[Outcome]:
    """Segment and save; a bad case does not stop the others.

    While the network runs on one case the next ones are read, and prepared where the host does
    that, and the last ones are finished and written.

    Args:
        jobs: from `plan_jobs`; taken one by one, as they are needed.
        segmenter: used for all of them.
        how: all else.
        clock: is told how long reading, segmenting and writing take.

    Yields:
        Cases as they are done.

    Raises:
        OutputError: an output cannot be written, or the output folder is not in its place any more:
            then none of those that follow could be either.
        DeviceLostError: nor could they be run.
    """
    how = how or How()
    info = segmenter.backend.info
    settings = settings_of(info.name, segmenter.options)
    known = [
        (info.sha256, settings),
        *((graph, settings_of(info.name, options)) for graph, options in how.as_good),
    ]

    def read(job: Job) -> _Read | _Kept:
        if how.resume and any(is_complete(job.plan, job.case, *one) for one in known):
            return _Kept(read_json(job.plan.sidecar))
        start = perf_counter()
        volume = load(job.case)
        seconds = perf_counter() - start
        return _Read(segmenter.ready(volume), seconds)

    def run(job: Job, found: _Read | _Kept) -> tuple[Ran, float] | _Kept:
        if isinstance(found, _Kept):
            return found
        progress = how.progress
        tell = None if progress is None else partial(progress, job.case)
        return segmenter.run(found.ready, tell), found.seconds

    def write(job: Job, made: tuple[Ran, float] | _Kept) -> _Kept | dict[str, Any]:
        if isinstance(made, _Kept):
            return made
        prediction = segmenter.finish(made[0])
        sidecar = save(prediction, job.plan, settings, made[1], how.look, how.held)
        if how.room is not None:
            how.room.done(cost(job))
        return sidecar

    floats = _floats(segmenter)

    def cost(job: Job) -> int:
        # It opens every file, for which there is no need where nothing is counted.
        return 0 if how.room is None else _cost(job, floats)

    stages = Stages(cost, read, run, write)
    limits = how.limits if how.room is None else replace(how.limits, room=how.room)
    for done in run_pipeline(jobs, stages, limits, clock, how.stopping, how.ready):
        job, error = done.item, done.error
        if error is None:
            kept = isinstance(done.written, _Kept)
            sidecar = done.written.sidecar if isinstance(done.written, _Kept) else done.written
            yield Outcome(job.case, job.plan, sidecar, kept=kept)
            continue
        told = error_of(job.case, error)
        if isinstance(told, OutputError | DeviceLostError):
            raise told
        # Its traceback holds the frames, and with them the voxels, of a case that is over.
        for one in (error, error.__cause__):
            if one is not None:
                one.with_traceback(None)
        yield Outcome(job.case, job.plan, error=told)


def error_of(case: Case, error: Exception) -> BratsError:
    """What is told of an error that ended a case: ours, what the system refused, or a fault of
    ours that nobody thought of.
    """
    if isinstance(error, MemoryError):
        return _too_large(case, error)
    if isinstance(error, BratsError | OSError) or no_thread(error):
        return as_ours(error)
    return ProgramError.of(case.case_id, error)


def _floats(segmenter: Segmenter) -> int:
    """How many float32 of each voxel the host holds at most, beside what was read."""
    card, on_host = segmenter.backend.card, segmenter.backend.ops.on_host
    classes = len(card.labels)
    around = len(card.modalities) + classes if on_host else 0
    # Blended ones of the box, which a host has already, and a copy of them in the whole volume.
    return around + (classes * (1 if on_host else 2) if segmenter.options.probabilities else 0)


def _cost(job: Job, floats: int) -> int:
    """Bytes of a case from its reading to its writing, at most: its voxels, a label map twice, and
    as many float32 of each voxel as the host holds before and after the network.
    """
    try:
        sizes = promised_sizes(job.case)
    except InputError:
        return 0  # it will be told when it is read
    voxels = sum(count for count, _ in sizes) // max(1, len(job.case.images))
    return sum(count * size for count, size in sizes) * 3 // 2 + 4 * floats * voxels


def _too_large(case: Case, error: MemoryError) -> ComputeError:
    return ComputeError(
        case.case_id,
        found="too little memory" + (f" ({error})" if str(error) else ""),
        expected="room for the whole case and a batch of windows",
        remedy="check how large its images are, or close other programs",
    )
