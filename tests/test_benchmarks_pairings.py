"""Peers are warmed up as they run, timed often enough, and judged by what weights both have."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from benchmarks import bench_peers
from benchmarks.bench_peers import PAIRINGS, Ours, Pairing
from benchmarks.opened import Where
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
    Segment,
    Voxels,
)
from benchmarks.rounding import CHANGED_BY_ROUNDING, halved_gate, most_changed
from benchmarks.scale import QUICK, STANDARD
from benchmarks.warm_up import CHEAP_S, WarmUp, first_batch, rounds_of, windows
from export.half_weights import halve_weights
from export.parity import Gate
from runtime.backends import BackendInfo
from runtime.case import Case
from runtime.model_card import ModelCard, Shape3
from runtime.model_dir import ONNX_FP32, ModelDir
from runtime.nifti import Volume, load
from runtime.ops.numpy import NumpyOps
from runtime.phantom import Enhancement, write_phantom
from runtime.preprocess import prepare
from train.unet import UNet3D

pytestmark = pytest.mark.filterwarnings("ignore")

PATCH = (128, 128, 64)


@pytest.mark.parametrize(
    ("shape", "corner"),
    [
        # Four windows along z are reached within the volume, two along y and z within that one.
        ((138, 170, 144), (128, 128, 144)),
        ((128, 134, 85), (128, 134, 85)),
        ((240, 240, 155), (128, 128, 155)),
        (PATCH, PATCH),
    ],
)
def test_the_first_batch_is_as_large_as_the_volume_allows(shape: Shape3, corner: Shape3) -> None:
    assert first_batch(shape, PATCH, 1) == PATCH
    assert first_batch(shape, PATCH, 4) == corner
    assert windows(corner, PATCH) == min(4, windows(shape, PATCH))


def test_the_standard_phantom_is_to_its_brain_as_a_real_case_is(tmp_path: Path) -> None:
    """What peers on the volume lose by it was half as much again as on a real case."""
    folder = write_phantom(tmp_path, 1, 3, shape=STANDARD.phantom, enhancement=Enhancement.RIM)
    card = ModelCard("x", patch=STANDARD.patch)
    box = prepare(load(Case.from_dir(folder)), card, NumpyOps(), card.patch).voxels.shape[1:]
    assert [length > size for length, size in zip(box, PATCH, strict=True)] == [False, True, True]
    phantom = windows(STANDARD.phantom, PATCH) / windows(box, PATCH)
    real = windows((240, 240, 155), PATCH) / windows((138, 170, 144), PATCH)
    assert (phantom, real) == (2.0, 2.25)


class Counting(nn.Module):
    """Notes how many windows it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv3d(4, 4, 1)
        self.batches: list[int] = []

    def __deepcopy__(self, memo: Any) -> "Counting":
        return self  # as one peer runs a copy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        out: torch.Tensor = self.head(x)
        return out


@pytest.fixture(scope="module")
def voxels() -> Voxels:
    """Eight windows of 32x32x16 at overlap 0.5."""
    drawn = np.random.default_rng(0).standard_normal((4, 48, 48, 24))
    return np.ascontiguousarray(drawn, np.float32)


@pytest.mark.parametrize(
    "peer", [MONAI, MONAI_LAST, TORCHIO, NNUNET_SETTINGS, TUTORIAL], ids=lambda one: one.name
)
def test_a_peer_is_warmed_up_at_its_own_batch(
    peer: Peer, voxels: Voxels, tiny_card: ModelCard
) -> None:
    """Batches of four were timed after a single window."""
    if peer.missing():
        pytest.skip(peer.missing())
    assert windows((48, 48, 24), tiny_card.patch) == 8
    network = Counting().eval()
    segment = peer.make(PeerNetwork(network, tiny_card, 2))
    warm = WarmUp()
    assert warm.estimate(peer, segment, tiny_card.patch, voxels) > 0
    assert network.batches == [peer.batch]
    segment(voxels)
    assert max(network.batches[1:]) == peer.batch
    # It is done once for all that a peer runs on.
    before = len(network.batches)
    warm.estimate(peer, segment, tiny_card.patch, voxels)
    assert len(network.batches) == before


