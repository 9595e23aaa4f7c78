"""A cohort on several devices of one machine: a process for each, and one queue for all of them.

The queue is this process's alone, and a worker is told of a few cases ahead: no lock is shared
that a killed worker could take with it. What a worker had in hand when it died is run again, by a
new one in its place and then one case at a time, so that a case that kills whoever runs it is found
and told like any other that fails.
"""

import multiprocessing
import os
import queue
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
from runtime.cohort import How, Job, Outcome, segment_cases
from runtime.errors import BackendUnavailableError, BratsError, ComputeError
from runtime.lock import Held
from runtime.pipeline import Clock, Limits
from runtime.work import Work

_LIMITS: Final = Limits()
_AHEAD: Final = _LIMITS.ahead + _LIMITS.writers + 3
"""Cases that a worker is told of and has not ended: enough for its pipeline never to wait."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_LOOK_S: Final = 0.2
"""How often a wish to stop is looked for."""
_TRIES: Final = 3
"""Times that a worker is started and dies before it has opened its backend."""

Note = Callable[[str, Case | None], None]


@dataclass
class Told:
    """What the workers tell beside the cases.

    Attributes:
        clock: how long their stages have been at work, all of them together.
        note: something worth knowing that is no error.
        ready: called once, with what the first worker that is ready runs on and how many there are.
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
    careful: bool = False
    dismissed: bool = False
    stopped: bool = False
    ready: bool = False
    in_hand: dict[Path, Job] = field(default_factory=dict)
    spent: tuple[float, float, float] = (0.0, 0.0, 0.0)


def segment_in_processes(
    jobs: Sequence[Job],
    works: Sequence[Work],
    folder: Path,
    told: Told | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Segment and save as `segment_cases` does, a process for each of ``works``.

    Args:
        jobs: from `plan_jobs`.
        works: one for each process; its device and its share of threads and memory are in it.
        folder: the output folder, whose only writer this process is.
        told: what else there is to tell.
        stopping: once it is true no further case is begun.

    Yields:
        Cases as they are done.

    Raises:
        BratsError: a backend cannot be opened, or an output cannot be written.
        ComputeError: workers die before they have opened their backend.
    """
    told = told or Told()
    pool = _Pool(deque(jobs), folder, told)
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
    folder: Path
    told: Told
    workers: list[_Worker] = field(default_factory=list)
    lost: deque[Job] = field(default_factory=deque)
    again: set[Path] = field(default_factory=set)
    deaths: int = 0
    ready: bool = False
    stopping: bool = False
    before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def start(self, work: Work, careful: bool = False) -> None:
        """A worker, in a process that shares nothing with this one."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, work, self.folder), daemon=True)
        with _ignored():
            process.start()
        theirs.close()
        self.workers.append(_Worker(work, process, ours, careful))

    def feed(self) -> None:
        """Tell the workers of cases; those that there are none left for are let go."""
        for worker in self.workers:
            source = self.lost if worker.careful else self.waiting
            room = 1 if worker.careful else _AHEAD
            while source and not worker.dismissed and len(worker.in_hand) < room:
                job = source.popleft()
                worker.in_hand[job.plan.sidecar] = job
                self._send(worker, job)
            if worker.careful and not self.lost and not worker.in_hand:
                worker.careful = False
                continue
            if not source and not worker.careful and not worker.dismissed:
                worker.dismissed = True
                self._send(worker, None)

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
            worker.ready = True
            self.deaths = 0
            if not self.ready:
                self.ready = True
                self.told.ready(parts[0], len(self.workers))
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
        else:
            raise parts[0]

    def _died(self, worker: _Worker) -> Iterator[Outcome]:
        worker.process.join()
        code = worker.process.exitcode or 0
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._forget(worker)
        with suppress(BratsError):
            sweep(self.folder)
        if self.stopping:
            return  # what it had in hand counts as not begun
        self.deaths += not worker.ready
        if self.deaths >= _TRIES:
            raise ComputeError(
                worker.work.backend.device,
                found=f"{_TRIES} processes that died ({why}) before they had opened it",
                expected="one that runs",
                remedy="run one case by itself to see what is wrong, or check the memory",
            )
        jobs = list(worker.in_hand.values())
        if worker.careful and worker.ready and len(jobs) == 1:
            yield Outcome(jobs[0].case, jobs[0].plan, error=_killer(jobs[0].case, why))
            jobs = []
        if jobs:
            self.told.note(f"a process died ({why}); its cases are run again one by one", None)
        # What it wrote of a case and could not tell any more is ours to replace.
        self.again.update(job.plan.sidecar for job in jobs)
        self.lost.extend(replace(job, plan=replace(job.plan, overwrite=True)) for job in jobs)
        if self.lost or self.waiting:
            self.start(worker.work, careful=bool(self.lost))

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
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


@contextmanager
def _ignored() -> Iterator[None]:
    """Let a process that is started be deaf to the terminal's Ctrl-C from its first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
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


def _serve(connection: Connection, work: Work, folder: Path) -> None:
    """A worker's life: open, segment what it is told of, say what became of it."""
    # A person's Ctrl-C reaches every process of the terminal; the first one says what is done.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    from runtime.cli.console import rest_idle_threads

    rest_idle_threads()
    inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    stop = threading.Event()

    def listen() -> None:
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # nobody is left to tell
            if message == "stop":
                stop.set()
                message = None
            inbox.put(message)

    lock = threading.Lock()

    def say(*message: Any) -> None:
        with lock, suppress(OSError):
            connection.send(message)

    clock = Clock()
    try:
        with work.opened() as segmenter:
            say("ready", segmenter.backend.info)
            threading.Thread(target=listen, daemon=True).start()
            descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
            how = How(
                resume=work.resume,
                as_good=work.as_good,
                look=work.pages.look(lambda text, case: say("note", text, case)),
                held=Held(folder, descriptor),
                room=work.room(),
                stopping=stop.is_set,
                ready=lambda: not inbox.empty(),
            )
            for outcome in segment_cases(iter(inbox.get, None), segmenter, how, clock):
                spent = (clock.read, clock.run, clock.write)
                key = outcome.plan.sidecar
                say("ended", key, outcome.sidecar, outcome.error, outcome.kept, spent)
        say("finished")
    except BratsError as error:
        say("failed", error)
    except Exception as error:
        say("failed", BackendUnavailableError(
            work.backend.device,
            found=f"{type(error).__name__}: {error}",
            expected="a process that runs",
            remedy="run without several devices to see where it comes from",
        ))  # fmt: skip
