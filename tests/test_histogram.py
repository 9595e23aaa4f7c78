"""Histograms against NumPy's, and what is drawn against what was counted."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.histogram import binned, histogram
from tests.pages import tree_of

VOLUMES = st.lists(st.floats(0, 1e4, allow_nan=False).map(lambda v: round(v, 3)), min_size=1)


@given(VOLUMES)
def test_counts_are_numpys(values: list[float]) -> None:
    width, counts = binned(values)
    edges = width * np.arange(len(counts) + 1)
    assert sum(counts) == len(values)
    assert edges[-1] >= max(values) * (1 - 1e-9)
    assert len(counts) <= 25
    # Where a value lies on an edge, rounding decides on which side it is counted.
    off_edge = [v for v in values if abs(v / width - round(v / width)) > 1e-6]
    if len(off_edge) == len(values):
        np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])


@pytest.mark.parametrize(("top", "width"), [(24, 1), (24.5, 2), (240, 10), (1.2, 0.05), (0, 0.05)])
def test_intervals_are_round(top: float, width: float) -> None:
    assert binned([0, top])[0] == pytest.approx(width)


def test_the_bars_are_as_high_as_their_counts() -> None:
    values = [1.0] * 8 + [11.0] * 4 + [23.5] * 2
    root = tree_of(histogram(values, "ml", "WT"))
    bars = [node for node in root.all("path") if node.attributes["class"] == "bin"]
    heights = []
    for bar in bars:
        base, top = re.findall(r"[ML][\d.]+,([\d.]+) V([\d.]+)", bar.attributes["d"] or "")[0]
        heights.append(float(base) - float(top))
    assert len(heights) == 3
    assert heights[0] / heights[2] == pytest.approx(4, rel=0.01)
    assert heights[1] / heights[2] == pytest.approx(2, rel=0.01)
    (chart,) = root.all("svg")
    assert chart.attributes["aria-label"] == "WT: 14 cases, median 1.0 ml, most 23.5 ml"
    texts = [node.text for node in root.all("text")]
    assert {"cases", "8", "ml", "median 1.0"} <= set(texts)


def test_cases_without_a_tumour_are_counted_too() -> None:
    assert binned([0.0, 0.0, 0.0])[1][0] == 3
    assert "median 0.0" in histogram([0.0, 0.0], "ml", "ET")
