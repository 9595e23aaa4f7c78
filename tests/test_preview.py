"""The picture is the same however the file is oriented."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageChops

from runtime.case import find_cases
from runtime.errors import InputError
from runtime.labels import MODALITIES, Convention, Label, LabelMap, from_convention
from runtime.nifti import Grid, Volume, load, load_label_map
from runtime.overlay import LABEL_COLOURS
from runtime.phantom import Enhancement, phantom_case
from runtime.preview import preview
from tests.heads import ORIENTATIONS, stored_as, volume_of

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "brats18"


@pytest.fixture(scope="module")
def original() -> tuple[Volume, LabelMap, LabelMap]:
    """A small brain of unequal spacing whose prediction differs from the truth."""
    phantom = phantom_case(4, 2, (60, 56, 40), Enhancement.RIM)
    grid = Grid.from_affine(phantom.grid.shape, phantom.grid.affine @ np.diag([3.5, 4.0, 5.0, 1]))
    prediction = np.roll(phantom.labels, (2, 1, 0), (0, 1, 2))
    return volume_of(phantom.images, grid), prediction, phantom.labels


def pixels_of(picture: Image.Image, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    return np.asarray((np.asarray(picture) == colour).all(axis=2))


@pytest.mark.parametrize("code", ORIENTATIONS[::4])
def test_the_picture_does_not_depend_on_the_orientation_of_the_file(
    original: tuple[Volume, LabelMap, LabelMap], code: str
) -> None:
    volume, prediction, truth = original
    expected = preview(volume, prediction, truth)
    turned, turned_prediction = stored_as(code, volume, prediction)
    _, turned_truth = stored_as(code, volume, truth)
    picture = preview(turned, turned_prediction, turned_truth)
    assert picture.size == expected.size
    assert ImageChops.difference(picture, expected).getbbox() is None


@pytest.mark.parametrize(
    ("world", "right_half", "upper_half"),
    # A bright spot in the patient's right, front: left half of the picture, upper half.
    [((20, 20), False, True), ((-20, 20), True, True), ((20, -20), False, False)],
)
@pytest.mark.parametrize("code", ["RAS", "LPS", "SAL", "PIR"])
def test_right_is_on_the_left_and_front_is_up(
    code: str, world: tuple[int, int], right_half: bool, upper_half: bool
) -> None:
    # In RAS+ mm x grows to the right, y to the front; the head fills -40..40 mm.
    voxels = np.zeros((101, 101, 21), np.int16)
    voxels[10:91, 10:91, 5:16] = 100
    affine = np.eye(4)
    affine[:3, 3] = (-50, -50, -10)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[world[0] + 46 : world[0] + 55, world[1] + 46 : world[1] + 55, 9:12] = Label.ET
    base = volume_of({"t1": voxels}, Grid.from_affine((101, 101, 21), affine))
    volume, turned = stored_as(code, base, labels)
    picture = preview(volume, turned)
    # The only panels are the leftmost ones: the image above, the overlay below.
    orange = np.argwhere(pixels_of(picture, LABEL_COLOURS[Label.ET])[398:718, 24:344])
    row, column = orange.mean(axis=0)
    assert (column > 160) == right_half
    assert (row < 160) == upper_half
    # 20 mm of the 85.86 mm that fill the panel's 320 pixels, from its middle.
    assert abs(column - 160) == pytest.approx(20 * 320 / 86, abs=4)
    assert abs(row - 160) == pytest.approx(20 * 320 / 86, abs=4)


@pytest.mark.parametrize(
    "present", [(), (Label.ET,), (Label.NCR, Label.ED), (Label.NCR, Label.ED, Label.ET)]
)
def test_a_colour_is_there_exactly_when_its_label_is(
    original: tuple[Volume, LabelMap, LabelMap], present: tuple[Label, ...]
) -> None:
    volume, _, truth = original
    labels = np.where(np.isin(truth, present), truth, np.uint8(0))
    picture = preview(volume, labels)
    for label, colour in LABEL_COLOURS.items():
        found = pixels_of(picture, colour)
        assert found.any() == (label in present)
        assert found[398:718].any() == (label in present)
        assert not found[:388].any(), "the modalities themselves stay grey"


def test_a_single_voxel_is_seen(original: tuple[Volume, LabelMap, LabelMap]) -> None:
    volume, _, truth = original
    labels = np.zeros_like(truth)
    labels[30, 30, 20] = Label.NCR
    assert pixels_of(preview(volume, labels), LABEL_COLOURS[Label.NCR])[398:718].any()


def test_truth_and_prediction_are_drawn_each_in_its_panel(
    original: tuple[Volume, LabelMap, LabelMap],
) -> None:
    volume, _, truth = original
    picture = preview(volume, np.zeros_like(truth), truth)
    colour = pixels_of(picture, LABEL_COLOURS[Label.ED])[398:718]
    panels = [bool(colour[:, 24 + 330 * i : 344 + 330 * i].any()) for i in range(4)]
    assert panels == [False, True, False, True]


def test_the_slice_is_the_largest_of_the_tumour() -> None:
    voxels = np.full((40, 40, 10), 50, np.int16)
    voxels[:, :, 7] = np.arange(40, dtype=np.int16)[:, None] + 50  # the only slice with a gradient
    labels = np.zeros(voxels.shape, np.uint8)
    labels[10:20, 10:20, 3] = Label.ED
    truth = np.zeros(voxels.shape, np.uint8)
    truth[10:15, 10:15, 7] = Label.ED
    volume = volume_of({"t1": voxels}, Grid.from_affine((40, 40, 10), np.eye(4)))
    top = (24, 68, 344, 388)
    by_truth = np.asarray(preview(volume, labels, truth).crop(top))
    by_prediction = np.asarray(preview(volume, labels).crop(top))
    assert np.unique(by_truth[60:140, 160, 0]).size == 1  # constant along y
    assert np.unique(by_truth[100, 60:260, 0]).size > 20
    assert np.unique(by_prediction[100, 60:150, 0]).size == 1


def test_another_shape_is_refused(original: tuple[Volume, LabelMap, LabelMap]) -> None:
    volume, prediction, _ = original
    with pytest.raises(InputError, match=r"the truth: found shape 4x4x4, expected 60x56x40"):
        preview(volume, prediction, np.zeros((4, 4, 4), np.uint8))


@pytest.mark.real
def test_a_real_case_is_drawn() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real cases at {REAL}")
    case = find_cases(REAL)[0]
    assert case.labels is not None
    assert tuple(case.images) == MODALITIES
    stored, _ = load_label_map(case.labels)
    labels = from_convention(stored, Convention.BRATS2020, case.labels)
    picture = preview(load(case), labels, labels)
    for label, colour in LABEL_COLOURS.items():
        assert pixels_of(picture, colour)[398:718].any() == (labels == label).any()
