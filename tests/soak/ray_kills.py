"""Kills the command of a cohort on a Ray cluster with SIGKILL, and has it resumed at once.

python -m tests.soak.ray_kills CASES MODEL OUT KILLS SEED

Its workers are none of its processes: on a cluster that stands they live on until Ray hears of the
death, and the command that resumes may meet them at work in its folder. One kill in four is of a
command that has a cluster of its own. Prints figures as JSON, as `tests.soak.cohort_kills` does.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psutil

from tests.soak.cohort_kills import ATTEMPTS, Killer, Way

WORKERS: Final = ("--workers", "2")
OWN: Final = Way(("--ray", "auto", *WORKERS), alone=True, at_once=True)


class RayKiller(Killer):
    """Counts, too, how many kills left workers behind."""

    left_at_work = 0

    def others(self, process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
        """Those who write; Ray's own agents of a cluster that is killed last a little longer."""
        found = actors()
        self.left_at_work += bool(found)
        return found


def actors() -> list[psutil.Process]:
    """Workers of the clusters below this process, the command's own and the one that stands."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::Segmenting" in "".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(killer: RayKiller, ways: list[Way]) -> None:
    """Once in each way, each in a stretch of its own of the run."""
    stretches = list(range(len(ways)))
    killer.chance.shuffle(stretches)
    for way, stretch in zip(ways, stretches, strict=True):
        moment = (stretch + killer.chance.random()) / len(ways)
        # Nearer to the start where it has ended before.
        any(killer.kill(way, moment * 0.8**attempt) for attempt in range(ATTEMPTS))


def stood(ray: Any) -> Way:
    """A cluster of this process, for commands that say where it is."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    address = ray.get_runtime_context().gcs_address
    return Way(("--ray", address, *WORKERS), alone=True, at_once=True)


def main(arguments: list[str]) -> None:
    import ray

    cases, model, out = map(Path, arguments[:3])
    kills, seed = map(int, arguments[3:])
    os.environ["OMP_NUM_THREADS"] = "2"  # a cluster of the command's own has room for two workers
    killer = RayKiller(cases, model, out, random.Random(seed))
    killer.leave_alone(())  # in one process: workers give the same label maps
    own = kills // 4
    if own:
        killer.leave_alone(OWN.flags)
        kill(killer, [OWN] * own)
    standing = stood(ray)
    killer.leave_alone(standing.flags)
    kill(killer, [standing] * (kills - own))
    ray.shutdown()
    told = json.dumps({**vars(killer.figures), "kills_that_left_workers": killer.left_at_work})
    print(told.replace(standing.flags[1], "ADDRESS"))


if __name__ == "__main__":
    main(sys.argv[1:])
