"""How runs end, by their epochs, their patience or the clock, and what is scored then."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

import train.loop
from runtime.case import Case, Source
from runtime.metrics import SCORED, score_case
from runtime.nifti import load
from runtime.phantom import Enhancement, write_phantoms
from runtime.segmenter import Segmenter
from runtime.truth import load_truth
from train.backend import TorchBackend
from train.checkpoint import load_checkpoint, load_model
from train.cli import main
from train.config import Config, ModelConfig, TrainConfig, ValidationConfig
from train.device import Compute
from train.display import Display
from train.distributed import ALONE
from train.evaluate import EvaluationPlan, write_evaluation
from train.pace import Pace
from train.run_dir import RunDir
from train.schedule import TimeBudget
from train.step import Stepper
from train.validate import PROFILE

# Two cases validate, one is watched, and the evaluation's windows are not those of validation.
TINY = (
    "--config", "demo", "--model.features", "4,8", "--model.patch", "32,32,32",
    "--model.overlap", "0.5", "--train.batch", "1", "--train.precision", "fp32", "--threads", "1",
    "--sampling.patches-per-epoch", "2", "--validation.every", "1", "--validation.limit", "1",
    "--validation.overlap", "0", "--folds", "2", "--train.keep-epochs", "0",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    write_phantoms(folder / "data", 4, seed=2, shape=(48, 40, 40), enhancement=Enhancement.RIM)
    return folder / "data"


def _train(data: Path, out: Path, *flags: str, quiet: bool = True) -> int:
    common = ["-d", str(data), "-o", str(out), "--cache", str(data.parent / "cache")]
    return main([*TINY, *common, *flags, *(["--quiet"] if quiet else [])])


def _resume(data: Path, run: Path, *flags: str) -> int:
    common = ["-d", str(data), "-o", str(run.parent), "--name", run.name, "--quiet"]
    return main(["--resume", *common, *flags])


def _evaluation(run: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((run / "evaluation.json").read_text())
    return value


def _state(run: Path) -> dict[str, tuple[int, bytes]]:
    """What a run's files are, and when they were written."""
    return {
        path.relative_to(run).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def _forget_evaluation(run: Path) -> None:
    for name in ("evaluation.json", "evaluation_metrics.txt"):
        (run / name).unlink()


def _evaluated_in_full(run: Path, data: Path) -> None:
    """All validation cases, in float32, with the card's windows: what a user's segmenter gives."""
    value = json.loads((run / "evaluation.json").read_text())
    split = json.loads((run / "split.json").read_text())
    assert sorted(value["cases"]) == sorted(split["validation"])
    assert len(value["cases"]) == 2
    assert (value["left_out"], value["shortened"]) == ([], None)
    assert (value["overlap"], value["precision"]) == (0.5, "fp32")
    model, card = load_model(run / "checkpoints" / "best.pt")
    for case_id, scores in value["cases"].items():
        case = Case.from_dir(data / case_id)
        prediction = Segmenter(TorchBackend(model, card)).segment(load(case))
        spacing = prediction.volume.grid.spacing
        expected = score_case(prediction.labels, load_truth(case), spacing, PROFILE)
        for name in SCORED:
            assert scores[name]["dice"] == pytest.approx(expected[name].dice, abs=1e-3)


# What is evaluated


def test_with_time_to_spare_a_limit_changes_nothing_in_the_evaluation(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--name", "one", "--train.epochs", "1", "--max-minutes", "10")
    assert _train(data, tmp_path, *flags, quiet=False) == 0
    _evaluated_in_full(tmp_path / "one", data)
    said = capsys.readouterr().err
    assert "validates on 1 of 2 cases" in said
    assert "Shortened" not in said


@pytest.fixture(scope="module")
def short(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a time limit has ended, with no time for a whole evaluation; read-only."""
    out = tmp_path_factory.mktemp("short")
    assert _train(data, out, "--name", "short", "--max-minutes", "0.001") == 0
    return out / "short"


def test_without_time_validation_is_scored_and_the_file_says_why(short: Path) -> None:
    value = json.loads((short / "evaluation.json").read_text())
    (left_out,) = value["left_out"]
    (case_id,) = value["cases"]
    assert {left_out, case_id} == set(json.loads((short / "split.json").read_text())["validation"])
    assert value["overlap"] == 0
    assert re.fullmatch(
        r"Shortened: 0 s of the time limit were left, and all 2 cases with overlap 0\.5 take about "
        r"\d+ s\. Scored is what validation watches, as it is segmented there: 1 of 2 cases with "
        r"overlap 0 in fp32\.",
        value["shortened"],
    )
    assert value["shortened"] in (short / "evaluation_metrics.txt").read_text()
    # The very label map that chose the epoch.
    (row,) = load_checkpoint(short / "checkpoints" / "last.pt").progress["history"]
    if value["postprocess"]["min_component_mm3"] == value["postprocess"]["min_et_mm3"] == 0:
        for name in SCORED:
            assert value["cases"][case_id][name]["dice"] == pytest.approx(row[f"dice_{name}"])


def test_the_reason_is_said_on_the_console(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(data, tmp_path, "--name", "x", "--max-minutes", "0.001", quiet=False) == 0
    said = capsys.readouterr().err
    assert _evaluation(tmp_path / "x")["shortened"] in said


def test_an_evaluation_that_the_clock_ends_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "shortage", lambda *_: "")
    monkeypatch.setattr(Pace, "overdue", lambda self, to_score=0: to_score > 0)
    assert _train(data, tmp_path, "--name", "x", "--train.epochs", "1") == 0
    value = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    (left_out,) = value["left_out"]
    assert len(value["cases"]) == 1
    assert value["overlap"] == 0.5
    assert value["shortened"] == f"Shortened: the time limit came before {left_out}."


def test_an_evaluation_of_nothing_is_never_written(tmp_path: Path) -> None:
    plan = EvaluationPlan((), 0.5, Compute(torch.device("cpu"), None))
    run = RunDir(tmp_path / "run")
    display = Display(Console(quiet=True), quiet=True)
    with pytest.raises(ValueError, match="no case"):
        write_evaluation(run, plan, [], lambda _: False, display)
    assert not run.path.exists()


# Runs that are done


@pytest.fixture
def epochs(data: Path, tmp_path: Path) -> Path:
    """A run that has had all its epochs."""
    assert _train(data, tmp_path, "--name", "one", "--train.epochs", "1") == 0
    return tmp_path / "one"


def test_a_run_whose_evaluation_is_missing_is_evaluated_under_a_limit_too(
    data: Path, epochs: Path
) -> None:
    before = _evaluation(epochs)
    _forget_evaluation(epochs)
    assert _resume(data, epochs, "--max-minutes", "10") == 0
    assert _evaluation(epochs) == before
    _evaluated_in_full(epochs, data)
    _forget_evaluation(epochs)
    assert _resume(data, epochs, "--max-minutes", "0.001") == 0
    value = json.loads((epochs / "evaluation.json").read_text())
    assert (len(value["cases"]), value["overlap"]) == (1, 0)
    assert value["shortened"].startswith("Shortened: 0 s of the time limit were left")


def test_a_validation_that_the_clock_cuts_short_chooses_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The easier case alone must not stand above both, though its mean is higher."""
    seen: list[str] = []
    worse = {"now": 0.0}

    def scored(*_: object) -> dict[str, float]:
        # The first of two cases is easy; every epoch is a little worse than the one before.
        value = (0.9 if len(seen) % 2 == 0 else 0.3) - worse["now"]
        seen.append("case")
        return dict.fromkeys(SCORED, value)

    def overdue(self: Pace, to_score: int = 0) -> bool:
        # In the second validation, after its first case.
        worse["now"] = 0.05 if len(seen) >= 2 else 0.0
        return len(seen) == 3 and not to_score

    monkeypatch.setattr(train.loop, "dice_of", scored)
    monkeypatch.setattr(Pace, "overdue", overdue)
    flags = ("--validation.limit", "2", "--train.epochs", "2")
    assert _train(data, tmp_path, "--name", "one", *flags) == 0
    run = RunDir(tmp_path / "one")
    rows = run.history.read_text().splitlines()
    assert [row.rpartition(",")[2] for row in rows] == ["dice_mean", "0.6", "0.85"]
    assert load_checkpoint(run.best).epoch == 1
    assert load_checkpoint(run.last).progress["best"] == pytest.approx(0.6)


def test_a_run_whose_time_is_up_is_done(
    data: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _state(short)
    assert _resume(data, short) == 2
    error = capsys.readouterr().err
    assert "a run whose 0.001 minutes are used up" in error
    assert "--max-minutes" in error
    assert _state(short) == before


def test_a_run_whose_time_is_up_is_still_evaluated(
    data: Path, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "write_evaluation", killed)
        assert _train(data, tmp_path, "--name", "late", "--max-minutes", "0.001") == 130
    late = tmp_path / "late"
    assert not (late / "evaluation.json").exists()
    assert _resume(data, late) == 0
    value, other = _evaluation(late), _evaluation(short)
    # As if nobody had killed it: the same case, the same windows.
    for key in ("overlap", "precision", "left_out"):
        assert value[key] == other[key]
    assert list(value["cases"]) == list(other["cases"])  # type: ignore[call-overload]
    assert load_checkpoint(late / "checkpoints" / "last.pt").epoch == 1
    assert _resume(data, late) == 2
    # With more time it is trained further.
    flags = ("--max-minutes", "10", "--train.epochs", "2")
    assert _resume(data, late, *flags) == 0
    assert load_checkpoint(late / "checkpoints" / "last.pt").epoch == 2
    _evaluated_in_full(late, data)


def test_a_run_that_ended_by_patience_is_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train.loop, "dice_of", lambda *_: dict.fromkeys(SCORED, 0.5))
    flags = ("--name", "patient", "--train.patience", "1", "--train.epochs", "9")
    assert _train(data, tmp_path, *flags) == 0
    run = tmp_path / "patient"
    before = _state(run)
    assert _resume(data, run) == 2
    error = capsys.readouterr().err
    assert "ended by its patience of 1" in error
    assert "raise --train.patience" in error
    assert _state(run) == before
    _forget_evaluation(run)
    assert _resume(data, run) == 0
    after = _state(run)
    for name in ("evaluation.json", "evaluation_metrics.txt"):
        assert after[name][1] == before[name][1]
    assert after["checkpoints/best.pt"] == before["checkpoints/best.pt"]
    assert after["checkpoints/last.pt"] == before["checkpoints/last.pt"]
    assert _resume(data, run, "--train.patience", "2") == 0
    assert load_checkpoint(run / "checkpoints" / "last.pt").epoch == 3


def test_a_run_killed_before_its_first_epoch_ended_keeps_its_limit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stepper, "step", killed)
    assert _train(data, tmp_path, "--name", "x", "--max-minutes", "30") == 130
    clock = load_checkpoint(tmp_path / "x" / "checkpoints" / "last.pt").progress["clock"]
    assert clock["seconds"] == 1800
    assert clock["ended"] == 0


# The arithmetic of time


CONFIG = Config(
    model=ModelConfig(features=(4, 8), patch=(32, 32, 32), overlap=0.5),
    train=TrainConfig(epochs=10),
    validation=ValidationConfig(overlap=0.0),
)
CASES = [Case(name, {"flair": Source(Path(name))}) for name in "abcd"]
# 8 windows without overlap; starts at 0, 16 and 32 on each axis with 0.5.
BOX = (64, 64, 64)


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _pace(seconds: float | None) -> tuple[Pace, _Clock, TimeBudget]:
    clock = _Clock()
    budget = TimeBudget(seconds, clock)
    return Pace(CONFIG, budget, ALONE), clock, budget


# A case takes 8 * 0.5 + 1.5 = 5.5 s to validate, 27 * 1 + 1.5 + 12 = 40.5 s to evaluate.
def _measured() -> tuple[float, float]:
    return 0.5, 1.0


@pytest.mark.parametrize(
    ("seconds", "resumed", "reserve", "evaluated"),
    [
        (3000, False, 4 * 5.5 + 1.25 * 4 * 40.5, "all"),
        (3000, True, 4 * 5.5 + 1.25 * 4 * 40.5, "all"),
        (1000, False, 4 * 5.5 + 4 * 12, "these"),
        # The best epoch may have to be segmented again.
        (1000, True, 2 * 4 * 5.5 + 4 * 12, "these"),
    ],
)
def test_time_is_kept_for_the_evaluation(
    seconds: float, resumed: bool, reserve: float, evaluated: str
) -> None:
    pace, _, budget = _pace(seconds)
    watched, sentence = pace.begin(CASES, [BOX], _measured, resumed)
    assert len(watched) == 4
    assert budget.reserve == pytest.approx(reserve)
    assert sentence.endswith(f"keeps {reserve:.0f} s for it and for evaluating {evaluated}")


def test_cases_are_watched_as_far_as_a_tenth_of_the_limit_goes() -> None:
    pace, _, budget = _pace(120)
    watched, _ = pace.begin(CASES, [BOX], _measured)
    assert [case.case_id for case in watched] == ["a", "b"]
    assert budget.reserve == pytest.approx(2 * 5.5 + 2 * 12)


def test_what_no_time_is_left_for_is_told_by_the_clock() -> None:
    pace, clock, _ = _pace(1000)
    pace.begin(CASES, [BOX], _measured)
    clock.now = 1000 - 4 * 40.5
    assert pace.shortage(4) == ""
    clock.now += 0.1
    assert pace.shortage(4) == (
        "3 min of the time limit were left, and all 4 cases with overlap 0.5 take about 3 min"
    )
    assert pace.shortage(3) == ""
    # Two cases took twice as long as two were to take.
    pace.validated(2, 22.0)
    clock.now = 1000 - 4 * (2 * 28.5 + 12)
    assert pace.shortage(4) == ""
    clock.now += 0.1
    assert pace.shortage(4)
    # A faster one is not counted upon.
    pace.validated(2, 1.0)
    clock.now = 1000 - 4 * 40.5 + 0.1
    assert pace.shortage(4)
    clock.now = 1000 - 23
    assert not pace.overdue(1)
    assert pace.overdue(2)


def test_without_a_limit_there_is_always_time() -> None:
    pace, clock, _ = _pace(None)
    watched, sentence = pace.begin(CASES, [BOX], _measured)
    clock.now = 1e9
    assert (len(watched), sentence, pace.shortage(4)) == (4, "", "")
    assert not pace.overdue(4)
    assert pace.state() is None


def test_what_the_clock_has_ended_stays_ended() -> None:
    pace, clock, budget = _pace(1000)
    pace.begin(CASES, [BOX], _measured)
    clock.now = 1000 - budget.reserve - 5
    pace.stepped(6.0)
    going = pace.state()
    assert going is not None
    assert pace.ends(1)
    ended = pace.state()
    assert ended is not None
    assert not _pace(None)[0].go_on(ended)
    assert _pace(None)[0].go_on(going)
    # A new limit is time.
    assert _pace(60)[0].go_on(ended)
