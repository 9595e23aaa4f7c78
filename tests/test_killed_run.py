"""A run that is killed, again and again, ends where one that is left alone does: bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.phantom import Enhancement, write_phantoms
from train.checkpoint import load_checkpoint
from train.cli import main

ROOT = Path(__file__).parents[1]
FLAGS = (
    "--config", "demo", "--model.features", "4,8", "--model.patch", "32,32,32",
    "--model.dropout", "0.2", "--model.overlap", "0", "--train.batch", "1", "--train.ema", "0.9",
    "--train.accumulate", "2", "--train.precision", "fp32", "--threads", "1", "--quiet",
    "--augment.noise", "0.5", "--augment.affine", "0.5", "--augment.modality-dropout", "0.3",
    "--train.epochs", "3", "--sampling.patches-per-epoch", "6", "--validation.every", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_phantoms(folder, 3, seed=3, shape=(48, 48, 40), enhancement=Enhancement.RIM)
    return folder


def _killed(kind: str, number: int, *flags: str) -> None:
    command = [sys.executable, str(ROOT / "tests" / "killed_run.py"), kind, str(number), *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -9, done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_killed_at_any_step_and_in_any_write(data: Path, tmp_path: Path) -> None:
    common = ["-d", str(data), "-o", str(tmp_path)]
    threads = torch.get_num_threads()
    assert main([*FLAGS, *common, "--name", "whole"]) == 0
    # Three steps an epoch, two checkpoints each and a third for the best; one before the first.
    _killed("step", 2, *FLAGS, *common, "--name", "parts")
    again = ["--resume", "--name", "parts", *common, "--quiet"]
    assert load_checkpoint(tmp_path / "parts" / "checkpoints" / "last.pt").epoch == 0
    _killed("write", 0, *again)
    _killed("write", 2, *again)
    assert load_checkpoint(tmp_path / "parts" / "checkpoints" / "last.pt").epoch == 1
    _killed("step", 5, *again)
    assert load_checkpoint(tmp_path / "parts" / "checkpoints" / "last.pt").epoch == 2
    assert main(again) == 0
    torch.set_num_threads(threads)
    whole, parts = (tmp_path / name / "checkpoints" for name in ("whole", "parts"))
    for name in ("last.pt", "best.pt"):
        one, two = load_checkpoint(whole / name), load_checkpoint(parts / name)
        assert one.model.keys() == two.model.keys()
        for key, tensor in one.model.items():
            assert torch.equal(two.model[key], tensor), (name, key)
        assert one.epoch == two.epoch
    weights = [load_checkpoint(path / "last.pt").optimizer["weights"] for path in (whole, parts)]
    assert all(torch.equal(weights[1][key], tensor) for key, tensor in weights[0].items())
    assert not list(parts.glob("*.tmp")), "what a killed process had begun to write is still there"
