"""Where does a patient's time go, stage by stage, for the first case after opening and for later
ones?

Cold is the network alone: a model that has just been opened in this process, its graph not yet
compiled. The files are warm in either state: they lie in the page cache, and decode and gate are
medians of five reads (what a fresh process pays: `bench_startup`). Both states are taken at least
five times, for of two values there is no percentile.
"""

from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import pytest

from benchmarks.conftest import Report
from benchmarks.figures import figure
from benchmarks.opened import graphs_of, open_or_skip
from benchmarks.stage_clock import STAGES, TimedOps, stages_of
from runtime.backends import Backend
from runtime.case import Case
from runtime.model_dir import ModelDir
from runtime.output_plan import OutputOptions, plan_output
from runtime.segmenter import Segmenter

LEAST_ROUNDS: Final = 5


@pytest.mark.parametrize("state", ["cold", "warm"])
def bench_stages(
    benchmark: Any,
    report: Report,
    state: str,
    model: ModelDir,
    case: Case,
    tmp_path: Path,
    rounds: int,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    plan = plan_output(case, OutputOptions(tmp_path, overwrite=True))
    taken: list[dict[str, float]] = []
    infos = []

    def first_case() -> None:
        start = perf_counter()
        backend = open_or_skip(model)
        try:
            seconds = perf_counter() - start
            segmenter, clock = _clocked(backend)
            taken.append({"open": seconds, **stages_of(segmenter, clock, case, plan)})
            infos.append(backend.info)
        finally:
            backend.close()

    if state == "cold":
        benchmark.pedantic(first_case, rounds=max(LEAST_ROUNDS, rounds), iterations=1)
    else:
        backend = open_or_skip(model)
        infos.append(backend.info)
        try:
            segmenter, clock = _clocked(backend)
            benchmark.pedantic(
                lambda: taken.append(stages_of(segmenter, clock, case, plan)),
                rounds=max(LEAST_ROUNDS, rounds),
                iterations=1,
                warmup_rounds=1,
            )
        finally:
            backend.close()
        del taken[0]
    stages = [stage for stage in ("open", *STAGES) if stage in taken[0]]
    values = {stage: [one[stage] for one in taken] for stage in stages}
    around = [sum(one.values()) - one["infer"] for one in taken]
    report(
        "stages",
        {
            **{stage: figure(seconds, "s") for stage, seconds in values.items()},
            "around the network": figure(around, "s"),
        },
        state=state,
        backend=infos[0].name,
        device=infos[0].device,
        model_sha256=graphs_of(infos[0]),
        p50_s={stage: float(np.quantile(seconds, 0.5)) for stage, seconds in values.items()},
        p95_s={stage: float(np.quantile(seconds, 0.95)) for stage, seconds in values.items()},
        **case_facts,
        **network_facts,
    )


def _clocked(backend: Backend) -> tuple[Segmenter, TimedOps]:
    clock = TimedOps(backend.ops)
    backend.ops = clock  # type: ignore[misc, assignment]
    return Segmenter(backend), clock
