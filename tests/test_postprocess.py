"""The card's rules, against connected components found by flooding, voxel by voxel."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.model_card import PostprocessRule
from runtime.postprocess import postprocess

LabelMap = npt.NDArray[np.uint8]
Voxel = tuple[int, int, int]


def flooded(labels: LabelMap) -> list[list[Voxel]]:
    """Components of what is not 0, corners touching included."""
    left = {tuple(map(int, voxel)) for voxel in np.argwhere(labels)}
    found = []
    while left:
        front = [left.pop()]
        component = []
        while front:
            voxel = front.pop()
            component.append(voxel)
            for step in itertools.product((-1, 0, 1), repeat=3):
                neighbour = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    front.append(neighbour)
        found.append(component)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("least", [0.0, 4.0, 12.0, 1e6])
def test_small_components_go_and_all_others_stay(
    rng: np.random.Generator, order: Any, least: float
) -> None:
    labels = np.zeros((14, 17, 12), np.uint8, order)
    labels[2:13, 3:16, 1:11] = rng.integers(1, 4, (11, 13, 10)) * (rng.random((11, 13, 10)) < 0.06)
    before = labels.copy()
    sizes = sorted(map(len, flooded(labels)))
    assert sizes[0] == 1
    assert sizes[-1] > 6
    expected = labels.copy()
    for component in flooded(labels):
        if 2 * len(component) < least:
            for voxel in component:
                expected[voxel] = 0
    found = postprocess(labels, PostprocessRule(min_component_mm3=least), (1.0, 0.5, 4.0))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(labels, before)
    assert found.dtype == np.uint8
    assert found.flags.f_contiguous == (order == "F")


def test_what_no_rule_changes_is_not_copied() -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    rule = PostprocessRule(min_component_mm3=3, min_et_mm3=2)
    assert postprocess(labels, rule, (1.0, 1.0, 1.0)) is labels
    labels[1:4, 1, 1] = 1, 3, 3
    assert postprocess(labels, rule, (1.0, 1.0, 1.0)) is labels
    assert postprocess(labels, PostprocessRule(), (1.0, 1.0, 1.0)) is labels


def test_enhancing_tumour_is_weighed_after_small_components_have_gone() -> None:
    labels = np.zeros((9, 5, 4), np.uint8, order="F")
    labels[1:4, 1, 1] = 2, 3, 2
    labels[7:9, 4, 3] = 3, 3
    rule = PostprocessRule(min_component_mm3=3, min_et_mm3=2)
    found = postprocess(labels, rule, (1.0, 1.0, 1.0))
    assert found[1:4, 1, 1].tolist() == [2, 1, 2]
    assert np.count_nonzero(found) == 3
    assert found.flags.f_contiguous
    assert np.count_nonzero(labels == 3) == 3
