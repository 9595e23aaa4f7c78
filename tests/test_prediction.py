"""What is put on disk is true, committed by its sidecar, and harms no file of anyone else."""

import dataclasses
import errno
import gzip
import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from runtime import __version__
from runtime.backends import BackendInfo
from runtime.case import Case, Source
from runtime.errors import OutputError, UsageError
from runtime.labels import MODALITIES, Convention
from runtime.model_card import ModelCard
from runtime.nifti import load
from runtime.nifti_writer import write_label_map
from runtime.output_plan import OutputOptions, OutputPlan, is_complete, plan_output, plan_outputs
from runtime.prediction import Pages, save
from runtime.report import html_report
from runtime.segmented import Prediction, Timings
from runtime.windows import plan_windows

WriteCase = Callable[..., Path]

SHAPE = (10, 9, 8)
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])
SETTINGS = {"overlap": (8, 8, 4), "patch": None}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def case(tmp_path: Path, write_case: WriteCase) -> Case:
    rng = np.random.default_rng(1)
    images = {name: rng.integers(1, 900, SHAPE).astype(np.int16) for name in MODALITIES}
    return Case.from_dir(write_case(tmp_path / "case", images, LPS))


def labels_of(case: Case) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(2).choice(4, SHAPE, p=[0.6, 0.1, 0.2, 0.1]).astype(np.uint8)


def predicted(case: Case, probabilities: bool = False) -> Prediction:
    labels = labels_of(case)
    one_hot = (labels[..., None] == np.arange(4)).astype(np.float32)
    return Prediction(
        labels=np.asfortranarray(labels),
        probabilities=0.7 * one_hot + np.float32(0.075) if probabilities else None,
        volume=load(case),
        card=ModelCard(name="a model", patch=(16, 16, 8)),
        backend=BackendInfo(
            "openvino", "cpu", "fp32", "model.onnx", "ab" * 32, "pass", "trt (no engine)"
        ),
        plan=plan_windows((40, 20, 8), (16, 16, 8), (8, 16, 6), "stride"),
        timings=Timings(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        warnings=("a warning",),
    )


def test_the_sidecar_tells_the_truth(case: Case, tmp_path: Path) -> None:
    plan = plan_output(case, OutputOptions(tmp_path / "out"))
    returned = save(predicted(case), plan, SETTINGS, load_seconds=1.25)
    sidecar = json.loads(plan.sidecar.read_text())
    assert sidecar == json.loads(json.dumps(returned))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["X.json", "X_seg.nii.gz"]
    assert set(sidecar) == {
        "schema", "case_id", "inputs", "output", "model", "backend", "convention", "windows",
        "settings", "volumes_ml", "timings_s", "warnings", "run", "research_use",
    }  # fmt: skip
    assert sidecar["schema"] == 1
    assert sidecar["case_id"] == "X"
    assert sidecar["inputs"] == {
        name: {"sha256": sha256(case.images[name].path)} for name in MODALITIES
    }
    assert sidecar["output"] == {
        "file": "X_seg.nii.gz", "sha256": sha256(tmp_path / "out" / "X_seg.nii.gz"),
    }  # fmt: skip
    assert sidecar["model"] == {"name": "a model", "sha256": "ab" * 32, "certificate": "pass"}
    assert sidecar["backend"] == {
        "name": "openvino", "device": "cpu", "precision": "fp32",
        "fell_back_from": "trt (no engine)",
    }  # fmt: skip
    assert sidecar["convention"] == "brats2020"
    assert sidecar["windows"] == {
        # 40 by 16 at stride 8: 4; 20 by 16 at stride 16: 2; 8 by 8: 1.
        "patch": [16, 16, 8], "overlap": [0.5, 0.0, 0.25], "placement": "stride", "count": 8,
    }  # fmt: skip
    labels = labels_of(case)
    ncr, ed, et = (np.count_nonzero(labels == value) * 0.002 for value in (1, 2, 3))
    volumes = sidecar["volumes_ml"]
    assert set(volumes) == {"labels", "regions"}
    assert volumes["labels"] == pytest.approx({"NCR": ncr, "ED": ed, "ET": et}, abs=5e-4)
    assert volumes["regions"] == pytest.approx(
        {"WT": ncr + ed + et, "TC": ncr + et, "ET": et}, abs=5e-4
    )
    timings = sidecar["timings_s"]
    assert timings.pop("save") >= 0
    assert timings == {
        "load": 1.25, "prepare": 0.1, "bind": 0.2, "gather": 0.3, "network": 0.4, "stitch": 0.5,
        "finish": 0.6,
    }  # fmt: skip
    assert sidecar["warnings"] == ["a warning"]
    assert sidecar["run"]["version"] == __version__
    assert str(tmp_path) not in plan.sidecar.read_text()


CONVENTIONS = {
    Convention.BRATS2015: [0, 1, 2, 4],
    Convention.BRATS2020: [0, 1, 2, 4],
    Convention.BRATS2023: [0, 1, 2, 3],
    Convention.BRATS2024: [0, 1, 2, 3],
    Convention.MSD: [0, 2, 1, 3],
}


@pytest.mark.parametrize("convention", [None, *Convention])
@pytest.mark.parametrize(
    "implied", [None, Convention.BRATS2020, Convention.BRATS2023, Convention.MSD]
)
def test_labels_are_written_as_the_input_names_them_or_as_asked(
    case: Case, tmp_path: Path, implied: Convention | None, convention: Convention | None
) -> None:
    case = dataclasses.replace(case, convention=implied)
    plan = plan_output(case, OutputOptions(tmp_path / "out", convention=convention))
    sidecar = save(predicted(case), plan)
    used = convention or implied or Convention.BRATS2023
    written = np.asarray(nib.load(plan.labels).dataobj)
    np.testing.assert_array_equal(written, np.array(CONVENTIONS[used])[labels_of(case)])
    assert sidecar["convention"] == used
    # Only where nobody knows is a person told.
    assert len(sidecar["warnings"]) == (2 if convention is None and implied is None else 1)


def test_names_of_a_submission(case: Case, tmp_path: Path) -> None:
    plan = plan_output(case, OutputOptions(tmp_path / "out", submission=True))
    save(predicted(case, probabilities=True), plan)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "X.json", "X.nii.gz", "X_prob.nii.gz",
    ]  # fmt: skip


