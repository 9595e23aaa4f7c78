"""--resume: which run it goes on with, from how early on, and what it says where it cannot."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

import train.session
from runtime.errors import InputError
from runtime.phantom import Enhancement, write_phantoms
from train.checkpoint import load_checkpoint
from train.cli import main, parse
from train.config import Config
from train.config_file import read_config, write_config
from train.resume import existing_run, time_limit
from train.run_dir import RunDir

TINY = (
    "--config", "demo", "--model.features", "4,8", "--model.patch", "32,32,32",
    "--model.overlap", "0", "--train.epochs", "1", "--sampling.patches-per-epoch", "2",
    "--train.precision", "fp32", "--threads", "1", "--validation.no-thresholds",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_phantoms(folder, 2, seed=3, shape=(48, 48, 40), enhancement=Enhancement.RIM)
    return folder


def _touch(path: Path, seconds: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))
    return path


def test_the_run_that_was_worked_on_last_is_the_newest(tmp_path: Path) -> None:
    _touch(tmp_path / "a" / "checkpoints" / "last.pt", 100)
    _touch(tmp_path / "b" / "checkpoints" / "last.pt", 200)
    _touch(tmp_path / "c" / "split.json", 150)
    _touch(tmp_path / ".cache" / "x" / "case.json", 900)
    _touch(tmp_path / "notes" / "mine.txt", 900)
    assert existing_run(tmp_path, "").path == tmp_path / "b"
    # Killed while its cases were prepared.
    _touch(tmp_path / "d" / "split.json", 300)
    assert existing_run(tmp_path, "").path == tmp_path / "d"
    # Gone on with later, and killed before another checkpoint.
    _touch(tmp_path / "a" / ".lock", 400)
    assert existing_run(tmp_path, "").path == tmp_path / "a"
    assert existing_run(tmp_path, "c").path == tmp_path / "c"


def test_no_older_run_stands_in_for_one_that_had_not_begun(tmp_path: Path) -> None:
    _touch(tmp_path / "old" / "checkpoints" / "last.pt", 100)
    _touch(tmp_path / "new" / ".lock", 200)
    with pytest.raises(InputError) as caught:
        existing_run(tmp_path, "")
    assert str(caught.value).startswith(f"{tmp_path / 'new'}: found a run that was killed before")
    assert "--name" in str(caught.value)
    assert existing_run(tmp_path, "old").name == "old"


@pytest.mark.parametrize("name", ["", "gone", "notes"])
def test_where_there_is_no_run_none_is_resumed(tmp_path: Path, name: str) -> None:
    _touch(tmp_path / "notes" / "mine.txt", 100)
    with pytest.raises(InputError, match="no run"):
        existing_run(tmp_path, name)


def test_a_run_killed_while_preparing_is_gone_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _touch(tmp_path / "older" / "checkpoints" / "last.pt", 100)
    folders = ["-d", str(data), "-o", str(tmp_path)]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.session, "cached", killed)
        given = [*TINY, *folders, "--name", "newer", "--max-minutes", "9", "--quiet"]
        assert main(given) == 130
    run = RunDir(tmp_path / "newer")
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.yaml",
        "environment.json",
        "split.json",
    ]
    split = json.loads(run.split.read_text())
    # Left by what is killed without notice.
    (run.path / ".lock").touch()
    capsys.readouterr()
    assert parse(["--resume", "-o", str(tmp_path)]).max_minutes == 9
    assert main(["--resume", *folders]) == 0
    assert f"going on with {run.path}" in capsys.readouterr().err
    checkpoint = load_checkpoint(run.last)
    assert checkpoint.progress["clock"]["seconds"] == 9 * 60
    assert json.loads(run.split.read_text()) == split
    assert len(json.loads(run.evaluation.read_text())["cases"]) == 1
    # Its checkpoint knows its clock now.
    assert parse(["--resume", "-o", str(tmp_path)]).max_minutes is None


def test_cases_that_cannot_be_prepared_leave_no_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "in")
    path = tmp_path / "in" / "BraTSPhantom_0002" / "BraTSPhantom_0002_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    folders = ["-d", str(tmp_path / "in"), "-o", str(tmp_path / "runs")]
    assert main([*TINY, *folders, "--quiet"]) == 3
    assert path.name in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


def test_a_held_out_case_that_is_stored_in_another_way_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    write_phantoms(root, 3, seed=5, shape=(40, 40, 40), enhancement=Enhancement.RIM)
    held_out = sorted(root.iterdir())[-1]
    (root / "Copy").mkdir()
    for path in held_out.iterdir():
        name = path.name.replace(held_out.name, "Copy").removesuffix(".gz")
        (root / "Copy" / name).write_bytes(gzip.decompress(path.read_bytes()))
    folders = ["-d", str(root), "-o", str(tmp_path / "runs")]
    assert main([*TINY, *folders, "--exclude", held_out.name, "--quiet"]) == 3
    error = capsys.readouterr().err
    assert f"the images of case Copy are those of {held_out.name}, which is excluded" in error
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


def test_a_run_without_its_split_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(_touch(tmp_path / "one" / "checkpoints" / "last.pt", 100).parents[1])
    write_config(run.config, Config(data=str(data)))
    assert main(["--resume", "-o", str(tmp_path), "--quiet"]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run.split}: found no readable split (No such file")
    assert "put back the run's own split.json, or begin another run" in error
    assert "split.file" not in error


def test_other_cases_do_not_stop_a_run_and_a_damaged_record_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_phantoms(root, 3, seed=5, shape=(40, 40, 40), enhancement=Enhancement.RIM)
    folders = ["-d", str(root), "-o", str(tmp_path)]
    excluded = sorted(path.name for path in root.iterdir())[-1]
    assert main([*TINY, *folders, "--name", "one", "--exclude", excluded, "--quiet"]) == 0
    run = RunDir(tmp_path / "one")
    # Gone since, and new since, still without its truth.
    shutil.copytree(root / excluded, root / "New")
    for path in (root / "New").iterdir():
        if "seg" in path.name:
            path.unlink()
        else:
            path.rename(path.with_name(path.name.replace(excluded, "New")))
    shutil.rmtree(root / excluded)
    for damaged in ('{"arguments": [', '{"earlier": 3}'):
        run.environment.write_text(damaged)
        before = load_checkpoint(run.last).epoch
        flags = ["--train.epochs", str(before + 1), "--quiet"]
        assert main(["--resume", "--name", "one", *folders, *flags]) == 0
        assert load_checkpoint(run.last).epoch == before + 1
        assert json.loads(run.environment.read_text())["earlier"] == [{"unreadable": damaged}]


def test_what_the_labels_mean_stays(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(_touch(tmp_path / "one" / "checkpoints" / "last.pt", 100).parents[1])
    write_config(run.config, Config(data=str(data)))
    assert main(["--resume", "-o", str(tmp_path), "--labels", "msd", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "--labels: found msd, expected auto, with which the run was begun" in error
    assert read_config(run.config).labels == "auto"


@pytest.mark.parametrize(
    ("arguments", "minutes"),
    [
        (["--max-minutes", "2.5"], 2.5),
        (["--name", "x", "--max_minutes=3"], 3.0),
        (["--name", "x"], None),
        (["--max-minutes"], None),
        ("text", None),
    ],
)
def test_the_time_limit_of_a_run_that_has_not_trained(
    tmp_path: Path, arguments: object, minutes: float | None
) -> None:
    run = RunDir(tmp_path)
    assert time_limit(run) is None
    begun = {"arguments": arguments}
    run.environment.write_text(json.dumps({"arguments": ["--resume"], "earlier": [begun]}))
    assert time_limit(run) == minutes
