"""How much faster than its peers, on the same weights, case and threads?

Each peer and ours are timed in turn within each round, so that a drift of the machine hits both,
from the prepared array to the label map: what is reported is the ratio of each round. "box" peers
get our brain box, "volume" ones the uncropped array, as their scripts do; ours always has the box.
A mode of ours that runs one window over the box is timed on boxes that were not run before, no
smaller than the case's own (`benchmarks.new_case`); its labels are those of the case.
Where several ways of ours are held against one peer, that runs once a round for all of them.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure, ratios
from benchmarks.new_case import as_of_a_new_patient, note_box
from benchmarks.opened import Where, graphs_of, open_or_skip
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
from benchmarks.rounding import Stored, most_changed
from benchmarks.scale import Scale
from benchmarks.warm_up import WarmUp, rounds_of
from export.half_weights import is_halved
from export.modes import PROPOSED
from export.parity import changed_labels
from runtime.backends import Backend, BackendInfo
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
class Ours:
    """A way of ours.

    Attributes:
        where: our backend; None is the default one.
        mode: how it is run.
    """

    where: Where | None = None
    mode: Mode = EXACT

    def __str__(self) -> str:
        parts = [str(self.where)] if self.where else []
        return ", ".join([*parts, self.mode.quality] if self.mode != EXACT else parts)


@dataclass(frozen=True)
class Pairing:
    """A peer and what of ours it is measured against.

    Attributes:
        peer: it.
        ours: the ways that it is measured against; the first alone with --quick.
        whole: on the uncropped volume.
        placement: of our windows; "stride" is MONAI's.
        same: both run the same windows with the same weights, so that labels must be equal, within
            `most_changed`.
        costly: left out with --quick.
        once: run in one round, and in two with --rounds.
    """

    peer: Peer
    ours: tuple[Ours, ...] = (Ours(),)
    whole: bool = False
    placement: Placement = "fitted"
    same: bool = False
    costly: bool = False
    once: bool = False

    def __str__(self) -> str:
        return f"{self.peer.name} on the {'volume' if self.whole else 'box'}"


PAIRINGS = (
    Pairing(MONAI, (Ours(), Ours(Where("ort", "cpu"))), placement="stride", same=True),
    Pairing(MONAI_LAST, placement="stride", same=True),
    Pairing(TORCHIO, placement="stride"),
    Pairing(PLAIN_ONNX, placement="stride", same=True),
    Pairing(NNUNET),
    Pairing(NNUNET_MIRRORED, costly=True, once=True),
    Pairing(NNUNET_SETTINGS),
    Pairing(NNUNET_SETTINGS_MIRRORED, costly=True, once=True),
    Pairing(MONAI, (Ours(), Ours(mode=BALANCED), Ours(mode=FAST)), whole=True),
    Pairing(MONAI_LAST, whole=True, costly=True),
    Pairing(TUTORIAL, whole=True),
)

# What is measured is what peers do, not what they are warned of.
pytestmark = pytest.mark.filterwarnings("ignore")


def weights_stored(model: ModelDir, info: BackendInfo) -> Stored:
    """As what type the graph that runs, or that its engine was built from, keeps its kernels."""
    graph = info.artefact if info.artefact.endswith(".onnx") else ONNX_FP32
    return "float16" if is_halved(model.read(graph)) else "float32"


@pytest.fixture(scope="module")
def warm() -> WarmUp:
    return WarmUp()


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


class _Timed:
    """One of ours, ready on the case."""

    def __init__(self, ours: Ours, backend: Backend, placement: Placement, volume: Volume) -> None:
        self.ours, self.backend = ours, backend
        options = SegmentOptions(placement=placement, overlap=0.5)
        self._segmenter = Segmenter(backend, options_of(ours.mode, options))
        self._volume = volume
        self._place(volume)
        self._case = self._ready.placement
        self._found: Labels = np.zeros((0, 0, 0), np.uint8)
        self.seconds: list[float] = []

    def _place(self, volume: Volume) -> None:
        """Make a case ready."""
        ops = self.backend.ops
        self._ready = prepare(volume, self.backend.card, ops, self._segmenter.patch)
        self._labels = ops.zeros(self._ready.placement.shape, np.uint8)

    def warm(self) -> None:
        """The first run, whose labels are kept."""
        self._found = self._segment()
        if self._segmenter.patch == "box":
            note_box(self.backend.info, self._case.shape)

    def prepare(self) -> None:
        """What is not timed."""
        if self._segmenter.patch == "box":
            self._place(as_of_a_new_patient(self._segmenter, self._volume))

    def run(self) -> None:
        start = perf_counter()
        self._segment()
        self.seconds.append(perf_counter() - start)

    def _segment(self) -> Labels:
        self._segmenter.stitch(self._ready, self._labels)
        return self.backend.ops.download(self._labels)

    def found(self) -> Labels:
        """Of the box."""
        return self._case.inner(self._found)

    def cut(self, whole: Labels) -> Labels:
        """The box out of labels of the volume."""
        return whole[self._case.box]


def _opened(
    pairing: Pairing, ways: Sequence[Ours], model: ModelDir, volume: Volume, held: ExitStack
) -> tuple[list[_Timed], dict[str, str]]:
    """Those of ours that run here, and why the others do not."""
    timed: list[_Timed] = []
    left_out: dict[str, str] = {}
    for ours in ways:
        if ours.mode.artefact not in model.hashes:
            left_out[str(ours)] = f"the model has no {ours.mode.artefact}"
            continue
        patch: Patch | None = "box" if ours.mode.box else None
        try:
            backend = open_or_skip(model, ours.where, ours.mode.precision, patch=patch)
        except pytest.skip.Exception as reason:
            left_out[str(ours)] = str(reason)
            continue
        held.callback(backend.close)
        timed.append(_Timed(ours, backend, pairing.placement, volume))
    if not timed:
        pytest.skip("; ".join(left_out.values()))
    return timed, left_out


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
def bench_peer(
    benchmark: Any,
    report: Report,
    pairing: Pairing,
    trained: Trained,
    model: ModelDir,
    volume: Volume,
    warm: WarmUp,
    rounds: int,
    scale: Scale,
    pytestconfig: pytest.Config,
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
    seconds: list[float] = []
    theirs: Labels = np.zeros((0, 0, 0), np.uint8)
    ways = pairing.ours if scale.thorough else pairing.ours[:1]
    with ExitStack() as held:
        timed, left_out = _opened(pairing, ways, model, volume, held)
        first, *others = timed
        estimate = warm.estimate(peer, segment, card.patch, voxels)
        for one in timed:
            one.warm()

        def in_turn() -> None:
            nonlocal theirs
            start = perf_counter()
            theirs = segment(voxels)
            seconds.append(perf_counter() - start)
            for one in others:
                one.prepare()
                one.run()
            first.prepare()

        chosen = pytestconfig.getoption("--rounds")
        times = rounds_of(pairing.once, rounds, estimate, chosen)
        benchmark.pedantic(first.run, setup=in_turn, rounds=times, iterations=1)
        rows = [_row(one, seconds, pairing, prepared, theirs, model) for one in timed]
        infos = [one.backend.info for one in timed]
    report(
        "peers",
        {
            name: found
            for one, row in zip(timed, rows, strict=True)
            for name, found in _figures(one, row).items()
        },
        peer=peer.name,
        input="volume" if pairing.whole else "box",
        placement=pairing.placement,
        backend=infos[0].name,
        device=infos[0].device,
        model_sha256=graphs_of(*infos),
        peer_s=statistics.median(seconds),
        rounds=times,
        once=pairing.once,
        same_windows=pairing.same,
        rows=rows,
        left_out=left_out,
        **case_facts,
        **network_facts,
    )
    for one, row in zip(timed, rows, strict=True):
        assert len(np.unique(one.found())) > 1, "one label for all: nothing can differ"
        changed, most = row["changed_labels"], row["most_changed"]
        assert most is None or changed <= most, (
            f"{changed:.2e} of the tumour's labels differ from the peer's, over {most:.0e} "
            f"(weights stored in {row['weights_stored']})"
        )


def _figures(one: _Timed, row: dict[str, Any]) -> dict[str, Any]:
    name = str(one.ours)
    suffix = f", {name}" if name else ""
    return {
        f"ratio{suffix}": figure(row["ratios"], "ratio"),
        f"ours{suffix}": figure(one.seconds, "s"),
        f"changed labels{suffix}": figure([row["changed_labels"]], "changed"),
    }


def _row(
    one: _Timed,
    seconds: Sequence[float],
    pairing: Pairing,
    prepared: Prepared,
    labels: Labels,
    model: ModelDir,
) -> dict[str, Any]:
    """One of ours against the peer: a row of the table."""
    info = one.backend.info
    stored = weights_stored(model, info)
    theirs = one.cut(labels) if pairing.whole else prepared.placement.inner(labels)
    over = ratios(seconds, one.seconds)
    return {
        "backend": info.name,
        "device": info.device,
        "quality": one.ours.mode.quality,
        "ours_s": statistics.median(one.seconds),
        "ratios": over,
        "ratio_min": min(over),
        "ratio_median": statistics.median(over),
        "ratio_max": max(over),
        "weights_stored": stored,
        "most_changed": most_changed(info.precision, stored) if pairing.same else None,
        "changed_labels": changed_labels(theirs, one.found()),
        "tumour_voxels": int(np.count_nonzero(theirs)),
    }
