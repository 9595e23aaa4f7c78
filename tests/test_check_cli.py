"""`brats-infer --check` over a data set: what is printed, what is written, and the exit codes."""

import json
import os
import shutil
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from runtime.bounded import MIB
from runtime.case import find_cases
from runtime.check import check_cases
from runtime.cli.infer import main
from runtime.doctor import examine, images
from runtime.doctor.record import check_place
from runtime.errors import UsageError
from runtime.labels import MODALITIES
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_dir import CARD, sha256_of


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """check(folder, *flags) -> exit code, standard error."""

    def call(folder: Path, *flags: object) -> tuple[int, str]:
        code = main([str(folder), "--check", *map(str, flags)])
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err

    return call


@pytest.fixture
def root(phantom_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_root, tmp_path / "root"))


def copy_as(folder: Path, name: str) -> Path:
    """The case under another name, beside it."""
    made = folder.parent / name
    made.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, made / path.name.replace(folder.name, name))
    return made


def test_a_sound_data_set_exits_0_and_is_written_whole(
    check: Any, phantom_root: Path, tmp_path: Path
) -> None:
    record = tmp_path / "check.json"
    code, err = check(phantom_root, "--json", record)
    assert code == 0
    assert err.endswith(
        "2 cases: 2 usable, 0 with errors, 0 with warnings; dialects brats2018 2; "
        "conventions brats2020 2\n"
    )
    value = json.loads(record.read_text())
    assert value["schema"] == 1
    assert value["not_cases"] == []
    assert value["data_set"] == {
        "cases": 2, "usable": 2, "with_errors": 0, "with_warnings": 0,
        "dialects": {"brats2018": 2}, "conventions": {"brats2020": 2}, "findings": [],
    }  # fmt: skip
    first = value["cases"][0]
    assert (first["case_id"], first["usable"]) == ("BraTSPhantom_0001", True)
    assert (first["dialect"], first["convention"]) == ("brats2018", "brats2020")
    assert first["findings"] == []
    assert first["labels"]["values"] == [0, 1, 2, 4]
    assert first["labels"]["outside_brain"] == 0
    assert list(first["modalities"]) == ["flair", "t1", "t1ce", "t2"]
    path = phantom_root / "BraTSPhantom_0001" / "BraTSPhantom_0001_t1.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj)
    brain = voxels[voxels != 0].astype(np.float64)
    t1 = first["modalities"]["t1"]
    assert t1["file"] == path.name
    assert t1["sha256"] == sha256_of(path.read_bytes())
    assert (t1["shape"], t1["spacing"]) == ([64, 56, 48], [1, 1, 1])
    assert (t1["orientation"], t1["dtype"]) == ("LPS", "int16")
    assert (t1["min"], t1["max"]) == (0, voxels.max())
    assert t1["mean"] == pytest.approx(brain.mean())
    assert t1["std"] == pytest.approx(brain.std())
    assert t1["nonzero"] == pytest.approx(brain.size / voxels.size)
    # Earlier findings are replaced.
    assert check(phantom_root, "--json", record, "--quiet") == (0, "")


def test_the_record_never_takes_the_place_of_another_file(
    check: Any, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = root / "BraTSPhantom_0001" / "BraTSPhantom_0001_t1.nii.gz"
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"theirs": 1}')
    before = image.read_bytes()
    for path in (image, root / "dataset.json", foreign):
        code, err = check(root, "--json", path)
        assert code == 2
        assert str(path) in err
    assert image.read_bytes() == before
    assert foreign.read_text() == '{"theirs": 1}'
    assert not (root / "dataset.json").exists()
    assert check(root, "--json", tmp_path)[0] == 7
    assert main([str(root), "--json", str(tmp_path / "x.json")]) == 2
    assert "--check" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="nothing is swept where no locks are")
def test_what_a_killed_run_left_of_a_record_is_swept(
    check: Any, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ".check.json.0123abcd.brats.tmp").write_bytes(b"{")
    check(root, "--json", tmp_path / "made" / "check.json")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["check.json"]


