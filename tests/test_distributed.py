"""Two processes train as one: equal weights, one writer, one split of the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.errors import UsageError
from runtime.phantom import Enhancement, write_phantoms
from tests.ddp_worker import train as ten_steps
from train.checkpoint import Architecture, load_checkpoint
from train.distributed import ALONE, World, place
from train.sampler import Draw, EpochSampler

ROOT = Path(__file__).parents[1]


def _torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, "--standalone", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _two(out: Path, kind: str) -> list[dict[str, torch.Tensor]]:
    done = _torchrun("-m", "tests.ddp_worker", str(out), kind)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_step_as_one_with_the_same_batch(tmp_path: Path) -> None:
    # Batch norms normalise by their running statistics here: by those of a batch, two halves of a
    # batch are normalised differently from the whole.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = ten_steps(ALONE, frozen=True)
    torch.set_num_threads(threads)
    for state in _two(tmp_path, "frozen"):
        assert state.keys() == alone.keys()
        for key, expected in alone.items():
            torch.testing.assert_close(state[key], expected, rtol=0, atol=1e-6, msg=key)
    fresh = Architecture(features=(4, 8, 16), dropout=0.0, deep_supervision=1).build()
    moved = (alone["raw.head.weight"] - fresh.head.weight.detach()).abs()
    # Ten steps of Adam at 1e-3: far more than the two may differ by.
    assert float(moved.max()) > 1e-3
    assert alone["losses"][-1] < alone["losses"][0]


def test_with_live_statistics_the_ranks_agree_bit_for_bit(tmp_path: Path) -> None:
    one, two = _two(tmp_path, "live")
    for key, value in one.items():
        assert torch.equal(two[key], value), key
    moved = one["raw.encoder.0.bn1.running_mean"]
    assert moved.abs().max() > 0
    assert not torch.equal(one["average.encoder.0.bn1.running_mean"], moved)


FAILING = """
import sys
from runtime.errors import InputError
from train.distributed import joined, place
import torch
world = place()
def make():
    if world.rank == 1:
        raise InputError("a case", found="ones", expected="noughts", remedy="mend it")
    return world.rank
with joined(world, torch.device("cpu")):
    try:
        print("got", world.together(make))
    except InputError as error:
        print("said:", error)
        sys.exit(error.exit_code)
"""


def test_where_one_fails_all_leave_and_one_speaks(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    done = _torchrun(str(tmp_path / "failing.py"))
    assert done.returncode != 0
    assert done.stdout.count("said: a case: found ones") == 1
    assert "got" not in done.stdout
    assert "closed by peer" not in done.stderr


class _Numbered:
    """Draws that are told apart by their case."""

    def __init__(self, count: int) -> None:
        self._count = count

    def draws(self, epoch: int) -> list[Draw]:
        return [Draw(index, (0, 0, 0), epoch) for index in range(self._count)]


@pytest.mark.parametrize(("size", "batch", "accumulate"), [(1, 4, 2), (2, 2, 2), (4, 1, 2)])
def test_every_world_steps_on_the_same_patches(size: int, batch: int, accumulate: int) -> None:
    shares = [
        [
            draw.case
            for draw in EpochSampler(_Numbered(37), batch, accumulate, World(rank, size, rank))
        ]
        for rank in range(size)
    ]
    steps = []
    for start in range(0, len(shares[0]), batch):
        steps.append(sorted(case for share in shares for case in share[start : start + batch]))
    # Blocks of four, 37 patches: eight blocks make four steps, five patches are left out.
    assert steps == [list(range(first, first + 4)) for first in range(0, 32, 4)]


def test_an_epoch_must_be_long_enough_for_everybody() -> None:
    with pytest.raises(UsageError, match="at least 16, a step of all of them"):
        EpochSampler(_Numbered(15), 4, 2, World(0, 2, 0))


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert place() == World(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(UsageError, match="as torchrun sets them"):
        place()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place() == World(3, 4, 1)


def test_brats_train_under_torchrun_writes_one_run(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 4, seed=5, shape=(48, 48, 40), enhancement=Enhancement.RIM)
    flags = [
        "--config", "demo", "-d", str(tmp_path / "data"), "-o", str(tmp_path / "runs"),
        "--model.features", "4,8", "--model.patch", "32,32,32", "--model.overlap", "0",
        "--train.precision", "fp32", "--threads", "1", "--train.batch", "1", "--folds", "2",
        "--fold", "1", "--train.epochs", "2", "--sampling.patches-per-epoch", "5",
        "--validation.every", "1",
    ]  # fmt: skip
    done = _torchrun("-m", "train.cli", *flags)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").glob("demo-*")
    assert load_checkpoint(run / "checkpoints" / "best.pt").card.training["cases"] == 2
    history = (run / "history.csv").read_text().splitlines()
    # Two patches a step: five make two steps.
    assert [line.split(",")[2] for line in history] == ["patches", "4", "4"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    split = json.loads((run / "split.json").read_text())
    assert sorted(evaluation["cases"]) == split["validation"]
    assert len(split["validation"]) == 2
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert done.stderr.count("epoch 2/2  loss") == 1
    assert len(list((run / "tensorboard").iterdir())) == 1
