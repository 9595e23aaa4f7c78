"""TensorBoard's events, read back with its own reader."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.board import Board
from train.run_dir import RunDir

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _read(run: RunDir) -> "accumulator.EventAccumulator":
    events = accumulator.EventAccumulator(str(run.tensorboard))
    return events.Reload()


def test_scalars_and_pictures_are_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with Board(run, 0) as board:
        board.scalars({"epoch": 1, "loss": 0.5, "dice_WT": None}, 1)
        board.picture("validation/a", Image.fromarray(np.zeros((4, 6, 3), np.uint8)), 1)
    events = _read(run)
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]
    (picture,) = events.Images("validation/a")
    assert (picture.width, picture.height) == (6, 4)


def test_what_a_killed_run_wrote_ahead_is_not_shown(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with Board(run, 0) as board:
        for epoch in (1, 2, 3):
            board.scalars({"loss": float(epoch)}, epoch)
    with Board(run, 1) as board:
        board.scalars({"loss": 20.0}, 2)
    values = [(event.step, event.value) for event in _read(run).Scalars("loss")]
    assert values == [(1, 1.0), (2, 20.0)]


def test_only_the_leader_writes(tmp_path: Path) -> None:
    with Board(RunDir(tmp_path), 0, active=False) as board:
        board.scalars({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())
