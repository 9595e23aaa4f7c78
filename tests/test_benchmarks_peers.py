"""The benchmarks' peers segment as they should: with the same windows they give our labels, and the
loop of the published tutorial leaves out the far ends.
"""

from itertools import product

import numpy as np
import pytest
import torch

from benchmarks import new_case
from benchmarks.bench_scaling import MODES
from benchmarks.new_case import MOST, as_of_a_new_patient, note_box
from benchmarks.peers import (
    MONAI,
    MONAI_LAST,
    NNUNET,
    NNUNET_MIRRORED,
    NNUNET_SETTINGS,
    NNUNET_SETTINGS_MIRRORED,
    PLAIN_ONNX,
    TORCHIO,
    TUTORIAL,
    Labels,
    Peer,
    PeerNetwork,
    Voxels,
    tutorial_starts,
)
from benchmarks.stage_clock import STAGES, TimedOps
from export.modes import PROPOSED
from runtime.backends import Fill, Take
from runtime.model_card import ModelCard
from runtime.modes import options_of
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import prepare
from runtime.segmenter import Segmenter, SegmentOptions
from train.backend import TorchBackend
from train.unet import UNet3D

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def network(tiny_network: UNet3D, tiny_card: ModelCard) -> PeerNetwork:
    return PeerNetwork(tiny_network, tiny_card, 2)


@pytest.fixture(scope="module")
def voxels(phantom_volume: Volume, tiny_card: ModelCard) -> Voxels:
    found: Voxels = prepare(phantom_volume, tiny_card, NumpyOps(), tiny_card.patch).voxels
    return found


@pytest.fixture(scope="module")
def ours(phantom_volume: Volume, tiny_network: UNet3D, tiny_card: ModelCard) -> Labels:
    ops = NumpyOps()
    prepared = prepare(phantom_volume, tiny_card, ops, tiny_card.patch)
    labels = np.zeros(prepared.placement.shape, np.uint8)
    options = SegmentOptions(placement="stride", overlap=0.5)
    Segmenter(TorchBackend(tiny_network, tiny_card), options).stitch(prepared, labels)
    return labels


def differ(one: Labels, other: Labels) -> float:
    assert one.shape == other.shape
    return float(np.mean(one != other))


@pytest.mark.parametrize("peer", [MONAI, MONAI_LAST, PLAIN_ONNX], ids=lambda peer: peer.name)
def test_the_same_windows_give_the_same_labels(
    peer: Peer, network: PeerNetwork, voxels: Voxels, ours: Labels
) -> None:
    if peer.missing():
        pytest.skip(peer.missing())
    assert len(np.unique(ours)) > 1
    assert differ(peer.make(network)(voxels), ours) < 1e-4


