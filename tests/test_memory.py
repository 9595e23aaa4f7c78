"""What a process has taken, against psutil and the system; and what that leaves for cases."""

import resource
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import runtime.memory
from runtime.memory import Room, peak_resident

MIB = 1 << 20


def test_the_peak_is_in_bytes_and_keeps_what_was_given_back() -> None:
    before = peak_resident()
    block = np.ones(64 * MIB, np.uint8)
    resident = psutil.Process().memory_info().rss
    with_block = peak_resident()
    # The system adds its counts up only now and then.
    assert with_block >= resident - 4 * MIB
    assert with_block < 2 * max(resident, before)
    del block
    assert peak_resident() >= with_block - 4 * MIB


@pytest.mark.skipif(sys.platform == "darwin", reason="it counts in bytes there")
def test_where_there_is_no_proc_the_system_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.memory, "_STATUS", tmp_path / "none")
    assert peak_resident() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_first_case_says_what_all_else_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([700, 990])
    monkeypatch.setattr(runtime.memory, "peak_resident", lambda: next(peaks))
    room = Room(1000)
    assert room() == 0  # one at a time
    room.ran(100)
    assert room() == 1000 - (700 - 100)
    room.ran(10)  # beside others, which the peak holds too
    assert room() == 400


def test_a_process_that_is_too_large_already_takes_one_case_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime.memory, "peak_resident", lambda: 5000)
    room = Room(1000)
    room.ran(100)
    assert room() == 0
