"""Does the network ever wait for the disk, and does a cohort cost more than its network?

Two networks: a stub that takes 50 ms a case, in one piece and no core, and the real one. Each runs
the same cases one after the other (read, segment, save) and through the pipeline of `brats-infer`,
in turn within each round. The last figures are the forecast of `benchmarks.throughput` over what
was done: each is made as its user makes it, from what an earlier run through the pipeline says.
"""

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np
import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure, ratios
from benchmarks.opened import open_or_skip
from benchmarks.scale import Scale
from benchmarks.throughput import Costs, forecast
from runtime.backends import Backend, BackendInfo, Fill, Take, check_window
from runtime.case import Case
from runtime.cohort import Job, plan_jobs, segment_cases
from runtime.model_card import ModelCard, Shape3
from runtime.model_dir import ModelDir
from runtime.nifti import load
from runtime.ops.numpy import NumpyOps
from runtime.output_plan import OutputOptions
from runtime.pipeline import Clock
from runtime.prediction import save
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.windows import Patch

STUB_S = 0.05


@dataclass
class StubBackend:
    """A network that takes `STUB_S` for all windows of a case and no core meanwhile; it finds edema
    in the middle 6% of a window, which is a tumour's part of a brain.
    """

    card: ModelCard

    def __post_init__(self) -> None:
        self.inputs = np.empty((1, len(self.card.modalities), 0, 0, 0), np.float32)
        self.ops = NumpyOps(THREADS)
        self.info = BackendInfo("stub", "cpu", "fp32", "stub", "0" * 64)

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self.card, window)
        if self.inputs.shape[2:] == window:
            return
        # Kept from case to case, as a network's own are.
        self.inputs = np.empty((1, len(self.card.modalities), *window), np.float32)
        self.found = np.zeros((1, len(self.card.labels), *window), np.float32)
        middle = tuple(slice(size * 3 // 10, size * 7 // 10) for size in window)
        self.found[:, 0] = 0.5
        self.found[:, 2, *middle] = 1

    def run(self, n: int, fill: Fill, take: Take) -> None:
        for index in range(n):
            fill(index, index + 1, self.inputs)
            sleep(STUB_S / n)
            take(index, index + 1, self.found)

    def close(self) -> None:
        self.ops.close()


def _copies(case: Case, count: int) -> list[Case]:
    """The case under several names: what is read is the disk's cache, as that of a fast disk."""
    return [replace(case, case_id=f"{case.case_id}-{number:03}") for number in range(count)]


def _one_by_one(jobs: Sequence[Job], segmenter: Segmenter) -> None:
    for job in jobs:
        start = perf_counter()
        volume = load(job.case)
        seconds = perf_counter() - start
        save(segmenter.segment(volume), job.plan, load_seconds=seconds)


def _together(jobs: Sequence[Job], segmenter: Segmenter, clock: Clock) -> list[dict[str, Any]]:
    sidecars = []
    for outcome in segment_cases(jobs, segmenter, clock=clock):
        if outcome.error is not None:
            raise outcome.error
        sidecars.append(outcome.sidecar or {})
    return sidecars


def _costs(sidecars: Sequence[dict[str, Any]], core_seconds: float) -> Costs:
    """Of cases that were segmented with a backend whose arrays are the host's."""
    stages = ("bind", "gather", "network", "stitch")
    device = fmean(sum(one["timings_s"][stage] for stage in stages) for one in sidecars)
    return Costs(device, core_seconds / len(sidecars))


@pytest.mark.parametrize("network", ["stub", "real"])
def bench_cohort(
    benchmark: Any,
    report: Report,
    network: str,
    model: ModelDir,
    case: Case,
    tmp_path: Path,
    rounds: int,
    scale: Scale,
    pytestconfig: pytest.Config,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    """Seconds of a cohort, one by one and through the pipeline, and of its network alone."""
    given = pytestconfig.getoption("--cohort-cases")
    count = given or {"stub": scale.cohort_stub, "real": scale.cohort_real}[network]
    backend: Backend = StubBackend(model.card) if network == "stub" else open_or_skip(model)
    seconds: dict[str, list[float]] = {"one by one": [], "pipeline": [], "network": []}
    busy: list[dict[str, float]] = []
    predicted: list[float] = []
    with closing(backend):
        # The stub takes a case in one piece: cutting and stitching windows is a GPU's work there.
        patch: Patch | None = "box" if network == "stub" else None
        segmenter = Segmenter(backend, SegmentOptions(patch=patch))
        segmenter.segment(load(case))

        def jobs() -> list[Job]:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            return plan_jobs(_copies(case, count), OutputOptions(tmp_path / "out"))

        def one_by_one() -> None:
            planned = jobs()
            start = perf_counter()
            _one_by_one(planned, segmenter)
            seconds["one by one"].append(perf_counter() - start)

        def pipeline() -> None:
            planned, clock = jobs(), Clock()
            start, worked = perf_counter(), process_time()
            sidecars = _together(planned, segmenter, clock)
            seconds["pipeline"].append(perf_counter() - start)
            costs = _costs(sidecars, process_time() - worked)
            predicted.append(3600 * count / forecast(costs, THREADS).cases_per_hour)
            seconds["network"].append(sum(one["timings_s"]["network"] for one in sidecars))
            busy.append({"read": clock.read, "run": clock.run, "write": clock.write})

        benchmark.pedantic(pipeline, setup=one_by_one, rounds=max(2, rounds), iterations=1)
    report(
        "a cohort",
        {
            "one by one over pipeline": figure(
                ratios(seconds["one by one"], seconds["pipeline"]), "ratio"
            ),
            "network over pipeline": figure(
                ratios(seconds["network"], seconds["pipeline"]), "ratio"
            ),
            "forecast over pipeline": figure(
                ratios(predicted[:-1], seconds["pipeline"][1:]), "ratio"
            ),
            "pipeline, a case": figure([one / count for one in seconds["pipeline"]], "s"),
        },
        network=network,
        cohort=count,
        stage_s=busy,
        **case_facts,
        **network_facts,
    )
