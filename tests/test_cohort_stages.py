"""What a cohort's readers and writers do for the segmenter, and what is left to the thread that
owns the device.
"""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.case import Case
from runtime.cohort import How, Job, _cost, _floats, plan_jobs, segment_cases
from runtime.errors import DeviceLostError, InputError, OutputError, ProgramError
from runtime.labels import MODALITIES
from runtime.nifti import load
from runtime.ops.numpy import NumpyOps
from runtime.output_plan import OutputOptions
from runtime.segmented import Ready, Stitched
from runtime.segmenter import Segmenter, SegmentOptions
from tests.test_segmenter import CARD, FakeBackend, lopsided

WriteCase = Callable[..., Path]
OPTIONS = SegmentOptions(probabilities=True)


class NotedOps(NumpyOps):
    """Notes in which threads its arrays are worked on."""

    def __init__(self, on_host: bool) -> None:
        super().__init__()
        self.on_host = on_host
        self.calls: dict[str, set[int]] = {}

    def __getattribute__(self, name: str) -> Any:
        if name in ("upload", "download", "zeros", "extent", "normalise", "gather", "argmax"):
            self.calls.setdefault(name, set()).add(threading.get_ident())
        return super().__getattribute__(name)


@pytest.fixture
def cases(tmp_path: Path, write_case: WriteCase) -> list[Case]:
    images = [lopsided(np.random.default_rng(seed)) for seed in range(6)]
    return [
        replace(Case.from_dir(write_case(tmp_path / f"case{seed}", one)), case_id=f"X{seed}")
        for seed, one in enumerate(images)
    ]


def jobs_of(cases: list[Case], out: Path) -> list[Job]:
    return plan_jobs(cases, OutputOptions(out))


def test_a_devices_arrays_are_touched_by_the_callers_thread_alone(
    cases: list[Case], tmp_path: Path
) -> None:
    backend = FakeBackend()
    backend.ops = ops = NotedOps(on_host=False)
    outcomes = list(segment_cases(jobs_of(cases, tmp_path / "out"), Segmenter(backend, OPTIONS)))
    assert [one.error for one in outcomes] == [None] * len(cases)
    assert ops.calls.keys() >= {"upload", "download", "zeros", "extent", "gather", "argmax"}
    assert set.union(*ops.calls.values()) == {threading.get_ident()}


def test_a_host_prepares_in_the_readers_and_finishes_in_the_writers(
    cases: list[Case], tmp_path: Path
) -> None:
    backend = FakeBackend()
    backend.ops = ops = NotedOps(on_host=True)
    how = How(progress=lambda case, done, total: None)
    jobs = jobs_of(cases, tmp_path / "out")
    outcomes = list(segment_cases(jobs, Segmenter(backend, OPTIONS), how))
    assert [one.error for one in outcomes] == [None] * len(cases)
    here = threading.get_ident()
    assert ops.calls["gather"] == {here}
    for elsewhere in ("extent", "normalise", "argmax"):
        assert here not in ops.calls[elsewhere]
    assert not ops.calls["normalise"] & ops.calls["argmax"]


@pytest.mark.parametrize("on_host", [False, True])
def test_steps_in_any_thread_give_what_one_call_gives(cases: list[Case], on_host: bool) -> None:
    backend = FakeBackend()
    backend.ops = NotedOps(on_host)
    segmenter = Segmenter(backend, OPTIONS)
    volumes = [load(case) for case in cases]
    expected = [Segmenter(FakeBackend(), OPTIONS).segment(volume) for volume in volumes]
    with ThreadPoolExecutor(3) as pool:
        ready = list(pool.map(segmenter.ready, volumes))
        assert [one.prepared is None for one in ready] == [not on_host] * len(cases)
        found = list(pool.map(segmenter.finish, [segmenter.run(one) for one in ready]))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.probabilities is not None
        assert theirs.probabilities is not None
        np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
        assert ours.warnings == theirs.warnings
        assert ours.timings.prepare > 0
        assert ours.timings.finish > 0


def test_a_case_takes_no_more_memory_than_is_kept_free_for_it(
    cases: list[Case], tmp_path: Path
) -> None:
    """At the moment at which it takes most, between the network and its label map."""
    job = jobs_of(cases, tmp_path / "out")[0]
    volume = load(job.case)
    segmenter = Segmenter(FakeBackend())
    ready = segmenter.ready(volume)
    assert ready.prepared is not None
    raw = sum(image.voxels.nbytes for image in volume.images.values())
    sums = 4 * len(CARD.labels) * int(np.prod(ready.prepared.placement.shape))
    labels = int(np.prod(volume.grid.shape))
    taken = raw + ready.prepared.voxels.nbytes + sums + 2 * labels
    floats = len(CARD.modalities) + len(CARD.labels)
    assert raw + 2 * labels <= _cost(job, 0) < taken <= _cost(job, floats) < 4 * taken


