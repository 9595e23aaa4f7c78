"""A run that is killed, wherever and again and again, ends where one that is left alone does."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from runtime.phantom import Enhancement, write_phantoms
from train.checkpoint import load_checkpoint
from train.cli import main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

ROOT = Path(__file__).parents[1]
STEPS = 4
FLAGS = (
    "--config", "demo", "--model.features", "4,8", "--model.patch", "32,32,32",
    "--model.dropout", "0.2", "--model.overlap", "0", "--train.batch", "1", "--train.ema", "0.9",
    "--train.accumulate", "2", "--train.precision", "fp32", "--threads", "1", "--quiet",
    "--augment.noise", "0.5", "--augment.affine", "0.5", "--augment.modality-dropout", "0.3",
    "--train.epochs", "2", "--sampling.patches-per-epoch", "4", "--validation.every", "1",
    # So that the evaluation has something to write into the card.
    "--model.tolerates-missing", "t1",
)  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed.

    Attributes:
        path: its directory.
        writes: names of the files that it wrote, in order.
        arguments: to begin another like it.
    """

    path: Path
    writes: tuple[str, ...]
    arguments: tuple[str, ...]

    def nth(self, name: str, number: int = 0) -> int:
        """Which write that of a file was, for the time of that number."""
        return [index for index, write in enumerate(self.writes) if write == name][number]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("killed")
    write_phantoms(folder / "data", 3, seed=3, shape=(40, 40, 40), enhancement=Enhancement.RIM)
    arguments = (*FLAGS, "-d", str(folder / "data"), "--cache", str(folder / "cache"))
    writes: list[str] = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        replace(source, target)
        if "run" in Path(target).parts:
            writes.append(Path(target).name)

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", noted)
        assert main([*arguments, "-o", str(folder), "--name", "run"]) == 0
    torch.set_num_threads(threads)
    return Whole(folder / "run", tuple(writes), arguments)


def _killed(whole: Whole, out: Path, lives: list[str]) -> None:
    """Each of the lives, and that all of them ended as the whole run did."""
    command = [sys.executable, "-m", "tests.killed_run", "each", str(out), "\n".join(lives)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *whole.arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for index, life in enumerate(lives):
        _same(whole.path, out / str(index) / "run", life)


def _same(whole: Path, parts: Path, life: str) -> None:
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(run / "checkpoints" / name) for run in (whole, parts))
        assert one.model.keys() == two.model.keys()
        for key, tensor in one.model.items():
            assert torch.equal(two.model[key], tensor), (life, name, key)
        assert (one.epoch, one.card) == (two.epoch, two.card), (life, name)
    weights = [
        load_checkpoint(run / "checkpoints" / "last.pt").optimizer["weights"]
        for run in (whole, parts)
    ]
    assert all(torch.equal(weights[1][key], tensor) for key, tensor in weights[0].items()), life
    names = ["evaluation.json", "evaluation_metrics.txt"]
    names += [f"samples/{path.name}" for path in (whole / "samples").iterdir()]
    for name in names:
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), (life, name)
    assert _history(parts) == _history(whole), life
    assert (parts / "curves.png").is_file(), life
    assert not list(parts.rglob("*.tmp")), (life, "what it had begun to write is still there")


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def test_the_writes_of_a_run_are_those_that_the_tests_below_count_on(whole: Whole) -> None:
    epoch = ["epoch_001.pt", "last.pt", "history.csv", "curves.png"]
    first = whole.nth("best.pt")
    assert list(whole.writes[:first]) == [
        "config.yaml",
        "split.json",
        "environment.json",
        "last.pt",
    ]
    assert list(whole.writes[first + 1 : first + 5]) == epoch
    sample = next((whole.path / "samples").iterdir()).name
    end = [sample, "best.pt", "evaluation_metrics.txt", "evaluation.json"]
    assert list(whole.writes[-4:]) == end
    assert (
        "dice_without_modality"
        in load_checkpoint(whole.path / "checkpoints" / "best.pt").card.training
    )


@pytest.mark.slow
def test_killed_again_and_again(whole: Whole, tmp_path: Path) -> None:
    # At a step, twice in the middle of a checkpoint (a resumed run first writes three other
    # files), and at another step.
    _killed(whole, tmp_path, ["step:1 before:3 before:5 step:2"])


def test_killed_between_the_checkpoints_and_around_the_card(whole: Whole, tmp_path: Path) -> None:
    lives = [
        f"after:{whole.nth('best.pt')}",
        f"before:{whole.nth('best.pt', -1)}",
        f"after:{whole.nth('best.pt', -1)}",
    ]
    _killed(whole, tmp_path, lives)


@pytest.mark.slow
def test_killed_at_any_step(whole: Whole, tmp_path: Path) -> None:
    _killed(whole, tmp_path, [f"step:{number}" for number in range(STEPS)])


@pytest.mark.slow
def test_killed_in_and_after_every_write(whole: Whole, tmp_path: Path) -> None:
    first = whole.nth("last.pt")
    lives = [f"before:{index}" for index in range(first + 1, len(whole.writes))]
    lives += [f"after:{index}" for index in range(first, len(whole.writes) - 1)]
    # And again in the evaluation: a resumed run writes three files, history and curves before it.
    lives.append(f"after:{whole.nth('evaluation_metrics.txt')} before:7")
    _killed(whole, tmp_path, lives)
