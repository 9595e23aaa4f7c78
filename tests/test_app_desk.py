"""The queue of the page: one case at a time, the command line's bytes, and nobody else's result."""

import gc
import gzip
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.app import desk as desk_module
from runtime.app.desk import Desk, Job, Order, written_as
from runtime.app.uploads import Store, assemble
from runtime.backends import BackendName, BackendOptions
from runtime.case import Case
from runtime.cli.infer import main
from runtime.labels import MODALITIES, Convention
from runtime.model_dir import ModelDir
from runtime.segmenter import SegmentOptions

WriteCase = Callable[..., Path]
SHAPE = (40, 36, 30)
ORT = BackendOptions("ort", "cpu", threads=1, uncertified=True)


def voxels(seed: int) -> npt.NDArray[np.int16]:
    return np.random.default_rng(seed).integers(1, 900, SHAPE).astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path, write_case: WriteCase) -> Path:
    return write_case(tmp_path / "X", {name: voxels(i) for i, name in enumerate(MODALITIES)})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ModelDir:
    return ModelDir.open(tiny_model)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def order(
    case: Case, model: ModelDir, store: Store, options: SegmentOptions | None = None
) -> Order:
    return Order(case, model, ORT, options or SegmentOptions(), store)


def uploaded(folder: Path, store: Store) -> Case:
    uploads = [
        upload
        for path in sorted(folder.iterdir())
        for upload in store.add(path.name, path.read_bytes())
    ]
    return assemble([(upload, upload.role) for upload in uploads])


def finished(job: Job) -> Job:
    assert job.wait(60)
    return job


