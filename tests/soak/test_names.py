"""Bar: whatever cases, files and folders are called, nothing is written outside of the output
folder, and no name reaches a terminal, a sidecar or a page raw.
"""

import sys
from pathlib import Path

import pytest

from tests.soak.bar import bar, times, worker
from tests.soak.hostile_names import LONGEST, hostile_names

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="names of any bytes are what Linux's file systems take"
)


def test_hostile_names(tiny_model: Path, tmp_path: Path) -> None:
    with bar("names") as figures:
        count = times(24, 500)
        figures |= worker("tests.soak.naming_harm", tiny_model, tmp_path, count)
        assert figures["names"] == count
        assert figures["outside"] == []
        assert figures["crashed"] == []
        assert figures["strange_codes"] == []
        assert figures["raw_on_stderr"] == []
        assert figures["raw_in_files"] == []
        assert figures["unescaped"] == []
        assert figures["formulas"] == []
        # Most of them run, and links are put aside rather than followed.
        assert figures["codes"]["0"] > figures["runs"] / 2
        assert figures["label_maps"] > count
        assert figures["links_replaced"] > 0
        assert figures["scored"] > 0
        # Few were too long for a file of theirs.
        assert figures["not_made"] < count / 4


def test_the_names_are_names() -> None:
    names = hostile_names(500)
    assert len(set(names)) == 500
    assert all(0 < len(name) <= LONGEST for name in names)
    assert not any(b"/" in name or b"\0" in name for name in names)
    assert hostile_names(500) == names
    assert any(b"\x1b" in name for name in names[:60])
    assert sum(len(name) > 200 for name in names) > 20
