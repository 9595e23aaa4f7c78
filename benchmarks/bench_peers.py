"""How much faster than its peers, on the same weights, case and threads?

Each peer and ours are timed in turn within each round, so that a drift of the machine hits both,
from the prepared array to the label map: what is reported is the ratio of each round. "box" peers
get our brain box, "volume" ones the uncropped array, as their scripts do; ours always has the box.
A mode of ours that runs one window over the box binds it within its time, as for a new patient.
"""

import statistics
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure, ratios
from benchmarks.opened import Where, as_for_a_new_case, graphs_of, open_or_skip
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
)
from benchmarks.scale import Scale
from export.half_weights import is_halved
from export.modes import PROPOSED
from export.parity import Gate, changed_labels
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP32, ModelDir
from runtime.modes import EXACT, Mode, options_of
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import Prepared, prepare
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.windows import Patch, Placement
from train.unet import UNet3D

Trained = tuple[UNet3D, ModelCard, str]
BALANCED, FAST = PROPOSED


@dataclass(frozen=True)
class Pairing:
    """A peer and what of ours it is measured against.

    Attributes:
        peer: it.
        whole: on the uncropped volume.
        placement: of our windows; "stride" is MONAI's.
        same: both run the same windows with the same weights, so that labels must be equal, within
            what the parity gate lets arithmetic change.
        costly: left out with --quick.
        once: run in one round less.
        where: our backend; None is the default one.
        mode: how ours is run.
    """

    peer: Peer
    whole: bool = False
    placement: Placement = "fitted"
    same: bool = False
    costly: bool = False
    once: bool = False
    where: Where | None = None
    mode: Mode = EXACT

    def __str__(self) -> str:
        text = f"{self.peer.name} on the {'volume' if self.whole else 'box'}"
        if self.mode != EXACT:
            return f"{text} against {self.mode.quality}"
        return f"{text} against {self.where}" if self.where else text


PAIRINGS = (
    Pairing(MONAI, placement="stride", same=True),
    Pairing(MONAI, placement="stride", same=True, costly=True, where=Where("ort", "cpu")),
    Pairing(MONAI_LAST, placement="stride", same=True),
    Pairing(TORCHIO, placement="stride"),
    Pairing(PLAIN_ONNX, placement="stride", same=True),
    Pairing(NNUNET),
    Pairing(NNUNET_MIRRORED, costly=True, once=True),
    Pairing(NNUNET_SETTINGS),
    Pairing(NNUNET_SETTINGS_MIRRORED, costly=True, once=True),
    Pairing(MONAI, whole=True),
    Pairing(MONAI, whole=True, costly=True, mode=BALANCED),
    Pairing(MONAI, whole=True, costly=True, mode=FAST),
    Pairing(MONAI_LAST, whole=True, costly=True),
    Pairing(TUTORIAL, whole=True),
)

# What is measured is what peers do, not what they are warned of.
pytestmark = pytest.mark.filterwarnings("ignore")


def _whole(volume: Volume, prepared: Prepared) -> npt.NDArray[np.float32]:
    """The normalised box in the uncropped volume, in the model's orientation, no smaller than the
    box.
    """
    placement = prepared.placement
    full = np.zeros((*placement.file_shape, len(prepared.voxels)), np.float32)
    placement.boxed(full)[...] = np.moveaxis(placement.inner(prepared.voxels), 0, -1)
    oriented = np.ascontiguousarray(np.moveaxis(placement.oriented(full), -1, 0))
    short = [max(0, size - n) for size, n in zip(placement.shape, oriented.shape[1:], strict=True)]
    return np.pad(oriented, [(0, 0), *((0, n) for n in short)]) if any(short) else oriented


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
def bench_peer(
    benchmark: Any,
    report: Report,
    pairing: Pairing,
    trained: Trained,
    model: ModelDir,
    volume: Volume,
    rounds: int,
    scale: Scale,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    peer = pairing.peer
    if pairing.costly and not scale.thorough:
        pytest.skip(f"{pairing}: left out with --quick")
    if peer in (NNUNET_SETTINGS, NNUNET_SETTINGS_MIRRORED) and NNUNET.missing() is None:
        pytest.skip("nnU-Net itself is here")
    reason = peer.missing()
    if reason:
        pytest.skip(reason)
    network, card, _ = trained
    prepared = prepare(volume, card, NumpyOps(), card.patch)
    voxels = _whole(volume, prepared) if pairing.whole else prepared.voxels
    segment = peer.make(PeerNetwork(network, card, THREADS))
    if pairing.mode.artefact not in model.hashes:
        pytest.skip(f"the model has no {pairing.mode.artefact}")
    patch: Patch | None = "box" if pairing.mode.box else None
    backend = open_or_skip(model, pairing.where, pairing.mode.precision, patch=patch)
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    found: dict[str, Labels] = {}

    def run_peer() -> None:
        as_for_a_new_case(segmenter)
        start = perf_counter()
        found["peer"] = segment(voxels)
        seconds["peer"].append(perf_counter() - start)

    def run_ours() -> None:
        start = perf_counter()
        segmenter.stitch(ready, labels)
        found["ours"] = backend.ops.download(labels)
        seconds["ours"].append(perf_counter() - start)

    try:
        options = SegmentOptions(placement=pairing.placement, overlap=0.5)
        segmenter = Segmenter(backend, options_of(pairing.mode, options))
        ready = prepare(volume, card, backend.ops, segmenter.patch)
        labels = backend.ops.zeros(ready.placement.shape, np.uint8)
        # What is done once, and memory that is asked for first, is not what is compared.
        segment(np.ascontiguousarray(voxels[:, : card.patch[0], : card.patch[1], : card.patch[2]]))
        run_ours()
        seconds["ours"].clear()
        times = max(1, rounds - 1) if pairing.once else rounds
        benchmark.pedantic(run_ours, setup=run_peer, rounds=times, iterations=1)
        info = backend.info
    finally:
        backend.close()
    ours = ready.placement.inner(found["ours"])
    if pairing.whole:
        theirs = found["peer"][ready.placement.box]
    else:
        theirs = prepared.placement.inner(found["peer"])
    changed = changed_labels(theirs, ours)
    # The peer's weights are not rounded to fp16.
    halved = is_halved(model.read(ONNX_FP32))
    per_round = ratios(seconds["peer"], seconds["ours"])
    report(
        "peers",
        {"ratio": figure(per_round, "ratio"), "ours": figure(seconds["ours"], "s")},
        peer=peer.name,
        input="volume" if pairing.whole else "box",
        placement=pairing.placement,
        quality=pairing.mode.quality,
        backend=info.name,
        device=info.device,
        model_sha256=graphs_of(info),
        peer_s=statistics.median(seconds["peer"]),
        ours_s=statistics.median(seconds["ours"]),
        ratio_min=min(per_round),
        ratio_median=statistics.median(per_round),
        ratio_max=max(per_round),
        rounds=times,
        same_windows=pairing.same,
        half_weights=halved,
        changed_labels=changed,
        tumour_voxels=int(np.count_nonzero(theirs)),
        **case_facts,
        **network_facts,
    )
    assert len(np.unique(ours)) > 1, "one label for all: nothing can differ"
    if pairing.same:
        most = Gate().changed_reduced if halved else Gate().changed_fp32
        assert changed <= most, f"{changed:.2e} of the tumour's labels differ from the peer's"
