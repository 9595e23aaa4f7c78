"""Every convention both ways, and nothing that is not in it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runtime.errors import InputError
from runtime.labels import (
    MODALITIES,
    REGIONS,
    Convention,
    Label,
    from_convention,
    regions_from_labels,
    to_convention,
)

# Stored value to network label, as the challenges' pages say.
STORED = {
    "brats2015": {0: 0, 1: 1, 2: 2, 3: 1, 4: 3},
    "brats2020": {0: 0, 1: 1, 2: 2, 4: 3},
    "brats2023": {0: 0, 1: 1, 2: 2, 3: 3},
    "brats2024": {0: 0, 1: 1, 2: 2, 3: 3, 4: 0},
    "msd": {0: 0, 1: 2, 2: 1, 3: 3},
}
WRITTEN = {
    "brats2015": [0, 1, 2, 4],
    "brats2020": [0, 1, 2, 4],
    "brats2023": [0, 1, 2, 3],
    "brats2024": [0, 1, 2, 3],
    "msd": [0, 2, 1, 3],
}
label_maps = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=3, max_dims=3), elements=st.integers(0, 3)
)


def test_the_order_of_the_words() -> None:
    assert MODALITIES == ("flair", "t1", "t1ce", "t2")
    assert [(label.name, int(label)) for label in Label] == [
        ("BACKGROUND", 0), ("NCR", 1), ("ED", 2), ("ET", 3),
    ]  # fmt: skip
    assert {name: tuple(map(int, members)) for name, members in REGIONS.items()} == {
        "WT": (1, 2, 3), "TC": (1, 3), "ET": (3,),
    }  # fmt: skip
    assert {str(convention) for convention in Convention} == set(STORED)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float32", "float64", ">i2"])
@pytest.mark.parametrize("name", list(STORED))
def test_stored_values_become_network_labels(name: str, dtype: str) -> None:
    values = list(STORED[name]) * 2
    stored = np.array(values, dtype).reshape(2, -1, 1)
    found = from_convention(stored, Convention(name), "X_seg.nii.gz")
    assert found.dtype == np.uint8
    assert found.shape == stored.shape
    assert found.ravel().tolist() == [STORED[name][value] for value in values]


@pytest.mark.parametrize("name", list(WRITTEN))
def test_network_labels_become_stored_values(name: str) -> None:
    labels = np.array([[[0, 1, 2, 3], [3, 2, 1, 0]]], np.uint8)
    found = to_convention(labels, Convention(name))
    assert found.dtype == np.uint8
    assert found.tolist() == [[WRITTEN[name], WRITTEN[name][::-1]]]


@given(label_maps, st.sampled_from(list(Convention)))
def test_there_and_back(labels: npt.NDArray[np.uint8], convention: Convention) -> None:
    stored = to_convention(labels, convention)
    np.testing.assert_array_equal(from_convention(stored, convention, "x"), labels)
    fortran = np.asfortranarray(labels)
    np.testing.assert_array_equal(to_convention(fortran, convention), stored)


@pytest.mark.parametrize("name", list(STORED))
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_every_other_value_is_refused(name: str, dtype: str) -> None:
    for value in {*range(256), 3, 4, 5} - set(STORED[name]):
        stored = np.zeros((3, 2, 2), dtype)
        stored[1, 1, 1] = value
        with pytest.raises(InputError) as caught:
            from_convention(stored, Convention(name), "X_seg.nii.gz")
        sentence = str(caught.value)
        assert sentence.startswith("X_seg.nii.gz: found label values 0, ")
        assert f"{value}" in caught.value.found
        allowed = ", ".join(map(str, sorted(STORED[name])))
        assert caught.value.expected == f"only {allowed} as in convention {name}"
        assert "--labels" in sentence


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.5, "float32"), (1.0001, "float64"), (-1, "int16"), (-1.0, "float32"), (256, "int16"),
        (257, "int32"), (258.0, "float32"), (1e30, "float64"), (-1e30, "float32"),
        (2**32 + 1, "int64"), (float("nan"), "float32"), (float("inf"), "float64"),
    ],
)  # fmt: skip
def test_values_that_only_wrap_around_to_labels_are_refused(value: Any, dtype: str) -> None:
    """257 is 1 in a byte, and half a label is none."""
    stored = np.zeros((3, 2, 2), dtype)
    stored[0, 0, 1] = value
    for convention in Convention:
        with pytest.raises(InputError, match="label values"):
            from_convention(stored, convention, "X_seg.nii.gz")


@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [
        (1.0000001, "float64", "1.0000001"),
        (1.0000001, "float32", "1.0000001"),
        (np.nextafter(4, 5), "float64", "4.000000000000001"),
        (123456789, "int32", "123456789"),
        (float("nan"), "float32", "nan"),
        (0.1, "float32", "0.1"),
        (5.0, "float32", "5"),
    ],
)
def test_a_value_that_is_no_label_does_not_read_as_one(
    value: float, dtype: str, shown: str
) -> None:
    stored = np.zeros((3, 2, 2), dtype)
    stored[0, 0, 1] = value
    with pytest.raises(InputError) as caught:
        from_convention(stored, Convention.BRATS2020, "X_seg.nii.gz")
    assert caught.value.found == f"label values 0, {shown}"


def test_a_map_of_many_values_is_not_listed_whole() -> None:
    stored = np.arange(200, dtype=np.uint8).reshape(10, 10, 2)
    with pytest.raises(InputError) as caught:
        from_convention(stored, Convention.BRATS2020, "X_t1.nii.gz")
    assert caught.value.found == "label values 0, 1, 2, 3, 4, 5, 6, 7, ..."


@given(label_maps)
def test_regions_are_unions_of_labels(labels: npt.NDArray[np.uint8]) -> None:
    regions = regions_from_labels(labels)
    assert list(regions) == ["WT", "TC", "ET"]
    for name, members in (("WT", {1, 2, 3}), ("TC", {1, 3}), ("ET", {3})):
        assert regions[name].dtype == np.bool_
        np.testing.assert_array_equal(regions[name], np.isin(labels, list(members)))
