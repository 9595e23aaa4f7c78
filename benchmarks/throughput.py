"""How many cases an hour: predicted for other machines from the stages of a run on one.

Every stage of a case takes time of a core or of a GPU, and stages overlap as `runtime.pipeline`
lets them; so a cohort goes as fast as the resource that is used up first:

- on GPUs, each case takes a GPU for its network and cores for all else;
- on a CPU, each case takes cores for everything, and its network takes them one case at a time.

What is measured is one run: seconds of reading and writing, which take one core each, and of the
network and what lies around it in the device's own thread. Nothing is fitted.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEVICE_STAGES = ("bind", "gather", "network", "stitch")
_HOST_STAGES = ("prepare", "finish")


@dataclass(frozen=True)
class Costs:
    """Seconds of one case.

    Attributes:
        read, write: of a core, in other threads than the network's.
        host: of a core, in the network's thread: before and after the network.
        device: in the network's thread, while the device works.
        cores: that ``device`` keeps busy: those of the network on a CPU, about 0 beside a GPU.
    """

    read: float
    write: float
    host: float
    device: float
    cores: float

    @classmethod
    def of(cls, seconds: Mapping[str, Mapping[str, float]], threads: int, on_gpu: bool) -> "Costs":
        """Of the file of a cohort.

        Args:
            seconds: as its JSON has them, by stage; the means are taken, as costs add up.
            threads: CPU threads of the run.
            on_gpu: whether the network ran on a GPU.
        """

        def mean(*stages: str) -> float:
            return sum(seconds[stage]["mean"] for stage in stages if stage in seconds)

        return cls(
            mean("load"),
            mean("save"),
            mean(*_HOST_STAGES),
            mean(*_DEVICE_STAGES),
            0.0 if on_gpu else float(threads),
        )


@dataclass(frozen=True)
class Forecast:
    """What a machine does.

    Attributes:
        cases_per_hour: of a long cohort.
        bound: what is used up: "network" or "cores".
    """

    cases_per_hour: float
    bound: str


def forecast(costs: Costs, cores: int, devices: int = 1) -> Forecast:
    """Cases an hour on ``devices`` GPUs, or processes on a CPU, and ``cores`` cores in all.

    Args:
        costs: of a case. On a CPU, measured with the threads that each process is to have.
        cores: of the machine.
        devices: that run networks beside each other.
    """
    in_thread = costs.host + costs.device
    core_seconds = costs.read + costs.write + costs.host + costs.device * costs.cores
    by_network, by_cores = devices / in_thread, cores / core_seconds
    bound = "network" if by_network <= by_cores else "cores"
    return Forecast(3600 * min(by_network, by_cores), bound)


def told(record: Mapping[str, Any]) -> float | None:
    """Cases an hour that a run has done; None where it says nothing."""
    rate = record.get("cases_per_min")
    return None if rate is None else 60 * float(rate)


def main() -> None:
    """Print what a cohort's own file says of other machines.

    python -m benchmarks.throughput OUT/cohort.json --threads 2 --cores 2,8,16,32 --devices 1,2,4,8
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("record", type=Path, help="cohort.json of a run")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads of that run")
    parser.add_argument("--cores", type=_numbers, default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--devices", type=_numbers, default=[1, 2, 4, 8])
    given = parser.parse_args()
    record = json.loads(given.record.read_text())
    devices = {result["backend"]["device"] for result in record["results"].values()}
    costs = Costs.of(record["seconds"], given.threads, any(one != "cpu" for one in devices))
    rate = told(record)
    print(f"one case: {costs}")
    if rate is not None:
        print(f"that run: {rate:.0f} cases an hour")
    print("| cores | " + " | ".join(f"{count} x {'device'}" for count in given.devices) + " |")
    print("| --- |" + " --- |" * len(given.devices))
    for cores in given.cores:
        found = [forecast(costs, cores, count) for count in given.devices]
        cells = [f"{one.cases_per_hour:.0f} ({one.bound})" for one in found]
        print(f"| {cores} | " + " | ".join(cells) + " |")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
