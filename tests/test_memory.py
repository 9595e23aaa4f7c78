"""What a process has taken, against psutil and the system; and what that leaves for cases."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import runtime.memory
from runtime.memory import Room, peak_resident
from runtime.phantom import write_phantoms

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


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the system says next, and then again and again the last."""
    left = [0]
    monkeypatch.setattr(
        runtime.memory, "peak_resident", lambda: left.pop(0) if len(left) > 1 else left[0]
    )
    return left


def test_the_first_case_says_what_all_else_takes(peaks: list[int]) -> None:
    peaks[:] = [700, 990]
    told: list[str] = []
    room = Room(1000, told.append)
    assert room() == 0  # one at a time
    room.done(100)
    assert room() == 1000 - (700 - 100)
    room.done(10)  # beside others, which the peak holds too
    assert room() == 400
    assert told == []


def test_a_process_that_is_too_large_already_takes_one_case_at_a_time(peaks: list[int]) -> None:
    peaks[:] = [5_000_000_000]
    told: list[str] = []
    room = Room(1_000_000_000, told.append)
    for _ in range(3):
        room.done(100_000_000)
        assert room() == 0
    (line,) = told
    assert "takes 5 GB where --memory says 1 GB for one case alone" in line


def test_a_later_case_that_takes_more_leaves_less_for_those_after_it(peaks: list[int]) -> None:
    peaks[:] = [700, 1150, 1150, 1200]
    told: list[str] = []
    room = Room(1000, told.append)
    for expected in (400, 250, 250, 200):
        room.done(100)
        assert room() == expected
    (line,) = told
    assert "fewer cases are in hand from now on" in line


def test_a_cohort_keeps_to_its_memory(tmp_path: Path, tiny_model: Path) -> None:
    """What the system says of two runs: one with as many cases in hand as are useful, and one that
    is to do with less.
    """
    (first,) = write_phantoms(tmp_path / "cases", 1, 5, (128, 128, 96))
    for number in range(2, 8):
        for path in first.glob("*.nii.gz"):
            copy = Path(str(path).replace("_0001", f"_{number:04}"))
            copy.parent.mkdir(exist_ok=True)
            copy.hardlink_to(path)
    code = (
        "import sys, runtime.memory\nfrom runtime.cli.infer import main\n"
        "assert main(sys.argv[1:]) == 0\nprint(runtime.memory.peak_resident())"
    )

    def peak(name: str, *flags: str) -> int:
        words = [tmp_path / "cases", "--model", tiny_model, "--backend", "ort", "--threads", "1"]
        words += ["--overlap", "0", "-o", tmp_path / name, *flags]
        command = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "--memory says" not in " ".join(done.stderr.split())
        return int(done.stdout.splitlines()[-1])

    free = peak("free")
    bound = free - 32 * MIB
    assert peak("bound", "--memory", str(bound)) <= bound