def test_the_label_map_is_the_command_lines_byte_for_byte(
    folder: Path, model: ModelDir, store: Store, desk: Desk, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--model", str(model.path), "--backend", "ort", "--threads", "1", "--probabilities")
    assert main([str(folder), *flags, "-o", str(out), "--quiet"]) == 0
    options = SegmentOptions(probabilities=True)
    job = finished(desk.submit(order(uploaded(folder, store), model, store, options)))
    assert job.error == ""
    assert job.result is not None
    plan = job.result.plan
    assert plan.labels.name == "X_seg.nii.gz"
    assert plan.labels.read_bytes() == (out / "X_seg.nii.gz").read_bytes()
    assert plan.probabilities.read_bytes() == (out / "X_prob.nii.gz").read_bytes()
    assert store.folder in plan.labels.parents
    assert (job.done, job.total) == (len(job.result.prediction.plan),) * 2


def test_another_numbering_is_the_command_lines_too(
    folder: Path, model: ModelDir, store: Store, desk: Desk, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--model", str(model.path), "--backend", "ort", "--threads", "1")
    assert main([str(folder), *flags, "-o", str(out), "--labels", "msd", "--quiet"]) == 0
    job = finished(desk.submit(order(Case.from_dir(folder), model, store)))
    assert job.result is not None
    data = written_as(job.result, Convention.MSD, store)
    assert data == (out / "X_seg.nii.gz").read_bytes()
    assert data != job.result.plan.labels.read_bytes()


def test_a_fault_is_told_by_the_users_name_and_the_next_one_is_served(
    folder: Path, model: ModelDir, store: Store, desk: Desk
) -> None:
    good = uploaded(folder, store)
    plain = gzip.decompress((folder / "X_t2.nii.gz").read_bytes())
    (upload,) = store.add("Y_t2.nii.gz", gzip.compress(plain, 1))
    # Whole when it came, and damaged on the disk since.
    upload.path.write_bytes(upload.path.read_bytes()[:-9])
    bad = Case("Y", {**good.images, "t2": type(good.images["t2"])(upload.path)})
    failed = finished(desk.submit(order(bad, model, store)))
    assert failed.result is None
    assert failed.error.startswith("Y_t2.nii.gz: found a damaged or truncated gzip stream")
    assert str(store.folder) not in failed.error
    assert finished(desk.submit(order(good, model, store))).error == ""


def test_what_nobody_expected_is_one_sentence_and_goes_to_the_log(
    folder: Path,
    model: ModelDir,
    store: Store,
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(case: Case) -> Any:
        raise ZeroDivisionError("secret of the inside")

    monkeypatch.setattr(desk_module, "load", broken)
    job = finished(desk.submit(order(Case.from_dir(folder), model, store)))
    assert job.error.startswith("the server: found an unexpected error")
    assert "secret" not in job.error
    assert "secret of the inside" in caplog.text
    monkeypatch.undo()
    assert finished(desk.submit(order(Case.from_dir(folder), model, store))).error == ""


class Gate:
    """Lets the desk's thread into `load` one case at a time, when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.inside = 0
        self.most = 0
        self._real = desk_module.load
        self._go = threading.Semaphore(0)
        monkeypatch.setattr(desk_module, "load", self)

    def __call__(self, case: Case) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.order.append(case.case_id)
        assert self._go.acquire(timeout=60)
        self.inside -= 1
        return self._real(case)

    def let_in(self) -> None:
        self._go.release()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_at_a_time_in_the_order_they_came_with_a_place_to_see(
    folder: Path, model: ModelDir, store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    images = Case.from_dir(folder).images
    jobs = [desk.submit(order(Case(name, images), model, store)) for name in "ABC"]
    until(lambda: gate.order == ["A"])
    assert [desk.place(job) for job in jobs] == [0, 1, 2]
    gate.let_in()
    until(lambda: gate.order == ["A", "B"])
    assert [desk.place(job) for job in jobs] == [0, 0, 1]
    assert [job.finished for job in jobs] == [True, False, False]
    gate.let_in()
    gate.let_in()
    assert all(finished(job).error == "" for job in jobs)
    assert gate.order == ["A", "B", "C"]
    assert gate.most == 1
    ids = [job.result.prediction.volume.case.case_id for job in jobs if job.result is not None]
    assert ids == ["A", "B", "C"]


def test_cancelled_while_it_waits_it_is_never_begun(
    folder: Path, model: ModelDir, store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    images = Case.from_dir(folder).images
    first = desk.submit(order(Case("A", images), model, store))
    second = desk.submit(order(Case("B", images), model, store))
    until(lambda: gate.order == ["A"])
    third = desk.submit(order(Case("C", images), model, store))
    desk.cancel(second)
    assert second.finished
    assert desk.place(third) == 1
    desk.cancel(third)
    gate.let_in()
    assert finished(first).error == ""
    assert gate.order == ["A"]
    assert (second.result, second.error, second.stage) == (None, "", "cancelled")


def test_cancelled_between_windows_no_further_one_is_computed(
    folder: Path, model: ModelDir, store: Store, desk: Desk
) -> None:
    options = SegmentOptions(patch=(16, 16, 16), overlap=0.5)
    job = desk.submit(order(Case.from_dir(folder), model, store, options))
    until(lambda: job.done > 0 or job.finished)
    job.cancel()
    finished(job)
    assert job.result is None
    assert job.error == ""
    assert 0 < job.done < job.total
    assert [path.name for path in store.folder.iterdir()] == ["files"]
    assert finished(desk.submit(order(Case.from_dir(folder), model, store))).result is not None


def test_a_model_that_cannot_run_here_is_told(
    folder: Path, model: ModelDir, store: Store, desk: Desk
) -> None:
    asked = Order(Case.from_dir(folder), model, BackendOptions("trt"), SegmentOptions(), store)
    job = finished(desk.submit(asked))
    assert job.result is None
    assert ": found " in job.error
    assert "expected " in job.error


def test_the_truth_comes_along_in_network_labels(
    folder: Path, model: ModelDir, store: Store, desk: Desk
) -> None:
    from runtime.nifti import load
    from runtime.nifti_writer import write_label_map

    truth = np.zeros(SHAPE, np.uint8)
    truth[5:9, 5:9, 5:9] = 4
    write_label_map(folder / "X_seg.nii.gz", truth, load(Case.from_dir(folder)).grid)
    job = finished(desk.submit(order(uploaded(folder, store), model, store)))
    assert job.result is not None
    assert job.result.truth is not None
    np.testing.assert_array_equal(job.result.truth, np.where(truth == 4, 3, 0))
    # One on another grid is no truth of this case.
    moved = np.zeros((SHAPE[0] - 1, *SHAPE[1:]), np.uint8)
    grid = load(Case.from_dir(folder)).grid
    write_label_map(folder / "X_seg.nii.gz", moved, grid)
    job = finished(desk.submit(order(uploaded(folder, store), model, store)))
    assert job.error.startswith("X_seg.nii.gz: found shape 39x36x30")


def test_a_truth_whose_numbering_is_a_guess_is_asked_for_and_then_believed(
    folder: Path, model: ModelDir, store: Store, desk: Desk
) -> None:
    from runtime.nifti import load
    from runtime.nifti_writer import write_label_map

    truth = np.zeros(SHAPE, np.uint8)
    truth[5:9, 5:9, 5:9] = 4
    case = Case.from_dir(folder)
    write_label_map(folder / "X_seg.nii.gz", truth, load(case).grid)
    case = Case("X", case.images, folder / "X_seg.nii.gz", case.dialect, Convention.BRATS2023)
    job = finished(desk.submit(order(case, model, store)))
    assert job.result is None
    assert "found a 4 and no 3" in job.error
    assert "'numbering of a truth' under how it is run: brats2020" in job.error
    told = Order(case, model, ORT, SegmentOptions(), store, Convention.BRATS2020)
    job = finished(desk.submit(told))
    assert job.result is not None
    assert job.result.truth is not None
    np.testing.assert_array_equal(job.result.truth, np.where(truth == 4, 3, 0))


def test_files_of_a_visit_that_ended_are_gone_for_the_desk_too(
    folder: Path, model: ModelDir, tmp_path: Path, desk: Desk
) -> None:
    store = Store(tmp_path)
    case = uploaded(folder, store)
    store.close()
    job = finished(desk.submit(order(case, model, store)))
    assert (job.result, job.error, job.stage) == (None, "", "cancelled")


def test_nothing_of_a_patient_stays_when_the_visit_is_over(
    folder: Path, model: ModelDir, tmp_path: Path, desk: Desk
) -> None:
    store = Store(tmp_path)
    job = finished(desk.submit(order(Case.from_dir(folder), model, store)))
    assert job.result is not None
    kept: tuple[Any, ...] = (job.result.prediction.volume, store, job)
    left = [weakref.ref(one) for one in kept]
    store.close()
    del job, store, kept
    # The desk's thread may still be on its way back to the queue.
    until(lambda: gc.collect() >= 0 and [one() for one in left] == [None, None, None])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's data")
@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_patch_that_does_not_fit_is_told_and_the_server_lives(
    folder: Path,
    model: ModelDir,
    store: Store,
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    backend: BackendName,
) -> None:
    case = Case.from_dir(folder)
    opened = BackendOptions(backend, "cpu", threads=1, uncertified=True)
    # 300 MiB: its stitched windows take that much, the network more again.
    monkeypatch.setattr(desk_module, "available", lambda: (256 + 300) << 20)
    large = SegmentOptions(patch=(160, 160, 160))
    job = finished(desk.submit(Order(case, model, opened, large, store)))
    assert job.result is None
    assert ": found " in job.error
    assert "smaller" in job.error
    assert "unexpected" not in job.error
    assert finished(desk.submit(Order(case, model, opened, SegmentOptions(), store))).error == ""
