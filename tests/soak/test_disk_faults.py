"""Bar: whatever the disk refuses, and wherever the process is killed, a final name holds the old
file or the new one; a sidecar never vouches for what is not there; the next run succeeds. What the
disk refuses while the new result is written leaves the old one whole. Between the first and the
last of the renames that follow, a killed run has no sidecar, and of pages that nobody asks for any
more it may have none.

Two ways to let an operation go wrong: a shim over Python's own calls, which goes everywhere, and
strace, which lets the system calls themselves fail.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.labels import MODALITIES
from tests.conftest import WriteCase
from tests.soak.bar import Figures, bar, times, worker

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

SHAPE = (34, 18, 14)


def may_trace() -> str | None:
    """Why strace cannot be used here, if so."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", sys.executable]
    tried = subprocess.run([*command, "-c", ""], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {tried.stderr[-200:]}" if tried.returncode else None


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, write_case: WriteCase) -> tuple[Path, Path]:
    """An old and a new state of one case."""
    root = tmp_path_factory.mktemp("faults")
    folders = []
    for seed, name in enumerate(("old", "new")):
        rng = np.random.default_rng(seed)
        images = {one: rng.integers(1, 900, SHAPE).astype(np.int16) for one in MODALITIES}
        folders.append(write_case(root / name, images))
    return folders[0], folders[1]


def check(figures: Figures) -> None:
    assert figures["partial"] == []
    assert figures["untrue"] == []
    assert figures["lost"] == []
    assert figures["wrong_codes"] == []
    assert figures["not_recovered"] == []
    assert figures["missed"] == []
    assert figures["left_by_errors"] == []
    # Faults are told, not passed over: but for a folder that is there already, that is looked at,
    # or whose lock is let go.
    assert {what for what in figures["swallowed"] if not what.endswith(" predictions")} == set()
    assert figures["codes"]["7"] > len(figures["swallowed"])
    assert figures["codes"]["-9"] > figures["faults"] / 5
    assert figures["left_after_recovery"] == []


def test_the_writer_fails_at_every_step(
    cases: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    with bar("faults_shim") as figures:
        figures |= worker("tests.soak.faults", "shim", *cases, tiny_model, tmp_path, times(13, 1))
        operations = figures["operations"]
        assert operations.keys() >= {"open", "write", "fsync", "replace", "unlink", "close"}
        check(figures)


@pytest.mark.slow
def test_the_system_fails_at_some_calls(
    cases: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """A short form of the bar below: a few faults of a call that writes and one that moves, and
    of one that two threads make.
    """
    if reason := may_trace():
        pytest.skip(reason)
    given = (*cases, tiny_model, tmp_path, 11, "write", "rename", "unlink")
    figures = worker("tests.soak.faults", "strace", *given)
    assert figures["operations"].keys() == {"write", "rename", "unlink"}
    check(figures)


@pytest.mark.slow
def test_the_system_fails_at_every_call(
    cases: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    if reason := may_trace():
        pytest.skip(reason)
    with bar("faults_strace") as figures:
        figures |= worker("tests.soak.faults", "strace", *cases, tiny_model, tmp_path, times(13, 1))
        assert figures["operations"].keys() >= {"openat", "write", "fsync", "rename", "unlink"}
        check(figures)