def test_eight_mirrorings_are_warmed_up_by_one_pass(voxels: Voxels, tiny_card: ModelCard) -> None:
    if NNUNET_SETTINGS.missing():
        pytest.skip(NNUNET_SETTINGS.missing())
    network = Counting().eval()
    warm = WarmUp()
    for peer in (NNUNET_SETTINGS, NNUNET_SETTINGS_MIRRORED):
        segment = peer.make(PeerNetwork(network, tiny_card, 2))
        warm.estimate(peer, segment, tiny_card.patch, voxels)
    assert network.batches == [1]
    assert NNUNET_MIRRORED.kind == NNUNET.kind != ""


def test_a_session_of_its_own_is_warmed_up_each_time(voxels: Voxels, tiny_card: ModelCard) -> None:
    """The one that is timed: another's memory is of no use to it."""
    ran: list[Shape3] = []

    def make(_: PeerNetwork) -> Segment:
        def segment(given: Voxels) -> Labels:
            ran.append(given.shape[1:])
            return np.zeros(given.shape[1:], np.uint8)

        return segment

    peer = replace(PLAIN_ONNX, make=make)
    warm = WarmUp()
    for _ in range(2):
        segment = peer.make(PeerNetwork(Counting(), tiny_card, 2))
        warm.estimate(peer, segment, tiny_card.patch, voxels)
    assert ran == [tiny_card.patch] * 2


