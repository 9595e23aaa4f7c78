"""Figures of a label map against closed forms and brute force over every pair of faces."""

import csv
import io
import json
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runtime.diameter import largest_axial_diameter, largest_diameter
from runtime.errors import InputError
from runtime.labels import Label, LabelMap
from runtime.lesions import LesionRule, count_lesions, score_lesions
from runtime.measure import STRUCTURES, measure
from runtime.nifti import Grid, Volume
from runtime.phantom import Enhancement, phantom_case
from runtime.planes import PLANES, Plane, lps_spacing
from runtime.volumes import volumes_ml
from tests.heads import ORIENTATIONS, stored_as, volume_of

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (0.9375, 0.9375, 5.0), (3.0, 0.5, 1.2)])
MASKS = arrays(np.bool_, st.tuples(*[st.integers(1, 5)] * 3), elements=st.booleans())


def faces(mask: Mask, spacing: Spacing, axes: tuple[int, ...]) -> list[tuple[float, ...]]:
    """The middles of all faces across ``axes``, voxel by voxel, in mm."""
    found = []
    for voxel in map(tuple, np.argwhere(mask)):
        for axis, side in product(axes, (-1, 1)):
            there = list(voxel)
            there[axis] += side
            inside = all(0 <= i < n for i, n in zip(there, mask.shape, strict=True))
            if not inside or not mask[tuple(there)]:
                face = [float(i) for i in voxel]
                face[axis] += side / 2
                found.append(tuple(i * step for i, step in zip(face, spacing, strict=True)))
    return found


def widest(points: list[tuple[float, ...]]) -> float:
    return max((float(np.linalg.norm(np.subtract(a, b))) for a, b in combinations(points, 2)),
               default=0.0)  # fmt: skip


@given(MASKS, SPACINGS)
@settings(max_examples=60, deadline=None)
def test_the_diameter_is_that_of_all_pairs_of_faces(mask: Mask, spacing: Spacing) -> None:
    expected = widest(faces(mask, spacing, (0, 1, 2)))
    assert largest_diameter(mask, spacing) == pytest.approx(expected, rel=1e-12)


@given(MASKS, SPACINGS)
@settings(max_examples=60, deadline=None)
def test_the_axial_diameter_is_that_of_all_pairs_in_one_slice(mask: Mask, spacing: Spacing) -> None:
    points = faces(mask, spacing, (0, 1))
    levels = {point[2] for point in points}
    expected = max(
        (widest([point for point in points if point[2] == level]) for level in levels), default=0.0
    )
    assert largest_axial_diameter(mask, spacing) == pytest.approx(expected, rel=1e-12)


