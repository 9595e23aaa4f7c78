"""How long does a patient take, disk to disk, by stage, on every backend that works here?"""

from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from benchmarks.conftest import THREADS
from runtime.backends import BackendOptions, open_backend
from runtime.case import Case
from runtime.model_dir import ModelDir
from runtime.nifti import load
from runtime.output_plan import OutputOptions, plan_output
from runtime.prediction import save
from runtime.segmenter import Segmenter


@pytest.mark.parametrize("backend_name", ["openvino", "ort"])
def bench_patient(
    benchmark: Any, backend_name: Any, model: ModelDir, case: Case, tmp_path: Path, rounds: int
) -> None:
    """Load, prepare, bind, gather, network, stitch, finish, save; the network is warm."""
    backend = open_backend(
        model, BackendOptions(backend=backend_name, threads=THREADS, uncertified=True)
    )
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
    benchmark.extra_info |= {
        "question": "patient",
        "backend": backend_name,
        "case": case.case_id,
        "stages_s": median,
        "around_the_network_s": sum(median.values()) - median["network"],
    }
