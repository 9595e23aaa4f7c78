"""How the tumour's area runs over the slices of a plane, as a line chart in SVG."""

from collections.abc import Mapping
from math import floor, log10
from typing import Final

import numpy as np

from runtime.markup import Markup, element, joined
from runtime.measure import Areas
from runtime.overlay import LABEL_NAMES
from runtime.planes import Plane

_ENDS: Final[Mapping[Plane, str]] = {
    "axial": "inferior to superior",
    "coronal": "anterior to posterior",
    "sagittal": "right to left",
}
# The whole tumour first, so that its labels are drawn over it.
_CURVES: Final = ("WT", *(label.name for label in LABEL_NAMES))
_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 44
_FEWEST_SLICES: Final = 20
_LINE_HEIGHT: Final = 12.0


def area_chart(plane: Plane, areas: Mapping[str, Areas], marked: int) -> Markup:
    """Draw areas over the slices that the tumour takes up, and a little on both sides.

    Args:
        plane: the slices' plane.
        areas: structure name to float64 (slices,), mm2; of `measure.Measurements.profiles`.
        marked: the slice that is shown elsewhere, numbered from 0.
    """
    first, last = _range(areas["WT"])
    highest = max(float(areas["WT"].max()), 1.0)
    step = _step(highest, 4)
    top = step * np.ceil(highest / step)

    def x(index: float) -> float:
        return _LEFT + (index - first) / max(last - first, 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(area: float) -> float:
        return _HEIGHT - _BOTTOM - area / float(top) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_rule(_LEFT, y(value), _WIDTH - _RIGHT, y(value)) for value in _ticks(0, top, step)]
    parts += [_text(_LEFT - 6, y(value) + 4, f"{value:g}", "end") for value in _ticks(0, top, step)]
    # People count slices from 1.
    every = _step(last - first, 6, whole=True)
    for number in _ticks(every * np.ceil((first + 1) / every), last + 1, every):
        parts.append(_rule(x(number - 1), y(0), x(number - 1), y(0) + 4))
        parts.append(_text(x(number - 1), y(0) + 17, f"{number:g}", "middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 8, f"{plane} slice, {_ENDS[plane]}", "middle"))
    parts.append(_text(4, 13, "area (mm²)", "start"))
    parts.append(_rule(x(marked), _TOP - 4, x(marked), y(0), "marked"))
    parts.append(_text(x(marked), 13, f"slice {marked + 1}", "middle"))
    labels = []
    for name in _CURVES:
        values = areas[name][first : last + 1]
        points = [f"{x(first + i):.1f},{y(float(area)):.1f}" for i, area in enumerate(values)]
        base = f"{y(0):.1f}"
        outline = f"M{x(first):.1f},{base} L{' '.join(points)} L{x(last):.1f},{base} Z"
        parts.append(element("path", d=outline, class_=f"area {name}"))
        parts.append(element("path", d=f"M{' '.join(points)}", class_=f"line {name}"))
        if values.any():
            peak = int(values.argmax())
            labels.append((x(first + peak), y(float(values[peak])) - 5, name))
    parts += [_text(at, height, name, "middle", "name") for at, height, name in _spread(labels)]
    title = f"Area per {plane} slice of {', '.join(_CURVES)}; the largest is {highest:.0f} mm²"
    return element(
        "svg", joined(parts, "\n"), viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_label=title, class_="chart",
    )  # fmt: skip


def chart_legend() -> Markup:
    """Which line is which."""
    names = {"WT": "whole tumour"} | {label.name: name for label, name in LABEL_NAMES.items()}
    lines = []
    for name in _CURVES:
        line = element("path", d="M0,6 L28,6", class_=f"line {name}")
        sample = element("svg", line, viewBox="0 0 28 12", class_="sample", aria_hidden="true")
        lines.append(element("li", sample, f"{name} {names[name]}"))
    return element("ul", *lines, class_="legend")


def _range(tumour: Areas) -> tuple[int, int]:
    """First and last slice to draw."""
    inside = np.flatnonzero(tumour)
    low, high = (int(inside[0]), int(inside[-1])) if inside.size else (0, len(tumour) - 1)
    margin = max((high - low) // 10 + 1, (_FEWEST_SLICES - (high - low)) // 2)
    return max(low - margin, 0), min(high + margin, len(tumour) - 1)


def _step(span: float, count: int, whole: bool = False) -> float:
    """The least of 1, 2, 5 times a power of ten that cuts ``span`` into ``count`` at most."""
    rough = max(span / count, 1.0 if whole else 1e-9)
    power = 10.0 ** floor(log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [low + step * i for i in range(int((high - low) / step + 1e-9) + 1)]


def _spread(labels: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Move what would be written over another's name down, from the top on."""
    placed: list[tuple[float, float, str]] = []
    for x, y, name in sorted(labels, key=lambda label: label[1]):
        for other_x, other_y, _ in placed:
            if abs(x - other_x) < 3 * _LINE_HEIGHT and y - other_y < _LINE_HEIGHT:
                y = other_y + _LINE_HEIGHT
        placed.append((x, y, name))
    return placed


def _rule(x1: float, y1: float, x2: float, y2: float, class_: str = "rule") -> Markup:
    return element("path", d=f"M{x1:.1f},{y1:.1f} L{x2:.1f},{y2:.1f}", class_=class_)


def _text(x: float, y: float, text: str, anchor: str, class_: str | None = None) -> Markup:
    return element(
        "text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_
    )  # fmt: skip
