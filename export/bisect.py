"""Which layers must stay in fp32 for a reduced graph to pass a gate, found by trying.

A layer that gives itself away, as one whose tensors leave the range of fp16 does, is kept first.
Loss of precision does not show in any one tensor, so that the rest is found by bisection: of the
layers in their order, keep the first k, for the smallest k that passes; the k-th is needed; keep
it, and look among those before it for the next, until what is kept passes by itself. That is about
log2(n) evaluations a layer. Last, whatever proves unnecessary is dropped. A conflict search in the
manner of Junker, "QuickXplain", AAAI 2004, and Zeller and Hildebrandt, "Simplifying and isolating
failure-inducing input", 2002, whose 1-minimality the result has.

It assumes that keeping more never makes a graph fail. Rounding errors may cancel, so that this need
not hold; then other or more layers may be found, but never a set that was not itself seen to pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

EVALUATIONS: Final = 100


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a graph in which a set of parts is kept.

    Attributes:
        reasons: why it fails; empty if it passes.
        suspects: parts, kept or not, that evidence shows to need fp32.
    """

    reasons: tuple[str, ...]
    suspects: frozenset[str] = frozenset()


Judge = Callable[[frozenset[str]], Judgement]


@dataclass(frozen=True)
class KeptPart:
    """A part in fp32, and what the gate said when it was reduced."""

    part: str
    why: str


@dataclass(frozen=True)
class Kept:
    """What a search has found.

    Attributes:
        parts: what to keep, in the order of the graph; the set was seen to pass.
        evaluations: graphs that were judged.
        minimal: whether each of the parts was seen to be needed, all others being kept.
        gave_up: why nothing was found; empty if something was.
    """

    parts: tuple[KeptPart, ...]
    evaluations: int
    minimal: bool = True
    gave_up: str = ""

    def record(self) -> dict[str, Any]:
        """For parity.json."""
        record: dict[str, Any] = {
            "kept_fp32": [{"part": kept.part, "why": kept.why} for kept in self.parts],
            "evaluations": self.evaluations,
            "minimal": self.minimal,
        }
        if self.gave_up:
            record["gave_up"] = self.gave_up
        return record


class _GiveUpError(Exception):
    """The search cannot end well; the text says why."""


class _OutOfEvaluationsError(_GiveUpError):
    pass


class _Trials:
    """A judge that is asked once for each set, and not more often than the limit."""

    def __init__(self, judge: Judge, limit: int) -> None:
        self._judge = judge
        self._limit = limit
        self._seen: dict[frozenset[str], Judgement] = {}

    @property
    def count(self) -> int:
        return len(self._seen)

    def __call__(self, kept: frozenset[str]) -> Judgement:
        if kept not in self._seen:
            if self.count >= self._limit:
                raise _OutOfEvaluationsError(f"{self._limit} evaluations did not suffice")
            self._seen[kept] = self._judge(kept)
        return self._seen[kept]


def find_kept(names: Sequence[str], judge: Judge, limit: int = EVALUATIONS) -> Kept:
    """A set of parts that passes when kept, and of which none can be left out.

    Args:
        names: the parts, in the order of the graph.
        judge: tells whether the gate passes with a set kept; asked once for each set.
        limit: most evaluations. Where they end before any set is found, the search gives up; where
            they end while parts are being dropped, the set stays larger than it need be.

    Returns:
        The parts to keep, none if nothing needs to be kept.
    """
    trials = _Trials(judge, limit)
    why: dict[str, str] = {}
    try:
        kept = _sufficient(names, trials, why)
    except _GiveUpError as error:
        return Kept((), trials.count, gave_up=str(error))
    kept, minimal = _without_the_needless(names, kept, trials, why)
    found = tuple(KeptPart(name, why[name]) for name in names if name in kept)
    return Kept(found, trials.count, minimal)


def _sufficient(names: Sequence[str], trials: _Trials, why: dict[str, str]) -> frozenset[str]:
    """A set that was seen to pass; fills in why each part of it was chosen."""
    kept: frozenset[str] = frozenset()
    alone = trials(kept)
    while alone.reasons:
        suspects = (alone.suspects - kept).intersection(names)
        if not suspects:
            break
        why.update(dict.fromkeys(suspects, alone.reasons[0]))
        kept |= suspects
        alone = trials(kept)
    if not alone.reasons:
        return kept
    everything = trials(frozenset(names))
    if everything.reasons:
        raise _GiveUpError(f"it fails even with every part in fp32: {everything.reasons[0]}")
    rest = [name for name in names if name not in kept]
    # What is kept fails by itself, and passes together with the first ``passing`` of the rest: both
    # have been seen.
    passing = len(rest)
    while alone.reasons:
        failing, reason = 0, alone.reasons[0]
        while passing - failing > 1:
            middle = (failing + passing) // 2
            tried = trials(kept.union(rest[:middle]))
            if tried.reasons:
                failing, reason = middle, tried.reasons[0]
            else:
                passing = middle
        passing -= 1
        kept |= {rest[passing]}
        why[rest[passing]] = reason
        alone = trials(kept)
    return kept


def _without_the_needless(
    names: Sequence[str], kept: frozenset[str], trials: _Trials, why: dict[str, str]
) -> tuple[frozenset[str], bool]:
    """The set without parts that turn out not to be needed, and whether all were tried."""
    shrunk = True
    try:
        while shrunk:
            shrunk = False
            for name in (name for name in names if name in kept):
                without = trials(kept - {name})
                if without.reasons:
                    why[name] = without.reasons[0]
                else:
                    kept -= {name}
                    shrunk = True
    except _OutOfEvaluationsError:
        return kept, False
    return kept, True