def test_the_estimate_is_that_of_all_windows(
    voxels: Voxels, tiny_card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch of four took a second: eight windows will take two."""
    clock = iter((10.0, 11.0))
    monkeypatch.setattr("benchmarks.warm_up.perf_counter", lambda: next(clock))

    def idle(given: Voxels) -> Labels:
        return np.zeros(given.shape[1:], np.uint8)

    estimate = WarmUp().estimate(MONAI, idle, tiny_card.patch, voxels)
    assert estimate == pytest.approx(2.0)


def test_what_is_cheap_is_timed_at_least_three_times() -> None:
    assert rounds_of(once=False, usual=2, estimate=0.9 * CHEAP_S) == 3
    assert rounds_of(once=False, usual=2, estimate=1.1 * CHEAP_S) == 2
    assert rounds_of(once=False, usual=5, estimate=1.0) == 5


def test_what_is_slow_by_design_is_timed_once_unless_rounds_are_asked_for() -> None:
    """--rounds 2 left one, whose noise nobody knows."""
    assert rounds_of(once=True, usual=2, estimate=1.0) == 1
    for asked, times in ((1, 1), (2, 2), (5, 2)):
        assert rounds_of(once=True, usual=asked, estimate=1.0, chosen=asked) == times


def test_the_limit_of_changed_labels_is_that_of_the_weights() -> None:
    """A graph in fp32 with weights of fp16 was allowed what a graph in fp16 is."""
    assert most_changed("fp32", "float32") == 1e-4
    assert most_changed("fp32", "float16") == CHANGED_BY_ROUNDING == 1e-3
    assert most_changed("fp16", "float32") == most_changed("fp16", "float16") == 5e-3
    # The table of parity judges by the same limit.
    assert halved_gate(Gate(dice=0.5)) == Gate(dice=0.5, changed_reduced=1e-3)


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tiny_network: UNet3D, tiny_card: ModelCard, tiny_model: Any, phantom_volume: Volume) -> Run:
    """Runs a pairing and gives its record."""

    def pedantic(target: Any, setup: Any, rounds: int, iterations: int) -> None:
        for _ in range(rounds):
            setup()
            target()

    def go(pairing: Pairing, model: Any = None, quick: bool = True) -> dict[str, Any]:
        told: dict[str, Any] = {}
        bench_peers.bench_peer(
            benchmark=SimpleNamespace(pedantic=pedantic),
            report=lambda question, figures, **facts: told.update(facts, figures=figures),
            pairing=pairing,
            trained=(tiny_network, tiny_card, "tiny"),
            model=model or ModelDir.open(tiny_model),
            volume=phantom_volume,
            warm=WarmUp(),
            rounds=2,
            scale=QUICK if quick else STANDARD,
            pytestconfig=SimpleNamespace(getoption={"--rounds": None}.get),
            case_facts={},
            network_facts={},
        )
        return told

    return go


@pytest.fixture
def halved(tiny_model: Any) -> bytes:
    """The model's graph as it would be with --half-weights."""
    graph = onnx.load_model_from_string(ModelDir.open(tiny_model).read(ONNX_FP32))
    stored: bytes = halve_weights(graph).SerializeToString()
    return stored


SAME = Pairing(TUTORIAL, placement="stride", same=True)


def test_labels_that_differ_more_than_the_weights_explain_fail(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    differ = 0.0
    monkeypatch.setattr(bench_peers, "changed_labels", lambda *_: differ)

    def stored(half: bool, share: float) -> dict[str, Any]:
        nonlocal differ
        differ = share
        monkeypatch.setattr(bench_peers, "is_halved", lambda data: half)
        (row,) = run(SAME)["rows"]
        return dict(row)

    row = stored(half=False, share=9e-5)
    assert (row["weights_stored"], row["most_changed"]) == ("float32", 1e-4)
    with pytest.raises(AssertionError, match=r"2\.00e-04 .* over 1e-04 .*stored in float32"):
        stored(half=False, share=2e-4)
    row = stored(half=True, share=9e-4)
    assert (row["weights_stored"], row["most_changed"]) == ("float16", 1e-3)
    with pytest.raises(AssertionError, match=r"4\.00e-03 .* over 1e-03 .*stored in float16"):
        stored(half=True, share=4e-3)


def test_how_weights_are_stored_is_seen_in_the_graph(tiny_model: Any, halved: bytes) -> None:
    model = ModelDir.open(tiny_model)
    half: Any = SimpleNamespace(read={ONNX_FP32: halved}.__getitem__)
    for artefact in (ONNX_FP32, "engines/a.plan"):
        info = BackendInfo("x", "cpu", "fp32", artefact)
        assert bench_peers.weights_stored(model, info) == "float32"
        assert bench_peers.weights_stored(half, info) == "float16"


def test_of_one_peer_all_of_ours_are_timed_in_the_same_rounds(run: Run) -> None:
    if MONAI.missing():
        pytest.skip(MONAI.missing())
    (pairing,) = (one for one in PAIRINGS if one.peer is MONAI and one.same)
    assert [str(one) for one in pairing.ours] == ["", "ort"]
    told = run(pairing, quick=False)
    assert told["rounds"] == 3
    assert [row["backend"] for row in told["rows"]] == ["openvino", "ort"]
    assert {name: len(one["values"]) for name, one in told["figures"].items()} == dict.fromkeys(
        ("ratio", "ours", "ratio, ort", "ours, ort"), 3
    ) | dict.fromkeys(("changed labels", "changed labels, ort"), 1)
    peer = [
        ratio * ours
        for ratio, ours in zip(
            told["figures"]["ratio"]["values"], told["figures"]["ours"]["values"], strict=True
        )
    ]
    # Both ratios are of the same times of the peer.
    again = np.multiply(
        told["figures"]["ratio, ort"]["values"], told["figures"]["ours, ort"]["values"]
    )
    assert peer == pytest.approx(again.tolist())
    assert told["peer_s"] == pytest.approx(float(np.median(peer)))
    assert len(run(pairing)["rows"]) == 1


def test_a_way_that_cannot_run_is_left_out_with_its_reason(run: Run) -> None:
    (pairing,) = (one for one in PAIRINGS if one.peer is MONAI and one.whole)
    cheap = replace(pairing, peer=TUTORIAL, ours=(*pairing.ours, Ours(Where("ort", "cuda:0"))))
    told = run(cheap, quick=False)
    assert [row["quality"] for row in told["rows"]] == ["exact", "balanced"]
    assert told["left_out"]["fast"] == "the model has no model.int8.onnx"
    assert "found 0 CUDA devices" in told["left_out"]["ort-gpu"]
