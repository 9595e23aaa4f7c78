"""The charts of a report against the areas that they draw, and the legibility of its colours."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from runtime import page
from runtime.report_chart import area_chart
from tests.pages import Node, tree_of


def numbers(node: Node, *names: str) -> list[float]:
    return [float(node.attributes[name] or "") for name in names]


def scale_of(ticks: list[tuple[float, float]]) -> npt.NDArray[np.float64]:
    """From pixels to what the ticks say, which must lie on a line."""
    assert len(ticks) >= 3
    at, said = np.array(ticks).T
    line: npt.NDArray[np.float64] = np.polyfit(at, said, 1)
    assert np.polyval(line, at) == pytest.approx(said, abs=0.01 * np.ptp(said))
    return line


@pytest.mark.parametrize("highest", [3.0, 870.0, 14500.0])
def test_the_lines_of_a_chart_are_the_areas(highest: float) -> None:
    areas: Mapping[str, npt.NDArray[np.float64]] = {
        name: np.zeros(155) for name in ("WT", "TC", "ET", "NCR", "ED")
    }
    slices = np.arange(40, 101)
    bell = np.sin((slices - 39) / 62 * np.pi)
    for name, share in (("ED", 0.6), ("NCR", 0.3), ("ET", 0.1)):
        areas[name][slices] = share * highest * bell
        areas["WT"][slices] += areas[name][slices]
    root = tree_of(area_chart("axial", areas, 69))
    texts = [node for node in root.all("text") if re.fullmatch(r"[\d.e+-]+", node.text)]
    across = scale_of([(numbers(node, "x")[0], float(node.text)) for node in texts
                       if node.attributes["text-anchor"] == "middle"])  # fmt: skip
    up = scale_of([(numbers(node, "y")[0] - 4, float(node.text)) for node in texts
                   if node.attributes["text-anchor"] == "end"])  # fmt: skip
    for name in ("WT", "NCR", "ED", "ET"):
        (line,) = root.all("path", class_=f"line {name}")
        points = np.array(re.findall(r"([\d.]+),([\d.]+)", line.attributes["d"] or ""), float)
        number = np.polyval(across, points[:, 0])
        index = np.rint(number - 1).astype(int)
        assert number - 1 == pytest.approx(index, abs=0.1)
        assert index[0] < 40
        assert index[-1] > 100
        assert np.polyval(up, points[:, 1]) == pytest.approx(
            areas[name][index], abs=0.005 * highest
        )
    (marked,) = root.all("path", class_="marked")
    at = float(re.findall(r"M([\d.]+),", marked.attributes["d"] or "")[0])
    assert np.polyval(across, at) == pytest.approx(70, abs=0.1)
    assert "slice 70" in root.words()
    assert "area (mm²)" in root.words()
    # No two names are written over each other.
    names = [(numbers(node, "x", "y"), node.text) for node in root.all("text", class_="name")]
    assert {name for _, name in names} == {"WT", "NCR", "ED", "ET"}
    heights = sorted(place[1] for place, _ in names)
    assert min(np.diff(heights)) >= 11.9


def luminance(colour: str) -> float:
    parts = [colour[1 + i : 3 + i] for i in (0, 2, 4)] if len(colour) == 7 else [
        2 * digit for digit in colour[1:]]  # fmt: skip
    linear = [
        value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part, 16) / 255 for part in parts)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_is_legible_in_light_dark_and_print() -> None:
    css = Path(page.__file__).with_suffix(".css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(themes) == 3
    for theme in themes:
        for text in ("text", "dim"):
            for ground in ("page", "panel", "note", "warn"):
                pair = sorted(luminance(theme[name]) for name in (text, ground))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, ground, theme)
    assert "@page { size: A4" in css
    assert "print-color-adjust: exact" in css
    assert themes[2]["page"] == themes[2]["panel"] == "#fff"
