"""Augmentation: TorchIO and PyTorch do the same to a patch, and what they do is what was asked."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from runtime.labels import MODALITIES
from train import augment_torch, augment_torchio
from train.augment import Change, draw_change
from train.augment_torch import DeviceAugment
from train.augment_torchio import PatchAugment
from train.config import AugmentConfig

Apply = Callable[[Tensor, Tensor, Change], tuple[Tensor, Tensor]]
BOTH = pytest.mark.parametrize(
    "apply", [augment_torchio.apply_change, augment_torch.apply_change], ids=["torchio", "torch"]
)
ALL = AugmentConfig(
    flip=1.0,
    noise=1.0,
    gamma=1.0,
    bias_field=1.0,
    affine=1.0,
    blur=1.0,
    contrast=1.0,
    modality_dropout=1.0,
)
NOTHING = AugmentConfig(flip=0.0)


def _patch(shape: tuple[int, int, int] = (16, 12, 8)) -> tuple[Tensor, Tensor]:
    """A smooth patch with a slab of background, and labels."""
    rng = np.random.default_rng(0)
    voxels = ndimage.gaussian_filter(rng.normal(size=(4, *shape)), (0, 1, 1, 1)) * 5
    voxels[:, :2] = 0
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    return torch.from_numpy(voxels.astype(np.float32)), torch.from_numpy(labels)


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    voxels, labels = _patch()
    return voxels.numpy(), labels.numpy()


@pytest.mark.parametrize("name", ["flip", "noise", "gamma", "bias_field", "blur", "contrast"])
@pytest.mark.parametrize("shape", [(16, 12, 8), (9, 15, 7)])
def test_torchio_and_torch_agree(name: str, shape: tuple[int, int, int]) -> None:
    config = replace(NOTHING, **{name: 0.7 if name == "flip" else 1.0})
    voxels, labels = _patch(shape)
    for seed in range(3):
        change = draw_change(config, MODALITIES, seed)
        one = augment_torchio.apply_change(voxels.clone(), labels.clone(), change)
        two = augment_torch.apply_change(voxels, labels, change)
        np.testing.assert_allclose(two[0].numpy(), one[0].numpy(), rtol=1e-4, atol=1e-5)
        assert torch.equal(one[1], two[1])
        assert name == "flip" or not torch.equal(two[0], voxels)


def test_torchio_and_torch_rotate_and_scale_alike() -> None:
    # At the border the two fade into the outside differently; a nearest label may lie halfway.
    voxels, _ = _patch((24, 20, 16))
    blocks = torch.arange(3 * 3 * 2).reshape(3, 3, 2) % 4
    labels = blocks.repeat_interleave(8, 0).repeat_interleave(7, 1).repeat_interleave(8, 2)
    labels = labels[:24, :20, :16].to(torch.uint8)
    config = replace(NOTHING, affine=1.0, affine_degrees=25, affine_scale=0.2)
    inner = (slice(None), *[slice(6, -6)] * 2, slice(5, -5))
    for seed in range(8):
        change = draw_change(config, MODALITIES, seed)
        one = augment_torchio.apply_change(voxels.clone(), labels.clone(), change)
        two = augment_torch.apply_change(voxels, labels, change)
        np.testing.assert_allclose(two[0][inner], one[0][inner], atol=2e-4)
        assert float((one[1] != two[1]).float().mean()) < 0.01
        assert not torch.allclose(two[0][inner], voxels[inner], atol=0.1)


def test_everything_together_agrees_inside() -> None:
    voxels, labels = _patch((24, 20, 16))
    inner = (slice(None), *[slice(9, -9)] * 2, slice(7, -7))
    # A blur carries the border, where interpolation differs, inwards.
    config = replace(ALL, blur_std=(0.3, 0.5), affine_degrees=5)
    for seed in range(4):
        change = draw_change(config, MODALITIES, seed)
        one, _ = augment_torchio.apply_change(voxels.clone(), labels.clone(), change)
        two, _ = augment_torch.apply_change(voxels, labels, change)
        np.testing.assert_allclose(two[inner], one[inner], rtol=1e-3, atol=2e-3)


@BOTH
def test_a_quarter_turn_is_exact(apply: Apply) -> None:
    rng = np.random.default_rng(1)
    voxels = torch.from_numpy(rng.normal(size=(4, 8, 8, 6)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 4, (8, 8, 6)).astype(np.uint8))
    change = Change(degrees=(0, 0, 90), scales=(1, 1, 1))
    image, truth = apply(voxels.clone(), labels.clone(), change)
    # From x towards y: what lay at (x, y) lies at (-y, x) about the centre.
    np.testing.assert_allclose(
        image[:, 1:-1, 1:-1].numpy(),
        np.rot90(voxels.numpy(), 1, axes=(1, 2))[:, 1:-1, 1:-1],
        atol=1e-4,
    )
    turned = np.rot90(labels.numpy(), 1, axes=(0, 1))
    np.testing.assert_array_equal(truth[1:-1, 1:-1].numpy(), turned[1:-1, 1:-1])


@BOTH
def test_scales_make_things_larger(apply: Apply) -> None:
    labels = torch.zeros(32, 32, 32, dtype=torch.uint8)
    labels[12:20, 12:20, 12:20] = 2
    voxels = labels[None].float().repeat(4, 1, 1, 1)
    image, truth = apply(voxels, labels, Change(degrees=(0, 0, 0), scales=(1.5, 1.0, 1.0)))
    assert int((truth == 2).sum()) == pytest.approx(1.5 * 8**3, rel=0.01)
    assert float(image[0].sum()) / 2 == pytest.approx(1.5 * 8**3, rel=0.1)


@pytest.mark.parametrize("size", [5, 9, 16])
@pytest.mark.parametrize("std", [0.5, 1.3, 4.0])
def test_the_gaussian_is_scipys(size: int, std: float) -> None:
    line = np.random.default_rng(2).normal(size=size)
    ours = augment_torch.gaussian_matrix(size, std).numpy() @ line
    np.testing.assert_allclose(ours, ndimage.gaussian_filter1d(line, std), atol=1e-12)


@BOTH
def test_contrast_and_gamma_have_their_closed_forms(apply: Apply) -> None:
    voxels, labels = _patch()
    contrast = ((1.2, 0.3), (0.8, -0.2), (1.0, 0.0), (1.0, 0.5))
    image, _ = apply(voxels.clone(), labels, Change(contrast=contrast))
    for modality, (factor, summand) in enumerate(contrast):
        expected = np.where(voxels[modality] == 0, 0, voxels[modality] * factor + summand)
        np.testing.assert_allclose(image[modality].numpy(), expected, atol=1e-6)
    image, _ = apply(voxels.clone(), labels, Change(gamma=(1.0, 2.0, 0.5, 1.0)))
    np.testing.assert_allclose(image[0].numpy(), voxels[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(image[1].numpy(), voxels[1] * voxels[1].abs(), atol=1e-5)


@BOTH
def test_a_missing_modality_is_what_serving_makes_of_one(apply: Apply) -> None:
    voxels, labels = _patch()
    image, truth = apply(voxels.clone(), labels.clone(), Change(missing=2))
    assert not image[2].any()
    assert torch.equal(image[[0, 1, 3]], voxels[[0, 1, 3]])
    assert torch.equal(truth, labels)


def test_only_droppable_modalities_go_missing_and_about_as_often_as_asked() -> None:
    config = AugmentConfig(modality_dropout=0.3, droppable=("t1", "t2"))
    drawn = [draw_change(config, MODALITIES, seed).missing for seed in range(600)]
    counts = {missing: drawn.count(missing) for missing in set(drawn)}
    assert set(counts) == {None, MODALITIES.index("t1"), MODALITIES.index("t2")}
    assert counts[None] == pytest.approx(420, abs=50)
    assert counts[1] == pytest.approx(90, abs=40)


def test_what_is_drawn_stays_in_its_ranges() -> None:
    config = replace(ALL, blur=0.5, log_gamma=(-0.2, 0.3), noise_std=(0.02, 0.1))
    for seed in range(50):
        change = draw_change(config, MODALITIES, seed)
        assert change.degrees is not None
        assert max(map(abs, change.degrees)) <= config.affine_degrees
        assert change.scales is not None
        assert all(0.9 <= scale <= 1.1 for scale in change.scales)
        assert change.blur is not None
        assert all(not any(std) or (min(std) >= 0.5 and max(std) <= 1.5) for std in change.blur)
        assert change.gamma is not None
        assert all(-0.2 <= np.log(gamma) <= 0.3 for gamma in change.gamma)
        assert change.noise is not None
        assert 0.02 <= change.noise[0] <= 0.1
    blurred = [
        any(std) for seed in range(50) for std in draw_change(config, MODALITIES, seed).blur or ()
    ]
    assert 60 < sum(blurred) < 140


def test_a_batch_on_the_device_is_its_patches_one_by_one() -> None:
    augment = DeviceAugment(ALL, MODALITIES)
    voxels, labels = _patch()
    images, truths = augment(torch.stack([voxels] * 3), torch.stack([labels] * 3), [4, 5, 4])
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    one, truth = augment_torch.apply_change(voxels, labels, draw_change(ALL, MODALITIES, 5))
    assert torch.equal(images[1], one)
    assert torch.equal(truths[1], truth)


def test_no_augmentation_changes_nothing() -> None:
    voxels, labels = _arrays()
    image, truth = PatchAugment(AugmentConfig(flip=0), MODALITIES)(voxels.copy(), labels.copy(), 0)
    np.testing.assert_array_equal(image.numpy(), voxels)
    np.testing.assert_array_equal(truth.numpy(), labels)


def test_mirroring_moves_image_and_labels_together() -> None:
    voxels, labels = _arrays()
    voxels[0] = labels
    augment = PatchAugment(AugmentConfig(flip=0.5), MODALITIES)
    seen = set()
    for seed in range(40):
        image, truth = augment(voxels.copy(), labels.copy(), seed)
        np.testing.assert_array_equal(image[0].numpy(), truth.numpy())
        for axes in product((False, True), repeat=3):
            mirrored = np.flip(labels, [axis for axis in range(3) if axes[axis]])
            if np.array_equal(truth.numpy(), mirrored):
                seen.add(axes)
    assert len(seen) == 8


def test_noise_has_the_asked_for_spread_and_leaves_labels() -> None:
    voxels = np.zeros((4, 32, 32, 32), np.float32)
    labels = _arrays()[1]
    augment = PatchAugment(AugmentConfig(flip=0, noise=1.0, noise_std=(0.0, 0.1)), MODALITIES)
    spreads = [
        float(augment(voxels.copy(), np.ones((32, 32, 32), np.uint8), seed)[0].std())
        for seed in range(30)
    ]
    assert 0 <= min(spreads) < 0.03
    assert 0.07 < max(spreads) <= 0.101
    _, truth = augment(_arrays()[0], labels.copy(), 0)
    np.testing.assert_array_equal(truth.numpy(), labels)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(noise=1.0),
        AugmentConfig(gamma=1.0),
        AugmentConfig(bias_field=1.0),
        AugmentConfig(affine=1.0),
    ],
)
def test_augmentation_is_a_function_of_its_seed(config: AugmentConfig) -> None:
    augment = PatchAugment(config, MODALITIES)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = augment(*_arrays(), 11)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    two = augment(*_arrays(), 11)
    other = augment(*_arrays(), 12)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (4, 16, 12, 8)
    assert (one[0].dtype, one[1].dtype) == (torch.float32, torch.uint8)
    assert set(torch.unique(one[1]).tolist()) <= {0, 1, 2, 3}


def test_background_stays_background() -> None:
    voxels, labels = _arrays()
    voxels[:, :, :, :4] = 0
    config = AugmentConfig(flip=0, gamma=1.0, bias_field=1.0)
    image, _ = PatchAugment(config, MODALITIES)(voxels, labels, 0)
    assert not image[:, :, :, :4].any()
    assert torch.isfinite(image).all()
