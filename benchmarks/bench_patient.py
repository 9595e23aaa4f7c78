"""How long does a patient take, disk to disk, by stage, on every backend that works here?"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
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


def by_the_clock(
    stages: Sequence[dict[str, float]], seconds: Sequence[float]
) -> dict[str, list[float]]:
    """Seconds of each round: by stage, "in all", "around the network" and "rest".

    Args:
        stages: a round's, as the sidecar has them; it cannot say how long it took to write itself,
            to sync the files and to put them in their places.
        seconds: a round's, from the first read to the sidecar on the disk.
    """
    found = {name: [one[name] for one in stages] for name in stages[0]}
    rounds = list(zip(stages, seconds, strict=True))
    found["rest"] = [whole - sum(one.values()) for one, whole in rounds]
    found["in all"] = list(seconds)
    found["around the network"] = [whole - one["network"] for one, whole in rounds]
    return found


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
    seconds: list[float] = []

    def patient() -> None:
        start = perf_counter()
        volume = load(case)
        loaded = perf_counter() - start
        stages.append(save(segmenter.segment(volume), plan, {}, loaded)["timings_s"])
        seconds.append(perf_counter() - start)

    try:
        segmenter = Segmenter(backend)
        benchmark.pedantic(patient, rounds=rounds, iterations=1, warmup_rounds=1)
    finally:
        backend.close()
    found = by_the_clock(stages[1:], seconds[1:])
    report(
        "patient",
        {name: figure(found[name], "s") for name in ("in all", "network", "around the network")},
        backend=str(where),
        device=backend.info.device,
        model_sha256=graphs_of(backend.info),
        stages_s={name: median(found[name]) for name in (*stages[0], "rest")},
        **case_facts,
        **network_facts,
    )
