"""A cohort on several devices of one machine: a process for each, and one queue for all of them.

The queue is this process's alone, and a worker is told of a few cases ahead: no lock is shared
that a killed worker could take with it. What a worker had in hand when it died is run again, by a
new one in its place or by the others, and then one case at a time, so that a case that kills
whoever runs it is found and told like any other that fails. No case is run before every device has
opened the same file; one that is lost later leaves the cases to those that are left.
"""

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from runtime.atomic import sweep
from runtime.backends import BackendInfo
from runtime.case import Case
from runtime.cohort import Job, Outcome
from runtime.errors import BratsError, ComputeError, OutputError, UsageError
from runtime.lock import Held
from runtime.pipeline import Clock, Limits
from runtime.process_worker import SIGNALS, serve
from runtime.work import Work

_LIMITS: Final = Limits()
_AHEAD: Final = _LIMITS.ahead + _LIMITS.writers + 3
"""Cases that a worker is told of and has not ended: enough for its pipeline never to wait."""
_FEW: Final = 2
"""The same where hardly any are left, which are for whoever comes to them first."""
_LOOK_S: Final = 0.2
"""How often a wish to stop is looked for."""
_END_S: Final = 5.0
"""How long a process that is done with may take to end."""
_TRIES: Final = 3
"""Times that a worker is started and dies before it has opened its backend."""

Note = Callable[[str, Case | None], None]


@dataclass
class Told:
    """What the workers tell beside the cases.

    Attributes:
        clock: how long their stages have been at work, all of them together.
        note: something worth knowing that is no error.
        ready: called once, when the workers are, with what the first of them runs on and how many
            there are.
    """

    clock: Clock = field(default_factory=Clock)
    note: Note = lambda text, case: None
    ready: Callable[[BackendInfo, int], None] = lambda info, processes: None


@dataclass
class _Worker:
    """A process and the cases that it has been told of."""

    work: Work
    process: BaseProcess
    connection: Connection
    deaths: int = 0  # in a row, of those in whose place it is, before they were ready
    careful: bool = False
    dismissed: bool = False
    stopped: bool = False
    ready: bool = False
    in_hand: dict[Path, Job] = field(default_factory=dict)
    spent: tuple[float, float, float] = (0.0, 0.0, 0.0)


