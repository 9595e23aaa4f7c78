"""The loss against closed forms: softmax once, batch-wise Dice, float32."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.loss import CombinedLoss, Objective
from train.unet import UNet3D


def _batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 4, 5, generator=generator) * 3
    labels = torch.randint(0, 4, (2, 3, 4, 5), generator=generator)
    return logits, labels


def _by_hand(logits: Tensor, labels: Tensor, smooth: float = 1e-5) -> float:
    """DiceCELoss(softmax=True, to_onehot_y=True, batch=True) of MONAI, halved, in float64."""
    probabilities = torch.softmax(logits.double(), 1)
    truth = F.one_hot(labels, 4).movedim(-1, 1).double()
    entropy = -(truth * probabilities.log()).sum(1).mean()
    overlap = (probabilities * truth).sum((0, 2, 3, 4))
    total = probabilities.sum((0, 2, 3, 4)) + truth.sum((0, 2, 3, 4))
    dice = (1 - (2 * overlap + smooth) / (total + smooth)).mean()
    return float(0.5 * entropy + 0.5 * dice)


def test_matches_the_formula() -> None:
    logits, labels = _batch()
    assert float(CombinedLoss()(logits, labels)) == pytest.approx(_by_hand(logits, labels), 1e-5)


def test_uniform_logits_have_a_closed_form() -> None:
    # Every probability is 1/4; each class holds a quarter of the 64 voxels: Dice is 1/4 of each.
    labels = torch.arange(64).reshape(1, 4, 4, 4) % 4
    loss = CombinedLoss()(torch.zeros(1, 4, 4, 4, 4), labels)
    assert float(loss) == pytest.approx(0.5 * math.log(4) + 0.5 * 0.75, abs=1e-6)


def test_a_confident_right_answer_costs_nothing() -> None:
    # A second softmax could not come below 0.37: it maps one-hot to at most e / (e + 3).
    _, labels = _batch()
    logits = 50 * F.one_hot(labels, 4).movedim(-1, 1).float()
    assert float(CombinedLoss()(logits, labels)) < 1e-4
    twice = CombinedLoss()(torch.softmax(logits, 1), labels)
    assert float(twice) > 0.5


def test_weights_choose_the_terms() -> None:
    logits, labels = _batch()
    entropy = CombinedLoss(cross_entropy=1, dice=0)(logits, labels)
    assert float(entropy) == pytest.approx(float(F.cross_entropy(logits, labels)), 1e-6)
    dice = CombinedLoss(cross_entropy=0, dice=1)(logits, labels)
    assert 0 < float(dice) < 1
    both = CombinedLoss(cross_entropy=0.3, dice=0.7)(logits, labels)
    assert float(both) == pytest.approx(0.3 * float(entropy) + 0.7 * float(dice), 1e-6)


def test_dice_is_taken_over_the_batch() -> None:
    # A class that one patch lacks is judged by the other: no patch alone makes its Dice 0.
    labels = torch.zeros(2, 2, 2, 2, dtype=torch.long)
    labels[0] = 1
    logits = 50 * F.one_hot(labels, 2).movedim(-1, 1).float()
    loss = CombinedLoss(cross_entropy=0, dice=1, classes=2)
    assert float(loss(logits, labels)) < 1e-5


def test_an_absent_class_is_finite_and_has_a_gradient() -> None:
    logits = torch.zeros(1, 4, 2, 2, 2, requires_grad=True)
    loss = CombinedLoss()(logits, torch.zeros(1, 2, 2, 2, dtype=torch.uint8))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 0] < 0).all()


def test_is_float32_under_autocast() -> None:
    logits, labels = _batch()
    expected = CombinedLoss()(logits.bfloat16().float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = CombinedLoss()(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert float(loss) == float(expected)


def test_refuses_shapes_that_do_not_fit() -> None:
    logits, labels = _batch()
    with pytest.raises(ValueError, match="do not fit"):
        CombinedLoss()(logits, labels[:, None])
    with pytest.raises(ValueError, match="do not fit"):
        CombinedLoss(classes=3)(logits, labels)


def test_regions_are_unions_of_labels() -> None:
    """Every region's Dice by hand in float64: WT is all tumour, TC is NCR and ET, ET is ET."""
    logits, labels = _batch(3)
    probabilities = torch.softmax(logits.double(), 1)
    scores = []
    for members in ((1, 2, 3), (1, 3), (3,)):
        called = probabilities[:, list(members)].sum(1)
        true = torch.isin(labels, torch.tensor(members)).double()
        scores.append(2 * (called * true).sum() / (called.sum() + true.sum()))
    expected = 1 - torch.stack(scores).mean()
    loss = CombinedLoss(cross_entropy=0, dice=0, region_dice=2.0)(logits, labels)
    assert float(loss) == pytest.approx(2 * float(expected), rel=1e-5)
    both = CombinedLoss(cross_entropy=0.5, dice=0.5, region_dice=2.0)(logits, labels)
    assert float(both) == pytest.approx(float(loss) + _by_hand(logits, labels), rel=1e-5)


def test_levels_weigh_half_of_the_one_above() -> None:
    generator = torch.Generator().manual_seed(1)
    network = UNet3D(features=(4, 8, 16), dropout=0.0, deep_supervision=1)
    voxels = torch.randn(2, 4, 8, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (2, 8, 8, 8), generator=generator)
    fine, coarse = network.outputs(voxels)
    assert coarse.shape == (2, 4, 4, 4, 4)
    loss = CombinedLoss()
    expected = (loss(fine, labels) + loss(coarse, labels[:, ::2, ::2, ::2]) / 2) / 1.5
    torch.testing.assert_close(Objective(network, loss)(voxels, labels), expected)
    torch.testing.assert_close(network(voxels), fine)


def test_without_coarser_heads_the_objective_is_the_loss() -> None:
    network = UNet3D(features=(4, 8), dropout=0.0)
    voxels = torch.randn(2, 4, 8, 8, 8)
    truth = torch.randint(0, 4, (2, 8, 8, 8))
    objective = Objective(network, CombinedLoss())
    expected = CombinedLoss()(network(voxels), truth)
    torch.testing.assert_close(objective(voxels, truth), expected)
