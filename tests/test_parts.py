"""Parts of a cohort: together every case once, whatever order they were found in."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.case import Case
from runtime.cli.arguments import read_part
from runtime.parts import Part


def cases(names: list[str]) -> list[Case]:
    return [Case(name, {}) for name in names]


@given(st.sets(st.text(min_size=1)), st.integers(1, 12), st.randoms())
def test_parts_are_disjoint_and_complete(names: set[str], count: int, order: random.Random) -> None:
    shuffled = sorted(names)
    order.shuffle(shuffled)
    parts = [Part(i, count).of(cases(shuffled)) for i in range(1, count + 1)]
    taken = [case.case_id for part in parts for case in part]
    assert sorted(taken) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for i in range(1, count + 1):
        assert Part(i, count).of(cases(sorted(names))) == parts[i - 1]


def test_a_part_by_hand() -> None:
    names = [case.case_id for case in Part(2, 3).of(cases(list("gbadfce")))]
    assert names == ["b", "e"]
    assert Part(2, 3).suffix == "-2-of-3"


def test_a_part_as_one_word() -> None:
    assert read_part("2/8") == Part(2, 8)
    for text in ("0/8", "9/8", "2", "2/0", "-1/2", "a/b", "2/8/3", "", "1e3/2"):
        with pytest.raises(ValueError, match="such as 2/8"):
            read_part(text)
