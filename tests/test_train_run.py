"""Whole runs on small phantoms: what they write, how they stop, resume and fail."""

import csv
import errno
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

import train.checkpoint
import train.loop
import train.step
from runtime.case import Case
from runtime.errors import ComputeError, OutputError, UsageError
from runtime.metrics import SCORED, score_case
from runtime.nifti import load
from runtime.phantom import Enhancement, write_phantoms
from runtime.segmenter import Segmenter
from runtime.truth import load_truth
from train.average import WeightAverage
from train.backend import TorchBackend
from train.checkpoint import Architecture, load_checkpoint, load_model, newest_run
from train.cli import main
from train.config import TrainConfig
from train.config_file import read_config
from train.device import Compute
from train.display import duration, epoch_line
from train.patches import Batch
from train.run_dir import COLUMNS, RunDir, claimed
from train.schedule import TimeBudget, learning_rate
from train.step import MAX_SKIPPED, Stepper
from train.unet import UNet3D
from train.validate import PROFILE

# One thread: in steps this small, threads wait for each other longer than they work.
TINY = (
    "--model.features", "4,8,16", "--model.patch", "32,32,32", "--model.dropout", "0.1",
    "--model.overlap", "0.25", "--train.batch", "2", "--train.lr", "1e-2", "--quiet",
    "--train.precision", "fp32", "--threads", "1",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train_run")
    write_phantoms(folder, 4, seed=2, shape=(64, 64, 48), enhancement=Enhancement.RIM)
    return folder


def _train(data: Path, out: Path, *flags: str) -> int:
    return main(["--config", "demo", "-d", str(data), "-o", str(out), *TINY, *flags])


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that has ended."""
    out = tmp_path_factory.mktemp("runs")
    flags = ["--train.epochs", "4", "--sampling.patches-per-epoch", "24", "--validation.every", "2"]
    assert _train(data, out, "--name", "one", "--exclude", "BraTSPhantom_0004", *flags) == 0
    return out / "one"


def test_the_loss_falls(run: Path) -> None:
    losses = [float(row["loss"]) for row in _rows(run)]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]


def test_the_run_directory_is_whole(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    split = json.loads((run / "split.json").read_text())
    expected = {
        "config.yaml", "split.json", "history.csv", "curves.png", "evaluation.json",
        "evaluation_metrics.txt", "checkpoints/last.pt", "checkpoints/best.pt",
        "checkpoints/epoch_004.pt", "environment.json", f"samples/{split['validation'][0]}.png",
    }  # fmt: skip
    assert expected == {name for name in names if not name.startswith("tensorboard/")}
    assert any(name.startswith("tensorboard/events") for name in names)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert (environment["processes"], environment["precision"]) == (1, "fp32")
    assert environment["arguments"][:2] == ["--config", "demo"]
    assert split["excluded"] == ["BraTSPhantom_0004"]
    assert len(split["train"]) == 2
    assert read_config(run / "config.yaml").model.features == (4, 8, 16)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_history_has_a_row_an_epoch(run: Path) -> None:
    rows = _rows(run)
    assert tuple(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["dice_mean"]) for row in rows] == [False, True, False, True]
    assert all(row["patches"] == "24" and row["skipped"] == "0" for row in rows)


def test_evaluation_is_what_the_best_checkpoint_gives(run: Path, data: Path) -> None:
    value = json.loads((run / "evaluation.json").read_text())
    (case_id,) = value["cases"]
    assert set(value["cases"][case_id]) == set(SCORED)
    model, card = load_model(run / "checkpoints" / "best.pt")
    case = Case.from_dir(data / case_id)
    prediction = Segmenter(TorchBackend(model, card)).segment(load(case))
    spacing = prediction.volume.grid.spacing
    scores = score_case(prediction.labels, load_truth(case), spacing, PROFILE)
    assert value["cases"][case_id]["WT"]["dice"] == pytest.approx(scores["WT"].dice, abs=1e-3)
    assert case_id in (run / "evaluation_metrics.txt").read_text()


def test_the_card_says_how_the_model_came_about(run: Path) -> None:
    assert newest_run(run.parent) == run
    checkpoint = load_checkpoint(run / "checkpoints" / "best.pt")
    assert checkpoint.card.name == "one"
    assert (checkpoint.card.patch, checkpoint.card.divisor) == ((32, 32, 32), 4)
    assert checkpoint.card.training["cases"] == 2
    assert set(checkpoint.card.training["validation_dice"]) == {*SCORED, "mean"}
    assert not checkpoint.optimizer


def test_a_name_that_is_taken_is_a_usage_error(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert _train(data, run.parent, "--name", "one") == 2
    assert "--resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_finished_run_asks_for_more_epochs(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume", "-o", str(run.parent), "-d", str(data), "--quiet"]) == 2
    assert "--train.epochs" in capsys.readouterr().err


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--train.epochs", "3", "--sampling.patches-per-epoch", "4", "--validation.every", "1"]
    flags += ["--train.ema", "0.9", "--model.deep-supervision", "1", "--train.region-dice", "0.5"]
    assert _train(data, tmp_path, "--name", "whole", *flags) == 0
    step = Stepper.step

    steps = count()

    def interrupted(self: Stepper, batch: Batch, lr: float) -> float | None:
        # The second step of the second epoch.
        if next(steps) == 3:
            raise KeyboardInterrupt
        return step(self, batch, lr)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", interrupted)
        assert _train(data, tmp_path, "--name", "parts", *flags) == 130
    parts = tmp_path / "parts"
    assert len(_rows(parts)) == 1
    assert main(["--resume", "--name", "parts", "-o", str(tmp_path), "--quiet"]) == 0
    whole, resumed = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts")
    )
    assert resumed.epoch == whole.epoch == 3
    for name, tensor in whole.model.items():
        assert torch.equal(resumed.model[name], tensor), name
    drop = ("seconds",)
    for one, two in zip(_rows(tmp_path / "whole"), _rows(parts), strict=True):
        assert {k: v for k, v in one.items() if k not in drop} == {
            k: v for k, v in two.items() if k not in drop
        }


def test_a_time_limit_ends_in_an_evaluated_model(data: Path, tmp_path: Path) -> None:
    flags = ["--max-minutes", "0.2", "--train.epochs", "5000"]
    assert _train(data, tmp_path, "--name", "timed", *flags) == 0
    rows = _rows(tmp_path / "timed")
    assert float(rows[-1]["lr"]) < 0.2 * 1e-2
    assert rows[-1]["dice_mean"]
    assert (tmp_path / "timed" / "evaluation.json").is_file()
    assert sum(float(row["seconds"]) for row in rows) < 12


def test_something_is_trained_however_short_the_time(data: Path, tmp_path: Path) -> None:
    assert _train(data, tmp_path, "--name", "short", "--max-minutes", "0.001") == 0
    assert [row["patches"] for row in _rows(tmp_path / "short")] == ["2"]
    assert (tmp_path / "short" / "checkpoints" / "best.pt").is_file()


def test_patience_ends_a_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.loop, "dice_of", lambda *_: dict.fromkeys(SCORED, 0.5))
    flags = ["--train.patience", "2", "--validation.every", "1", "--train.epochs", "9"]
    small = ["--sampling.patches-per-epoch", "2"]
    assert _train(data, tmp_path, "--name", "patient", *flags, *small) == 0
    # The first validation is the best; the next two are not better.
    assert len(_rows(tmp_path / "patient")) == 3
    assert load_checkpoint(tmp_path / "patient" / "checkpoints" / "best.pt").epoch == 1


def test_without_validation_the_last_epoch_is_the_best(data: Path, tmp_path: Path) -> None:
    flags = ["--split.validation", "0", "--train.epochs", "2", "--sampling.patches-per-epoch", "2"]
    assert _train(data, tmp_path, "--name", "blind", *flags) == 0
    assert load_checkpoint(tmp_path / "blind" / "checkpoints" / "best.pt").epoch == 2
    assert not (tmp_path / "blind" / "evaluation.json").exists()


def test_grid_sampling_trains(data: Path, tmp_path: Path) -> None:
    flags = ["--sampling.sampler", "grid", "--sampling.stride", "16,16,16", "--train.epochs", "1"]
    assert _train(data, tmp_path, "--name", "grid", *flags) == 0
    assert int(_rows(tmp_path / "grid")[0]["patches"]) >= 2


def test_dry_run_prints_the_plan_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    flags = [flag for flag in TINY if flag != "--quiet"]
    assert main(["--config", "demo", "-d", str(data), "-o", str(out), *flags, "--dry-run"]) == 0
    text = capsys.readouterr().err
    for word in ("3 train, 1 validate", "32x32x32", "M parameters", "GiB free", "loss"):
        assert word in text
    assert "4 of 4: usable" in text
    assert "GiB on disk" in text
    assert "too little" not in text
    assert not out.exists()


def test_bad_data_is_one_line_and_exit_3(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "in")
    (tmp_path / "in" / "BraTSPhantom_0002" / "BraTSPhantom_0002_seg.nii.gz").unlink()
    assert _train(tmp_path / "in", tmp_path / "runs") == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "BraTSPhantom_0002" in error
    assert _train(tmp_path / "nowhere", tmp_path / "runs") == 3
    assert not (tmp_path / "runs").exists()


def test_resuming_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", "-o", str(tmp_path)]) == 3
    assert "last.pt" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("brats-train ")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Research use only" in text
    assert "--train.lr" in text


# Steps that go wrong


def _stepper(model: UNet3D) -> Stepper:
    return Stepper(model, TrainConfig(), Compute(torch.device("cpu"), None))


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(2, 4, 8, 8, 8, generator=generator),
        torch.randint(0, 4, (2, 8, 8, 8), generator=generator).to(torch.uint8),
        torch.arange(2),
    )


def test_a_step_without_a_finite_loss_changes_nothing() -> None:
    model = UNet3D(features=(4, 8))
    stepper = _stepper(model)
    good = _batch()
    assert stepper.step(good, 1e-3) is not None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad = _batch()
    bad.voxels[0, 0, 0, 0, 0] = float("nan")
    assert stepper.step(bad, 1e-3) is None
    assert stepper.skipped == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert stepper.step(good, 1e-3) is not None


def test_ten_bad_steps_in_a_row_end_training() -> None:
    stepper = _stepper(UNet3D(features=(4, 8)))
    good, bad = _batch(), _batch()
    bad.voxels.fill_(float("inf"))
    for _ in range(MAX_SKIPPED - 1):
        assert stepper.step(bad, 1e-3) is None
    assert stepper.step(good, 1e-3) is not None
    for _ in range(MAX_SKIPPED - 1):
        assert stepper.step(bad, 1e-3) is None
    with pytest.raises(ComputeError, match="10 steps in a row"):
        stepper.step(bad, 1e-3)


def test_divergence_exits_8_and_keeps_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = Stepper._attempt

    steps = count()

    def diverging(self: Stepper, batch: Batch, lr: float) -> float | None:
        # Three steps an epoch: all of the second one.
        if next(steps) >= 3:
            batch = batch._replace(voxels=batch.voxels * float("nan"))
        return attempt(self, batch, lr)

    monkeypatch.setattr(Stepper, "_attempt", diverging)
    monkeypatch.setattr(train.step, "MAX_SKIPPED", 2)
    flags = ["--train.epochs", "3", "--sampling.patches-per-epoch", "6", "--validation.every", "1"]
    assert _train(data, tmp_path, "--name", "bad", *flags) == 8
    assert "not finite" in capsys.readouterr().err
    checkpoint = load_checkpoint(tmp_path / "bad" / "checkpoints" / "last.pt")
    assert checkpoint.epoch == 1
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.model.values())


def _full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_step_without_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    model = UNet3D(features=(4, 8))
    stepper = _stepper(model)
    monkeypatch.setattr(model, "outputs", _full)
    with pytest.raises(ComputeError, match=r"not enough memory for a step of 2 .*batch") as caught:
        stepper.step(_batch(), 1e-3)
    # Nothing is known here of a run that has begun.
    assert "checkpoint" not in caught.value.remedy


def test_only_a_run_that_has_begun_says_what_it_has_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Stepper, "_attempt", _full)
    assert _train(data, tmp_path, "--dry-run") == 8
    error = capsys.readouterr().err
    assert "not enough memory for a step" in error
    assert "--resume" not in error
    assert _train(data, tmp_path, "--name", "begun") == 8
    assert "the last checkpoint is kept, --resume goes on from it" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "begun" / "checkpoints" / "last.pt").epoch == 0


@pytest.mark.parametrize(
    ("where", "flags"),
    [
        (UNet3D, ()),
        (WeightAverage, ("--train.ema", "0.9")),
    ],
    ids=["network", "average"],
)
@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry-run"])
def test_a_network_without_memory_is_one_sentence(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: type,
    flags: tuple[str, ...],
    dry: bool,
) -> None:
    monkeypatch.setattr(where, "__init__", _full)
    named = ["--dry-run"] if dry else ["--name", "x"]
    assert _train(data, tmp_path / "runs", *named, *flags) == 8
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "not enough memory for " in error
    assert "lower --model.features" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("features", [(4, 8, 999_999_999_999), (4, 2**45)])
def test_a_network_beyond_all_memory_is_refused(features: tuple[int, ...]) -> None:
    """What the allocator itself says of it, not what a test has it say."""
    widths = ", ".join(map(str, features))
    with pytest.raises(ComputeError, match=f"not enough memory for a network of features {widths}"):
        Architecture(features=features).build()


FEW = ("--train.epochs", "2", "--sampling.patches-per-epoch", "4", "--train.keep-epochs", "0")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_system_that_takes_no_more_bytes_exits_7(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel itself refuses what is beyond 20 kB of a file, as it does on a full disk."""
    import resource

    flags = [*FEW, "--cache", str(tmp_path / "cache")]
    assert _train(data, tmp_path / "one", "--name", "whole", *flags) == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert _train(data, tmp_path / "two", "--name", "short", *flags) == 7
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "last.pt" in error
    assert "Traceback" not in error


def test_a_full_disk_exits_7_and_keeps_the_last_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = train.checkpoint.open_atomic
    written = count()

    @contextmanager
    def open_full(path: Path) -> Iterator[BinaryIO]:
        with opened(path) as file:
            yield file
            # The first checkpoint of the first epoch: last.pt of epoch 0 is there.
            if next(written) == 1:
                file.truncate(100)
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train.checkpoint, "open_atomic", open_full)
    assert _train(data, tmp_path, "--name", "full", *FEW) == 7
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error
    checkpoints = tmp_path / "full" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.pt"]
    monkeypatch.setattr(train.checkpoint, "open_atomic", opened)
    assert main(["--resume", "--name", "full", "-o", str(tmp_path), "--quiet"]) == 0
    assert load_checkpoint(checkpoints / "last.pt").epoch == 2


