"""The benchmarks' network with random weights gives every label, and the same ones every time."""

import numpy as np
import pytest
import torch

from benchmarks.peers import MONAI, TORCHIO, TUTORIAL, PeerNetwork
from benchmarks.random_network import middle_window, random_network
from export.parity import changed_labels
from runtime.model_card import ModelCard
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import prepare
from runtime.segmenter import Segmenter, SegmentOptions
from train.backend import TorchBackend
from train.unet import UNet3D

pytestmark = pytest.mark.filterwarnings("ignore")

FEATURES = (4, 8, 16)


@pytest.fixture(scope="module")
def window(phantom_volume: Volume, tiny_card: ModelCard) -> torch.Tensor:
    return middle_window(phantom_volume, tiny_card)


@pytest.fixture(scope="module")
def network(window: torch.Tensor) -> UNet3D:
    return random_network(FEATURES, window)


def logits_of(network: UNet3D, window: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(window)[0].flatten(1)


def test_every_label_occurs_often(network: UNet3D, window: torch.Tensor) -> None:
    logits = logits_of(network, window)
    # Rounded to a sixteenth of a deviation.
    assert logits.mean(1).abs().max() < 0.04
    assert (logits.std(1) - 1).abs().max() < 0.04
    share = torch.bincount(logits.argmax(0), minlength=4) / logits.shape[1]
    assert share.min() > 0.02


def test_as_it_is_initialised_it_would_give_one_label(window: torch.Tensor) -> None:
    """Why it is fitted at all."""
    torch.manual_seed(0)
    plain = UNet3D(features=FEATURES, dropout=0.0).eval()
    share = torch.bincount(logits_of(plain, window).argmax(0), minlength=4) / window[0, 0].numel()
    assert share.max() > 0.99


def test_the_same_window_gives_the_same_network_but_for_last_digits(
    network: UNet3D, window: torch.Tensor
) -> None:
    state = torch.random.get_rng_state()
    again = random_network(FEATURES, window)
    shaken = random_network(FEATURES, window * (1 + 1e-7))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(value, shaken.state_dict()[name]), name
    assert not network.training


def test_it_tells_the_same_blending_from_another(
    network: UNet3D, phantom_volume: Volume, tiny_card: ModelCard
) -> None:
    prepared = prepare(phantom_volume, tiny_card, NumpyOps(), tiny_card.patch)
    ours = np.zeros(prepared.placement.shape, np.uint8)
    options = SegmentOptions(placement="stride", overlap=0.5)
    Segmenter(TorchBackend(network, tiny_card), options).stitch(prepared, ours)
    for peer, same in ((MONAI, True), (TORCHIO, False), (TUTORIAL, False)):
        if peer.missing():
            continue
        theirs = peer.make(PeerNetwork(network, tiny_card, 2))(prepared.voxels)
        assert (changed_labels(theirs, ours) < 1e-4) is same, peer.name
