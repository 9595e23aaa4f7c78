"""Bar: thousands of cases in one process leave it as it was: at most 20 MB larger, and no
descriptor, thread or temporary file more; so does a cohort from its 20th case to its 1,000th. What
is kept deliberately must be seen by the same check.
"""

from pathlib import Path

import pytest

from runtime.phantom import Enhancement, write_phantoms
from tests.soak.bar import LINUX, Figures, bar, times, worker

pytestmark = pytest.mark.skipif(not LINUX, reason="what a process holds is read from Linux's /proc")

LIMIT_MIB = 20e6 / 2**20
SHAPE = (40, 32, 32)
CASE_MIB = 4 * 2 * 40 * 32 * 32 / 2**20  # its voxels, int16


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    write_phantoms(root, 4, 9, SHAPE, Enhancement.RIM)
    return root


def leaked(figures: Figures) -> list[str]:
    """What the process holds more than it may."""
    limits = {"growth_mib": LIMIT_MIB, "descriptors": 0, "threads": 0, "temporary_files": 0}
    return [name for name, limit in limits.items() if figures[name] > limit]


def test_a_cohort_leaks_nothing(cases: Path, tiny_model: Path, tmp_path: Path) -> None:
    with bar("leaks") as figures:
        count, warm = times(40, 2000), times(30, 100)
        given = ("cohort", cases, tiny_model, tmp_path / "out", count, warm, "none")
        figures |= worker("tests.soak.leaking", *given)
        assert leaked(figures) == []


def test_a_cohort_is_flat_from_its_20th_case(cases: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Its record, of a kilobyte a case, is part of it. The tables, whose text and whose modules are
    held while they are written, may take as much again.
    """
    with bar("leaks_from_20") as figures:
        given = ("cohort", cases, tiny_model, tmp_path / "out", times(40, 980), 20, "none")
        figures |= worker("tests.soak.leaking", *given)
        assert leaked(figures) == []
        assert figures["peak_growth_mib"] <= 2 * LIMIT_MIB


def test_commands_in_one_process_leak_nothing(
    cases: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with bar("leaks_commands") as figures:
        count, warm = times(10, 400), times(10, 100)
        given = ("main", cases, tiny_model, tmp_path / "out", count, warm, "none")
        figures |= worker("tests.soak.leaking", *given)
        assert leaked(figures) == []


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("object", "growth_mib"),
        ("descriptor", "descriptors"),
        ("thread", "threads"),
        ("file", "temporary_files"),
    ],
)
def test_what_is_kept_is_seen(
    cases: Path, tiny_model: Path, tmp_path: Path, kind: str, seen: str
) -> None:
    # As many as pass the limit; one of the others is one too many.
    count = int(1.2 * LIMIT_MIB / CASE_MIB) if kind == "object" else 20
    with bar(f"leak_control_{kind}") as figures:
        given = ("cohort", cases, tiny_model, tmp_path / "out", count, times(10, 100), kind)
        figures |= worker("tests.soak.leaking", *given)
        assert seen in leaked(figures)
