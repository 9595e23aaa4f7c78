"""What the network sees does not depend on how a case is stored, and what it says goes back."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from runtime.case import Case
from runtime.errors import InputError
from runtime.labels import MODALITIES
from runtime.model_card import ModelCard, Shape3
from runtime.nifti import Grid, Image, Volume, load
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import Prepared, prepare

MakeVolume = Callable[..., Volume]
Images = dict[str, npt.NDArray[Any]]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OPS = NumpyOps()
CARD = ModelCard(name="test", patch=(4, 4, 4), divisor=2)
ORIENTATIONS = [
    "".join(code)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for code in itertools.product(*axes)
]


def brain(rng: np.random.Generator, shape: Shape3 = (14, 12, 10)) -> Images:
    """Four int16 modalities, non-zero within [3:11, 2:9, 1:10], each with holes of its own."""
    images = {}
    for name in MODALITIES:
        voxels = np.zeros(shape, np.int16)
        inside = voxels[3:11, 2:9, 1:10]
        inside[...] = rng.integers(-20, 1200, inside.shape)
        inside[rng.random(inside.shape) < 0.2] = 0
        images[name] = voxels
    # The corners of the box, each in one modality only.
    images["t2"][3, 2, 1] = 5
    images["flair"][10, 8, 9] = 7
    return images


def formula(voxels: npt.NDArray[Any], brain_only: bool = True) -> npt.NDArray[np.float64]:
    values = voxels.astype(np.float64)
    own = values[values != 0] if brain_only else values
    normal: npt.NDArray[np.float64] = (values - np.mean(own)) / np.std(own)
    return np.where(values != 0, normal, 0.0) if brain_only else normal


def pasted(prepared: Prepared, box: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A label map of the box in the file's grid, as a segmenter puts it there."""
    full = np.zeros(prepared.placement.file_shape, np.uint8)
    prepared.placement.boxed(full)[...] = prepared.placement.inner(box)
    return full


def stored_as(voxels: npt.NDArray[Any], code: str) -> tuple[npt.NDArray[Any], Any]:
    """An LPS array as a file of another orientation would hold it, by nibabel alone."""
    transform = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(code))
    return apply_orientation(voxels, transform), LPS @ inv_ornt_aff(transform, voxels.shape)


def test_voxels_are_those_of_the_formula(make_volume: MakeVolume, rng: np.random.Generator) -> None:
    images = brain(rng)
    prepared = prepare(make_volume(images), CARD, OPS, (4, 4, 4))
    assert prepared.placement.box == (slice(3, 11), slice(2, 9), slice(1, 10))
    assert prepared.placement.shape == (8, 7, 9)
    assert prepared.voxels.dtype == np.float32
    assert prepared.voxels.flags.c_contiguous
    assert prepared.warnings == ()
    for channel, name in enumerate(MODALITIES):
        expected = formula(images[name])[3:11, 2:9, 1:10]
        np.testing.assert_allclose(prepared.voxels[channel], expected, rtol=1e-6, atol=1e-7)
        assert (prepared.voxels[channel][images[name][3:11, 2:9, 1:10] == 0] == 0).all()


def test_statistics_hold_far_from_zero(make_volume: MakeVolume, rng: np.random.Generator) -> None:
    """A mean of ten thousand standard deviations, and half of the box background."""
    images = {name: np.zeros((20, 20, 20), np.int32) for name in MODALITIES}
    for voxels in images.values():
        voxels[:, :, :10] = rng.integers(29_997, 30_004, (20, 20, 10))
        voxels[0, 0, 19] = 30_000
    prepared = prepare(make_volume(images), CARD, OPS, (4, 4, 4))
    for channel, name in enumerate(MODALITIES):
        np.testing.assert_allclose(prepared.voxels[channel], formula(images[name]), rtol=1e-5)


