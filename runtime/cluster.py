"""A cohort on a Ray cluster: actors hold a segmenter each, cases are their tasks.

Ray places the actors and tells of those that were killed. All machines must see the same paths: the
cases', the model's and the output folder's.
"""

import importlib
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from runtime.atomic import sweep
from runtime.backends import may_take_gpu
from runtime.cluster_actor import Segmenting
from runtime.cluster_folder import Shared, shared
from runtime.cluster_pool import AT_ONCE, Need, Pool
from runtime.cohort import Job, Outcome
from runtime.cores import core_limit
from runtime.errors import BackendUnavailableError, BratsError
from runtime.lock import Held
from runtime.processes import Told
from runtime.work import Work

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
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


def segment_on_ray(
    jobs: Sequence[Job],
    work: Work,
    folder: Held,
    cluster: Cluster | None = None,
    told: Told | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Segment and save as `segment_cases` does, on the actors of a Ray cluster.

    Args:
        jobs: from `plan_jobs`.
        work: what is to be done with each.
        folder: the output folder, whose only writers this process and its actors are. They look
            for a hidden file of this process before each write.
        cluster: where.
        told: what else there is to tell.
        stopping: once it is true no further case is begun.

    Yields:
        Cases as they are done.

    Raises:
        BackendUnavailableError: Ray is not installed, the cluster is not there or has no room, or
            workers do not start.
        OutputError: an output cannot be written, or a machine does not see the folder in its place.
        BratsError: a backend cannot be opened.
    """
    cluster, told = cluster or Cluster(), told or Told()
    ray = _connected(cluster.address)
    try:
        with shared(folder) as seen:
            pool = _pool(ray, jobs, (work, seen), cluster, told)
            while pool.busy:
                if stopping():
                    pool.stop()
                    if not pool.busy:
                        break
                pool.feed()
                yield from pool.heard()
            # Nobody writes any more: neither an actor that died, nor one of a killed command, which
            # may have lived a little longer than that.
            with suppress(BratsError):
                sweep(folder.directory)
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


def _pool(
    ray: Any, jobs: Sequence[Job], doing: tuple[Work, Shared], cluster: Cluster, told: Told
) -> Pool:
    (work, folder), backend = doing, doing[0].backend
    resources = ray.cluster_resources()
    gpus, cores = (int(resources.get(kind, 0)) for kind in ("GPU", "CPU"))
    named = backend.backend == "trt" or backend.device.startswith("cuda")
    on_gpus = may_take_gpu(backend) and (gpus > 0 or named)
    room = gpus if on_gpus else cores // cluster.threads
    count = cluster.workers or room
    if not 1 <= count <= room:
        raise BackendUnavailableError(
            f"--ray {cluster.address}",
            found=f"room for {room} workers: {cores} cores, {gpus} GPUs",
            expected=f"{max(count, 1)} workers of {cluster.threads} threads"
            + (" and a GPU" if on_gpus else ""),
            remedy=("use --device cpu" if on_gpus else "lower --threads")
            + " or lower --workers, or add machines",
        )
    need = Need(0, 1) if on_gpus else Need(cluster.threads, 0)
    made = ray.remote(
        num_cpus=need.cores, num_gpus=need.gpus, max_restarts=0, max_concurrency=AT_ONCE
    )(Segmenting)
    device = "cuda:0" if on_gpus else "cpu"
    if backend.backend == "triton":
        device = backend.device  # a server's address
    own = replace(work.on(device, cluster.threads, share=1), model=work.model.absolute())
    make = partial(made.remote, own, folder)
    return Pool(ray, make, need, count, deque(jobs), told)
