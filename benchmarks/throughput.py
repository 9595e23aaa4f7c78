"""How many cases an hour: predicted for other machines from one run.

A case takes seconds of the thread that owns a device, one case at a time, and seconds of the
machine's cores, in that thread and in those that read, prepare, finish and write other cases
meanwhile (`runtime.pipeline`). So a cohort goes as fast as what is used up first, the devices or
the cores. Both are measured in one run, none is fitted: more devices and more cores are taken to be
as good as those that were there.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from runtime.errors import BratsError, InputError

_WINDOWS = ("bind", "gather", "network", "stitch")
_AROUND = ("prepare", "finish")
_DISK = ("load", "save")


@dataclass(frozen=True)
class Costs:
    """Of one case.

    Attributes:
        device: seconds of the thread that owns the device.
        cores: core seconds in all.
    """

    device: float
    cores: float

    @classmethod
    def of(cls, record: Mapping[str, Any], threads: int) -> "Costs":
        """Of the JSON file of a cohort.

        Args:
            record: its content.
            threads: CPU threads of its network, for a file that does not say what the cores did:
                one of a cluster.

        Raises:
            ValueError: it holds no case that was segmented in that run.
        """
        done = record["cases"]["done"]
        if not done:
            raise ValueError("no case that was segmented in that run")
        seconds = {stage: spread["mean"] for stage, spread in record["seconds"].items()}
        backends = [one["backend"] for one in record["results"].values() if one["status"] == "done"]
        # What a GPU runs, it prepares as well; a served network is prepared for by its client.
        on_gpu = backends[0]["device"].startswith("cuda")
        device = _sum(seconds, _WINDOWS + (_AROUND if on_gpu else ()))
        worked = record.get("cpu_s")
        if worked is not None:
            return cls(device, worked / done)
        busy = 1 if on_gpu or backends[0]["name"] == "triton" else threads
        rest = _sum(seconds, _DISK + (() if on_gpu else _AROUND))
        return cls(device, device * busy + rest)


@dataclass(frozen=True)
class Forecast:
    """What a machine does.

    Attributes:
        cases_per_hour: of a long cohort.
        bound: what is used up: "device" or "cores".
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
    by_device, by_cores = devices / costs.device, cores / costs.cores
    bound = "device" if by_device <= by_cores else "cores"
    return Forecast(3600 * min(by_device, by_cores), bound)


def table(costs: Costs, cores: list[int], devices: list[int]) -> str:
    """Markdown: cases an hour, one row for each number of cores."""
    lines = [
        "| cores | " + " | ".join(f"{count} x device" for count in devices) + " |",
        "| --- |" + " --- |" * len(devices),
    ]
    for count in cores:
        found = [forecast(costs, count, one) for one in devices]
        cells = [f"{one.cases_per_hour:.0f} ({one.bound})" for one in found]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print what a cohort's own file says of other machines.

    python -m benchmarks.throughput OUT/cohort.json --cores 2,8,16,32 --devices 1,2,4,8
    python -m benchmarks.throughput --costs 0.163,0.24      # seconds of the device and of a core
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="Print how many cases an hour other machines would do, from a cohort's file.",
    )
    given_by = parser.add_mutually_exclusive_group(required=True)
    given_by.add_argument("record", type=Path, nargs="?", help="cohort.json of a run")
    given_by.add_argument(
        "--costs",
        type=_costs,
        metavar="DEVICE,CORES",
        help="seconds of the device and of a core that a case takes, where they are known",
    )
    parser.add_argument("--cores", type=_numbers, default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--devices", type=_numbers, default=[1, 2, 4, 8])
    parser.add_argument(
        "--threads", type=_number, default=4, help="CPU threads of a worker, for a run on Ray"
    )
    given = parser.parse_args()
    costs, rate = given.costs, None
    if costs is None:
        try:
            record, costs = _read(given.record, given.threads)
        except BratsError as error:
            print(f"throughput: {error}", file=sys.stderr)
            return error.exit_code
        rate = record["cases_per_min"]
    print(f"one case: {costs.device:.3f} s of the device, {costs.cores:.3f} s of a core")
    if rate is not None:
        print(f"that run: {60 * rate:.0f} cases an hour")
    print(f"\n{table(costs, given.cores, given.devices)}")
    return 0


def _read(path: Path, threads: int) -> tuple[dict[str, Any], Costs]:
    try:
        record = json.loads(path.read_text())
        return record, Costs.of(record, threads)
    except OSError as error:
        found = (error.strerror or str(error)).lower()
    except KeyError as error:
        found = f"no {error} in it"
    except (TypeError, AttributeError):
        found = "JSON of something else"
    except ValueError as error:
        found = str(error)
    raise InputError(
        path,
        found=found,
        expected="the cohort.json of a run of brats-infer that segmented a case or more",
        remedy="name one, of a run without --resume or with cases that were still to be done",
    )


def _sum(seconds: Mapping[str, float], stages: tuple[str, ...]) -> float:
    return sum(seconds.get(stage, 0.0) for stage in stages)


def _costs(text: str) -> Costs:
    device, cores = map(float, text.split(","))
    if not (0 < device < inf and 0 < cores < inf):
        raise ValueError(text)
    return Costs(device, cores)


def _numbers(text: str) -> list[int]:
    return [_number(part) for part in text.split(",")]


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
