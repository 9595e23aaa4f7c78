"""brats-eval from its command line: what it writes, prints, refuses, and leaves with."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from runtime import score_plots
from runtime.cli.evaluate import main
from runtime.labels import Label, LabelMap
from runtime.nifti import Grid
from runtime.nifti_writer import write_image, write_label_map

SHAPE = (16, 12, 10)
GRID = Grid.from_affine(SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0]))


def labels(planes: int = 4) -> LabelMap:
    made = np.zeros(SHAPE, np.uint8)
    made[2 : 2 + planes, 2:8, 2:8] = 4
    made[8:10, 2:8, 2:8] = Label.ED
    return made


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    for case_id in ("A", "B"):
        folder = tmp_path / "truth" / case_id
        write_image(folder / f"{case_id}_flair.nii.gz", np.ones(SHAPE, np.int16), GRID)
        write_image(folder / f"{case_id}_seg.nii.gz", labels(), GRID)
    return tmp_path / "truth"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    for case_id, planes in (("A", 4), ("B", 2)):
        write_label_map(tmp_path / "out" / f"{case_id}_seg.nii.gz", labels(planes), GRID)
    return tmp_path / "out"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_all_outputs_at_once(
    tmp_path: Path, predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    code = run(
        predictions, truth, "--profile", "brats2023", "--json", made / "s.json",
        "--csv", made / "s.csv", "--plots", made / "plots",
    )  # fmt: skip
    assert code == 0
    stored = json.loads((made / "s.json").read_text())
    assert stored["profile"] == "brats2023"
    # 72 of 144 voxels: 2/3, and the lesion is found in both cases.
    assert stored["summary"]["ET"]["lesion_dice"]["mean"] == pytest.approx(5 / 6)
    assert (made / "s.csv").read_text().count("\n") == 11
    assert (made / "plots" / "lesion_dice.png").is_file()
    shown = capsys.readouterr()
    assert "2 cases" in shown.out
    assert "lesion" in shown.out
    assert "error" not in shown.err


def test_quiet_prints_nothing(
    predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(predictions, truth, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("policy", "code", "mean"), [(None, 0, 0.5), ("empty", 0, 0.5), ("leave-out", 0, 1.0),
                                 ("refuse", 3, None)]
)  # fmt: skip
def test_missing_predictions_count_as_told(
    tmp_path: Path,
    predictions: Path,
    truth: Path,
    capsys: pytest.CaptureFixture[str],
    policy: str | None,
    code: int,
    mean: float | None,
) -> None:
    (predictions / "B_seg.nii.gz").unlink()
    flags = [] if policy is None else ["--missing", policy]
    assert run(predictions, truth, "--json", tmp_path / "s.json", "--quiet", *flags) == code
    if mean is None:
        assert "found no prediction of B," in capsys.readouterr().err
        assert not (tmp_path / "s.json").exists()
    else:
        stored = json.loads((tmp_path / "s.json").read_text())
        assert stored["summary"]["ET"]["dice"]["mean"] == mean
        assert stored["missing"] == ["B"]


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if line.strip()]
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_wrong_label_values(
    predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_label_map(predictions / "A_seg.nii.gz", np.where(labels() == 4, 3, labels()), GRID)
    assert run(predictions, truth, "--quiet") == 3
    assert "label values" in one_sentence(capsys)


def test_another_grid(predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = Grid.from_affine(SHAPE, np.diag([1.0, -1.0, 1.0, 1.0]))
    write_label_map(predictions / "A_seg.nii.gz", labels(), moved)
    assert run(predictions, truth, "--quiet") == 3
    assert "A_seg.nii.gz" in one_sentence(capsys)


def test_missing_truth(predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_label_map(predictions / "C_seg.nii.gz", labels(), GRID)
    assert run(predictions, truth, "--quiet") == 3
    assert "case C, which has no truth" in one_sentence(capsys)
    assert run(predictions, truth / "absent", "--quiet") == 3
    assert "absent" in one_sentence(capsys)


@pytest.mark.parametrize("flags", [("--profile", "brats1999"), ("--missing", "ignore")])
def test_unknown_words_are_usage_errors(
    predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(predictions, truth, *flags)
    assert stopped.value.code == 2
    assert flags[1] in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--json", "--csv", "--plots"])
def test_outputs_that_cannot_be_written_are_said_before_a_case_is_read(
    tmp_path: Path,
    predictions: Path,
    truth: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    (tmp_path / "file").write_text("")
    (predictions / "A_seg.nii.gz").write_bytes(b"not a label map")
    assert run(predictions, truth, flag, tmp_path / "file" / "x", "--quiet") == 7
    assert "file" in one_sentence(capsys)


def unreadable(predictions: Path) -> None:
    """Whatever is said of another file now was said before a case was read."""
    (predictions / "A_seg.nii.gz").write_bytes(b"not a label map")


@pytest.mark.parametrize("flag", ["--json", "--csv"])
def test_a_folder_cannot_be_a_file_of_scores(
    tmp_path: Path,
    predictions: Path,
    truth: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    unreadable(predictions)
    (tmp_path / "folder").mkdir()
    assert run(predictions, truth, flag, tmp_path / "folder", "--quiet") == 7
    assert f"{tmp_path / 'folder'}: found a folder" in one_sentence(capsys)


def test_a_file_cannot_be_the_folder_of_plots(
    tmp_path: Path, predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable(predictions)
    (tmp_path / "file").write_text("mine")
    assert run(predictions, truth, "--plots", tmp_path / "file", "--quiet") == 7
    assert f"{tmp_path / 'file'}: found" in one_sentence(capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("flag", ["--json", "--csv"])
def test_scores_are_never_called_an_image(
    tmp_path: Path,
    predictions: Path,
    truth: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    """It would be the next prediction of that folder."""
    unreadable(predictions)
    for name in ("C_seg.nii.gz", "C.nii"):
        assert run(predictions, truth, flag, tmp_path / name) == 2
        assert f"{tmp_path / name}: found a name of an image" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("flag", "name"), [("--json", "s.json"), ("--csv", "s.csv"), ("--plots", "volumes.png")]
)
def test_a_file_of_somebody_else_is_never_overwritten(
    tmp_path: Path,
    predictions: Path,
    truth: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    name: str,
) -> None:
    unreadable(predictions)
    path = tmp_path / name
    for content in (
        b"", b"mine\n", b"case,mine\n", b"[]", b"\x89PNG\r\n", b"\xff\xfe",
        b'{"schema": 1, "case_id": "A", "convention": "brats2020"}', b"[" * 100_000,
        # What brats-train writes of its validation cases.
        b'{"checkpoint": "best.pt", "profile": "brats2023", "cases": {}, "summary": {}}',
    ):  # fmt: skip
        path.write_bytes(content)
        assert run(predictions, truth, flag, path.parent if flag == "--plots" else path) == 2
        assert f"{path}: found a file that brats-eval did not write" in one_sentence(capsys)
        assert path.read_bytes() == content


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("flag", ["--json", "--csv"])
def test_scores_never_take_the_name_of_a_sidecar(
    predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str], flag: str, exists: bool
) -> None:
    """Read as one, they would make the folder of predictions unusable."""
    text = json.dumps({"schema": 1, "convention": "brats2020"})
    if exists:
        (predictions / "A.json").write_text(text)
    assert run(predictions, truth, flag, predictions / "A.json", "--quiet") == 2
    assert str(predictions / "A.json") in one_sentence(capsys)
    assert (predictions / "A.json").exists() == exists
    assert not exists or (predictions / "A.json").read_text() == text
    assert run(predictions, truth, "--quiet") == 0


@pytest.mark.parametrize("profile", ["brats2020", "brats2023"])
def test_earlier_scores_are_replaced(
    tmp_path: Path, predictions: Path, truth: Path, profile: str
) -> None:
    flags = ("--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv", "--plots", tmp_path)
    assert run(predictions, truth, "--profile", "brats2020", "--quiet", *flags) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    write_label_map(predictions / "B_seg.nii.gz", labels(4), GRID)
    assert run(predictions, truth, "--profile", profile, "--quiet", *flags) == 0
    assert json.loads((tmp_path / "s.json").read_text())["cases"]["B"]["ET"]["dice"] == 1
    assert len(before) == 5
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() != content, name


@pytest.mark.skipif(os.name != "posix", reason="nothing is swept where no locks are")
def test_what_a_killed_run_left_is_swept(tmp_path: Path, predictions: Path, truth: Path) -> None:
    folders = [tmp_path / name for name in ("json", "csv", "plots")]
    for folder in folders:
        folder.mkdir()
        (folder / ".s.json.0123abcd.brats.tmp").write_bytes(b"half of it")
    outputs = ["--json", folders[0] / "s.json", "--csv", folders[1] / "s.csv"]
    assert run(predictions, truth, *outputs, "--plots", folders[2]) == 0
    assert [path for folder in folders for path in folder.glob(".*")] == []


def test_two_outputs_of_one_name(
    tmp_path: Path, predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable(predictions)
    one = tmp_path / "x" / ".." / "s"
    pairs: list[tuple[str, Path, str, Path]] = [
        ("--json", tmp_path / "s", "--csv", one),
        ("--json", tmp_path / "s", "--plots", one),
        ("--csv", tmp_path / "p" / "dice.png", "--plots", tmp_path / "p"),
    ]
    for pair in pairs:
        assert run(predictions, truth, *pair, "--quiet") == 2
        assert f"{pair[0]} and {pair[2]}" in one_sentence(capsys)
    assert run(predictions, truth, "--json", tmp_path / "d", "--csv", tmp_path / "d" / "c") == 7
    assert "found a folder" in capsys.readouterr().err


def test_plots_without_matplotlib(
    tmp_path: Path,
    predictions: Path,
    truth: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_plots, "find_spec", lambda name: None)
    assert run(predictions, truth, "--plots", tmp_path / "plots", "--quiet") == 2
    assert "brats-deploy[plots]" in one_sentence(capsys)
    assert not (tmp_path / "plots").exists()


def test_truth_in_a_folder_that_cannot_be_listed_is_not_left_out(
    predictions: Path,
    truth: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Scores of the others alone would be called those of the data set."""
    hidden = truth / "B"
    listed = os.scandir

    def refuse(path: Path | str = ".") -> object:
        if Path(path) == hidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert run(predictions, truth) == 3
    assert f"{hidden}: found Permission denied" in one_sentence(capsys)
