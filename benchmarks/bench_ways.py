"""What does each way to run a cohort cost: one process, several, parts of a job array, Ray?

Each is the command that a user would give, over the same cases on this machine's two cores, in turn
within each round: first all cases, then once more with `--resume`, where nothing is left to do but
to begin, to look at what is there and to end. A Ray cluster is there before, as it would be.

What one process with one thread says of itself, for one core, is forecast for two processes and two
cores (`benchmarks.throughput`), and held against what `--device cpu,cpu` did.

Only run where `--cohort-cases` says how many cases it may take: it needs minutes.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure, ratios
from benchmarks.scale import Scale
from benchmarks.throughput import Costs, forecast
from runtime.model_dir import ModelDir
from runtime.phantom import Enhancement, write_phantoms

ROOT: Final = Path(__file__).parents[1]
INFER: Final = (sys.executable, "-c", "from runtime.cli import infer; raise SystemExit(infer())")
ONE_THREAD: Final = "one process, one thread"
TWO_DEVICES: Final = "--device cpu,cpu"
WAYS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "one process": (("--threads", f"{THREADS}"),),
    ONE_THREAD: (("--threads", "1"),),
    TWO_DEVICES: (("--device", "cpu,cpu", "--threads", f"{THREADS}"),),
    "--part i/2, both at once": tuple(("--threads", "1", "--part", f"{part}/2") for part in (1, 2)),
    "--ray, two workers": (("--ray", "auto", "--workers", "2", "--threads", "1"),),
}
"""Way to the commands that it takes, which run at the same time."""


@contextmanager
def _cluster() -> Iterator[str]:
    """A Ray cluster of this machine alone; its address."""
    ray = pytest.importorskip("ray", reason="the package ray is not installed")
    context = ray.init(
        num_cpus=THREADS, num_gpus=0, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    try:
        yield str(context.address_info["gcs_address"])
    finally:
        ray.shutdown()


def _seconds(commands: tuple[tuple[str, ...], ...], given: list[str], environment: Any) -> float:
    start = perf_counter()
    running = [
        subprocess.Popen(
            [*INFER, *given, *flags, "--backend", "openvino", "--uncertified", "--quiet"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for flags in commands
    ]
    for one in running:
        _, told = one.communicate()
        assert one.returncode == 0, told[-2000:]
    return perf_counter() - start


def bench_ways(
    benchmark: Any,
    report: Report,
    model: ModelDir,
    tmp_path: Path,
    rounds: int,
    scale: Scale,
    pytestconfig: pytest.Config,
    network_facts: dict[str, Any],
) -> None:
    """Seconds of a cohort by each way, and of one in which everything is done already."""
    count = pytestconfig.getoption("--cohort-cases")
    if count is None:
        pytest.skip("it takes minutes: name a number of cases with --cohort-cases")
    write_phantoms(tmp_path / "cases", count, 3, scale.phantom, Enhancement.RIM)
    whole: dict[str, list[float]] = {way: [] for way in WAYS}
    nothing: dict[str, list[float]] = {way: [] for way in WAYS}
    forecasts: list[float] = []
    with _cluster() as address:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}

        def run() -> None:
            records: dict[str, Any] = {}
            for way, commands in WAYS.items():
                out = tmp_path / "out"
                shutil.rmtree(out, ignore_errors=True)
                given = [str(tmp_path / "cases"), "--model", str(model.path), "-o", str(out)]
                whole[way].append(_seconds(commands, given, environment))
                assert len(list(out.glob("*.nii.gz"))) == count
                if way in (ONE_THREAD, TWO_DEVICES):
                    records[way] = json.loads((out / "cohort.json").read_text())
                nothing[way].append(_seconds(commands, [*given, "--resume"], environment))
            found = forecast(Costs.of(records[ONE_THREAD], 1), cores=2, devices=2)
            forecasts.append(found.cases_per_hour / 60 / records[TWO_DEVICES]["cases_per_min"])

        benchmark.pedantic(run, rounds=max(2, rounds), iterations=1)
    first = next(iter(WAYS))
    figures = {}
    for way in WAYS:
        figures[way] = figure(whole[way], "s")
        figures[f"{way}, nothing to do"] = figure(nothing[way], "s")
        if way != first:
            figures[f"{way} over {first}"] = figure(ratios(whole[way], whole[first]), "ratio")
    figures[f"forecast of {TWO_DEVICES} over what it did"] = figure(forecasts, "ratio")
    report("ways", figures, cohort=count, shape=list(scale.phantom), **network_facts)
