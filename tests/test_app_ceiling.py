"""Memory that is not there is refused, and only as long as it should be."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.app.ceiling import available, ceiling

MIB = 1 << 20


def account(path: Path, **figures: int) -> Path:
    path.write_text("".join(f"{name}:   {value} kB\n" for name, value in figures.items()))
    return path


def test_what_is_available_is_the_systems_figure(tmp_path: Path) -> None:
    meminfo = account(tmp_path / "meminfo", MemTotal=9000, MemFree=10, MemAvailable=5000)
    assert available(meminfo, tmp_path / "none") == 5000 << 10
    assert available(account(tmp_path / "old", MemTotal=9000), tmp_path / "none") is None
    assert available(tmp_path / "nowhere", tmp_path / "none") is None


def test_a_container_has_less(tmp_path: Path) -> None:
    meminfo = account(tmp_path / "meminfo", MemAvailable=5000)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{900 << 10}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {300 << 10}\n")
    assert available(meminfo, tmp_path) == 5000 << 10
    (tmp_path / "memory.max").write_text(f"{1000 << 10}\n")
    assert available(meminfo, tmp_path) == 400 << 10
    (tmp_path / "memory.current").write_text(f"{9000 << 10}\n")
    assert available(meminfo, tmp_path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's data")
def test_more_than_there_is_is_refused_and_afterwards_it_is_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with ceiling((256 + 100) * MIB):
        # Never touched: what is refused is the promise.
        np.empty(50 * MIB, np.uint8)
        with pytest.raises(MemoryError):
            np.empty(400 * MIB, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    np.empty(400 * MIB, np.uint8)
    with ceiling(None):
        np.empty(400 * MIB, np.uint8)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's data")
def test_the_ceiling_goes_with_an_error_too() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(KeyError), ceiling(0):
        raise KeyError
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
