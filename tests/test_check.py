"""The case doctor names what is wrong with a case, and nothing that is not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from runtime.case import Case, find_cases
from runtime.check import check_cases, examine
from runtime.cli.infer import main
from runtime.errors import InputError
from runtime.grid import Grid
from runtime.nifti import load, load_label_map
from runtime.nifti_writer import write_image


@pytest.fixture
def copied(phantom_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_dir, tmp_path / phantom_dir.name))


def _texts(folder: Path) -> list[tuple[bool, str]]:
    _, findings = examine(Case.from_dir(folder))
    return [(finding.error, finding.text) for finding in findings]


def _rewrite(folder: Path, modality: str, change: object) -> None:
    volume = load(Case.from_dir(folder))
    voxels = change(volume.images[modality].voxels)  # type: ignore[operator]
    write_image(volume.images[modality].path, voxels, volume.grid)


def test_a_sound_case_has_no_findings(phantom_dir: Path) -> None:
    assert _texts(phantom_dir) == []


def test_missing_modality_is_an_error(copied: Path) -> None:
    (copied / f"{copied.name}_t2.nii.gz").unlink()
    assert (True, "no t2 image") in _texts(copied)


def test_the_same_file_twice_is_an_error(copied: Path) -> None:
    shutil.copy(copied / f"{copied.name}_t1.nii.gz", copied / f"{copied.name}_t1ce.nii.gz")
    ((error, text),) = _texts(copied)
    assert error
    assert "t1ce.nii.gz: found the same bytes as" in text


def test_skull_and_negative_values_are_warnings(copied: Path) -> None:
    _rewrite(copied, "flair", lambda voxels: (voxels + 1).astype(np.int16))
    _rewrite(copied, "t2", lambda voxels: (voxels - 700 * (voxels > 0)).astype(np.int16))
    found = _texts(copied)
    assert [error for error, _ in found] == [False, False]
    assert "100% of the voxels are not 0" in found[0][1]
    assert "t2 has negative values" in found[1][1]


def test_spacing_is_a_warning(copied: Path) -> None:
    volume = load(Case.from_dir(copied))
    stored, _ = load_label_map(copied / f"{copied.name}_seg.nii.gz")
    grid = Grid.from_affine(volume.grid.shape, volume.grid.affine @ np.diag([1, 1, 3.0, 1]))
    for modality in volume.images:
        write_image(volume.images[modality].path, volume.images[modality].voxels, grid)
    write_image(copied / f"{copied.name}_seg.nii.gz", stored, grid)
    assert _texts(copied) == [(False, "spacing 1x1x3 mm, BraTS models expect 1x1x1")]


def test_labels_outside_the_brain_are_counted(copied: Path) -> None:
    path = copied / f"{copied.name}_seg.nii.gz"
    stored, grid = load_label_map(path)
    changed = stored.copy(order="F")
    changed[0, 0, :3] = 2
    write_image(path, changed, grid)
    assert _texts(copied) == [(False, "3 labelled voxels lie outside the brain")]


def test_labels_on_another_grid_are_an_error(copied: Path) -> None:
    path = copied / f"{copied.name}_seg.nii.gz"
    stored, grid = load_label_map(path)
    moved = grid.affine.copy()
    moved[0, 3] += 5
    write_image(path, stored, Grid.from_affine(grid.shape, moved))
    ((error, text),) = _texts(copied)
    assert error
    assert "moves a corner of the volume by 5 mm" in text


@pytest.fixture
def renamed(copied: Path, tmp_path: Path) -> Path:
    """The case, numbered as in 2020, under the names of 2023."""
    folder = tmp_path / "renamed" / "X"
    folder.mkdir(parents=True)
    names = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}
    for old, new in names.items():
        shutil.copy(copied / f"{copied.name}_{old}.nii.gz", folder / f"X-{new}.nii.gz")
    return folder


def test_labels_of_2020_under_the_names_of_2023_are_an_error(
    renamed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(renamed), "--check", "--quiet"]) == 3
    told = capsys.readouterr().err.splitlines()[0]
    assert told == (
        f"X error: {renamed / 'X-seg.nii.gz'}: found a 4 and no 3 where the naming implies "
        "brats2023, expected 1, 2 and 3; say what 4 is: --truth-labels brats2020 for enhancing "
        "tumour, --truth-labels brats2024 for the resection cavity."
    )
    for convention in ("brats2020", "brats2024"):
        assert main([str(renamed), "--check", "--quiet", "--truth-labels", convention]) == 0
    assert main([str(renamed), "--check", "--quiet", "--truth-labels", "brats2023"]) == 3
    assert "with --truth-labels." in capsys.readouterr().err


def test_all_cases_are_told_before_the_bad_one_fails_the_command(
    phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(phantom_root, tmp_path / "root"))
    flair = root / "BraTSPhantom_0001" / "BraTSPhantom_0001_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-20])
    with pytest.raises(InputError, match="1 of 2 cases"):
        check_cases(find_cases(root), Console(width=200))
    shown = capsys.readouterr().out
    assert "BraTSPhantom_0001_flair.nii.gz" in shown
    assert "BraTSPhantom_0002" in shown
