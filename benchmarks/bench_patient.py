"""How long does a patient take, disk to disk, by stage, on every backend that works here?"""

from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from benchmarks.conftest import Report
from benchmarks.figures import figure
from benchmarks.opened import EVERYWHERE, Where, graphs_of, open_or_skip
from runtime.case import Case
from runtime.model_dir import ModelDir
from runtime.nifti import load
from runtime.output_plan import OutputOptions, plan_output
from runtime.prediction import save
from runtime.segmenter import Segmenter


@pytest.mark.parametrize("where", EVERYWHERE, ids=str)
def bench_patient(
    benchmark: Any,
    report: Report,
    where: Where,
    model: ModelDir,
    case: Case,
    tmp_path: Path,
    rounds: int,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    """Load, prepare, bind, gather, network, stitch, finish, save; the network is warm."""
    backend = open_or_skip(model, where)
    plan = plan_output(case, OutputOptions(tmp_path, overwrite=True))
    stages: list[dict[str, float]] = []

    def patient() -> None:
        start = perf_counter()
        volume = load(case)
        seconds = perf_counter() - start
        stages.append(save(segmenter.segment(volume), plan, {}, seconds)["timings_s"])

    try:
        segmenter = Segmenter(backend)
        benchmark.pedantic(patient, rounds=rounds, iterations=1, warmup_rounds=1)
    finally:
        backend.close()
    timed = stages[1:]
    median = {stage: sorted(one[stage] for one in timed)[len(timed) // 2] for stage in timed[0]}
    around = [sum(one.values()) - one["network"] for one in timed]
    report(
        "patient",
        {
            "in all": figure([sum(one.values()) for one in timed], "s"),
            "network": figure([one["network"] for one in timed], "s"),
            "around the network": figure(around, "s"),
        },
        backend=str(where),
        device=backend.info.device,
        model_sha256=graphs_of(backend.info),
        stages_s=median,
        around_the_network_s=sum(median.values()) - median["network"],
        **case_facts,
        **network_facts,
    )
