"""A figure as a run records it: every value that was taken, so that its noise is known."""

from collections.abc import Sequence
from statistics import median
from typing import Any, Final, Literal

Unit = Literal["s", "1/s", "ratio", "MiB", "Dice", "changed", "verdict"]
"""Of these "changed" is a share of the tumour's labels, and "verdict" one of `VERDICTS`."""

HIGHER: Final = frozenset({"1/s", "ratio", "Dice", "verdict"})
"""Units of which more is better; of seconds and bytes less is. A ratio is peer / ours."""

VERDICTS: Final = {"pass": 1.0, "inconclusive": 0.5, "fail": 0.0}


def figure(values: Sequence[float], unit: Unit) -> dict[str, Any]:
    """What goes into a benchmark's record.

    Args:
        values: one per round, in order.
        unit: what they are.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("a figure without a value")
    return {"unit": unit, "values": [float(value) for value in values]}


def middle(found: dict[str, Any]) -> float:
    """Median over the rounds."""
    return float(median(found["values"]))


def spread(values: Sequence[float]) -> float | None:
    """How far values of one thing lie apart, relative to their median; None where one value tells
    nothing of noise.

    Of up to four values half the range; of more 1.48 times the median distance from the median (of
    normal noise one standard deviation, and about as much as the half range of three), which a
    single slow round does not move.
    """
    if len(values) < 2:
        return None
    centre = float(median(values))
    if not centre:
        return 0.0
    if len(values) < 5:
        return (max(values) - min(values)) / 2 / abs(centre)
    return 1.4826 * float(median(abs(value - centre) for value in values)) / abs(centre)


def ratios(peer: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Round by round, how many times as long the peer took."""
    return [one / other for one, other in zip(peer, ours, strict=True)]
