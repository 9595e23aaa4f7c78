"""Bar: the command of a cohort on a Ray cluster is killed 8 times and resumed at once, while its
workers may still be at work in its folder; they end, and what there is in the end is that of a run
that was left alone.
"""

import os
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is in the extra ray")

from runtime.phantom import Enhancement, write_phantoms
from tests.soak.bar import FULL, bar, times, worker
from tests.soak.test_cohort_kills import CASES, EMPTY, SHAPE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the system has no SIGKILL"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers want two cores"),
]

SEED = 5


def test_a_killed_command_leaves_no_worker_that_writes(tiny_model: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "cases", CASES, 5, SHAPE, Enhancement.RIM)
    with bar("ray_kills") as figures:
        figures["cases"] = CASES
        given = (tmp_path / "cases", tiny_model, tmp_path, times(1, 8), SEED)
        figures |= worker("tests.soak.ray_kills", *given)
        assert figures["kills"] == times(1, 8)
        assert {name: figures[name] for name in EMPTY} == {name: [] for name in EMPTY}
        assert figures["kills_that_left_workers"] >= times(1, 4)
        if FULL:
            assert len({*figures["cases_finished_at_kill"]}) > 2
