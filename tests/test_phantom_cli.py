"""`brats-phantom` writes its own files, and never over anybody else's."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import runtime.phantom
from runtime.cli.phantom import main
from runtime.nifti_writer import write_label_map
from runtime.phantom import Phantom, phantom_case

CASE = "BraTSPhantom_0002"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The voxels are not looked at here."""

    def make(seed: int, case: int, *_: object) -> Phantom:
        return phantom_case(seed, case, (32, 32, 32))

    monkeypatch.setattr(runtime.phantom, "phantom_case", make)


def test_the_same_folder_may_be_written_again(tmp_path: Path) -> None:
    assert main([str(tmp_path / "x"), "--cases", "2"]) == 0
    first = {path: path.read_bytes() for path in tmp_path.glob("x/*/*")}
    assert len(first) == 10
    path = tmp_path / "x" / CASE / f"{CASE}_t1.nii.gz"
    assert main([str(tmp_path / "x"), "--cases", "2", "--seed", "1"]) == 0
    assert path.read_bytes() != first[path]
    assert main([str(tmp_path / "x"), "--cases", "2"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("x/*/*")} == first


@pytest.mark.skipif(os.name != "posix", reason="nothing is swept where no locks are")
def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    """SIGKILL, so that nothing can be tidied up: before the first file takes its name."""
    kill = """
import os, signal, sys
import runtime.atomic
from runtime.cli.phantom import main
runtime.atomic.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main([sys.argv[1], "--cases", "1", "--quiet"])
"""
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", kill, tmp_path], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "BraTSPhantom_0001"
    assert len(list(folder.glob(".*.brats.tmp"))) == 1
    (folder / ".mine.tmp").touch()
    assert main([str(tmp_path), "--cases", "1"]) == 0
    assert len(list(folder.glob("*.nii.gz"))) == 5
    assert [path.name for path in folder.glob(".*")] == [".mine.tmp"]


def text(path: Path) -> None:
    path.write_text("mine\n")


def image(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((5, 4, 3), np.int16), np.eye(4)), path)


def prediction(path: Path) -> None:
    """Of ours, but of another command."""
    write_label_map(path, np.ones((32, 32, 32), np.uint8), phantom_case(0, 1, (32, 32, 32)).grid)


def broken_link(path: Path) -> None:
    path.symlink_to("gone")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [text, image, prediction, broken_link, folder])
@pytest.mark.parametrize("modality", ["t1", "seg"])
def test_a_file_that_is_not_its_own_is_left_alone(
    tmp_path: Path,
    make: Callable[[Path], None],
    modality: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / CASE / f"{CASE}_{modality}.nii.gz"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None
    assert main([str(tmp_path), "--cases", "2", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: found something that brats-phantom did not write")
    assert (path.read_bytes() if path.is_file() else None) == before
    # Nor are the cases before it written.
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def test_files_of_other_cases_are_nobodys_trouble(tmp_path: Path) -> None:
    path = tmp_path / CASE / f"{CASE}_t1.nii.gz"
    path.parent.mkdir()
    path.write_text("mine\n")
    assert main([str(tmp_path), "--cases", "1"]) == 0
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize("count", ["0", "-3", "10000", "99999999999999999999"])
def test_numbers_of_cases_that_have_no_names(
    tmp_path: Path, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "x"), "--cases", count]) == 2
    assert f"--cases: found {count}, expected 1 to 9999" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
