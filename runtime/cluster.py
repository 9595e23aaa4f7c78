"""A cohort on a Ray cluster: actors hold a segmenter each, cases are their tasks.

Ray places the actors, starts a new one where one was killed and runs its tasks again. All machines
must see the same paths: the cases', the model's and the output folder's.
"""

import importlib
import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from runtime.backends import BackendInfo
from runtime.bounded import read_json
from runtime.cohort import Job, Outcome, settings_of
from runtime.cores import core_limit
from runtime.errors import BackendUnavailableError, BratsError, ComputeError, OutputError
from runtime.nifti import load
from runtime.output_plan import is_complete
from runtime.prediction import save
from runtime.processes import Told
from runtime.segmenter import Segmenter
from runtime.work import Work

_AT_ONCE: Final = 3
"""Cases of an actor: one is read, one is run, one is written."""
_RETRIES: Final = 2
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_LOOK_S: Final = 0.2
_REACH_S: Final = 10.0


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and what of it.

    Attributes:
        address: "auto" takes the one that this machine belongs to, or else starts one on it alone;
            otherwise as `ray.init` takes it.
        workers: actors; 0 takes a GPU for each or, where there is none or a CPU is asked for, as
            many as the threads of each leave room for.
        threads: CPU threads of each. They do not depend on where an actor runs, so that a case
            becomes the same bytes everywhere.
    """

    address: str = "auto"
    workers: int = 0
    threads: int = 4


@dataclass(frozen=True)
class _Result:
    """What an actor has made of a case: `Outcome` without what its caller knows."""

    sidecar: dict[str, Any] | None = None
    error: BratsError | None = None
    kept: bool = False
    notes: tuple[str, ...] = ()
    spent: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Segmenting:
    """An actor. Its network runs one case at a time; others are read and written beside it."""

    def __init__(self, work: Work, folder: Path) -> None:
        self._work = work
        self._folder = folder
        self._held = ExitStack()
        self._opened: Segmenter | None = None
        self._opening = threading.Lock()
        self._running = threading.Lock()

    def ready(self) -> BackendInfo | BratsError:
        """Open the backend; an error is given back, as Ray would wrap it."""
        try:
            if not os.path.isdir(self._folder):
                return OutputError(
                    self._folder,
                    found=f"no such folder on {platform.node()}",
                    expected="one that every machine of the cluster sees",
                    remedy="choose a folder on a file system that they share",
                )
            return self._segmenter().backend.info
        except BratsError as error:
            return error

    def segment(self, job: Job) -> _Result:
        """Read, segment and save a case."""
        try:
            return self._segment(job)
        except BratsError as error:
            return _Result(error=error.with_traceback(None))
        except MemoryError:
            return _Result(error=ComputeError(
                job.case.case_id,
                found="too little memory",
                expected="room for the whole case and a batch of windows",
                remedy="check how large its images are, or take fewer workers for a machine",
            ))  # fmt: skip

    def _segment(self, job: Job) -> _Result:
        segmenter, work = self._segmenter(), self._work
        info = segmenter.backend.info
        settings = settings_of(info.name, work.options)
        if work.resume and is_complete(job.plan, job.case, info.sha256, settings):
            return _Result(read_json(job.plan.sidecar), kept=True)
        began = perf_counter()
        volume = load(job.case)
        read = perf_counter()
        with self._running:
            started = perf_counter()
            prediction = segmenter.segment(volume)
            ran = perf_counter()
        notes: list[str] = []
        look = work.pages.look(lambda text, case: notes.append(text))
        # What it left of the case when it was killed is ours to replace.
        plan = replace(job.plan, overwrite=True)
        sidecar = save(prediction, plan, settings, read - began, look)
        spent = (read - began, ran - started, perf_counter() - ran)
        return _Result(sidecar, notes=tuple(notes), spent=spent)

    def _segmenter(self) -> Segmenter:
        with self._opening:
            if self._opened is None:
                self._opened = self._held.enter_context(self._work.opened())
            return self._opened


def segment_on_ray(
    jobs: Sequence[Job],
    work: Work,
    folder: Path,
    cluster: Cluster | None = None,
    told: Told | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Segment and save as `segment_cases` does, on the actors of a Ray cluster.

    Args:
        jobs: from `plan_jobs`.
        work: what is to be done with each.
        folder: the output folder, whose only writer this process and its actors are.
        cluster: where.
        told: what else there is to tell.
        stopping: once it is true no further case is begun.

    Yields:
        Cases as they are done.

    Raises:
        BackendUnavailableError: Ray is not installed, the cluster is not there or has no room.
        BratsError: a backend cannot be opened, or an output cannot be written.
    """
    cluster, told = cluster or Cluster(), told or Told()
    ray = _connected(cluster.address)
    try:
        actors = _actors(ray, work, folder, cluster)
        waiting = deque(jobs)
        pending: dict[Any, tuple[Any, Job]] = {}
        told.ready(_opened(ray, actors), len(actors))
        free = deque(actor for _ in range(_AT_ONCE) for actor in actors)
        while pending or (waiting and not stopping()):
            while free and waiting and not stopping():
                actor, job = free.popleft(), waiting.popleft()
                pending[actor.segment.remote(job)] = actor, job
            if not pending:
                break  # the wish to stop came between the two lines above
            done, _ = ray.wait(list(pending), timeout=_LOOK_S)
            for reference in done:
                actor, job = pending.pop(reference)
                free.append(actor)
                yield _outcome(ray, reference, job, told)
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    """Ray, connected."""
    # Otherwise it reports how it is used, and takes the GPUs from processes that reserve none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise BackendUnavailableError(
            "--ray",
            found=f"no Ray ({error})",
            expected="the package ray",
            remedy="install brats-deploy[ray]",
        ) from error
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "include_dashboard": False,
        "num_cpus": core_limit() or os.cpu_count(),
    }
    # Ray ends the process at SIGTERM; what is in hand is to be finished.
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS} if in_main else {}
    try:
        if address != "auto":
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return ray
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        except ConnectionError:
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise BackendUnavailableError(
            f"--ray {address}",
            found=f"no cluster ({' '.join(str(error).split())[:200]})",
            expected="one that can be reached",
            remedy="start it with ray start --head, or use --ray auto",
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ray


def _reach(address: str) -> None:
    """See that somebody listens there: Ray would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()


def _actors(ray: Any, work: Work, folder: Path, cluster: Cluster) -> list[Any]:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if work.backend.device != "cpu" else 0
    room = gpus or int(resources.get("CPU", 0)) // cluster.threads
    count = cluster.workers or room
    if not 1 <= count <= room:
        raise BackendUnavailableError(
            f"--ray {cluster.address}",
            found=f"room for {room} workers: {resources.get('CPU', 0):.0f} cores, {gpus} GPUs",
            expected=f"{max(count, 1)} workers of {cluster.threads} threads"
            + (" and a GPU" if gpus else ""),
            remedy="lower --threads or --workers, or add machines",
        )
    device = "cuda:0" if gpus else "cpu"
    made = ray.remote(
        num_cpus=0 if gpus else cluster.threads,
        num_gpus=1 if gpus else 0,
        max_restarts=-1,
        max_task_retries=_RETRIES,
        max_concurrency=_AT_ONCE,
    )(Segmenting)
    own = replace(work.on(device, cluster.threads, share=1), model=work.model.absolute())
    return [made.remote(own, folder.absolute()) for _ in range(count)]


def _opened(ray: Any, actors: Sequence[Any]) -> BackendInfo:
    """What the first actor runs on, once all of them can run."""
    try:
        found: list[BackendInfo | BratsError] = ray.get([actor.ready.remote() for actor in actors])
    except ray.exceptions.RayError as error:
        raise BackendUnavailableError(
            "--ray",
            found=f"a worker that does not start ({' '.join(str(error).split())[-200:]})",
            expected="brats-deploy on every machine of the cluster",
            remedy="install the same version there",
        ) from error
    infos = []
    for one in found:
        if isinstance(one, BratsError):
            raise one
        infos.append(one)
    return infos[0]


def _outcome(ray: Any, reference: Any, job: Job, told: Told) -> Outcome:
    try:
        result: _Result = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise  # of this program, not of the cluster
    except ray.exceptions.RayError as error:
        result = _Result(error=ComputeError(
            job.case.case_id,
            found=f"the death of the worker that ran it, {_RETRIES + 1} times "
            f"({' '.join(str(error).split())[:200]})",
            expected="a result or an error",
            remedy="check how large its images are and how much memory is free",
        ))  # fmt: skip
    if isinstance(result.error, OutputError):
        raise result.error
    for text in result.notes:
        told.note(text, job.case)
    clock = told.clock
    for stage, seconds in zip(("read", "run", "write"), result.spent, strict=True):
        setattr(clock, stage, getattr(clock, stage) + seconds)
    return Outcome(job.case, job.plan, result.sidecar, result.error, result.kept)
