"""The cores a process was given: by its affinity, its control group, Slurm and OpenMP."""

import os
from pathlib import Path

import pytest

import runtime.cores
from runtime.cores import core_limit, usable_cores


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


def groups(tmp_path: Path, own: str, **files: str) -> dict[str, Path]:
    """Mounted groups; files by path with __ for /."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "root" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"root": tmp_path / "root", "own": tmp_path / "own"}


@pytest.mark.parametrize(
    ("environ", "cores"),
    [
        ({}, 8),
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2,1"}, 4),
        ({"OMP_NUM_THREADS": "5", "SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8),
        ({"SLURM_CPUS_PER_TASK": "0"}, 8),
        ({"SLURM_CPUS_PER_TASK": "-1", "OMP_NUM_THREADS": "many"}, 8),
        ({"OMP_NUM_THREADS": ""}, 8),
    ],
)
def test_the_least_of_what_is_said_counts(
    environ: dict[str, str], cores: int, tmp_path: Path
) -> None:
    assert usable_cores(environ, **groups(tmp_path, "0::/\n")) == cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("max 100000\n", 8),
        ("6400000 100000", 8),
        ("", 8),
        ("100000 0", 8),
    ],
)
def test_a_quota_is_rounded_up_to_whole_cores(text: str, cores: int, tmp_path: Path) -> None:
    places = groups(tmp_path, "0::/job/step\n", job__step__cpu_DOT_max=text)
    assert usable_cores({}, **places) == cores


def test_the_groups_above_have_quotas_as_well(tmp_path: Path) -> None:
    files = {"job__cpu_DOT_max": "300000 100000", "job__step__cpu_DOT_max": "max 100000"}
    assert usable_cores({}, **groups(tmp_path, "0::/job/step\n", **files)) == 3


def test_a_container_sees_its_own_quota_at_the_root(tmp_path: Path) -> None:
    places = groups(tmp_path, "0::/system.slice/far/away\n", cpu_DOT_max="400000 100000")
    assert usable_cores({}, **places) == 4


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    own = "5:memory:/job\n4:cpu,cpuacct:/job\n"
    files = {
        "cpu__job__cpu_DOT_cfs_quota_us": "250000",
        "cpu__job__cpu_DOT_cfs_period_us": "100000",
        "cpu__cpu_DOT_cfs_quota_us": "-1",
        "cpu__cpu_DOT_cfs_period_us": "100000",
    }
    assert usable_cores({}, **groups(tmp_path, own, **files)) == 3


def test_without_groups_the_mask_counts(tmp_path: Path) -> None:
    assert usable_cores({}, tmp_path, tmp_path / "none") == 8


def test_a_limit_is_told_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.cores, "usable_cores", lambda: 8)
    assert core_limit() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert core_limit() is None