def test_one_file_of_four_frames_costs_what_four_files_do(
    tmp_path: Path, write_case: WriteCase
) -> None:
    import nibabel as nib

    images = lopsided(np.random.default_rng(0))
    four = Case.from_dir(write_case(tmp_path / "four", images))
    stacked = np.stack([images[name] for name in MODALITIES], axis=-1)
    path = tmp_path / "one" / "one.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(stacked, np.diag([-1.0, -1, 1, 1])), path)
    sources = {
        name: replace(four.images[name], path=path, channel=index)
        for index, name in enumerate(MODALITIES)
    }
    both = (four, replace(four, images=sources))
    costs = [_cost(jobs_of([one], tmp_path / "out")[0], 8) for one in both]
    assert costs[0] == costs[1] > 0


def test_stitching_by_hand_is_what_a_case_is_made_of(cases: list[Case]) -> None:
    """`stitch`, for those who have a prepared case, beside `segment`."""
    segmenter = Segmenter(FakeBackend(), OPTIONS)
    volume = load(cases[0])
    prepared = segmenter.ready(volume).prepared
    assert prepared is not None
    whole = segmenter.segment(volume)
    labels = np.zeros(prepared.placement.shape, np.uint8)
    stitched = segmenter.stitch(prepared, labels)
    assert isinstance(stitched, Stitched)
    np.testing.assert_array_equal(
        prepared.placement.inner(labels), prepared.placement.boxed(whole.labels)
    )
    assert whole.probabilities is not None
    np.testing.assert_array_equal(
        prepared.placement.inner(stitched.probabilities),
        np.moveaxis(prepared.placement.boxed(whole.probabilities), -1, 0),
    )


def test_what_nobody_thought_of_costs_one_case(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each stage: a fault of ours in a reader, beside the network, in a writer."""
    segmenter = Segmenter(FakeBackend())
    for number, step in enumerate(("ready", "run", "finish")):
        whole = getattr(Segmenter, step)

        def broken(self: Segmenter, given: Any, *rest: Any, whole: Any = whole) -> Any:
            volume = getattr(given, "volume", given)
            if volume.case.case_id == "X3":
                raise ZeroDivisionError("one\nover nothing")
            return whole(self, given, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(Segmenter, step, broken)
            jobs = jobs_of(cases, tmp_path / f"out{number}")
            outcomes = {one.case.case_id: one for one in segment_cases(jobs, segmenter)}
        errors = {name: one.error for name, one in outcomes.items() if one.error is not None}
        assert outcomes.keys() == {case.case_id for case in cases}
        assert errors.keys() == {"X3"}
        told = str(errors["X3"])
        assert isinstance(errors["X3"], ProgramError)
        assert errors["X3"].exit_code == 1
        assert "(ZeroDivisionError: one over nothing; " in told
        assert re.search(r", cohort\.py:\d+, test_cohort_stages\.py:\d+\)", told)
        assert "\n" not in told


def test_probabilities_count(cases: list[Case], tmp_path: Path) -> None:
    """Those of the whole volume, beside those of the box where a device has made them."""
    classes, modalities = len(CARD.labels), len(CARD.modalities)
    for on_host, options, expected in (
        (True, None, modalities + classes),
        (True, OPTIONS, modalities + 2 * classes),
        (False, None, 0),
        (False, OPTIONS, 2 * classes),
    ):
        backend = FakeBackend()
        backend.ops = NotedOps(on_host)
        assert _floats(Segmenter(backend, options)) == expected


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (OSError(24, "Too many open files"), InputError),
        (OSError(28, "No space left on device"), OutputError),
        (DeviceLostError("cuda:0", found="-", expected="-", remedy="-"), DeviceLostError),
    ],
    ids=["files", "space", "device"],
)
def test_what_the_system_refuses_is_told_as_that(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: Any
) -> None:
    """And where no other case could do better, the run ends."""
    begun: list[str] = []
    run = Segmenter.run

    def refused(self: Segmenter, ready: Ready, *rest: Any) -> Any:
        begun.append(ready.volume.case.case_id)
        if len(begun) == 2:
            raise raised
        return run(self, ready, *rest)

    monkeypatch.setattr(Segmenter, "run", refused)
    outcomes = segment_cases(jobs_of(cases, tmp_path / "out"), Segmenter(FakeBackend()))
    if kind is InputError:
        errors = [one.error for one in outcomes if one.error is not None]
        assert [type(one) for one in errors] == [InputError]
        assert len(begun) == len(cases)
    else:
        with pytest.raises(kind):
            list(outcomes)
        assert len(begun) == 2
