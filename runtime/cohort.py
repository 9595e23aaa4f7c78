"""Segment one case after another; the next one is read while the network runs."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from runtime.atomic import check_writable, sweep
from runtime.case import Case
from runtime.errors import BratsError, ComputeError, OutputError, UsageError
from runtime.lock import Held, only_writer
from runtime.nifti import Volume, load
from runtime.output_plan import OutputOptions, OutputPlan, is_complete, plan_output
from runtime.prediction import Look, save
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.threads import Threads

WindowProgress = Callable[[Case, int, int], None]
"""progress(case, done, total) in windows."""


@dataclass(frozen=True)
class Job:
    """A case and the files it becomes."""

    case: Case
    plan: OutputPlan


@dataclass(frozen=True)
class Outcome:
    """What became of a case: a sidecar, or an error, or neither where an earlier result stands."""

    case: Case
    plan: OutputPlan
    sidecar: dict[str, Any] | None = None
    error: BratsError | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be told of a case that was done."""
        if self.sidecar is None:
            return ()
        removed = ", ".join(self.sidecar["run"].get("removed", ()))
        told = f"removed, as it showed an earlier result that is replaced: {removed}"
        return (*self.sidecar["warnings"], *((told,) if removed else ()))


def plan_jobs(cases: Sequence[Case], options: OutputOptions) -> list[Job]:
    """Decide and check every output before the first case is run.

    Raises:
        UsageError: as for `prediction.plan_output`, or two cases would write one file.
    """
    jobs = [Job(case, plan_output(case, options)) for case in cases]
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
def claim(cases: Sequence[Case], options: OutputOptions) -> Iterator[tuple[list[Job], Held]]:
    """Plan every case as its output folder's only writer, which this process stays in the block.

    What is planned was looked at under the lock: another writer may come and go before it is held.

    Raises:
        UsageError: as for `plan_jobs`; a folder that was not there is then not made.
        OutputError: another process writes into the folder, or it cannot be made or written.
    """
    # Not `Path.is_dir`, which raises where the system does not take the name: planning says so.
    if not os.path.isdir(options.directory):
        plan_jobs(cases, options)
        check_writable(options.directory)
    with only_writer(options.directory) as held:
        jobs = plan_jobs(cases, options)
        check_writable(options.directory)
        sweep(options.directory)
        yield jobs, held


def segment_cases(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    *,
    resume: bool = False,
    as_good: Sequence[tuple[str, SegmentOptions]] = (),
    progress: WindowProgress | None = None,
    look: Look | None = None,
    held: Held | None = None,
) -> Iterator[Outcome]:
    """Segment and save, in order; a bad case does not stop the others.

    Args:
        jobs: from `plan_jobs`.
        segmenter: used for all of them.
        resume: leave out cases whose earlier result still stands.
        as_good: other graphs, by their hashes, and options whose results stand as well.
        progress: called after each step of windows.
        look: draws the pages that lie beside a label map.
        held: the output folder, as of `claim`.

    Raises:
        OutputError: an output cannot be written, or the output folder is not in its place any more:
            then none of those that follow could be either.
    """
    info = segmenter.backend.info
    settings, *others = (
        {"backend": info.name, **asdict(options)}
        for options in (segmenter.options, *(options for _, options in as_good))
    )
    known = [(info.sha256, settings), *zip((graph for graph, _ in as_good), others, strict=True)]
    keep = partial(save, settings=settings, look=look, held=held)
    waiting = [
        job
        for job in jobs
        if not (resume and any(is_complete(job.plan, job.case, *one) for one in known))
    ]
    left = {id(job) for job in waiting}
    for job in jobs:
        if id(job) not in left:
            yield Outcome(job.case, job.plan)
    with Threads(1) as reader:
        futures = [reader.submit(partial(_load, job.case)) for job in waiting[:1]]
        for index, job in enumerate(waiting):
            loaded = futures.pop()
            if index + 1 < len(waiting):
                futures.append(reader.submit(partial(_load, waiting[index + 1].case)))
            try:
                volume, seconds = loaded.result()
                yield _segment(job, volume, seconds, segmenter, keep, progress)
            except OutputError:
                raise
            except (BratsError, MemoryError) as error:
                # Its traceback holds the frames, and with them the voxels, of a case that is over.
                for one in (error, error.__cause__):
                    if one is not None:
                        one.with_traceback(None)
                told = error if isinstance(error, BratsError) else _too_large(job.case, error)
                yield Outcome(job.case, job.plan, error=told)


def _too_large(case: Case, error: MemoryError) -> ComputeError:
    return ComputeError(
        case.case_id,
        found="too little memory" + (f" ({error})" if str(error) else ""),
        expected="room for the whole case and a batch of windows",
        remedy="check how large its images are, or close other programs",
    )


def _load(case: Case) -> tuple[Volume, float]:
    start = perf_counter()
    return load(case), perf_counter() - start


def _segment(
    job: Job,
    volume: Volume,
    load_seconds: float,
    segmenter: Segmenter,
    keep: Callable[..., dict[str, Any]],
    progress: WindowProgress | None,
) -> Outcome:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(job.case, done, total)

    prediction = segmenter.segment(volume, tell)
    sidecar = keep(prediction, job.plan, load_seconds=load_seconds)
    return Outcome(job.case, job.plan, sidecar)
