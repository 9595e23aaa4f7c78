"""The same case gives the same bytes: over restarts, case order, reader threads and resume; and the
same labels over threads and batch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.backends import BackendOptions, open_backend
from runtime.case import Case, find_cases
from runtime.cli.infer import main
from runtime.cohort import How, plan_jobs, segment_cases
from runtime.model_dir import ModelDir
from runtime.nifti import load
from runtime.output_plan import OutputOptions
from runtime.phantom import write_phantoms
from runtime.segmenter import Segmenter, SegmentOptions

ROOT = Path(__file__).parents[1]
EXACTLY = SegmentOptions(quality="exact")
RUN = "import sys; from runtime.cli.infer import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_phantoms(folder, 3, seed=5, shape=(48, 44, 32))
    return folder


def flags(model: Path, out: Path, backend: str) -> list[str]:
    return ["--model", str(model), "-o", str(out), "--backend", backend, "--threads", "2"]


def told(out: Path) -> dict[str, bytes]:
    """Every file of a case by name; of a sidecar all but the times and the run."""
    found = {}
    for path in out.iterdir():
        if path.name.startswith("cohort"):
            continue  # it tells times
        data = path.read_bytes()
        if path.suffix == ".json":
            sidecar = json.loads(data)
            assert sidecar.pop("timings_s")
            assert sidecar.pop("run")
            data = json.dumps(sidecar).encode()
        found[path.name] = data
    return found


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_files_are_the_same_bytes_however_they_come_about(
    cohort: Path, tiny_model: Path, tmp_path: Path, backend: str
) -> None:
    once = tmp_path / "once"
    assert main([str(cohort), *flags(tiny_model, once, backend)]) == 0
    expected = told(once)
    assert len(expected) == 6
    # In another process, without what this one has in its caches.
    again = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(cohort), *flags(tiny_model, again, backend)],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert told(again) == expected
    # One case, then the others in reverse.
    parts = tmp_path / "parts"
    cases = find_cases(cohort)
    assert main([str(cases[1].folder), *flags(tiny_model, parts, backend)]) == 0
    opened = open_backend(ModelDir.open(tiny_model), BackendOptions(backend=backend, threads=2))  # type: ignore[arg-type]
    try:
        jobs = plan_jobs(cases[::-1], OutputOptions(parts, resume=True))
        outcomes = list(segment_cases(jobs, Segmenter(opened, EXACTLY), How(resume=True)))
    finally:
        opened.close()
    assert sum(outcome.kept for outcome in outcomes) == 1
    assert told(parts) == expected
    assert main([str(cohort), *flags(tiny_model, parts, backend), "--resume"]) == 0
    assert told(parts) == expected


def test_readers_change_no_voxel(cohort: Path) -> None:
    case = find_cases(cohort)[0]
    one = load(case, workers=1)
    for workers in (2, 3, 4, 9):
        other = load(case, workers)
        assert list(other.images) == list(one.images)
        np.testing.assert_array_equal(other.grid.affine, one.grid.affine)
        for modality, image in one.images.items():
            assert other.images[modality].sha256 == image.sha256
            np.testing.assert_array_equal(other.images[modality].voxels, image.voxels)


def labels(case: Case, model: Path, backend: Any, threads: int, batch: int) -> npt.NDArray[Any]:
    opened = open_backend(ModelDir.open(model), BackendOptions(backend=backend, threads=threads))
    try:
        return Segmenter(opened, SegmentOptions(batch=batch)).segment(load(case)).labels
    finally:
        opened.close()


@pytest.mark.parametrize(("backend", "share"), [("ort", 0.0), ("openvino", 1e-6)])
def test_threads_and_batch_change_no_label(
    cohort: Path, tiny_model: Path, backend: str, share: float
) -> None:
    case = find_cases(cohort)[0]
    first = labels(case, tiny_model, backend, 1, 1)
    assert len(np.unique(first)) >= 3
    for threads, batch in ((1, 2), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2), (4, 4)):
        other = labels(case, tiny_model, backend, threads, batch)
        assert np.count_nonzero(other != first) <= share * first.size, (threads, batch)
