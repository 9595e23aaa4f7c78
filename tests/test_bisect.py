"""The search for what must be kept, on set functions that are known."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.bisect import Judgement, Kept, KeptPart, find_kept

PASSED = Judgement(())


class Oracle:
    """A judge by a plain function of the kept set, which counts and never answers twice."""

    def __init__(
        self,
        passes: Callable[[frozenset[str]], bool],
        suspects: Callable[[frozenset[str]], set[str]] = lambda kept: set(),
    ) -> None:
        self.passes, self.suspects = passes, suspects
        self.asked: list[frozenset[str]] = []

    def __call__(self, kept: frozenset[str]) -> Judgement:
        assert kept not in self.asked
        self.asked.append(kept)
        if self.passes(kept):
            return PASSED
        return Judgement((f"fails with {sorted(kept)}", "and more"), frozenset(self.suspects(kept)))


def named(count: int) -> list[str]:
    return [f"part{number}" for number in range(count)]


def found(kept: Kept) -> set[str]:
    return {part.part for part in kept.parts}


def test_nothing_is_kept_where_nothing_is_needed() -> None:
    oracle = Oracle(lambda kept: True)
    assert find_kept(named(9), oracle) == Kept((), 1)
    assert oracle.asked == [frozenset()]


def test_one_culprit_takes_about_log2_evaluations() -> None:
    names = named(32)
    for culprit in names:
        oracle = Oracle(lambda kept, culprit=culprit: culprit in kept)
        kept = find_kept(names, oracle)
        # Nothing, everything, five halvings, and the culprit alone where that is no prefix.
        assert kept.evaluations == len(oracle.asked) <= 2 + 5 + 1
        assert kept == Kept((KeptPart(culprit, "fails with []"),), kept.evaluations)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 24), needed=st.sets(st.integers(0, 23)), seed=st.integers(0, 9999))
def test_what_is_needed_is_found_and_nothing_else(count: int, needed: set[int], seed: int) -> None:
    names = named(count)
    wanted = {names[number] for number in needed if number < count}
    rng = random.Random(seed)
    # Evidence that is sometimes right, sometimes wrong, and sometimes names what is no part.
    accused = {name for name in [*names, "no part"] if rng.random() < 0.2}
    oracle = Oracle(lambda kept: wanted <= kept, lambda kept: accused)
    kept = find_kept(names, oracle, limit=1000)
    assert found(kept) == wanted
    assert kept.minimal
    assert not kept.gave_up
    assert [part.part for part in kept.parts] == [name for name in names if name in wanted]
    for part in kept.parts:
        assert part.why == f"fails with {sorted(wanted - {part.part})}"
    # Each culprit by halving and by itself, each suspect once more, two passes of dropping.
    halvings = math.ceil(math.log2(count)) + 1
    assert kept.evaluations <= 3 + len(wanted) * (halvings + 2) + 2 * len(accused)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 9), seed=st.integers(0, 99_999), share=st.floats(0.05, 0.95))
def test_any_function_at_all_ends_in_a_set_that_passes_and_is_1_minimal(
    count: int, seed: int, share: float
) -> None:
    """Passing is drawn by lot for each set: as far from monotone as can be."""
    names = named(count)
    rng = random.Random(seed)
    answers: dict[frozenset[str], bool] = {frozenset(names): True}

    def passes(kept: frozenset[str]) -> bool:
        if kept not in answers:
            answers[kept] = rng.random() < share
        return answers[kept]

    oracle = Oracle(passes, lambda kept: {rng.choice(names)} if rng.random() < 0.3 else set())
    kept = find_kept(names, oracle, limit=10_000)
    chosen = frozenset(found(kept))
    assert not kept.gave_up
    assert chosen in oracle.asked
    assert passes(chosen)
    for name in chosen:
        assert chosen - {name} in oracle.asked
        assert not passes(chosen - {name})


def test_either_of_two_suffices() -> None:
    names = named(8)
    kept = find_kept(names, Oracle(lambda kept: bool({"part2", "part5"} & kept)))
    assert found(kept) == {"part2"}


def test_what_becomes_needless_once_another_has_gone_is_dropped_too() -> None:
    """The first is needed beside the second, and no more without it: one pass does not see that."""
    first, second, third = names = named(3)
    passing = ({*names}, {first, third}, {third})
    oracle = Oracle(lambda kept: kept in passing, lambda kept: set(names))
    kept = find_kept(names, oracle)
    assert {second, third} in oracle.asked
    assert found(kept) == {third}
    assert kept.minimal


def test_suspects_are_kept_without_bisection() -> None:
    needed = {"part3", "part4", "part11"}

    def suspects(kept: frozenset[str]) -> set[str]:
        # The second overflow shows once the first is gone; part5 is accused for nothing.
        return {"part3", "part4", "part5"} if "part3" not in kept else {"part11"}

    oracle = Oracle(lambda kept: needed <= kept, suspects)
    kept = find_kept(named(16), oracle)
    assert found(kept) == needed
    assert oracle.asked[:3] == [
        frozenset(),
        frozenset({"part3", "part4", "part5"}),
        frozenset({"part3", "part4", "part5", "part11"}),
    ]
    # The rest is dropping: four trials, and after part5 has gone those before it once more.
    assert kept.evaluations == 3 + 4 + 2


def test_what_fails_even_in_fp32_is_given_up_with_the_reason() -> None:
    kept = find_kept(named(4), Oracle(lambda kept: False))
    assert kept.parts == ()
    assert kept.evaluations == 2
    assert kept.gave_up == (
        "it fails even with every part in fp32: fails with ['part0', 'part1', 'part2', 'part3']"
    )


@pytest.mark.parametrize("limit", range(1, 11))
def test_the_limit_is_kept_and_admitted(limit: int) -> None:
    needed = {"part3", "part9"}
    oracle = Oracle(lambda kept: needed <= kept)
    kept = find_kept(named(16), oracle, limit)
    assert len(oracle.asked) == kept.evaluations == limit
    assert kept.parts == ()
    assert kept.gave_up == f"{limit} evaluations did not suffice"


def test_a_limit_while_dropping_leaves_a_set_that_passes() -> None:
    def suspects(kept: frozenset[str]) -> set[str]:
        return {"part0", "part1", "part2", "part3"}

    kept = find_kept(named(16), Oracle(lambda kept: {"part1"} <= kept, suspects), limit=4)
    # Nothing, the four, without part0, and without part1 too, which fails.
    assert found(kept) == {"part1", "part2", "part3"}
    assert not kept.minimal
    assert not kept.gave_up
    assert {part.part: part.why for part in kept.parts} == {
        "part1": "fails with ['part2', 'part3']",
        "part2": "fails with []",
        "part3": "fails with []",
    }


def test_the_record_for_parity_json() -> None:
    kept = Kept((KeptPart("head", "case1: changed labels"),), 7)
    assert kept.record() == {
        "kept_fp32": [{"part": "head", "why": "case1: changed labels"}],
        "evaluations": 7,
        "minimal": True,
    }
    assert Kept((), 3, gave_up="because").record() == {
        "kept_fp32": [],
        "evaluations": 3,
        "minimal": True,
        "gave_up": "because",
    }
