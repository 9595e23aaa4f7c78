"""Where a cohort is run: in this process, in one for each device, or on a cluster."""

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.backends import Backend
from runtime.cohort import How, Job, Outcome, segment_cases
from runtime.cores import core_limit
from runtime.errors import UsageError
from runtime.lock import Held
from runtime.processes import Told, segment_in_processes
from runtime.work import Work

if TYPE_CHECKING:
    from runtime.cli.infer import InferArgs
    from runtime.cli.infer_log import InferLog
    from runtime.cli.infer_view import InferView

MAX_PROCESSES: Final = 64
"""Devices that one machine may have."""
_CLUSTER_THREADS: Final = 4
"""CPU threads of a worker on a cluster, unless --threads says otherwise."""


@dataclass(frozen=True)
class Running:
    """A cohort that is about to be run.

    Attributes:
        work: what is done with each case.
        given: a backend that is open already; None to open one.
        folder: the output folder.
        told: what there is to tell beside the cases.
        stopping: whether to begin no further case.
    """

    work: Work
    given: Backend | None
    folder: Held
    told: Told
    stopping: Callable[[], bool]


def check_cohort_flags(options: "InferArgs") -> None:
    """Refuse flags that cannot go together, or mean nothing.

    Raises:
        UsageError: names them.
    """
    devices, several = options.devices, len(options.devices) > 1
    wrong: list[tuple[bool, str, object, str, str]] = [
        (
            "" in devices or len(devices) > MAX_PROCESSES,
            "--device",
            options.device or "nothing",
            f"auto, cpu or cuda:N, or up to {MAX_PROCESSES} with commas between them",
            "drop --device",
        ),
        (
            several and options.backend == "triton",
            "--device",
            f"{len(devices)} servers",
            "one, which spreads its work over its own GPUs",
            "name one of them",
        ),
        (
            # Certified fp16 on one and fp32 on the other: no cohort, and --resume keeps neither.
            len({device.partition(":")[0] for device in devices}) > 1,
            "--device",
            options.device,
            "devices of one kind, such as cuda:0,cuda:1, whose results are the same",
            "name only GPUs or only cpu, or give each a --part of the cases and its own folder",
        ),
        (
            options.ray is not None
            and options.backend != "triton"
            and options.device not in ("auto", "cpu", "cuda"),
            "--device",
            f"{options.device} beside --ray",
            "auto, cpu or cuda: a cluster chooses among its GPUs itself",
            "name one of them",
        ),
        (
            options.budget is not None and (several or options.ray is not None),
            "--budget",
            "several devices as well",
            "one device, on which it is measured",
            "choose a --quality for them",
        ),
        (
            options.memory is not None and options.ray is not None,
            "--memory",
            "--ray as well",
            "one of them: the cluster's machines have memory of their own",
            "drop --memory, or take fewer --workers",
        ),
        (
            options.workers is not None and options.ray is None,
            "--workers",
            "no --ray",
            "a cluster that has workers",
            "name devices with --device, or add --ray auto",
        ),
        (
            options.workers is not None and options.workers < 1,
            "--workers",
            options.workers,
            "1 or more",
            "drop --workers",
        ),
    ]
    for is_wrong, where, found, expected, remedy in wrong:
        if is_wrong:
            raise UsageError(where, found=str(found), expected=expected, remedy=remedy)


def segmented(
    options: "InferArgs", running: Running, jobs: Sequence[Job], view: "InferLog | InferView"
) -> Generator[Outcome]:
    """The cases as they are done, wherever the flags say that they are to be run."""
    work, told, stopping = running.work, running.told, running.stopping
    if options.ray is not None:
        from runtime.cluster import Cluster, segment_on_ray

        threads = options.threads or _CLUSTER_THREADS
        cluster = Cluster(options.ray, options.workers or 0, threads)
        yield from segment_on_ray(jobs, work, running.folder, cluster, told, stopping)
    elif len(options.devices) > 1:
        share = len(options.devices)
        # They share the cores that this process was given.
        threads = max(1, (options.threads or core_limit() or os.cpu_count() or 1) // share)
        works = [work.on(device, threads, share) for device in options.devices]
        yield from segment_in_processes(jobs, works, running.folder, told, stopping)
    else:
        with work.opened(running.given) as segmenter:
            told.ready(segmenter.backend.info, 1)
            how = How(
                resume=work.resume,
                as_good=work.as_good,
                progress=view.progress,
                look=work.pages.look(view.note),
                held=running.folder,
                room=work.room(view.note),
                stopping=stopping,
            )
            yield from segment_cases(jobs, segmenter, how, told.clock)
