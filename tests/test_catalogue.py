"""Bad input of every kind ends as the catalogue says: refused, corrected and told, or taken."""

import contextlib
import gzip
import json
from html import escape
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from runtime.case import Source
from runtime.cli.evaluate import main as evaluate
from runtime.cli.infer import main as infer
from runtime.nifti import read_image
from tests.catalogue.scene import Row, Scene, nifti, scene, truth
from tests.catalogue.table import README, ROWS, text

# What `brats-infer --check` reads, too.
CHECKED = ("Files", "Headers", "Cases", "Labels")


def run(made: Scene, command: str) -> int:
    if command == "read":
        read_image(Source(made.given))
        return 0
    if command == "eval":
        prediction = made.root / "X.nii"
        prediction.write_bytes(nifti(truth()))
        return evaluate([str(prediction), str(made.path("seg"))])
    usual = {"--model": str(made.model), "-o": str(made.out), "--backend": "ort", "--threads": "1"}
    flags = [part for pair in usual.items() if pair[0] not in made.flags for part in pair]
    report = ["--report"] if command == "corrected" else []
    return infer([str(made.given), *flags, *made.flags, *report])


@pytest.fixture(scope="module")
def healthy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    """The label map of the case that nothing is wrong with."""
    made = scene(tmp_path_factory.mktemp("healthy"), tiny_model)
    assert run(made, "infer") == 0
    sidecar = json.loads((made.out / "X.json").read_text())
    assert sidecar["warnings"] == []
    labels = voxels_in(made.out)
    assert len(np.unique(labels)) >= 3
    return labels


def voxels_in(out: Path) -> npt.NDArray[np.uint8]:
    (path,) = out.glob("*_seg.nii.gz")
    return np.asarray(nib.Nifti1Image.from_bytes(unpacked(path)).dataobj, np.uint8)


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def outputs(made: Scene) -> dict[Path, bytes]:
    """Every file of the output folder, hidden ones and sidecars included, with its content."""
    return {path: path.read_bytes() for path in made.out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.area}: {row.name}")
def test_each_row(
    row: Row,
    tiny_model: Path,
    tmp_path: Path,
    healthy: npt.NDArray[np.uint8],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = scene(tmp_path, tiny_model)
    row.spoil(made)
    before = outputs(made)
    with contextlib.ExitStack() as around:
        for manager in made.around:
            around.enter_context(manager)
        if row.area in CHECKED and row.command != "read":
            check_doctor(row, made, capsys)
        reported = row.outcome == "corrected" and row.command == "infer"
        code = run(made, "corrected" if reported else row.command)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert code == row.code, told
    if row.outcome == "error":
        check_error(row, made, told)
        if row.code != 6:
            assert outputs(made) == before
        return
    if row.command != "infer":
        assert all(part in told for part in row.told), told
        return
    (sidecar,) = made.out.glob("*.json")
    warnings = json.loads(sidecar.read_text())["warnings"]
    labels = voxels_in(made.out)
    for part in row.told:
        assert any(part in warning for warning in warnings), warnings
    for warning in warnings:
        assert warning in told
        assert escape(warning, quote=False) in (made.out / "X_report.html").read_text()
    assert bool(warnings) == (row.outcome == "corrected"), warnings
    if row.same:
        turned = made.turn(labels) if made.turn else labels
        np.testing.assert_array_equal(turned, healthy)
    assert b"Jane Doe" not in b"".join(unpacked(path) for path in made.out.glob("*.nii.gz"))


def check_doctor(row: Row, made: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """What keeps a case from being segmented or scored is an error of the check, and nothing else
    is: who mends what it finds has a data set that runs.
    """
    record = made.root / "check.json"
    truth = made.path("seg")
    stored = truth.read_bytes() if row.command == "infer" and truth.exists() else None
    if stored is not None:
        truth.unlink()  # it lies where the images lay before the row moved them
    flags = ["--check", "--json", str(record), "--model", str(made.model)]
    code = infer([str(made.given), *flags, *made.flags])
    if stored is not None:
        truth.write_bytes(stored)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "\x1b" not in told
    assert code == (3 if row.outcome == "error" else 0), told
    if record.exists():
        found = json.loads(record.read_text())["data_set"]
        assert bool(found["with_errors"]) == (row.outcome == "error"), told
        assert found["with_warnings"] or row.outcome != "corrected", told
    else:
        assert row.name in ("a folder without images",)
    if row.outcome == "corrected":
        assert "warning: " in told


def check_error(row: Row, made: Scene, told: str) -> None:
    """One sentence with all its parts, about a file or folder that is there, or about an option; an
    interrupted command says just that.
    """
    if row.code == 130:
        assert told.endswith("interrupted\n")
        return
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    for part in (": found ", ", expected ", "; "):
        assert part in line
    where = line.removeprefix("error: ").partition(": found ")[0]
    if row.area == "Runs" or row.name == "no model directory":
        assert (
            where.startswith("--") or where in made.flags or Path(where).is_relative_to(made.root)
        )
    else:
        spoilt = made.model if row.area == "Models" else made.case
        # What is scored against a label map; what two folders of one name would both become.
        others = {made.root / "X.nii", made.out}
        assert Path(where).is_relative_to(spoilt) or Path(where) in others
    # Of many cases the error that ends the command only counts those that failed.
    said = " ".join(told.split()) if row.code == 6 else line
    assert all(part in said for part in row.told), said
    assert line.endswith(".")


def test_the_page_is_the_catalogue() -> None:
    assert README.read_text() == text()


def test_the_catalogue_covers_what_it_should() -> None:
    names = [(row.area, row.name) for row in ROWS]
    assert len(set(names)) == len(names) >= 75
    assert {row.outcome for row in ROWS} == {"error", "corrected", "accepted"}
    assert all(row.told for row in ROWS if row.outcome == "corrected")