def test_a_file_in_the_place_of_the_record_is_not_read_without_a_bound(tmp_path: Path) -> None:
    with (tmp_path / "check.json").open("wb") as file:
        file.truncate(200 * MIB)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="did not write"):
            check_place(tmp_path / "check.json")
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_errors_are_written_before_they_end_the_command(
    check: Any, root: Path, tmp_path: Path
) -> None:
    flair = root / "BraTSPhantom_0001" / "BraTSPhantom_0001_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-20])
    (root / "BraTSPhantom_0002" / "BraTSPhantom_0002_t1c.nii.gz").touch()
    record = tmp_path / "check.json"
    code, err = check(root, "--json", record)
    assert code == 3
    last = err.splitlines()[-1]
    assert "BraTSPhantom_0001 (unreadable flair)" in last
    assert "2 of 2 cases" in last
    value = json.loads(record.read_text())
    assert value["data_set"]["with_errors"] == 2
    (broken,) = value["cases"]
    assert not broken["usable"]
    assert [(one["severity"], one["code"], one["modality"]) for one in broken["findings"]] == [
        ("error", "unreadable", "flair")
    ]
    assert list(broken["modalities"]) == ["t1", "t1ce", "t2"]
    assert ["t1ce twice" in text for text in value["not_cases"]] == [True]


def test_files_that_make_no_case_are_told_once(check: Any, root: Path, tmp_path: Path) -> None:
    folder = root / "BraTSPhantom_0001"
    (folder / "BraTSPhantom_0001_t1c.nii.gz").touch()
    record = tmp_path / "check.json"
    code, err = check(folder, "--json", record)
    assert code == 3
    assert err.count("t1ce twice") == 1
    assert json.loads(record.read_text())["data_set"]["cases"] == 1


def test_a_case_or_an_image_that_is_there_twice(check: Any, root: Path) -> None:
    one, two = root / "BraTSPhantom_0001", root / "BraTSPhantom_0002"
    copy_as(one, "Copied")
    shutil.copy(one / f"{one.name}_t2.nii.gz", two / f"{two.name}_t2.nii.gz")
    code, err = check(root)
    assert code == 0
    lines = err.splitlines()
    whole = "BraTSPhantom_0001 and Copied are one case twice (the same bytes)"
    assert [line for line in lines if whole in line]
    part = "BraTSPhantom_0001 and BraTSPhantom_0002 share t2 (the same bytes)"
    assert [line for line in lines if part in line]


def test_names_and_numberings_that_differ_and_visits(check: Any, root: Path) -> None:
    one, two = root / "BraTSPhantom_0001", root / "BraTSPhantom_0002"
    for path in one.iterdir():
        path.rename(path.with_name(path.name.replace(one.name, "BraTS18_A_1")))
    names = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}
    for path in list(two.iterdir()):
        token = path.name.removesuffix(".nii.gz").rpartition("_")[2]
        path.rename(path.with_name(f"BraTS18_A_2-{names[token]}.nii.gz"))
    code, err = check(root, "--truth-labels", "brats2020")
    assert code == 0
    assert "warning: several ways to name files: brats2018 (1), brats2023 (1)" in err
    assert "info: patients with several cases: BraTS18_A (2)" in err
    assert "conventions" in err
    code, err = check(root)
    assert code == 3
    assert "label maps of several conventions: brats2020 (1), brats2023 (1)" in err


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_few_cases_have_a_table_each_that_fits(
    phantom_root: Path, width: int, terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(width=width, force_terminal=terminal, color_system=None)
    assert check_cases(find_cases(phantom_root), console) == 0
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if line.startswith("BraTSPhantom_0001")]
    assert head == ("BraTSPhantom_0001  brats2018 naming, labels brats2020 (0,1,2,4 uint8)")
    table = lines[lines.index(head) + 1 :][:5]
    assert table[0].split() == ["shape", "mm", "axes", "dtype", "min", "max", "not", "0", "mean",
        "std"]  # fmt: skip
    assert [row.split()[0] for row in table[1:]] == ["flair", "t1", "t1ce", "t2"]
    assert table[1].split()[1:5] == ["64x56x48", "1x1x1", "LPS", "int16"]
    assert max(map(len, lines[:-1])) <= width


def test_many_cases_have_a_line_each(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3, 8):
        copy_as(root / "BraTSPhantom_0002", f"Z{number}")
    (root / "Z3" / "Z3_t2.nii.gz").unlink()
    code = main([str(root), "--check"])
    lines = capsys.readouterr().err.splitlines()
    assert code == 3
    assert lines[0] == "ok      BraTSPhantom_0001  brats2018 64x56x48 LPS brats2020 0,1,2,4"
    at = [line.split()[:2] for line in lines].index(["error", "Z3"])
    assert lines[at + 1] == "  error: no t2 image"
    assert lines[at + 2].startswith("ok      Z4                 brats2018")