def test_weights_that_overflow_in_a_finite_step_are_not_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = Stepper._attempt
    steps = count()

    def overflowing(self: Stepper, batch: Batch, lr: float) -> float | None:
        loss = attempt(self, batch, lr)
        # The last step of the second epoch: its loss was finite, its weights are not.
        if next(steps) == 3:
            with torch.no_grad():
                self._model.head.weight[0] = float("inf")
        return loss

    monkeypatch.setattr(Stepper, "_attempt", overflowing)
    assert _train(data, tmp_path, "--name", "hot", *FEW) == 8
    assert "head.weight that are not finite" in capsys.readouterr().err
    last = load_checkpoint(tmp_path / "hot" / "checkpoints" / "last.pt")
    assert last.epoch == 1
    assert all(torch.isfinite(tensor).all() for tensor in last.model.values())


# Resuming


def test_a_run_killed_before_its_evaluation_is_evaluated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "write_evaluation", killed)
        assert _train(data, tmp_path, "--name", "late", *FEW) == 130
    run = tmp_path / "late"
    assert load_checkpoint(run / "checkpoints" / "last.pt").epoch == 2
    assert not (run / "evaluation.json").exists()
    again = ["--resume", "--name", "late", "-o", str(tmp_path), "-d", str(data), "--quiet"]
    assert main(again) == 0
    assert len(json.loads((run / "evaluation.json").read_text())["cases"]) == 1
    assert len(_rows(run)) == 2
    # Now it is done, and says so.
    assert main(again) == 2


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (("--model.features", "4,16,16"), "--model.features"),
        (("--folds", "2"), "--split.folds"),
        (("--seed", "5"), "--seed"),
        (("--train.ema", "0.9"), "--train.ema"),
    ],
)
def test_a_resumed_run_stays_what_it_was(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], key: str
) -> None:
    before = (run / "config.yaml").read_bytes()
    again = ["--resume", "--name", run.name, "-o", str(run.parent), "-d", str(data), "--quiet"]
    assert main([*again, "--train.epochs", "9", *flags]) == 2
    error = capsys.readouterr().err
    assert key in error
    assert "with which the run was begun" in error
    assert (run / "config.yaml").read_bytes() == before