class Pointwise(torch.nn.Module):
    """Logits of each voxel by itself: whatever the windows and their weights, one label map."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv3d(4, 4, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4)[..., None, None, None])
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)
        return out


@pytest.fixture(scope="module")
def scores() -> Voxels:
    """Four channels, one of them larger by 2 in every voxel."""
    largest = np.random.default_rng(0).integers(0, 4, (40, 32, 24))
    return np.ascontiguousarray(2 * np.eye(4, dtype=np.float32)[largest].transpose(3, 0, 1, 2))


@pytest.mark.parametrize(
    "peer",
    [MONAI, TORCHIO, NNUNET, NNUNET_MIRRORED, NNUNET_SETTINGS, NNUNET_SETTINGS_MIRRORED],
    ids=lambda one: one.name,
)
def test_every_blending_gives_what_each_voxel_says_by_itself(
    peer: Peer, scores: Voxels, tiny_card: ModelCard
) -> None:
    if peer.missing():
        pytest.skip(peer.missing())
    segment = peer.make(PeerNetwork(Pointwise().eval(), tiny_card, 2))
    np.testing.assert_array_equal(segment(scores), scores.argmax(0))


def test_peers_leave_the_network_as_it_was(network: PeerNetwork, voxels: Voxels) -> None:
    if MONAI_LAST.missing():
        pytest.skip(MONAI_LAST.missing())
    MONAI_LAST.make(network)(voxels)
    weight = network.network.encoder[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.contiguous_format)
    assert not network.network.training


def test_the_tutorial_has_no_window_at_the_far_ends() -> None:
    starts = list(tutorial_starts((240, 240, 155), (128, 128, 64), (64, 64, 32)))
    assert len(starts) == 2 * 2 * 3
    assert max(z for _, _, z in starts) + 64 == 128


def test_the_tutorial_calls_what_it_does_not_reach_background(
    scores: Voxels, tiny_card: ModelCard
) -> None:
    """40x32x24 in windows of 32x32x16, stride 16x16x8: the last 8 voxels along x are left out."""
    found = TUTORIAL.make(PeerNetwork(Pointwise().eval(), tiny_card, 2))(scores)
    np.testing.assert_array_equal(found[:32], scores.argmax(0)[:32])
    assert not found[32:].any()


def test_timed_operations_do_what_they_wrap_and_note_their_stage(
    phantom_volume: Volume, tiny_card: ModelCard, voxels: Voxels
) -> None:
    clock = TimedOps(NumpyOps())
    found = prepare(phantom_volume, tiny_card, clock, tiny_card.patch).voxels
    np.testing.assert_array_equal(found, voxels)
    taken = clock.taken()
    assert set(taken) == {"box", "normalise"} <= set(STAGES)
    assert min(taken.values()) > 0
    assert clock.taken() == {}


@pytest.fixture
def nothing_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_case, "_RAN", set())


class Ran(TorchBackend):
    """Notes which windows it runs."""

    def run(self, n: int, fill: Fill, take: Take) -> None:
        self.windows = [*getattr(self, "windows", []), self._inputs.shape[2:]]
        super().run(n, fill, take)


@pytest.mark.usefixtures("nothing_ran")
def test_a_box_is_timed_on_shapes_that_were_not_run(
    phantom_volume: Volume, tiny_network: UNet3D, tiny_card: ModelCard
) -> None:
    """It was bound again, and its kernels had long been chosen."""
    backend = Ran(tiny_network, tiny_card)
    segmenter = Segmenter(backend, options_of(PROPOSED[0], SegmentOptions()))
    own = segmenter.segment(phantom_volume).plan.patch
    note_box(backend.info, own)
    before = {name: one.voxels.copy() for name, one in phantom_volume.images.items()}
    for _ in range(3):
        segmenter.segment(as_of_a_new_patient(segmenter, phantom_volume))
    assert backend.windows[0] == own
    assert len(set(backend.windows)) == 4, backend.windows
    for window in backend.windows:
        assert 1 <= np.prod(window) / np.prod(own) <= MOST
    for name, one in phantom_volume.images.items():
        np.testing.assert_array_equal(one.voxels, before[name])
    # Whatever has run a shape in this process: kernels outlive the backend that chose them.
    again = Ran(tiny_network, tiny_card)
    segmenter = Segmenter(again, segmenter.options)
    segmenter.segment(as_of_a_new_patient(segmenter, phantom_volume))
    assert not set(again.windows) & set(backend.windows)


def test_windows_of_the_cards_patch_are_timed_on_the_case_itself(
    phantom_volume: Volume, tiny_network: UNet3D, tiny_card: ModelCard
) -> None:
    segmenter = Segmenter(TorchBackend(tiny_network, tiny_card))
    assert as_of_a_new_patient(segmenter, phantom_volume) is phantom_volume


@pytest.mark.usefixtures("nothing_ran")
def test_no_box_is_timed_twice_without_a_word(
    phantom_volume: Volume, tiny_network: UNet3D, tiny_card: ModelCard
) -> None:
    segmenter = Segmenter(
        TorchBackend(tiny_network, tiny_card), options_of(PROPOSED[0], SegmentOptions())
    )
    for size in product(range(4, 65, 4), repeat=3):
        note_box(segmenter.backend.info, size)
    with pytest.raises(ValueError, match="take fewer rounds, or a larger case"):
        as_of_a_new_patient(segmenter, phantom_volume)


def test_the_modes_that_are_certified_are_rows_of_the_table() -> None:
    rows = {mode.name: mode for mode in MODES}
    for mode in PROPOSED:
        (row,) = (row for name, row in rows.items() if f"({mode.quality})" in name)
        assert row.options == options_of(mode, SegmentOptions())
        assert row.precision == mode.precision
    assert list(rows)[-2:] == ["box (balanced)", "box, int8 (fast)"]