def segment_in_processes(
    jobs: Sequence[Job],
    works: Sequence[Work],
    folder: Held,
    told: Told | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Segment and save as `segment_cases` does, a process for each of ``works``.

    Args:
        jobs: from `plan_jobs`.
        works: one for each process; its device and its share of threads and memory are in it.
        folder: the output folder, as of `claim`.
        told: what else there is to tell.
        stopping: once it is true no further case is begun.

    Yields:
        Cases as they are done.

    Raises:
        BratsError: a backend cannot be opened, before any case is run or when no other is left.
        ComputeError: the same, where workers die before they have opened it.
        UsageError: not all of them open the same file of the model with the same backend.
        OutputError: an output cannot be written, or the folder is not in its place any more.
    """
    told = told or Told()
    pool = _Pool(deque(jobs), folder, told, len(works))
    try:
        for work in works:
            pool.start(work)
        while pool.workers:
            if stopping():
                pool.stop()
            pool.feed()
            by_connection = {worker.connection: worker for worker in pool.workers}
            for ready in wait(list(by_connection), timeout=_LOOK_S):
                yield from pool.heard(by_connection[ready])  # type: ignore[index]
    finally:
        pool.end()


@dataclass
class _Pool:
    waiting: deque[Job]
    folder: Held
    told: Told
    count: int
    workers: list[_Worker] = field(default_factory=list)
    lost: deque[Job] = field(default_factory=deque)
    again: set[Path] = field(default_factory=set)
    info: BackendInfo | None = None
    begun: bool = False
    stopping: bool = False
    before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def start(self, work: Work, deaths: int = 0) -> None:
        """A worker, in a process that shares nothing with this one."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        given = (theirs, work, self.folder.directory, self.folder.identity)
        process = context.Process(target=serve, args=given, daemon=True)
        with _ignored():
            process.start()
        theirs.close()
        self.workers.append(_Worker(work, process, ours, deaths, careful=bool(self.lost)))

    def feed(self) -> None:
        """Tell the workers of cases, each of one more in turn, and let them go in the end."""
        if not self.begun or self.stopping:
            return
        for depth in range(_AHEAD):
            for worker in self.workers:
                if not worker.in_hand:
                    worker.careful = bool(self.lost) and (worker.careful or not self.waiting)
                source = self.lost if worker.careful else self.waiting
                room = 1 if worker.careful else min(depth + 1, self._room())
                if worker.ready and source and len(worker.in_hand) < room:
                    job = source.popleft()
                    worker.in_hand[job.plan.sidecar] = job
                    self._send(worker, job)
        # What one has in hand may become another's, who stays until then.
        if self.waiting or self.lost or any(worker.in_hand for worker in self.workers):
            return
        for worker in list(self.workers):
            if not worker.ready:
                self._drop(worker)  # nobody waits for it any more
            elif not worker.dismissed:
                worker.dismissed = True
                self._send(worker, None)

    def _room(self) -> int:
        """Cases that a worker may have in hand: a slow one is not to sit on many in the end."""
        return min(_AHEAD, _FEW + len(self.waiting) // (2 * len(self.workers)))

    def stop(self) -> None:
        """Let every worker finish what it runs, and begin nothing more."""
        self.stopping = True
        self.waiting.clear()
        self.lost.clear()
        for worker in self.workers:
            if not worker.stopped:
                worker.stopped = worker.dismissed = True
                self._send(worker, "stop")

    def heard(self, worker: _Worker) -> Iterator[Outcome]:
        """Take in what a worker says, or that it is dead."""
        try:
            kind, *parts = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._died(worker)
            return
        if kind == "ready":
            self._opened(worker, parts[0])
        elif kind == "note":
            self.told.note(*parts)
        elif kind == "ended":
            key, sidecar, error, kept, worker.spent = parts
            job = worker.in_hand.pop(key)
            self._clock()
            yield Outcome(job.case, job.plan, sidecar, error, kept and key not in self.again)
        elif kind == "finished":
            self._forget(worker)
            worker.process.join()
        elif isinstance(parts[0], OutputError):
            raise parts[0]
        elif worker.ready:
            yield from self._died(worker, parts[0].found)
        else:
            self._drop(worker)
            self._without(worker, parts[0])

    def _opened(self, worker: _Worker, info: BackendInfo) -> None:
        worker.ready = True
        worker.deaths = 0
        first = self.info = self.info or info
        if (info.sha256, info.name) != (first.sha256, first.name):
            self._drop(worker)
            self._without(worker, _unlike(info, first))
            return
        if not self.begun and all(one.ready for one in self.workers):
            self.begun = True
            self.told.ready(first, self.count)

    def _died(self, worker: _Worker, why: str = "") -> Iterator[Outcome]:
        _end(worker.process)
        code = worker.process.exitcode or 0
        why = why or (f"signal {-code}" if code < 0 else f"exit code {code}")
        self._forget(worker)
        self.folder.check()
        with suppress(BratsError):
            sweep(self.folder.directory)
        if self.stopping:
            return  # what it had in hand counts as not begun
        deaths = worker.deaths + (not worker.ready)
        if deaths >= _TRIES:
            self._without(worker, _never_opened(worker.work, why))
            return
        jobs = list(worker.in_hand.values())
        if worker.careful and worker.ready and len(jobs) == 1:
            yield Outcome(jobs[0].case, jobs[0].plan, error=_killer(jobs[0].case, why))
            jobs = []
        if jobs:
            self.told.note(f"a process died ({why}); its cases are run again one by one", None)
        # What it wrote of a case and could not tell any more is ours to replace.
        self.again.update(job.plan.sidecar for job in jobs)
        self.lost.extend(replace(job, plan=replace(job.plan, overwrite=True)) for job in jobs)
        if self.lost or self.waiting or not self.begun:
            self.start(worker.work, deaths)

    def _without(self, worker: _Worker, error: BratsError) -> None:
        """Go on without the device of a worker that is gone for good, if there is another.

        Raises:
            BratsError: what is wrong with it, where there is none, or no case has been run.
        """
        if not self.begun or not (self.workers or self.stopping):
            raise error
        if not self.stopping:
            self.told.note(f"a device is lost, its cases are left to the others: {error}", None)

    def _drop(self, worker: _Worker) -> None:
        self._forget(worker)  # which it takes for the end
        worker.process.kill()
        worker.process.join()

    def _forget(self, worker: _Worker) -> None:
        worker.connection.close()
        self.workers.remove(worker)
        self.before = _sum(self.before, worker.spent)
        worker.spent = (0.0, 0.0, 0.0)
        self._clock()

    def _clock(self) -> None:
        total = self.before
        for worker in self.workers:
            total = _sum(total, worker.spent)
        clock = self.told.clock
        clock.read, clock.run, clock.write = total

    @staticmethod
    def _send(worker: _Worker, message: Any) -> None:
        # Its death is heard of where it is listened to.
        with suppress(OSError):
            worker.connection.send(message)

    def end(self) -> None:
        """Leave no process behind, however this one ends."""
        for worker in self.workers:
            worker.connection.close()  # which it takes for the end
        for worker in self.workers:
            _end(worker.process)


def _end(process: BaseProcess) -> None:
    process.join(_END_S)
    if process.is_alive():
        process.kill()
        process.join()


@contextmanager
def _ignored() -> Iterator[None]:
    """Let a process that is started be deaf to the terminal's Ctrl-C from its first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sum(
    a: tuple[float, float, float], b: tuple[float, float, float]
) -> tuple[float, float, float]:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _killer(case: Case, why: str) -> ComputeError:
    return ComputeError(
        case.case_id,
        found=f"the death of the process that ran it ({why}), twice",
        expected="a result or an error",
        remedy="check how large its images are and how much memory is free, or run it by itself",
    )


def _never_opened(work: Work, why: str) -> ComputeError:
    return ComputeError(
        work.backend.device,
        found=f"{_TRIES} processes that died ({why}) before they had opened it",
        expected="one that runs",
        remedy="run one case by itself to see what is wrong, or check the memory",
    )


def _unlike(info: BackendInfo, first: BackendInfo) -> UsageError:
    return UsageError(
        "--device",
        found=f"{info.artefact} in {info.name} on {info.device}, and {first.artefact} in "
        f"{first.name} on {first.device}",
        expected="one file of the model and one backend on all devices, as results may differ",
        remedy="name devices of one kind, or choose --backend and --precision that all of them run",
    )
