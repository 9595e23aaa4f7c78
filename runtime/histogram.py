"""How many cases have which volume: a histogram in SVG."""

from collections.abc import Sequence
from math import ceil, floor, log10
from statistics import median
from typing import Final

from runtime.markup import Markup, element, joined

_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 12, 26, 40
_BINS: Final = 24
"""At most."""


def histogram(values: Sequence[float], unit: str, title: str) -> Markup:
    """Draw counts over equal intervals from 0, a round width each, and mark the median.

    Args:
        values: 0 or more each, at least one.
        unit: of the values.
        title: what a screen reader calls it.
    """
    width, counts = binned(values)
    end, highest = width * len(counts), max(counts)

    def x(value: float) -> float:
        return _LEFT + value / end * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        return _HEIGHT - _BOTTOM - count / highest * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_path(f"M{_LEFT},{y(0):.1f} L{_WIDTH - _RIGHT},{y(0):.1f}", "rule")]
    for place, count in enumerate(counts):
        if count:
            left, right = x(place * width), x((place + 1) * width) - 1
            outline = f"M{left:.1f},{y(0):.1f} V{y(count):.1f} H{right:.1f} V{y(0):.1f} Z"
            parts.append(_path(outline, "bin"))
    every = _round_up(end / 5)
    for number in range(floor(end / every + 1e-9) + 1):
        parts.append(_text(x(number * every), y(0) + 17, f"{number * every:g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, unit, "middle"))
    parts += [_text(_LEFT - 6, y(highest) + 4, str(highest), "end"), _text(4, 13, "cases", "start")]
    middle = median(values)
    parts.append(_path(f"M{x(middle):.1f},{_TOP - 4} V{y(0):.1f}", "marked"))
    # Kept within the picture, whichever end the median is at.
    at = min(max(x(middle), _LEFT + 58), _WIDTH - _RIGHT - 48)
    parts.append(_text(at, 13, f"median {middle:.1f}", "middle"))
    told = (
        f"{title}: {len(values)} cases, median {middle:.1f} {unit}, most {max(values):.1f} {unit}"
    )
    return element(
        "svg", joined(parts, "\n"), viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_label=told, class_="chart",
    )  # fmt: skip


def binned(values: Sequence[float]) -> tuple[float, list[int]]:
    """Width of an interval, and how many values lie in each, from 0 on; the last holds its end."""
    top = max(values) or 1.0
    width = _round_up(top / _BINS)
    counts = [0] * max(1, ceil(top / width - 1e-9))
    for value in values:
        counts[min(int(value / width), len(counts) - 1)] += 1
    return width, counts


def _round_up(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below ``value``."""
    power = 10.0 ** floor(log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _path(outline: str, class_: str) -> Markup:
    return element("path", d=outline, class_=class_)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