def test_diameters_in_closed_form() -> None:
    nothing = np.zeros((3, 3, 3), bool)
    assert largest_diameter(nothing, (1, 1, 1)) == largest_axial_diameter(nothing, (1, 1, 1)) == 0
    voxel = nothing.copy()
    voxel[1, 1, 1] = True
    assert largest_diameter(voxel, (1, 1, 1)) == 1
    assert largest_axial_diameter(voxel, (1, 1, 1)) == 1
    assert largest_diameter(voxel, (1, 2, 5)) == 5
    assert largest_axial_diameter(voxel, (1, 2, 5)) == 2
    # A box of a x b x c mm: from the middle of a corner voxel's face to the opposite one, which
    # lies the whole box away along one axis and one voxel less along the two others.
    box = np.ones((4, 5, 6), bool)
    spacing = (2.0, 1.0, 0.5)
    sides = np.multiply(box.shape, spacing)
    inner = sides - spacing
    diagonals = [np.linalg.norm([*np.delete(inner, axis), sides[axis]]) for axis in range(3)]
    assert largest_diameter(box, spacing) == pytest.approx(max(diagonals))
    assert largest_axial_diameter(box, spacing) == pytest.approx(
        max(np.hypot(sides[0], inner[1]), np.hypot(inner[0], sides[1]))
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_the_diameter_of_a_ball(spacing: Spacing) -> None:
    radius = 20.0
    reach = [int(radius / step) + 2 for step in spacing]
    axes = [np.arange(-n, n + 1) * step for n, step in zip(reach, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    ball = x**2 + y**2 + z**2 <= radius**2
    # Voxel centres lie within the ball, faces half a voxel further out.
    assert 2 * radius <= largest_diameter(ball, spacing) <= 2 * radius + max(spacing)
    assert 2 * radius <= largest_axial_diameter(ball, spacing) <= 2 * radius + max(spacing[:2])


def test_speckles_all_over_a_slice_are_measured_across() -> None:
    mask = np.zeros((60, 50, 4), bool)
    mask[::7, ::7, :3] = True
    mask[0, 49, 1] = True
    assert largest_axial_diameter(mask, (1, 1, 1)) == pytest.approx(
        widest([p for p in faces(mask, (1, 1, 1), (0, 1)) if p[2] == 1])
    )


def test_volumes_by_counting() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels.ravel()[:100] = Label.ED
    labels.ravel()[100:130] = Label.NCR
    labels.ravel()[130:150] = Label.ET
    made = volumes_ml(labels, (2.0, 0.5, 3.0))
    assert made["labels"] == pytest.approx({"NCR": 0.09, "ED": 0.3, "ET": 0.06})
    assert made["regions"] == pytest.approx({"WT": 0.45, "TC": 0.15, "ET": 0.06})
    nothing = volumes_ml(np.zeros((2, 2, 2), np.uint8), (1.0, 1.0, 1.0))
    assert set(nothing["labels"].values()) == set(nothing["regions"].values()) == {0.0}


@given(
    arrays(np.bool_, (14, 12, 10), elements=st.sampled_from([False] * 30 + [True])),
    SPACINGS,
    st.sampled_from([0.0, 2.0, 50.0]),
)
@settings(max_examples=40, deadline=None)
def test_lesions_are_counted_as_they_are_scored(
    mask: Mask, spacing: Spacing, dropped: float
) -> None:
    rule = LesionRule(dilations=1, dropped_mm3=dropped)
    scored = score_lesions(mask, mask, spacing, rule)
    assert count_lesions(mask, spacing, rule) == scored.lesions
    assert count_lesions(mask, spacing) == score_lesions(mask, mask, spacing, LesionRule()).lesions


def test_lesions_by_hand() -> None:
    mask = np.zeros((40, 20, 20), bool)
    mask[2:6, 2:6, 2:6] = True  # 64 mm3
    mask[13:17, 2:6, 2:6] = True  # 7 voxels away: dilations of 3 from both sides do not meet
    mask[22:26, 2:6, 2:6] = True  # 5 voxels from that one: they do
    mask[35:38, 15:18, 15:18] = True  # 27 mm3: too small to count
    assert count_lesions(mask, (1, 1, 1)) == 2
    assert count_lesions(mask, (1, 1, 2)) == 3
    assert count_lesions(mask, (1, 1, 1), LesionRule(dilations=0, dropped_mm3=0)) == 4
    assert count_lesions(np.zeros((2, 2, 2), bool), (1, 1, 1)) == 0


@pytest.fixture(scope="module")
def head() -> tuple[Volume, LabelMap]:
    """A small brain of unequal spacing and its tumour."""
    phantom = phantom_case(4, 2, (48, 44, 36), Enhancement.RIM)
    affine = phantom.grid.affine @ np.diag([3.5, 4.0, 5.0, 1])
    return volume_of(phantom.images, Grid.from_affine(phantom.grid.shape, affine)), phantom.labels


def test_every_figure_of_a_head(head: tuple[Volume, LabelMap]) -> None:
    volume, labels = head
    made = measure(labels, volume)
    spacing = lps_spacing(volume.grid)  # the phantom's file is LPS itself
    assert spacing == pytest.approx((3.5, 4.0, 5.0))
    masks = {
        "WT": labels > 0, "TC": (labels == 1) | (labels == 3), "ET": labels == 3,
        "NCR": labels == 1, "ED": labels == 2,
    }  # fmt: skip
    assert tuple(made.structures) == tuple(masks) == STRUCTURES
    brain = np.any([image.voxels != 0 for image in volume.images.values()], axis=0)
    assert made.brain_ml == pytest.approx(brain.sum() * 0.07)
    for name, mask in masks.items():
        assert mask.any()
        one = made.structures[name]
        assert (one.name, one.voxels) == (name, mask.sum())
        assert one.volume_ml == pytest.approx(mask.sum() * 0.07)
        assert one.percent_of_tumour == pytest.approx(100 * mask.sum() / masks["WT"].sum())
        assert one.percent_of_brain == pytest.approx(100 * mask.sum() / brain.sum())
        assert one.lesions == score_lesions(mask, mask, spacing, LesionRule()).lesions
        assert one.diameter_mm == largest_diameter(mask, spacing)
        assert one.axial_diameter_mm == largest_axial_diameter(mask, spacing)
        profiles = {plane: made.profiles[plane][name] for plane in PLANES}
        for plane, along, pixel in (("axial", 2, 14.0), ("coronal", 1, 17.5), ("sagittal", 0, 20)):
            others = tuple(axis for axis in range(3) if axis != along)
            np.testing.assert_allclose(profiles[plane], mask.sum(axis=others) * pixel, rtol=1e-6)
            step = spacing[along]
            assert profiles[plane].sum() * step / 1000 == pytest.approx(one.volume_ml)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_the_orientation_of_the_file_changes_no_digit(
    head: tuple[Volume, LabelMap], code: str
) -> None:
    expected = measure(head[1], head[0])
    turned, labels = stored_as(code, *head)
    made = measure(labels, turned)
    assert made.structures == expected.structures
    assert made.brain_ml == expected.brain_ml
    for plane, name in product(PLANES, STRUCTURES):
        np.testing.assert_array_equal(made.profiles[plane][name], expected.profiles[plane][name])


def flat_head(labels: LabelMap) -> Volume:
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    return volume_of({"t1": np.ones(shape, np.int16)}, Grid.from_affine(shape, np.eye(4)))


def test_no_tumour_and_no_brain() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    made = measure(labels, flat_head(labels))
    for one in made.structures.values():
        assert (one.voxels, one.volume_ml, one.lesions, one.diameter_mm) == (0, 0, 0, 0)
        assert one.percent_of_tumour is None
        assert one.percent_of_brain == 0
    assert [made.profiles[plane]["WT"].shape for plane in PLANES] == [(6,), (5,), (4,)]
    assert not any(areas.any() for of in made.profiles.values() for areas in of.values())
    empty = volume_of({"t1": np.zeros((4, 5, 6), np.int16)}, Grid.from_affine((4, 5, 6), np.eye(4)))
    labels[1, 2, 3] = Label.NCR
    made = measure(labels, empty)
    assert made.brain_ml == 0
    assert made.structures["TC"].percent_of_brain is None
    assert made.structures["TC"].percent_of_tumour == 100
    assert made.structures["ET"].percent_of_tumour == 0


@pytest.mark.parametrize(("plane", "index"), [("axial", 3), ("coronal", 4), ("sagittal", 3)])
def test_profiles_are_numbered_as_slices_are_displayed(plane: Plane, index: int) -> None:
    labels = np.zeros((5, 7, 6), np.uint8)
    labels[1, 2, 3] = Label.ED
    # In a file of RAS the first axis runs to the right and the second to the front: of 5, 1
    # becomes 3 from the right; of 7, 2 becomes 4 from the front.
    areas = measure(labels, flat_head(labels)).profiles[plane]["ED"]
    assert np.flatnonzero(areas).tolist() == [index]


def test_another_shape_is_refused(head: tuple[Volume, LabelMap]) -> None:
    with pytest.raises(InputError, match="the label map: found shape 2x2x2, expected 48x44x36"):
        measure(np.zeros((2, 2, 2), np.uint8), head[0])


def test_what_is_downloaded_can_be_read_back(head: tuple[Volume, LabelMap]) -> None:
    volume, labels = head
    without = np.where(labels == Label.ET, Label.NCR, labels).astype(np.uint8)
    made = measure(without, volume)
    value = json.loads(made.to_json())
    assert list(value) == ["brain_ml", "structures", "profiles_mm2"]
    assert list(value["structures"]) == list(STRUCTURES)
    columns = [
        "structure", "voxels", "volume_ml", "percent_of_tumour", "percent_of_brain", "lesions",
        "diameter_mm", "axial_diameter_mm",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert [row["structure"] for row in rows] == list(STRUCTURES)
    for row in rows:
        assert list(row) == columns
        one = made.structures[row["structure"]]
        told = value["structures"][row["structure"]]
        for column in columns[1:]:
            assert float(row[column]) == pytest.approx(getattr(one, column), abs=1e-6)
            assert told[column] == pytest.approx(getattr(one, column), abs=1e-6)
    slices = list(csv.DictReader(io.StringIO(made.profiles_to_csv())))
    assert list(slices[0]) == ["plane", "slice", *(f"{name}_mm2" for name in STRUCTURES)]
    assert len(slices) == sum(volume.grid.shape)
    for row in slices:
        areas = made.profiles[row["plane"]]["TC"]  # type: ignore[index]
        index = int(row["slice"]) - 1
        assert float(row["TC_mm2"]) == pytest.approx(areas[index], abs=1e-6)
        assert value["profiles_mm2"][row["plane"]]["TC"][index] == float(row["TC_mm2"])
    assert [row["slice"] for row in slices[:2]] == ["1", "2"]
    text = made.to_text().splitlines()
    assert " ".join(text[0].split()) == (
        "structure voxels volume ml % of tumour % of brain lesions diameter mm axial diameter mm"
    )
    tc = made.structures["TC"]
    assert text[2].split()[:4] == [
        "TC", str(tc.voxels), f"{tc.volume_ml:.2f}", f"{tc.percent_of_tumour:.1f}",
    ]  # fmt: skip
    assert len({len(line) for line in text[:6]}) == 1
    assert text[-1] == f"brain {made.brain_ml:.1f} ml"


def test_what_cannot_be_said_is_left_empty() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    made = measure(labels, flat_head(labels))
    row = next(csv.DictReader(io.StringIO(made.to_csv())))
    assert row["percent_of_tumour"] == ""
    assert json.loads(made.to_json())["structures"]["WT"]["percent_of_tumour"] is None
    assert made.to_text().splitlines()[1].split()[3] == "-"
