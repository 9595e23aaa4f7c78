"""Four images under four names are never joined to a case, and one sentence says why."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.case import find_cases
from runtime.cli.infer import main
from runtime.labels import MODALITIES
from runtime.strangers import refusal, set_apart

WriteCase = Callable[..., Path]
SHAPE = (40, 18, 14)


def strange(folder: Path, write_case: WriteCase, *, moved: bool) -> Path:
    for index, name in enumerate(MODALITIES):
        voxels = np.random.default_rng(index).integers(1, 900, SHAPE).astype(np.int16)
        affine = np.diag([-1.0, -1, 1, 1])
        affine[0, 3] = 7 * index * moved
        write_case(folder, {name: voxels}, affine, f"{'ABCD'[index]}_{{}}.nii.gz")
    return folder


@pytest.mark.parametrize("moved", [True, False])
def test_one_error_for_the_folder(
    tmp_path: Path,
    write_case: WriteCase,
    tiny_model: Path,
    moved: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = strange(tmp_path / "scans", write_case, moved=moved)
    out = tmp_path / "out"
    assert main([str(folder), "--model", str(tiny_model), "-o", str(out)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {folder}: found one image of each modality under " in line
    assert ("not co-registered" in line) == moved
    assert ("names of different cases (A, B, C, D)" in line) != moved
    assert "name them alike" in line
    assert not out.exists()
    assert main([str(folder), "--check"]) == 3
    err = capsys.readouterr().err
    assert ("error: not co-registered" in err) == moved
    assert "error: names of different cases (A, B, C, D)" in err


def test_a_complete_case_and_other_incomplete_ones_stay_what_they_are(
    tmp_path: Path, phantom_root: Path
) -> None:
    folder = Path(shutil.copytree(phantom_root / "BraTSPhantom_0001", tmp_path / "X"))
    (folder / "Y_t1.nii.gz").touch()
    cases = find_cases(folder)
    assert set_apart(cases) == (cases, [])
    apart = tmp_path / "apart"
    for name, token in zip("ABCD", MODALITIES, strict=True):
        (apart / name).mkdir(parents=True)
        (apart / name / f"{name}_{token}.nii.gz").touch()
    cases = find_cases(apart)
    assert set_apart(cases) == (cases, [])


def test_a_damaged_stranger_is_a_stranger(tmp_path: Path, write_case: WriteCase) -> None:
    folder = strange(tmp_path / "scans", write_case, moved=False)
    (folder / "A_flair.nii.gz").write_bytes(b"no image")
    _, (one,) = set_apart(find_cases(folder))
    assert "names of different cases" in refusal(one).found
