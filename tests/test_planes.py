"""Slices as displayed, checked against where the voxels lie in the patient's own millimetres."""

import numpy as np
import numpy.typing as npt
import pytest

from runtime.nifti import Grid
from runtime.planes import (
    PLANES,
    SIDES,
    Contrast,
    Plane,
    fullest_slice,
    lps_spacing,
    pixel_spacing,
    slice_count,
    slice_of,
    stack_of,
    to_lps,
)
from tests.heads import ORIENTATIONS, stored_as, volume_of

SHAPE = (5, 6, 7)
SPACING = (1.5, 2.0, 3.0)

# In RAS+ mm: which axis each letter lies on, and on which side of it.
LETTERS = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
# From the first slice to the last, the patient's side that is reached.
UPWARDS = {"axial": "S", "coronal": "P", "sagittal": "L"}


def positions(code: str) -> tuple[npt.NDArray[np.float64], Grid]:
    """(X, Y, Z, 3) RAS+ mm of every voxel, in a file of that orientation, and its grid."""
    affine = np.eye(4)
    shape = [0, 0, 0]
    for axis, letter in enumerate(code):
        world, sign = LETTERS[letter]
        affine[:3, axis] = 0
        affine[world, axis] = sign * SPACING[world]
        shape[axis] = SHAPE[world]
    affine[:3, 3] = (-3, 11, 40)
    grid = Grid.from_affine((shape[0], shape[1], shape[2]), affine)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3], grid


@pytest.mark.parametrize("code", ORIENTATIONS)
@pytest.mark.parametrize("plane", PLANES)
def test_sides_slices_and_sizes_are_those_of_the_patient(code: str, plane: Plane) -> None:
    where, grid = positions(code)
    lps = to_lps(where, grid.affine)
    assert lps.shape == (*SHAPE, 3)
    assert np.shares_memory(lps, where)
    spacing = lps_spacing(grid)
    assert spacing == SPACING
    height, width = pixel_spacing(spacing, plane)
    stack = stack_of(lps, plane)
    assert len(stack) == slice_count(SHAPE, plane)
    assert np.shares_memory(stack, where)
    sides = SIDES[plane]
    # Along each axis of the display only one coordinate changes, by one voxel a step.
    for axis, (towards, step) in enumerate(
        ((UPWARDS[plane], None), (sides.bottom, height), (sides.right, width))
    ):
        world, sign = LETTERS[towards]
        moved = np.diff(stack, axis=axis)
        expected = np.zeros(3)
        expected[world] = sign * SPACING[world]
        np.testing.assert_allclose(moved, np.broadcast_to(expected, moved.shape), atol=1e-12)
        assert step is None or step == SPACING[world]
    for first, second in ((sides.left, sides.right), (sides.top, sides.bottom)):
        assert LETTERS[first][0] == LETTERS[second][0]
        assert LETTERS[first][1] == -LETTERS[second][1]


@pytest.mark.parametrize("plane", PLANES)
def test_a_slice_is_one_of_the_stack_and_there_are_no_others(plane: Plane) -> None:
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    count = slice_count(SHAPE, plane)
    for index in range(count):
        np.testing.assert_array_equal(
            slice_of(voxels, plane, index), stack_of(voxels, plane)[index]
        )
    assert np.shares_memory(slice_of(voxels, plane, 0), voxels)
    for index in (-1, count):
        with pytest.raises(IndexError, match=f"{plane} slice {index} of {count}"):
            slice_of(voxels, plane, index)


def test_an_oblique_file_shows_the_nearest_directions() -> None:
    turn = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    voxels = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(to_lps(voxels, affine), voxels[::-1, ::-1])


@pytest.mark.parametrize("code", ["RAS", "SPL", "AIR"])
def test_the_fullest_slice_does_not_depend_on_the_file(code: str) -> None:
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[1, 2:5, 3:6] = 1  # the most in one slice across the first axis
    mask[3:5, 2, 5] = 1
    volume = volume_of({"t1": mask.astype(np.int16)}, Grid.from_affine((6, 7, 8), np.eye(4)))
    turned, labels = stored_as(code, volume, mask)
    lps = to_lps(labels, turned.grid.affine)
    # RAS to LPS turns the first two axes round: 1 of 6 becomes 4, 2 of 7 becomes 4.
    found = {plane: fullest_slice(plane, None, lps * 0, lps) for plane in PLANES}
    assert found == {"axial": 5, "coronal": 4, "sagittal": 4}
    nothing = {plane: fullest_slice(plane, lps * 0) for plane in PLANES}
    assert nothing == {"axial": 4, "coronal": 3, "sagittal": 3}


def test_contrast_spans_the_brain_and_leaves_the_background_black() -> None:
    voxels = np.zeros((40, 50, 2), np.int16)
    voxels[:20, :, :] = np.arange(1, 1001, dtype=np.int16).reshape(20, 50, 1)
    contrast = Contrast.of(voxels)
    # Percentiles of 1, 1, 2, 2, ..., 1000, 1000.
    doubled = np.repeat(np.arange(1, 1001), 2)
    assert (contrast.low, contrast.high) == tuple(np.percentile(doubled, (1, 99.5)))
    shown = contrast.apply(voxels)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown == 0, voxels == 0)
    assert shown[voxels != 0].min() == 12
    assert shown[voxels == 1000].min() == 255
    middle = (contrast.low + contrast.high) / 2
    assert contrast.apply(np.array([middle])).tolist() == [133]
    # The limits come with the whole volume: one slice of it is shown as it is in the volume.
    np.testing.assert_array_equal(contrast.apply(voxels[:, :, 1]), shown[:, :, 1])


def test_contrast_of_nothing_and_of_one_value() -> None:
    nothing = np.zeros((2, 2), np.float32)
    assert not Contrast.of(nothing).apply(nothing).any()
    flat = np.full((2, 2), 7, np.int16)
    assert (Contrast.of(flat).apply(flat) == 12).all()
