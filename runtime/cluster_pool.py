"""Workers of a cluster and the cases that each has in hand; what becomes of both when one dies.

A worker is an actor that Ray has placed somewhere and that has opened its backend. One that dies is
replaced. What it had in hand is run again, on a worker that has nothing else in hand: whoever dies
then has found the case that kills, and no other fails for it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final

from runtime.backends import BackendInfo
from runtime.cluster_actor import Result
from runtime.cohort import Job, Outcome
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    ComputeError,
    DeviceLostError,
    OutputError,
    ProgramError,
    UsageError,
)
from runtime.processes import Told

AT_ONCE: Final = 3
"""Cases of an actor: one is read, one is run, one is written."""
_LOOK_S: Final = 0.2
"""How often a wish to stop is looked for."""
_TRIES: Final = 3
"""Times that a worker is started and dies before it has opened its backend."""
_NOTED_S: Final = 10.0
_PLACED_S: Final = 300.0
"""How long there may be no worker that has room somewhere: first it is told, then it is an error.
"""


@dataclass(frozen=True)
class Need:
    """What a worker takes of a machine."""

    cores: int
    gpus: int

    def __str__(self) -> str:
        return "1 GPU" if self.gpus else f"{self.cores} cores on one machine"


@dataclass(eq=False)
class _Worker:
    actor: Any
    careful: bool
    placed: bool = False
    open: bool = False
    dead: bool = False
    in_hand: int = 0


@dataclass
class Pool:
    """The workers, and the cases that are left.

    Attributes:
        ray: the module, connected.
        make: a new actor, `Segmenting`.
        need: what each takes.
        count: how many there are to be.
        waiting: cases that no worker has had in hand.
        told: what there is to tell beside the cases.
    """

    ray: Any
    make: Callable[[], Any]
    need: Need
    count: int
    waiting: deque[Job]
    told: Told
    lost: deque[Job] = field(default_factory=deque)
    died: int = 0
    _workers: list[_Worker] = field(default_factory=list)
    _asked: dict[Any, tuple[_Worker, str | Job]] = field(default_factory=dict)
    _again: set[Path] = field(default_factory=set)
    _opening_deaths: int = 0
    _info: BackendInfo | None = None
    _ready: bool = False
    _stopping: bool = False
    _alone_since: float = field(default_factory=monotonic)
    _noted: bool = False

    @property
    def busy(self) -> bool:
        """Whether a case is in hand or left, or no worker has opened yet, which is told too."""
        in_hand = any(isinstance(what, Job) for _, what in self._asked.values())
        return in_hand or self._wanted

    @property
    def _wanted(self) -> bool:
        return bool(self.waiting or self.lost) or not (self._ready or self._stopping)

    def stop(self) -> None:
        """Begin no further case."""
        self._stopping = True
        self.waiting.clear()
        self.lost.clear()

    def feed(self) -> None:
        """Start the workers that there should be, and give cases to those that are open.

        Raises:
            BackendUnavailableError: for long no machine had room for a worker.
        """
        while len(self._workers) < self.count and self._wanted:
            worker = _Worker(self.make(), careful=bool(self.lost))
            self._workers.append(worker)
            self._asked[worker.actor.placed.remote()] = worker, "placed"
            self._asked[worker.actor.ready.remote()] = worker, "ready"
        self._check_room()
        for depth in range(AT_ONCE):
            for worker in self._workers:
                if not worker.in_hand:
                    worker.careful = bool(self.lost) and (worker.careful or not self.waiting)
                source = self.lost if worker.careful else self.waiting
                room = 1 if worker.careful else depth + 1
                if worker.open and source and worker.in_hand < room:
                    job = source.popleft()
                    worker.in_hand += 1
                    self._asked[worker.actor.segment.remote(job)] = worker, job

    def heard(self) -> Iterator[Outcome]:
        """Take in what the workers say, for a fifth of a second at most.

        Raises:
            BackendUnavailableError: workers do not start.
            BratsError: a backend cannot be opened, or an output cannot be written.
        """
        done, _ = self.ray.wait(list(self._asked), timeout=_LOOK_S)
        for reference in done:
            worker, what = self._asked.pop(reference)
            if isinstance(what, Job):
                worker.in_hand -= 1
                yield from self._ended(reference, worker, what)
            elif what == "ready":
                self._opened(reference, worker)
            else:
                with suppress(self.ray.exceptions.RayError):  # "ready" tells why
                    self.ray.get(reference)
                    worker.placed = True

    def _opened(self, reference: Any, worker: _Worker) -> None:
        errors = self.ray.exceptions
        try:
            found: BackendInfo | BratsError = self.ray.get(reference)
        except errors.RayError as error:
            self._opening_deaths += 1
            self._forget(worker)
            if isinstance(error, errors.RayTaskError) or self._opening_deaths >= _TRIES:
                self._without(_does_not_start(error))
            return
        if not isinstance(found, BratsError):
            first = self._info = self._info or found
            if (found.sha256, found.name) != (first.sha256, first.name):
                found = _unlike(found, first)
        if isinstance(found, BratsError):
            self._forget(worker)
            self._without(found)
            return
        worker.placed = worker.open = True
        self._opening_deaths = 0
        if not self._ready:
            self._ready = True
            self.told.ready(found, self.count)

    def _without(self, error: BratsError) -> None:
        """Go on with one worker less, if there are others at work.

        Raises:
            BratsError: why there is none, where no other has opened.
        """
        if not any(one.open for one in self._workers):
            raise error
        self.count = max(1, self.count - 1)
        self.told.note(f"a worker less: {error}", None)

    def _ended(self, reference: Any, worker: _Worker, job: Job) -> Iterator[Outcome]:
        try:
            result: Result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            # On its way there or back, such as what cannot be pickled: the worker lives.
            cause = getattr(error, "cause", None) or error
            told = ProgramError.of(job.case.case_id, cause)
            yield Outcome(job.case, job.plan, error=told)
            return
        except self.ray.exceptions.RayError as error:
            yield from self._lost(worker, job, error)
            return
        if isinstance(result.error, OutputError):
            raise result.error
        if isinstance(result.error, DeviceLostError):
            yield from self._lost(worker, job, result.error)
            return
        for text in result.notes:
            self.told.note(text, job.case)
        clock = self.told.clock
        for stage, seconds in zip(("read", "run", "write"), result.spent, strict=True):
            setattr(clock, stage, getattr(clock, stage) + seconds)
        kept = result.kept and job.plan.sidecar not in self._again
        yield Outcome(job.case, job.plan, result.sidecar, result.error, kept)

    def _lost(self, worker: _Worker, job: Job, error: Exception) -> Iterator[Outcome]:
        """A case whose worker is dead, or cannot be heard: others of it may still be told of."""
        first = not worker.dead
        self._forget(worker)
        if self._stopping:
            return  # it counts as not begun
        if worker.careful:
            yield Outcome(job.case, job.plan, error=_killer(job, error))
            return
        if first:
            self.told.note(f"a worker died ({_line(error)}); its cases are run one by one", None)
        # What it wrote of the case and could not tell any more is ours to replace.
        self._again.add(job.plan.sidecar)
        self.lost.append(replace(job, plan=replace(job.plan, overwrite=True)))

    def _forget(self, worker: _Worker) -> None:
        if worker.dead:
            return
        worker.dead = True
        self.died += 1
        self._workers.remove(worker)
        # One that is only out of reach would write what another one is given to write.
        with suppress(self.ray.exceptions.RayError, ValueError):
            self.ray.kill(worker.actor)

    def _check_room(self) -> None:
        if any(worker.placed for worker in self._workers) or not self._workers:
            self._alone_since = monotonic()
            return
        waited = monotonic() - self._alone_since
        if waited < _NOTED_S:
            return
        free, all_of = self.ray.available_resources(), self.ray.cluster_resources()
        kind, name = ("GPU", "GPUs") if self.need.gpus else ("CPU", "cores")
        there = f"{free.get(kind, 0):.0f} of {all_of.get(kind, 0):.0f} {name} free"
        if waited >= _PLACED_S:
            raise BackendUnavailableError(
                "--ray",
                found=f"no room for a worker in {waited:.0f} s: {there}",
                expected=f"{self.need}",
                remedy="wait until other work on the cluster is done, "
                + ("add --device cpu" if self.need.gpus else "lower --threads")
                + ", or add machines",
            )
        if not self._noted:
            self._noted = True
            self.told.note(f"waiting for room on the cluster: {there}, wanted {self.need}", None)


def _does_not_start(error: Exception) -> BackendUnavailableError:
    return BackendUnavailableError(
        "--ray",
        found=f"a worker that does not start ({_line(error)[-200:]})",
        expected="brats-deploy on every machine of the cluster",
        remedy="install the same version there",
    )


def _unlike(info: BackendInfo, first: BackendInfo) -> UsageError:
    """A machine that would write other bytes than the rest."""
    return UsageError(
        "--ray",
        found=f"a worker that runs {_named(info)} beside one that runs {_named(first)}",
        expected="the same file of the model and the same backend on all machines",
        remedy="name them with --backend and --precision, or leave that machine out",
    )


def _named(info: BackendInfo) -> str:
    return f"{info.artefact} in {info.name}"


def _killer(job: Job, error: Exception) -> ComputeError:
    return ComputeError(
        job.case.case_id,
        found=f"the death of the worker that ran it, twice ({_line(error)})",
        expected="a result or an error",
        remedy="check how large its images are and how much memory is free, or run it by itself",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
