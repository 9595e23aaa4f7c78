"""How much faster than MONAI's sliding_window_inference, on the same weights, case and threads?

Both are timed from the prepared array to the label map, in turn within each round, so that a drift
of the machine hits both. MONAI runs eager PyTorch with its usual settings: gaussian, overlap 0.5,
batch 4; its predictor ends in a softmax, so that both blend probabilities.
"""

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks.conftest import THREADS
from export.parity import changed_labels
from runtime.backends import Backend, BackendOptions, open_backend
from runtime.model_card import ModelCard
from runtime.model_dir import ModelDir
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import BoxPlacement, Prepared, prepare
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.windows import Placement
from train.unet import UNet3D

monai_inferers = pytest.importorskip("monai.inferers", reason="MONAI is in the extra bench")

Trained = tuple[UNet3D, ModelCard, str]
Labels = npt.NDArray[np.uint8]


def _monai(network: UNet3D, card: ModelCard, voxels: npt.NDArray[np.float32]) -> Labels:
    """The peer: (C, X, Y, Z) normalised to (X, Y, Z) labels."""
    with torch.inference_mode():
        blended = monai_inferers.sliding_window_inference(
            torch.from_numpy(voxels)[None],
            roi_size=card.patch,
            sw_batch_size=4,
            predictor=lambda patch: torch.softmax(network(patch), dim=1),
            overlap=0.5,
            mode="gaussian",
        )
        return blended[0].argmax(0).to(torch.uint8).numpy()


def _whole(volume: Volume, prepared: Prepared) -> npt.NDArray[np.float32]:
    """The normalised box in the uncropped volume, in the model's orientation."""
    placement = prepared.placement
    full = np.zeros((*placement.file_shape, len(prepared.voxels)), np.float32)
    placement.boxed(full)[...] = np.moveaxis(placement.inner(prepared.voxels), 0, -1)
    return np.ascontiguousarray(np.moveaxis(_oriented(placement, full), -1, 0))


def _oriented(placement: BoxPlacement, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    oriented: npt.NDArray[Any] = placement.oriented(array)
    return oriented


def _in_turn(
    benchmark: Any, peer: Callable[[], Labels], ours: Callable[[], Labels], rounds: int
) -> tuple[list[float], Labels, Labels]:
    """Run peer and ours in turn; ratios peer / ours per round, and the last label maps of both."""
    ratios: list[float] = []
    kept: dict[str, Any] = {}

    def run_peer() -> None:
        start = perf_counter()
        kept["peer"] = peer()
        kept["seconds"] = perf_counter() - start

    def run_ours() -> None:
        start = perf_counter()
        kept["ours"] = ours()
        ratios.append(kept["seconds"] / (perf_counter() - start))
        kept.setdefault("peer_seconds", []).append(kept["seconds"])

    ours()  # the first run compiles the graph
    benchmark.pedantic(run_ours, setup=run_peer, rounds=rounds, iterations=1)
    benchmark.extra_info["peer_s"] = statistics.median(kept["peer_seconds"])
    benchmark.extra_info["ratio_min"] = min(ratios)
    benchmark.extra_info["ratio_median"] = statistics.median(ratios)
    benchmark.extra_info["ratio_max"] = max(ratios)
    return ratios, kept["peer"], kept["ours"]


def _ours(
    backend: Backend, volume: Volume, placement: Placement, prepared: Prepared
) -> Callable[[], Labels]:
    """Our path from the prepared array to labels in the box."""
    segmenter = Segmenter(backend, SegmentOptions(placement=placement, overlap=0.5))
    labels = np.zeros(prepared.placement.shape, np.uint8)

    def run() -> Labels:
        segmenter.stitch(prepared, labels)
        return labels

    return run


@pytest.mark.parametrize("backend_name", ["openvino", "ort"])
def bench_same_crop(
    benchmark: Any,
    backend_name: Any,
    trained: Trained,
    model: ModelDir,
    volume: Volume,
    rounds: int,
) -> None:
    """The same brain box, the same windows: what the graph, the backend and the stitching gain."""
    network, card, weights = trained
    prepared = prepare(volume, card, NumpyOps(), card.patch)
    backend = open_backend(
        model, BackendOptions(backend=backend_name, threads=THREADS, uncertified=True)
    )
    try:
        _, peer, ours = _in_turn(
            benchmark,
            lambda: _monai(network, card, prepared.voxels),
            _ours(backend, volume, "stride", prepared),
            rounds,
        )
    finally:
        backend.close()
    changed = changed_labels(peer, ours)
    benchmark.extra_info |= {
        "question": "same crop, same windows",
        "backend": backend_name,
        "weights": weights,
        "case": volume.case.case_id,
        "changed_labels": changed,
        "tumour_voxels": int(np.count_nonzero(peer)),
    }
    assert changed <= 1e-4, f"{changed:.2e} of the tumour voxels differ from MONAI's"


def bench_full_volume(
    benchmark: Any, trained: Trained, model: ModelDir, volume: Volume, rounds: int
) -> None:
    """MONAI on the uncropped volume, as its scripts do, against our default plan."""
    network, card, weights = trained
    prepared = prepare(volume, card, NumpyOps(), card.patch)
    whole = _whole(volume, prepared)
    backend = open_backend(model, BackendOptions(threads=THREADS, uncertified=True))
    try:
        _, peer, ours = _in_turn(
            benchmark,
            lambda: _monai(network, card, whole),
            _ours(backend, volume, "fitted", prepared),
            max(1, rounds - 1),
        )
    finally:
        backend.close()
    box = prepared.placement.inner(ours)
    benchmark.extra_info |= {
        "question": "full volume against the default plan",
        "backend": backend.info.name,
        "weights": weights,
        "case": volume.case.case_id,
        "changed_labels": changed_labels(peer[prepared.placement.box], box),
        "tumour_voxels": int(np.count_nonzero(peer)),
    }