def test_channels_follow_the_card_and_not_the_case(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    images = brain(rng)
    order = ("t2", "flair", "t1ce")
    card = replace(CARD, modalities=order)
    prepared = prepare(make_volume(images), card, OPS, (4, 4, 4))
    assert prepared.voxels.shape[0] == 3
    for channel, name in enumerate(order):
        np.testing.assert_allclose(
            prepared.voxels[channel],
            formula(images[name])[prepared.placement.box],
            rtol=1e-6,
            atol=1e-7,
        )


@pytest.mark.parametrize("normalisation", ["zscore-brain", "zscore-volume"])
def test_the_dtype_of_the_file_changes_no_bit(
    tmp_path: Path, write_case: Callable[..., Path], normalisation: Any, rng: np.random.Generator
) -> None:
    images = brain(rng)
    card = replace(CARD, normalisation=normalisation)
    results = []
    for dtype in ("int16", "int32", "float32", "float64"):
        stored = {name: voxels.astype(dtype) for name, voxels in images.items()}
        folder = write_case(tmp_path / dtype, stored)
        results.append(prepare(load(Case.from_dir(folder)), card, OPS, (4, 4, 4)).voxels)
    for result in results[1:]:
        np.testing.assert_array_equal(result.view(np.uint32), results[0].view(np.uint32))


def test_all_48_orientations_give_the_same_bits_and_take_labels_back(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    images = brain(rng)
    truth = rng.integers(0, 4, (14, 12, 10)).astype(np.uint8)
    patch = (8, 10, 12)  # odd growth on the second axis, padding on the third
    reference = prepare(make_volume(images), CARD, OPS, patch)
    assert reference.placement.box == (slice(3, 11), slice(1, 11), slice(0, 10))
    assert reference.placement.padding == (0, 0, 2)
    box_labels = np.zeros((8, 10, 12), np.uint8)
    box_labels[:, :, :10] = truth[3:11, 1:11, :]
    inside = np.zeros_like(truth)
    inside[3:11, 1:11, :] = truth[3:11, 1:11, :]
    assert len(set(ORIENTATIONS)) == 48
    for code in ORIENTATIONS:
        stored = {name: stored_as(voxels, code)[0] for name, voxels in images.items()}
        labels, affine = stored_as(truth, code)
        assert "".join(nib.aff2axcodes(affine)) == code
        prepared = prepare(make_volume(stored, affine), CARD, OPS, patch)
        np.testing.assert_array_equal(
            prepared.voxels.view(np.uint32), reference.voxels.view(np.uint32), code
        )
        np.testing.assert_array_equal(prepared.to_box(labels), box_labels, code)
        back = pasted(prepared, box_labels)
        np.testing.assert_array_equal(back, stored_as(inside, code)[0], code)


@pytest.mark.parametrize("orientation", ["RAS", "PIL"])
def test_the_cards_orientation_is_the_one_nibabel_gives(
    tmp_path: Path, make_volume: MakeVolume, orientation: str, rng: np.random.Generator
) -> None:
    """An oblique file against nibabel's own reorientation."""
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = [12, -30, 7]
    images = brain(rng)
    affine = turn @ stored_as(images["t1"], "SAL")[1]
    stored = {name: stored_as(voxels, "SAL")[0] for name, voxels in images.items()}
    prepared = prepare(
        make_volume(stored, affine), replace(CARD, orientation=orientation), OPS, (1, 1, 1)
    )
    for channel, name in enumerate(MODALITIES):
        image = nib.Nifti1Image(stored[name], affine)
        transform = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(orientation))
        expected = formula(image.as_reoriented(transform).get_fdata())[prepared.placement.box]
        np.testing.assert_allclose(prepared.voxels[channel], expected, rtol=1e-6, atol=1e-7)


def points(shape: Shape3, first: Shape3, last: Shape3) -> Images:
    """A brain of two voxels that span the box first..last (inclusive)."""
    images = {}
    for index, name in enumerate(MODALITIES):
        images[name] = np.zeros(shape, np.int16)
        images[name][first] = 10 + index
        images[name][last] = 30
    return images


@pytest.mark.parametrize(
    ("length", "first", "last", "size", "box", "padding"),
    [
        (20, 9, 11, 3, (9, 12), 0),  # fits as it is
        (20, 9, 11, 5, (8, 13), 0),  # centred
        (20, 9, 11, 8, (7, 15), 0),  # the odd voxel at the high end
        (20, 9, 11, 4, (9, 13), 0),
        (20, 1, 3, 8, (0, 8), 0),  # shifted at the low end
        (20, 17, 19, 8, (12, 20), 0),  # shifted at the high end
        (20, 16, 18, 10, (10, 20), 0),
        (10, 3, 5, 10, (0, 10), 0),  # all there is
        (10, 3, 5, 16, (0, 10), 6),  # and background after it
        (10, 8, 9, 11, (0, 10), 1),
        (20, 2, 18, 8, (2, 19), 0),  # larger than the patch: left alone
    ],
)
def test_a_box_smaller_than_the_patch_is_extended(
    make_volume: MakeVolume,
    length: int,
    first: int,
    last: int,
    size: int,
    box: tuple[int, int],
    padding: int,
) -> None:
    for axis in range(3):

        def along(value: int, other: int, axis: int = axis) -> Shape3:
            x, y, z = (value if axis == index else other for index in range(3))
            return (x, y, z)

        images = points(along(length, 6), along(first, 0), along(last, 5))
        prepared = prepare(make_volume(images), CARD, OPS, along(size, 2))
        assert prepared.placement.box[axis] == slice(*box)
        assert prepared.placement.padding == along(padding, 0)
        assert prepared.voxels.shape[1 + axis] == box[1] - box[0] + padding


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_box_is_the_most_centred_one_and_pasting_undoes_to_box(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(2, 14)) for _ in range(3))
    low = tuple(data.draw(st.integers(0, size - 2)) for size in shape)
    high = tuple(
        data.draw(st.integers(a + 1, size - 1)) for a, size in zip(low, shape, strict=True)
    )
    patch = tuple(data.draw(st.integers(1, 18)) for _ in range(3))
    images = points(shape, low, high)  # type: ignore[arg-type]
    stored = {
        name: Image(np.asfortranarray(voxels), "", Path(name)) for name, voxels in images.items()
    }
    volume = Volume(Case("X", {}), stored, Grid.from_affine(shape, LPS))  # type: ignore[arg-type]
    prepared = prepare(volume, CARD, OPS, patch)  # type: ignore[arg-type]
    for axis in range(3):
        length, size, start, stop = shape[axis], patch[axis], low[axis], high[axis] + 1
        found = prepared.placement.box[axis]
        if size <= stop - start:
            expected = slice(start, stop)
        elif size >= length:
            expected = slice(0, length)
        else:
            # Of all windows that hold the brain the one with the most even margins.
            best = min(
                (a for a in range(max(0, stop - size), min(start, length - size) + 1)),
                key=lambda a: (abs((start - a) - (a + size - stop)), (start - a) - (a + size)),
            )
            expected = slice(best, best + size)
        assert found == expected
        assert prepared.placement.padding[axis] == max(0, size - (found.stop - found.start))
    labels = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    box = prepared.to_box(labels)
    assert box.shape == prepared.placement.shape
    back = pasted(prepared, box)
    inside = np.zeros(shape, bool)
    inside[prepared.placement.box] = True
    np.testing.assert_array_equal(back, np.where(inside, labels, 0))
    np.testing.assert_array_equal(prepared.to_box(back), box)