def test_a_long_folder_is_looked_at_once(
    tmp_path: Path, write_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not once for each of the thousands of cases that lie there."""
    looked: list[Path] = []

    def holds(directory: Path) -> bool:
        looked.append(directory)
        return False

    monkeypatch.setattr("runtime.output_plan.holds_images", holds)
    images = {name: np.ones((4, 4, 4), np.int16) for name in MODALITIES}
    case = Case.from_dir(write_case(tmp_path / "X", images))
    cases = [replace(case, case_id=f"X{number}") for number in range(50)]
    plans = plan_outputs(cases, OutputOptions(tmp_path / "out"))
    assert [plan.labels.name for plan in plans] == [f"X{number}_seg.nii.gz" for number in range(50)]
    assert looked == [tmp_path / "out"]


def test_probabilities_are_written_beside(case: Case, tmp_path: Path) -> None:
    prediction = predicted(case, probabilities=True)
    plan = plan_output(case, OutputOptions(tmp_path / "out", convention=Convention.BRATS2023))
    save(prediction, plan)
    written = nib.load(tmp_path / "out" / "X_prob.nii.gz")
    assert written.shape == (*SHAPE, 4)
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.affine, nib.load(case.images["t1"].path).affine)
    found = np.asarray(written.dataobj)
    np.testing.assert_array_equal(found, prediction.probabilities)
    np.testing.assert_array_equal(found.argmax(axis=-1), np.asarray(nib.load(plan.labels).dataobj))


def test_the_folders_of_the_input_are_refused(case: Case, tmp_path: Path) -> None:
    truth = tmp_path / "labelsTr" / "X.nii.gz"
    truth.parent.mkdir()
    truth.write_bytes(b"truth")
    case = dataclasses.replace(case, labels=truth)
    (tmp_path / "link").symlink_to(case.folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    for folder in (
        case.folder,
        truth.parent,
        tmp_path / "link",
        tmp_path / "case" / "." / ".." / "case",
    ):
        for options in (
            OutputOptions(folder),
            OutputOptions(folder, submission=True, overwrite=True, resume=True),
        ):
            with pytest.raises(UsageError) as caught:
                plan_output(case, options)
            assert caught.value.exit_code == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")} == before


@pytest.mark.parametrize(
    "name", ["X_seg.nii.gz", "X.json", "X_prob.nii.gz", "X_preview.png", "X_report.html"]
)
@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"schema": 1, "case_id": "X"}', b"[1]", gzip.compress(bytes(500))]
)
def test_a_file_that_is_not_ours_is_left_alone(
    case: Case, tmp_path: Path, name: str, content: bytes
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(content)
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="did not write"):
            plan_output(case, OutputOptions(out, **flags))
    assert (out / name).read_bytes() == content


@pytest.mark.parametrize(
    "name",
    [
        "X_seg.nii.gz", "X.nii.gz", "X.json", "X_prob.nii.gz", "X_preview.png", "X_report.html",
    ],
)  # fmt: skip
@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_what_came_during_the_run_is_not_overwritten_either(
    case: Case, tmp_path: Path, name: str, flags: dict[str, bool]
) -> None:
    plan = plan_output(case, OutputOptions(tmp_path / "out", **flags))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"somebody's afternoon")
    with pytest.raises(UsageError, match="did not write"):
        save(predicted(case, probabilities=True), plan, SETTINGS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_bytes() == b"somebody's afternoon"
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / name).mkdir()
    with pytest.raises(UsageError, match="something that is no file"):
        save(predicted(case), plan, SETTINGS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_what_was_finished_or_edited_during_the_run_is_kept(case: Case, tmp_path: Path) -> None:
    free = plan_output(case, OutputOptions(tmp_path / "out"))
    resumed = plan_output(case, OutputOptions(tmp_path / "out", resume=True))
    save(predicted(case), free, SETTINGS)
    with pytest.raises(UsageError, match="an earlier prediction"):
        save(predicted(case), free, SETTINGS)
    free.labels.write_bytes(free.labels.read_bytes() + bytes(4))
    edited = free.labels.read_bytes()
    with pytest.raises(UsageError, match="edited"):
        save(predicted(case), resumed, SETTINGS)
    assert free.labels.read_bytes() == edited


def test_ours_is_replaced_only_when_asked(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(predicted(case), plan_output(case, OutputOptions(out)), SETTINGS)
    with pytest.raises(UsageError, match="earlier prediction"):
        plan_output(case, OutputOptions(out))
    for options in (OutputOptions(out, overwrite=True), OutputOptions(out, resume=True)):
        save(predicted(case), plan_output(case, options), SETTINGS)


@pytest.fixture
def done(case: Case, tmp_path: Path) -> OutputPlan:
    plan = plan_output(case, OutputOptions(tmp_path / "out"))
    save(predicted(case), plan, SETTINGS)
    return plan


def test_what_matches_is_complete(case: Case, done: OutputPlan) -> None:
    assert is_complete(done, case, "ab" * 32, SETTINGS)
    assert is_complete(done, case, "ab" * 32, json.loads(json.dumps(SETTINGS)))


@pytest.mark.parametrize(
    "change",
    [
        lambda case, plan: case.images["t2"].path.write_bytes(b"another image"),
        lambda case, plan: case.images["t2"].path.unlink(),
        lambda case, plan: plan.labels.unlink(),
        lambda case, plan: plan.labels.write_bytes(plan.labels.read_bytes()[:-1] + b"\1"),
        lambda case, plan: plan.sidecar.unlink(),
        lambda case, plan: plan.sidecar.write_text("{"),
        lambda case, plan: plan.sidecar.write_text("[]"),
        lambda case, plan: plan.sidecar.write_text(
            plan.sidecar.read_text().replace('"schema": 1', '"schema": 2', 1)
        ),
        lambda case, plan: shutil.copy(case.images["t1"].path, case.images["flair"].path),
    ],
)
def test_what_has_changed_on_disk_is_not_complete(
    case: Case, done: OutputPlan, change: Callable[[Case, OutputPlan], Any]
) -> None:
    change(case, done)
    assert not is_complete(done, case, "ab" * 32, SETTINGS)


def test_what_lies_there_is_never_whole_in_memory(
    case: Case, done: OutputPlan, tmp_path: Path
) -> None:
    with done.labels.open("r+b") as file:
        file.truncate(200 << 20)  # sparse
    resumed = dataclasses.replace(done, keeps=True, overwrite=True)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="edited"):
            plan_output(case, OutputOptions(tmp_path / "out", resume=True))
        assert not is_complete(resumed, case, "ab" * 32, SETTINGS)
        save(predicted(case), resumed, SETTINGS)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_another_model_setting_convention_or_name_is_not_complete(
    case: Case, done: OutputPlan, tmp_path: Path
) -> None:
    assert not is_complete(done, case, "cd" * 32, SETTINGS)
    assert not is_complete(done, case, "ab" * 32, SETTINGS | {"overlap": (8, 8, 8)})
    assert not is_complete(done, case, "ab" * 32, {})
    out = tmp_path / "out"
    for options in (
        OutputOptions(out, convention=Convention.MSD, resume=True),
        OutputOptions(out, submission=True, resume=True),
    ):
        assert not is_complete(plan_output(case, options), case, "ab" * 32, SETTINGS)
    fewer = dataclasses.replace(
        case, images={name: case.images[name] for name in ("flair", "t1", "t2")}
    )
    assert not is_complete(done, fewer, "ab" * 32, SETTINGS)
    swapped = dict(
        case.images, t1=Source(case.images["t2"].path), t2=Source(case.images["t1"].path)
    )
    assert not is_complete(done, dataclasses.replace(case, images=swapped), "ab" * 32, SETTINGS)


def test_a_report_goes_with_the_label_map_that_it_shows(case: Case, done: OutputPlan) -> None:
    again = plan_output(case, OutputOptions(done.labels.parent, overwrite=True, report=True))
    drawn: list[str] = []
    earlier = done.sidecar.read_bytes()

    def look(prediction: Prediction, sidecar: dict[str, Any]) -> Pages:
        assert done.sidecar.read_bytes() == earlier  # nothing is replaced before all is written
        drawn.append(html_report(prediction, sidecar))
        return Pages(report=drawn[0].encode())

    save(predicted(case), again, SETTINGS, look=look)
    assert done.report.name == "X_report.html"
    assert done.report.read_text(encoding="utf-8") == drawn[0]
    assert is_complete(again, case, "ab" * 32, SETTINGS)
    done.report.write_text(drawn[0].replace("ml", "mg"), encoding="utf-8")
    assert not is_complete(again, case, "ab" * 32, SETTINGS)
    with pytest.raises(UsageError, match="earlier prediction"):
        plan_output(case, OutputOptions(done.labels.parent))
    plan = plan_output(case, OutputOptions(done.labels.parent, overwrite=True))
    save(predicted(case), plan, SETTINGS)
    assert sorted(path.name for path in done.labels.parent.iterdir()) == ["X.json", "X_seg.nii.gz"]


def test_wanted_probabilities_that_are_gone_are_not_complete(case: Case, tmp_path: Path) -> None:
    settings = {"probabilities": True}
    plan = plan_output(case, OutputOptions(tmp_path / "out"))
    save(predicted(case, probabilities=True), plan, settings)
    assert is_complete(plan, case, "ab" * 32, settings)
    plan.probabilities.unlink()
    assert not is_complete(plan, case, "ab" * 32, settings)


def test_a_label_map_that_a_killed_run_left_is_done_again(case: Case, done: OutputPlan) -> None:
    done.sidecar.unlink()
    directory = done.labels.parent
    with pytest.raises(UsageError, match="earlier prediction"):
        plan_output(case, OutputOptions(directory))
    plan = plan_output(case, OutputOptions(directory, resume=True))
    assert not is_complete(plan, case, "ab" * 32, SETTINGS)
    save(predicted(case), plan, SETTINGS)
    assert is_complete(plan, case, "ab" * 32, SETTINGS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_pages(prediction: Prediction, sidecar: dict[str, Any]) -> Pages:
    return Pages(preview=b"a picture", report=b"a page")


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
def test_a_full_disk_leaves_the_earlier_result_as_it_was(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """At the label map, the probabilities, the two pages, the sidecar: none of five replaced."""
    plan = plan_output(case, OutputOptions(tmp_path / "out", overwrite=True))
    save(predicted(case, probabilities=True), plan, SETTINGS, look=with_pages)
    before = contents(tmp_path / "out")
    assert len(before) == 5
    other = dataclasses.replace(
        predicted(case, probabilities=True), labels=np.full(SHAPE, 2, np.uint8)
    )
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return sync(descriptor)
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        return sync(descriptor)

    monkeypatch.setattr("runtime.atomic.os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save(other, plan, SETTINGS, look=with_pages)
    assert contents(tmp_path / "out") == before
    assert is_complete(plan, case, "ab" * 32, SETTINGS)
    monkeypatch.setattr("runtime.atomic.os.fsync", sync)
    save(other, plan, SETTINGS, look=with_pages)
    assert contents(tmp_path / "out") != before


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
def test_a_crash_never_leaves_a_sidecar_that_vouches_for_another_label_map(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """As if killed at each of the renames by which five files take their places."""
    plan = plan_output(case, OutputOptions(tmp_path / "out", overwrite=True))
    save(predicted(case, probabilities=True), plan, SETTINGS, look=with_pages)
    other = dataclasses.replace(
        predicted(case, probabilities=True), labels=np.full(SHAPE, 2, np.uint8)
    )
    rename, calls = os.replace, []

    def killed(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(other, plan, SETTINGS, look=with_pages)
    assert not plan.sidecar.exists()
    assert nib.load(plan.labels).shape == SHAPE
    assert not is_complete(plan, case, "ab" * 32, SETTINGS)
    # The order in which they do: the sidecar last.
    assert (
        calls[-1]
        == (plan.labels, plan.probabilities, plan.preview, plan.report, plan.sidecar)[failing - 1]
    )


@pytest.mark.parametrize("same", [True, False])
def test_resuming_keeps_what_was_made_of_the_same_label_map(
    case: Case, tmp_path: Path, same: bool
) -> None:
    """Probabilities and a page, of which a later run with fewer flags asks for neither."""
    out = tmp_path / "out"
    save(
        predicted(case, probabilities=True),
        plan_output(case, OutputOptions(out, report=True)),
        SETTINGS | {"probabilities": True},
        look=lambda prediction, sidecar: Pages(report=b"a page"),
    )
    before = contents(out)
    plan = plan_output(case, OutputOptions(out, resume=True, preview=True))
    assert not is_complete(plan, case, "ab" * 32, SETTINGS)  # there is no picture
    prediction = predicted(case)
    if not same:
        prediction = dataclasses.replace(prediction, labels=np.full(SHAPE, 2, np.uint8))
    save(prediction, plan, SETTINGS, look=lambda *_: Pages(preview=b"a picture"))
    after = contents(out)
    kept = {"X_prob.nii.gz", "X_report.html"}
    assert set(after) == {"X.json", "X_seg.nii.gz", "X_preview.png"} | (kept if same else set())
    if same:
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        # The new sidecar vouches for them as the old one did.
        everything = OutputOptions(out, resume=True, preview=True, report=True)
        plan = plan_output(case, everything)
        assert is_complete(plan, case, "ab" * 32, SETTINGS | {"probabilities": True})


def test_more_than_was_asked_for_is_complete(case: Case, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", SETTINGS | {"probabilities": True}
    save(predicted(case, probabilities=True), plan_output(case, OutputOptions(out)), settings)
    plan = plan_output(case, OutputOptions(out, resume=True))
    assert is_complete(plan, case, "ab" * 32, SETTINGS)


def test_a_page_beside_another_truth_is_not_complete(case: Case, tmp_path: Path) -> None:
    out, truth = tmp_path / "out", tmp_path / "truth.nii.gz"
    grid = predicted(case).volume.grid
    write_label_map(truth, np.zeros(SHAPE, np.uint8), grid)
    labelled = dataclasses.replace(case, labels=truth)
    options = OutputOptions(out, resume=True, report=True)
    page = lambda *_: Pages(report=b"a page")  # noqa: E731
    save(predicted(case), plan_output(labelled, options), SETTINGS, look=page)

    def complete(case: Case, options: OutputOptions = options) -> bool:
        return is_complete(plan_output(case, options), case, "ab" * 32, SETTINGS)

    assert complete(labelled)
    assert not complete(case)
    by_hand = dataclasses.replace(options, truth_convention=Convention.BRATS2023)
    assert not complete(labelled, by_hand)
    write_label_map(truth, np.ones(SHAPE, np.uint8), grid)
    assert not complete(labelled)
    # Where no page is wanted the truth does not matter.
    assert complete(labelled, OutputOptions(out, resume=True))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("X_report.html", b"<p>my notes about brats-deploy</p>"),
        ("X_preview.png", b"brats-deploy"),
        ("X_preview.png", b"\x89PNG\r\n my own, of brats-deploy"),
    ],
)
def test_a_page_that_only_speaks_of_us_is_not_ours(
    case: Case, tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(data)
    for flags in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="did not write"):
            plan_output(case, OutputOptions(tmp_path / "out", **flags))
    assert (tmp_path / "out" / name).read_bytes() == data


def test_a_name_too_long_for_a_file_is_told_before_any_work(case: Case, tmp_path: Path) -> None:
    plan_output(dataclasses.replace(case, case_id="x" * 243), OutputOptions(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"a name of 256 bytes.*rename the case"):
        plan_output(dataclasses.replace(case, case_id="é" * 122), OutputOptions(tmp_path / "out"))


def _run(phantom: Path, model: Path, out: Path, *flags: str) -> int:
    from runtime.cli.infer import main

    return main([str(phantom), "--model", str(model), "-o", str(out), "--quiet", *flags])


def test_an_edited_label_map_is_not_replaced_by_resume(
    phantom_dir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert _run(phantom_dir, tiny_model, out) == 0
    path = next(out.glob("*_seg.nii.gz"))
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 1 - voxels[0, 0, 0]
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), path)
    edited = path.read_bytes()
    assert _run(phantom_dir, tiny_model, out, "--resume") == 2
    assert path.read_bytes() == edited
    assert _run(phantom_dir, tiny_model, out, "--overwrite") == 0
    assert path.read_bytes() != edited


def test_a_picture_that_is_not_ours_is_not_replaced(
    phantom_dir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "out" / f"{phantom_dir.name}_preview.png"
    foreign.parent.mkdir()
    foreign.write_text("my picture")
    assert _run(phantom_dir, tiny_model, foreign.parent, "--preview", "--overwrite") == 2
    assert foreign.read_text() == "my picture"
    foreign.unlink()
    assert _run(phantom_dir, tiny_model, foreign.parent, "--preview") == 0
    assert foreign.read_bytes().startswith(b"\x89PNG")
    assert _run(phantom_dir, tiny_model, foreign.parent, "--preview", "--overwrite") == 0


def test_nothing_of_an_earlier_run_stays_beside_a_new_one(
    phantom_dir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert _run(phantom_dir, tiny_model, out, "--probabilities", "--preview", "--report") == 0
    assert _run(phantom_dir, tiny_model, out, "--overwrite", "--submission") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{phantom_dir.name}.json", f"{phantom_dir.name}.nii.gz"]


@pytest.mark.parametrize("place", ["BraTSPhantom_0002", "BraTSPhantom_0001/sub"])
def test_no_output_in_or_below_a_case_folder(
    phantom_root: Path, tiny_model: Path, tmp_path: Path, place: str
) -> None:
    root = Path(shutil.copytree(phantom_root, tmp_path / "in"))
    before = sorted(path.name for path in root.rglob("*"))
    assert _run(root / "BraTSPhantom_0001", tiny_model, root / place) == 2
    assert sorted(path.name for path in root.rglob("*")) == before


def _twins(phantom: Path, folder: Path, *names: str) -> Path:
    """The phantom's images as cases of other names, one folder each."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for path in phantom.glob("*.nii.gz"):
            token = path.name.rpartition("_")[2]
            if not token.startswith("seg"):
                shutil.copy(path, folder / name / token)
    return folder


def test_a_case_called_like_another_ones_label_map_takes_nothing_from_it(
    phantom_dir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    data = _twins(phantom_dir, tmp_path / "data", "B", "B_seg")
    out = tmp_path / "out"
    assert _run(data, tiny_model, out) == 0
    names = {"B.json", "B_seg.nii.gz", "B_seg.json", "B_seg_seg.nii.gz"}
    assert {path.name for path in out.iterdir() if "cohort" not in path.name} == names
    for case in ("B", "B_seg"):
        sidecar = json.loads((out / f"{case}.json").read_text())
        assert sidecar["output"]["sha256"] == sha256(out / sidecar["output"]["file"])
    before = (out / "B_seg.nii.gz").read_bytes()
    assert _run(data / "B_seg", tiny_model, out, "--overwrite") == 0
    assert (out / "B_seg.nii.gz").read_bytes() == before
    assert _run(data / "B_seg", tiny_model, out, "--overwrite", "--submission") == 2
    assert (out / "B_seg.nii.gz").read_bytes() == before


def test_two_cases_never_become_one_file(
    phantom_dir: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _twins(phantom_dir, tmp_path / "data", "B", "B_prob")
    out = tmp_path / "out"
    assert _run(data, tiny_model, out, "--submission", "--probabilities") == 2
    assert "case B_prob and case B become" in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("name", ["_report.html", "_seg.nii.gz", "_preview.png", ".json"])
def test_what_is_no_file_is_not_waited_for(
    phantom_dir: Path, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / f"{phantom_dir.name}{name}")
    assert _run(phantom_dir, tiny_model, out, "--resume") == 2
    assert len(list(out.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_resume_reads_no_input_that_is_no_image(
    phantom_dir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    case = Path(shutil.copytree(phantom_dir, tmp_path / phantom_dir.name))
    out = tmp_path / "out"
    assert _run(case, tiny_model, out) == 0
    t1 = case / f"{case.name}_t1.nii.gz"
    with t1.open("r+b") as file:
        file.truncate(300 << 30)  # sparse
    assert _run(case, tiny_model, out, "--resume") == 3
    t1.unlink()
    os.mkfifo(t1)
    assert _run(case, tiny_model, out, "--resume") == 3


def test_a_folder_that_cannot_be_listed_is_an_output_that_cannot_be_written(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Path) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("runtime.output_plan.holds_images", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        plan_output(case, OutputOptions(tmp_path / "out"))
