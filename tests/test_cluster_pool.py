"""Workers of a cluster and their cases, without Ray: a stand-in runs what it is asked at once, and
lets a worker die with all that it has in hand.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from runtime.backends import BackendInfo, BackendOptions
from runtime.case import Case
from runtime.cluster import Cluster, _pool
from runtime.cluster_actor import Result
from runtime.cluster_folder import Shared
from runtime.cluster_pool import AT_ONCE, Need, Pool
from runtime.cohort import Job, Outcome
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    ComputeError,
    DeviceLostError,
    OutputError,
    ProgramError,
)
from runtime.output_plan import OutputOptions, plan_output
from runtime.processes import Told
from runtime.work import Work


class RayError(Exception):
    pass


class RayTaskError(RayError):
    """Of what a task raised, its ``cause``, with the whole traceback as its text."""

    cause: Exception | None = None


@dataclass(eq=False)
class Actor:
    """One that answers when it is asked for: `Ray.wait` lets one case of it end."""

    ray: "Ray"
    dead: bool = False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(self.asked, method))

    def asked(self, method: str, job: Job | None = None) -> "Reference":
        return Reference(self, method, job)


@dataclass(eq=False)
class Reference:
    actor: Actor
    method: str
    job: Job | None


@dataclass
class Ray:
    """A cluster of two places.

    Attributes:
        kills: cases that kill whoever runs them.
        opens: whether an actor opens its backend, or dies.
        kept: whether every case is said to have been done before.
        infos: what actors give back that open otherwise than the rest, by their numbers.
        fails: cases whose task raises, or gives back an error.
        actors: made so far.
        deaths: the cases that each dead one had in hand.
    """

    kills: set[str] = field(default_factory=set)
    opens: Callable[[Actor], bool] = lambda actor: True
    kept: bool = False
    infos: dict[int, BackendInfo | BratsError] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    actors: list[Actor] = field(default_factory=list)
    deaths: list[set[str]] = field(default_factory=list)
    exceptions: ClassVar[Any] = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def make(self) -> Actor:
        self.actors.append(Actor(self))
        return self.actors[-1]

    def wait(self, asked: list[Reference], timeout: float) -> tuple[list[Reference], None]:
        # The oldest first; a killer dies with all that its actor has in hand.
        first = asked[0]
        if first.job is not None and not first.actor.dead:
            own = [one.job.case.case_id for one in asked if one.actor is first.actor and one.job]
            if self.kills & {*own}:
                first.actor.dead = True
                self.deaths.append({*own})
        return [first], None

    def get(self, reference: Reference) -> Any:
        if reference.method == "placed":
            return None
        if reference.method == "ready":
            if not self.opens(reference.actor):
                reference.actor.dead = True
                raise RayError("it died")
            number = self.actors.index(reference.actor)
            return self.infos.get(number, BackendInfo("ort", "cpu", "fp32", sha256="a" * 64))
        if reference.actor.dead:
            raise RayError("the actor died\nunexpectedly")
        assert reference.job is not None
        name = reference.job.case.case_id
        error = self.fails.get(name)
        if isinstance(error, RayTaskError):
            raise error
        if isinstance(error, BratsError):
            return Result(error=error)
        return Result({"case": name}, kept=self.kept)

    def kill(self, actor: Actor) -> None:
        actor.dead = True


def jobs_of(names: str, folder: Path) -> list[Job]:
    cases = [Case(name, {}) for name in names]
    return [Job(case, plan_output(case, OutputOptions(folder))) for case in cases]


def pool_of(ray: Ray, jobs: list[Job], told: Told | None = None) -> Pool:
    return Pool(ray, ray.make, Need(1, 0), 2, deque(jobs), told or Told())


def run(pool: Pool) -> Iterator[Outcome]:
    while pool.busy:
        pool.feed()
        yield from pool.heard()


def test_a_case_is_blamed_only_for_a_death_that_it_was_alone_at(tmp_path: Path) -> None:
    ray, notes = Ray(kills={"c", "h"}), []
    told = Told(note=lambda text, case: notes.append(text))
    found = {
        one.case.case_id: one for one in run(pool_of(ray, jobs_of("abcdefghij", tmp_path), told))
    }
    assert {name for name, one in found.items() if one.error is not None} == {"c", "h"}
    assert set(found) == set("abcdefghij")
    assert "twice (the actor died unexpectedly)" in str(found["c"].error)
    # Each killed once among others, and once alone.
    assert sorted(len(one) > 1 for one in ray.deaths) == [False, False, True, True]
    assert len(notes) == 2
    assert all(one.sidecar == {"case": name} for name, one in found.items() if not one.error)


def test_what_was_in_hand_may_be_replaced_and_was_not_done_before(tmp_path: Path) -> None:
    ray = Ray(kills={"a"}, kept=True)
    found = {one.case.case_id: one for one in run(pool_of(ray, jobs_of("abcd", tmp_path)))}
    again = ray.deaths[0] - {"a"}
    assert again
    for name in "bcd":
        assert found[name].plan.overwrite == (name in again)
        assert found[name].kept == (name not in again)


def test_no_case_is_given_to_a_worker_that_has_not_opened(tmp_path: Path) -> None:
    ray = Ray()
    ray.opens = lambda actor: ray.actors.index(actor) >= 2
    ready: list[int] = []
    told = Told(ready=lambda info, count: ready.append(count))
    found = list(run(pool_of(ray, jobs_of("abcd", tmp_path), told)))
    assert [one.error for one in found] == [None] * 4
    assert not any(one.plan.overwrite for one in found)  # none was lost
    assert ready == [2]
    ray = Ray(opens=lambda actor: False)
    with pytest.raises(BackendUnavailableError, match="does not start"):
        list(run(pool_of(ray, jobs_of("abcd", tmp_path))))
    assert len(ray.actors) <= 5


def test_what_a_task_raises_is_a_failure_of_its_case(tmp_path: Path) -> None:
    caused = RayTaskError("Traceback:\n  of many\n  lines")
    caused.cause = TypeError("cannot pickle\nit")
    ray = Ray(fails={"b": caused, "c": RayTaskError("bare")})
    pool = pool_of(ray, jobs_of("abcdef", tmp_path))
    found = {one.case.case_id: one.error for one in run(pool)}
    assert set(found) == set("abcdef")
    assert {name for name, error in found.items() if error is not None} == {"b", "c"}
    assert isinstance(found["b"], ProgramError)
    assert found["b"].found == "an error of this program (TypeError: cannot pickle it)"
    assert "RayTaskError: bare" in str(found["c"])
    assert (pool.died, len(ray.actors)) == (0, 2)


NO_ROOM = ComputeError("cuda:0", found="no memory", expected="some", remedy="free it")
OTHERS = {
    "other file": BackendInfo("ort", "cpu", "fp32", sha256="b" * 64),
    "other backend": BackendInfo("openvino", "cpu", "fp32", sha256="a" * 64),
    "does not open": NO_ROOM,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_one_that_opens_otherwise_is_left_out_while_others_work(tmp_path: Path, kind: str) -> None:
    notes: list[str] = []
    told = Told(note=lambda text, case: notes.append(text))
    # One dies in mid-run, and what takes its place is not like the rest.
    ray = Ray(kills={"c"}, infos={2: OTHERS[kind]})
    found = {
        one.case.case_id: one.error
        for one in run(pool_of(ray, jobs_of("abcdefghij", tmp_path), told))
    }
    assert set(found) == set("abcdefghij")
    assert {name for name, error in found.items() if error is not None} == {"c"}
    (note,) = [note for note in notes if note.startswith("a worker less")]
    assert ("no memory" in note) == (kind == "does not open")


def test_none_that_opens_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ComputeError, match="no memory"):
        list(run(pool_of(Ray(infos={0: NO_ROOM, 1: NO_ROOM}), jobs_of("ab", tmp_path))))


def test_a_worker_whose_device_is_lost_is_taken_for_dead(tmp_path: Path) -> None:
    lost = DeviceLostError("cuda:0", found="an error of CUDA", expected="work", remedy="look")
    notes: list[str] = []
    ray = Ray(fails={"b": lost})
    pool = pool_of(
        ray, jobs_of("abcdef", tmp_path), Told(note=lambda text, case: notes.append(text))
    )
    found = {one.case.case_id: one.error for one in run(pool)}
    assert set(found) == set("abcdef")
    # It costs two workers: with others in hand, and alone.
    assert {name for name, error in found.items() if error is not None} == {"b"}
    assert pool.died == 2
    assert any("an error of CUDA" in note for note in notes)


def test_an_output_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    full = OutputError(tmp_path, found="a full disk", expected="room", remedy="make some")
    with pytest.raises(OutputError, match="full disk"):
        list(run(pool_of(Ray(fails={"b": full}), jobs_of("abcdef", tmp_path))))


def test_after_a_wish_to_stop_what_dies_counts_as_not_begun(tmp_path: Path) -> None:
    ray = Ray(kills={"a"})
    pool = pool_of(ray, jobs_of("abcdefgh", tmp_path))
    found: list[Outcome] = []
    while pool.busy:
        if sum(isinstance(what, Job) for _, what in pool._asked.values()) > AT_ONCE:
            pool.stop()
        pool.feed()
        found += pool.heard()
    assert ray.deaths == [{"a", "b", "c"}]
    assert [(one.case.case_id, one.error) for one in found] == [(name, None) for name in "def"]
    assert len(ray.actors) == 2


def cluster_of(resources: dict[str, float]) -> tuple[Any, dict[str, Any]]:
    """A stand-in that places an actor at once, and what was asked for it."""
    given: dict[str, Any] = {}
    ray = SimpleNamespace(
        cluster_resources=lambda: resources,
        remote=lambda **options: (
            given.update(options) or (lambda kind: SimpleNamespace(remote=kind))
        ),
    )
    return ray, given


def pool_on(ray: Any, work: Work, cluster: Cluster = Cluster(threads=8)) -> Pool:  # noqa: B008
    return _pool(ray, [], (work, Shared(work.model, None, ".run")), cluster, Told())


@pytest.mark.parametrize(
    ("device", "resources", "need", "count"),
    [
        ("auto", {"CPU": 32.0, "GPU": 4.0}, Need(0, 1), 4),
        ("cpu", {"CPU": 32.0, "GPU": 4.0}, Need(8, 0), 4),
        ("auto", {"CPU": 31.0}, Need(8, 0), 3),
    ],
)
def test_a_worker_takes_a_gpu_or_its_cores(
    device: str, resources: dict[str, float], need: Need, count: int, tmp_path: Path
) -> None:
    ray, given = cluster_of(resources)
    work = Work(tmp_path, BackendOptions("ort", device))
    pool = pool_on(ray, work)
    assert (pool.need, pool.count) == (need, count)
    assert (given["num_cpus"], given["num_gpus"]) == (need.cores, need.gpus)
    # Ray starts nothing again by itself: it would blame the innocent.
    assert given["max_restarts"] == 0
    assert "max_task_retries" not in given
    with pytest.raises(BackendUnavailableError, match=f"room for {count} workers"):
        pool_on(ray, work, Cluster(workers=count + 1, threads=8))


SERVER = "gpu-server:8001/reference"


@pytest.mark.parametrize(
    ("backend", "gpus", "need", "device"),
    [
        # An address is neither a GPU nor a CPU of the cluster.
        (BackendOptions("triton", SERVER), 0, Need(8, 0), SERVER),
        (BackendOptions("triton", SERVER), 4, Need(8, 0), SERVER),
        # Where one machine would take its CPU, a cluster does too.
        (BackendOptions("auto", "auto", "int8"), 4, Need(8, 0), "cpu"),
        (BackendOptions("ort", "auto", "int8"), 4, Need(8, 0), "cpu"),
        (BackendOptions("openvino"), 4, Need(8, 0), "cpu"),
        (BackendOptions("auto"), 4, Need(0, 1), "cuda:0"),
        (BackendOptions("trt"), 4, Need(0, 1), "cuda:0"),
        (BackendOptions("ort", "cuda", "fp16"), 4, Need(0, 1), "cuda:0"),
        # It is told by whoever opens it.
        (BackendOptions("ort", "cuda", "int8"), 4, Need(0, 1), "cuda:0"),
        (BackendOptions("auto"), 0, Need(8, 0), "cpu"),
    ],
)
def test_a_worker_opens_what_one_machine_would(
    backend: BackendOptions, gpus: int, need: Need, device: str, tmp_path: Path
) -> None:
    ray, given = cluster_of({"CPU": 32.0, "GPU": float(gpus)})
    pool = pool_on(ray, Work(tmp_path, backend))
    assert (pool.need, pool.count) == (need, 4)
    assert (given["num_cpus"], given["num_gpus"]) == (need.cores, need.gpus)
    assert pool.make()._work.backend == replace(backend, device=device, threads=8)


@pytest.mark.parametrize("backend", [BackendOptions("ort", "cuda"), BackendOptions("trt")])
def test_no_cpu_for_who_names_a_gpu(backend: BackendOptions, tmp_path: Path) -> None:
    ray, _ = cluster_of({"CPU": 32.0})
    with pytest.raises(BackendUnavailableError, match=r"32 cores, 0 GPUs, .* a GPU; use"):
        pool_on(ray, Work(tmp_path, backend))