def test_a_resumed_dry_run_needs_the_cases_too(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = json.loads((run / "split.json").read_text())["train"][0]
    shutil.copytree(data, tmp_path / "in", ignore=shutil.ignore_patterns(gone))
    again = ["--resume", "--name", run.name, "-o", str(run.parent), "-d", str(tmp_path / "in")]
    assert main([*again, "--dry-run", "--quiet"]) == 2
    assert f"case {gone}, which is not in" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_time_limit() -> None:
    now = [100.0]
    budget = TimeBudget(60.0, lambda: now[0])
    now[0] += 10  # preparing
    budget.begin_training(5.0)
    now[0] += 20
    state = budget.state()
    assert state == {"seconds": 60.0, "elapsed": 30.0, "training": 10.0}
    fraction = budget.fraction()
    now[0] += 1000
    later = TimeBudget(None, lambda: now[0])
    assert later.state() is None
    now[0] += 7  # preparing again
    later.go_on(state)
    later.begin_training(5.0)
    assert later.fraction() == pytest.approx(fraction) == pytest.approx(20 / 45)
    now[0] += 26
    assert later.exhausted()
    assert later.left() == pytest.approx(60 - 30 - 26)


# Who owns a run directory


def test_two_runs_never_share_a_directory(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "one")
    with claimed(run, fresh=True) as first:
        assert first == run
        (run.path / "config.yaml").write_text("")
        with pytest.raises(UsageError, match="a run of that name"), claimed(run, fresh=True):
            pass
        with claimed(run, fresh=True, may_rename=True) as second:
            assert second.name == "one-2"
            (second.path / "config.yaml").write_text("")
        with (
            pytest.raises(UsageError, match="another process is training"),
            claimed(run, fresh=False),
        ):
            pass
    with claimed(run, fresh=False) as again:
        assert again == run
    assert not (run.path / ".lock").exists()


def test_a_claim_that_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    with claimed(RunDir(tmp_path / "runs" / "one"), fresh=True):
        pass
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="a place that can be written"),
        claimed(RunDir(tmp_path / "file" / "one"), fresh=True),
    ):
        pass