def test_zscore_volume_is_that_of_the_tutorial(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    images = brain(rng)
    card = replace(CARD, normalisation="zscore-volume")
    prepared = prepare(make_volume(images), card, OPS, (4, 4, 16))
    assert prepared.placement.padding == (0, 0, 6)
    for channel, name in enumerate(MODALITIES):
        whole = formula(images[name], brain_only=False)
        np.testing.assert_allclose(
            prepared.voxels[channel, :, :, :10], whole[3:11, 2:9], rtol=1e-6, atol=1e-7
        )
        # Padding is background: what a 0 of the file becomes.
        np.testing.assert_allclose(prepared.voxels[channel, :, :, 10:], whole[0, 0, 0], rtol=1e-6)


def test_padding_of_zscore_brain_is_zero(make_volume: MakeVolume, rng: np.random.Generator) -> None:
    prepared = prepare(make_volume(brain(rng)), CARD, OPS, (4, 4, 16))
    assert prepared.voxels.shape == (4, 8, 7, 16)
    assert not prepared.voxels[..., 10:].any()
    assert prepared.voxels[..., :10].any()


def test_an_empty_brain_is_bad_input(make_volume: MakeVolume) -> None:
    images = {name: np.zeros((6, 6, 6), np.int16) for name in MODALITIES}
    with pytest.raises(InputError, match="empty brain"):
        prepare(make_volume(images), CARD, OPS, (4, 4, 4))


@pytest.mark.parametrize("normalisation", ["zscore-brain", "zscore-volume"])
@pytest.mark.parametrize(
    ("dtype", "value", "holes"),
    [
        (np.int16, 0, 0.0),
        (np.int16, 77, 0.3),
        (np.float32, 0.1, 0.3),
        (np.float32, 1234.567, 0.8),
        (np.float64, 1e-3, 0.0),
        (np.float64, -3.3, 0.5),
    ],
)
def test_a_constant_modality_is_bad_input_and_named(
    make_volume: MakeVolume,
    normalisation: Any,
    dtype: Any,
    value: float,
    holes: float,
    rng: np.random.Generator,
) -> None:
    if normalisation == "zscore-volume" and holes:
        holes = 0.0
    images = brain(rng, (14, 13, 11))
    constant = np.full((14, 13, 11), value, dtype)
    if normalisation == "zscore-brain":
        constant[rng.random(constant.shape) < holes] = 0
    images["t1ce"] = constant
    card = replace(CARD, normalisation=normalisation)
    with pytest.raises(InputError) as caught:
        prepare(make_volume(images), card, OPS, (4, 4, 4))
    assert "t1ce" in caught.value.where
    assert "constant" in caught.value.found or "zeros" in caught.value.found


def test_a_missing_modality_is_bad_input_unless_the_model_tolerates_it(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    images = brain(rng)
    del images["t1ce"]
    volume = make_volume(images)
    with pytest.raises(InputError, match="no t1ce image"):
        prepare(volume, CARD, OPS, (4, 4, 4))
    with pytest.raises(InputError, match="no t1ce image"):
        prepare(volume, replace(CARD, tolerates_missing=("t2",)), OPS, (4, 4, 4))
    two = make_volume({name: image for name, image in images.items() if name != "t1"})
    with pytest.raises(InputError, match="no t1 and no t1ce image"):
        prepare(two, replace(CARD, tolerates_missing=("t2",)), OPS, (4, 4, 4))
    with pytest.raises(InputError, match="no t1 image"):
        prepare(two, replace(CARD, tolerates_missing=("t1ce",)), OPS, (4, 4, 4))
    card = replace(CARD, tolerates_missing=("t1ce",))
    prepared = prepare(volume, card, OPS, (4, 4, 4))
    assert not prepared.voxels[2].any()
    assert [("t1ce" in warning) for warning in prepared.warnings] == [True]
    for channel, name in ((0, "flair"), (1, "t1"), (3, "t2")):
        np.testing.assert_allclose(
            prepared.voxels[channel],
            formula(images[name])[prepared.placement.box],
            rtol=1e-6,
            atol=1e-7,
        )


def test_a_case_without_any_modality_of_the_model_is_bad_input(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    card = replace(CARD, modalities=("t1",), tolerates_missing=("t1",))
    with pytest.raises(InputError, match="no t1 image"):
        prepare(make_volume({"t2": brain(rng)["t2"]}), card, OPS, (4, 4, 4))


@pytest.mark.parametrize(("spacing", "good"), [(1.049, True), (0.951, True), (1.06, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_spacing_may_be_five_per_cent_off(
    make_volume: MakeVolume, spacing: float, good: bool, axis: int, rng: np.random.Generator
) -> None:
    affine = LPS.copy()
    affine[axis, axis] *= spacing
    volume = make_volume(brain(rng), affine)
    if good:
        assert prepare(volume, CARD, OPS, (4, 4, 4)).warnings == ()
        return
    with pytest.raises(InputError, match="--force-spacing"):
        prepare(volume, CARD, OPS, (4, 4, 4))
    forced = prepare(volume, CARD, OPS, (4, 4, 4), force_spacing=True)
    assert len(forced.warnings) == 1
    assert "1.06" in forced.warnings[0]
    plain = prepare(make_volume(brain(np.random.default_rng(0))), CARD, OPS, (4, 4, 4))
    np.testing.assert_array_equal(forced.voxels, plain.voxels)


def test_spacing_is_compared_along_the_models_axes(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    card = replace(CARD, spacing_mm=(1.0, 1.0, 3.0))
    turned, affine = stored_as(brain(rng)["t1"], "SLP")
    affine[:, 0] *= 3  # the file's first axis runs foot to head
    images = dict.fromkeys(MODALITIES, turned)
    assert prepare(make_volume(images, affine), card, OPS, (4, 4, 4)).warnings == ()
    with pytest.raises(InputError, match="voxels of 1x1x3 mm"):
        prepare(make_volume(images, affine), CARD, OPS, (4, 4, 4))


def test_an_affine_without_three_directions_is_bad_input(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(InputError):
        prepare(make_volume(brain(rng), flat), CARD, OPS, (4, 4, 4))