def test_no_more_than_one_case_is_in_memory(
    phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports are kept; what they were made of is gone when the next case is read."""
    alive: list[weakref.ref[Any]] = []
    read = images.read_image

    def watched(source: Any) -> Any:
        others = [one for one in alive if (seen := one()) is not None and seen.path.parent !=
            source.path.parent]  # fmt: skip
        assert others == []
        image, grid = read(source)
        alive.append(weakref.ref(image))
        return image, grid

    monkeypatch.setattr(images, "read_image", watched)
    assert check_cases(find_cases(phantom_root), Console(quiet=True)) == 0
    assert len(alive) == 8


def test_a_model_says_what_may_be_missing(
    check: Any, root: Path, tmp_path: Path, tiny_model: Path
) -> None:
    folder = root / "BraTSPhantom_0001"
    (folder / f"{folder.name}_t2.nii.gz").unlink()
    assert check(folder, "--model", tiny_model)[0] == 3
    tolerant = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    card = json.loads((tolerant / CARD).read_text()) | {"tolerates_missing": ["t2"]}
    (tolerant / CARD).write_text(json.dumps(card))
    (tolerant / MANIFEST).write_bytes(manifest_of(tolerant))
    code, err = check(folder, "--model", tolerant)
    assert code == 0
    assert "warning: no t2 image; the model does without it" in err


def rewritten(folder: Path, change: Callable[[Any], Any], affine: Any = None) -> None:
    """All images of a case, changed; as nibabel writes them."""
    for modality in MODALITIES:
        path = folder / f"{folder.name}_{modality}.nii.gz"
        image = nib.load(path)
        voxels = change(np.asarray(image.dataobj))
        nib.save(nib.Nifti1Image(voxels, image.affine if affine is None else affine), path)


def without_truth(folder: Path) -> Path:
    (folder / f"{folder.name}_seg.nii.gz").unlink()
    return folder


def outcomes(folder: Path, out: Path, model: Path, *flags: str) -> tuple[int, int]:
    """Exit codes of --check and of segmenting."""
    given = [str(folder), "--model", str(model), *flags]
    return (
        main([*given, "--check"]),
        main([*given, "-o", str(out), "--backend", "ort", "--threads", "1"]),
    )


def test_a_single_slice_is_refused_by_both(
    root: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = without_truth(root / "BraTSPhantom_0001")
    rewritten(folder, lambda voxels: voxels[:, :, 24:25])
    assert outcomes(folder, tmp_path / "out", tiny_model) == (3, 3)
    err = capsys.readouterr().err
    assert err.count("error: a single slice (64x56x1); give the whole 3D image") == 1


@pytest.mark.parametrize("scale", [1e150, 1e152, 1e154, 1e200, 1e300])
def test_intensities_that_cannot_be_added_up_are_refused_by_both(
    root: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], scale: float
) -> None:
    folder = without_truth(root / "BraTSPhantom_0001")
    rewritten(folder, lambda voxels: voxels * (scale / 100))
    checked, segmented = outcomes(folder, tmp_path / "out", tiny_model)
    told = capsys.readouterr().err
    assert checked == segmented
    if scale > 1e152:
        assert checked == 3
        assert "flair has intensities too large to be added up" in told


def test_the_models_spacing_is_held_against_the_cases(
    check: Any, root: Path, tmp_path: Path, tiny_model: Path
) -> None:
    folder = without_truth(root / "BraTSPhantom_0001")
    rewritten(folder, lambda voxels: voxels, np.diag([-1.0, -1, 5, 1]))
    code, err = check(folder)
    assert code == 0
    assert "warning: spacing 1x1x5 mm, BraTS models expect 1x1x1" in err
    code, err = check(folder, "--model", tiny_model)
    assert code == 3
    told = "error: voxels of 1x1x5 mm, expected 1x1x1 mm, as the model was trained on"
    assert err.count(told) == 1
    code, err = check(folder, "--model", tiny_model, "--force-spacing")
    assert code == 0
    assert "warning: spacing 1x1x5 mm is not the model's 1x1x1 mm" in err
    assert outcomes(folder, tmp_path / "out", tiny_model) == (3, 3)
    assert outcomes(folder, tmp_path / "out", tiny_model, "--force-spacing") == (0, 0)
    # A model of such spacing takes it, and says so of what others would take.
    thick = with_card(tiny_model, tmp_path / "thick", {"spacing_mm": [1.0, 1.0, 5.0]})
    assert check(folder, "--model", thick)[0] == 0
    assert check(root / "BraTSPhantom_0002", "--model", thick)[0] == 3


def with_card(model: Path, place: Path, changed: dict[str, Any]) -> Path:
    made = Path(shutil.copytree(model, place))
    (made / CARD).write_text(json.dumps(json.loads((made / CARD).read_text()) | changed))
    (made / MANIFEST).write_bytes(manifest_of(made))
    return made


def test_only_the_models_own_modalities_must_be_there(
    check: Any, root: Path, tmp_path: Path, tiny_model: Path
) -> None:
    folder = root / "BraTSPhantom_0001"
    (folder / f"{folder.name}_t2.nii.gz").unlink()
    two = with_card(tiny_model, tmp_path / "two", {"modalities": ["t1ce", "flair"]})
    assert check(folder, "--model", two)[0] == 0
    (folder / f"{folder.name}_t1ce.nii.gz").unlink()
    code, err = check(folder, "--model", two)
    assert code == 3
    assert "error: no t1ce image" in err
    assert "no t2 image" not in err


def test_a_case_that_does_not_fit_into_memory_is_a_finding_of_that_case(
    check: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "check.json"
    found = examine.swapped

    def none_left(looks: Any, truth: Any) -> Any:
        if "0001" in looks["t1"].facts.file:
            raise MemoryError("Unable to allocate 9 TiB")
        return found(looks, truth)

    monkeypatch.setattr(examine, "swapped", none_left)
    code, err = check(root, "--json", record)
    assert code == 3
    assert "error: too little memory to look at it" in err
    one, two = json.loads(record.read_text())["cases"]
    assert [finding["code"] for finding in one["findings"]] == ["memory"]
    assert (one["usable"], two["usable"]) == (False, True)


def test_an_image_that_does_not_fit_into_memory_is_named(
    check: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "check.json"
    found = np.empty

    def none_left(*size: Any, **how: Any) -> Any:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("runtime.nifti_bytes.np.empty", none_left)
    code, _ = check(root, "--json", record)
    monkeypatch.setattr("runtime.nifti_bytes.np.empty", found)
    assert code == 3
    one, _ = json.loads(record.read_text())["cases"]
    images = [finding["modality"] for finding in one["findings"] if finding["code"] == "memory"]
    assert images == [*MODALITIES, None]  # and the label map
    assert "BraTSPhantom_0001_flair.nii.gz: found too little memory" in one["findings"][0]["text"]


def test_a_folder_that_cannot_be_listed_is_an_error_of_both(
    check: Any, root: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hidden = root / "BraTSPhantom_0002"
    listed = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == hidden:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    record = tmp_path / "check.json"
    code, err = check(root, "--json", record)
    assert code == 3
    assert f"{hidden}: found Permission denied" in err
    assert json.loads(record.read_text())["data_set"]["with_errors"] == 1
    assert outcomes(root, tmp_path / "out", tiny_model) == (3, 6)
    assert f"{hidden}: found Permission denied" in capsys.readouterr().err
    assert (tmp_path / "out" / "BraTSPhantom_0001_seg.nii.gz").is_file()
    assert outcomes(hidden, tmp_path / "other", tiny_model) == (3, 3)


def test_a_stray_numbered_file_is_an_error_of_both(
    check: Any, root: Path, tmp_path: Path, tiny_model: Path
) -> None:
    folder = root / "BraTSPhantom_0002"
    shutil.copy(folder / f"{folder.name}_t1.nii.gz", folder / "scan_0001.nii.gz")
    record = tmp_path / "check.json"
    code, err = check(root, "--json", record)
    assert code == 3
    assert f"{folder}: found numbered channels (scan)" in err
    assert [case["usable"] for case in json.loads(record.read_text())["cases"]] == [True, True]
    assert outcomes(root, tmp_path / "out", tiny_model) == (3, 6)
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 2


@pytest.mark.parametrize("place", ["", "sub", "link"])
def test_the_record_never_lies_in_a_cases_folder(
    check: Any, root: Path, tmp_path: Path, place: str
) -> None:
    folder = root / "BraTSPhantom_0001"
    target = folder / place
    if place == "link":
        target = tmp_path / "link"
        target.symlink_to(folder)
    code, err = check(root, "--json", target / "c.json")
    assert code == 2
    assert f"{target / 'c.json'}: found a place inside the folder of a case" in err
    assert len(list(folder.iterdir())) == 5
    # Beside the cases is a place.
    assert check(root, "--json", root / "c.json")[0] == 0