# The schedule and the clock


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (600, "10 min"), (9000, "2.5 h"), (89, "89 s")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    row = {"epoch": 1, "loss": 0.5, "lr": 1e-3, "patches": 4, "seconds": 2.0, "skipped": 0}
    assert epoch_line(row, 9, False, seconds).endswith(f"2.00 patches/s  {text} left")
    assert epoch_line(row, 9, False, 0).endswith("patches/s")


def test_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(lr=1.0, warm_up=0.1)
    rates = [learning_rate(config, p / 100) for p in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.505)
    assert rates[100] == pytest.approx(0.01)
    assert learning_rate(TrainConfig(lr=2.0, schedule="constant", warm_up=0), 0.5) == 2.0
    assert learning_rate(TrainConfig(lr=1.0, schedule="poly", warm_up=0), 1.0) == 0.01


@dataclass
class _Clock:
    times: Sequence[float] = field(default_factory=list)
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_budget_counts_preparation_and_keeps_its_reserve() -> None:
    clock = _Clock()
    budget = TimeBudget(100, clock)
    clock.now = 20
    budget.begin_training(reserve=30)
    assert budget.fraction() == 0
    clock.now = 45
    assert budget.fraction() == pytest.approx(0.5)
    assert not budget.exhausted(next_step=20)
    assert budget.exhausted(next_step=26)
    clock.now = 90
    assert budget.fraction() == 1
    assert not TimeBudget(None, clock).exhausted(1e9)


@pytest.mark.parametrize(("keep", "left"), [(-1, 5), (0, 0), (2, 2), (3, 3), (9, 5)])
def test_the_newest_epochs_are_kept(tmp_path: Path, keep: int, left: int) -> None:
    run = RunDir(tmp_path / "run")
    run.path.joinpath("checkpoints").mkdir(parents=True)
    for epoch in range(1, 6):
        run.epoch(epoch).touch()
    run.prune(keep)
    names = sorted(path.name for path in run.path.glob("checkpoints/*"))
    assert names == [f"epoch_{epoch:03d}.pt" for epoch in range(6 - left, 6)]
