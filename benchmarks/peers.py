"""What others do with the same weights and case: from the prepared array to a label map.

Every peer takes the normalised float32 (C, X, Y, Z) array and gives uint8 (X, Y, Z) labels. PyTorch
runs as it comes, in fp32, with the benchmark's threads.
"""

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export.trace import trace
from runtime.model_card import ModelCard, Shape3
from runtime.windows import importance_map, plan_windows

Labels = npt.NDArray[np.uint8]
Voxels = npt.NDArray[np.float32]
Segment = Callable[[Voxels], Labels]
BATCH: Final = 4
"""Of MONAI and TorchIO, whose users set one."""


@dataclass(frozen=True)
class PeerNetwork:
    """The network that all peers run.

    Attributes:
        network: in eval mode, maps (N, C, X, Y, Z) to logits.
        card: its contract.
        threads: for peers that ask.
    """

    network: nn.Module
    card: ModelCard
    threads: int

    def probabilities(self, windows: Tensor) -> Tensor:
        """(N, classes, X, Y, Z) of (N, C, X, Y, Z)."""
        return torch.softmax(self.network(windows), dim=1)


@dataclass(frozen=True)
class Peer:
    """One way to segment.

    Attributes:
        name: as it stands in tables.
        needs: the package that must be there, or "".
        make: gives the function that is timed; what it does once is not.
        batch: windows that the network is given at once.
        kind: peers of one kind run the network in the same way and keep nothing of their own
            between runs, so that in one process the first of them warms up all; "" keeps something.
    """

    name: str
    needs: str
    make: Callable[[PeerNetwork], Segment]
    batch: int = 1
    kind: str = ""

    def missing(self) -> str | None:
        """Why it cannot be run here; None if it can."""
        if self.needs and find_spec(self.needs) is None:
            return f"{self.name}: the package {self.needs} is not installed"
        return None


def _labels(scores: Tensor) -> Labels:
    """uint8 (X, Y, Z) of (1, classes, X, Y, Z)."""
    return scores[0].argmax(0).to(torch.uint8).numpy()


def _monai(peer: PeerNetwork, channels_last: bool) -> Segment:
    """`sliding_window_inference` with its usual settings: gaussian, overlap 0.5, batch 4."""
    from monai.inferers import sliding_window_inference

    layout = torch.channels_last_3d if channels_last else torch.contiguous_format

    # A copy: other peers run the same network as it is.
    network = copy.deepcopy(peer.network).to(memory_format=layout)

    def predictor(windows: Tensor) -> Tensor:
        return torch.softmax(network(windows.contiguous(memory_format=layout)), dim=1)

    def run(voxels: Voxels) -> Labels:
        with torch.inference_mode():
            return _labels(
                sliding_window_inference(
                    torch.from_numpy(voxels)[None],
                    roi_size=peer.card.patch,
                    sw_batch_size=BATCH,
                    predictor=predictor,
                    overlap=0.5,
                    mode="gaussian",
                )
            )

    return run


def _torchio(peer: PeerNetwork) -> Segment:
    """`GridSampler`, a loader of batches of four in this process, `GridAggregator` with Hann."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchio as tio
    half = tuple(size // 2 for size in peer.card.patch)

    def run(voxels: Voxels) -> Labels:
        subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(voxels)))
        sampler = tio.GridSampler(subject, peer.card.patch, half)
        aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
        with torch.inference_mode():
            for batch in tio.SubjectsLoader(sampler, batch_size=BATCH, num_workers=0):
                windows = batch["image"][tio.DATA]
                aggregator.add_batch(peer.probabilities(windows), batch[tio.LOCATION])
        return _labels(aggregator.get_output_tensor()[None])

    return run


def _nnunet(peer: PeerNetwork, mirroring: bool) -> Segment:
    """nnU-Net's own predictor: tile step 0.5, gaussian of sigma 1/8, one window at a time, logits
    summed in fp16; with or without the eight mirrorings that are its default.
    """
    # It wants these three to be set, and reads and writes nothing there.
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, gettempdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = peer.network
    predictor.configuration_manager = SimpleNamespace(patch_size=peer.card.patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=len(peer.card.labels))
    predictor.allowed_mirroring_axes = (0, 1, 2)

    def run(voxels: Voxels) -> Labels:
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(voxels))
        return _labels(logits.float()[None])

    return run


def _nnunet_settings(peer: PeerNetwork, mirroring: bool) -> Segment:
    """Its settings run by MONAI, for machines without it: one window at a time, logits blended.
    MONAI places the last window flush with the end, where nnU-Net spreads them evenly.
    """
    from monai.inferers import sliding_window_inference

    axes = (2, 3, 4)
    flips = [()]
    if mirroring:
        flips = [some for n in range(4) for some in itertools.combinations(axes, n)]

    def predictor(windows: Tensor) -> Tensor:
        total = torch.zeros(())
        for some in flips:
            total = total + torch.flip(peer.network(torch.flip(windows, some)), some)
        return total / len(flips)

    def run(voxels: Voxels) -> Labels:
        with torch.inference_mode():
            return _labels(
                sliding_window_inference(
                    torch.from_numpy(voxels)[None],
                    roi_size=peer.card.patch,
                    sw_batch_size=1,
                    predictor=predictor,
                    overlap=0.5,
                    mode="gaussian",
                    sigma_scale=0.125,
                )
            )

    return run


def tutorial_starts(shape: Shape3, patch: Shape3, stride: Shape3) -> Iterator[Shape3]:
    """Windows of the published tutorial's loop: none is flush with the far ends."""
    yield from itertools.product(
        *(
            range(0, max(length - size, 0) + 1, step)
            for length, size, step in zip(shape, patch, stride, strict=True)
        )
    )  # type: ignore[misc]


def _tutorial(peer: PeerNetwork) -> Segment:
    """Its loop: stride 64x64x32, one window at a time, uniform average, nothing at the far ends."""
    patch = peer.card.patch
    # 64x64x32 for its own patch of 128x128x64.
    x, y, z = (size // 2 for size in patch)

    def run(voxels: Voxels) -> Labels:
        shape = voxels.shape[1:]
        total = torch.zeros((len(peer.card.labels), *shape))
        count = torch.zeros(shape)
        with torch.inference_mode():
            for start in tutorial_starts(shape, patch, (x, y, z)):
                box = _box(start, patch)
                window = torch.from_numpy(voxels[:, *box])[None]
                total[:, *box] += peer.probabilities(window)[0]
                count[box] += 1
        return _labels((total / count.clamp(min=1))[None])

    return run


def _plain_onnx(peer: PeerNetwork) -> Segment:
    """The graph as PyTorch exports it in ONNX Runtime, one window at a time in a Python loop with
    the same plan and importance map as ours.
    """
    import onnxruntime

    model = trace(peer.network, peer.card)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = peer.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    patch = peer.card.patch
    weights = importance_map(patch)

    def run(voxels: Voxels) -> Labels:
        x, y, z = voxels.shape[1:]
        total = np.zeros((len(peer.card.labels), x, y, z), np.float32)
        for start in plan_windows((x, y, z), patch, 0.5, "stride").starts:
            box = _box(start, patch)
            window = np.ascontiguousarray(voxels[:, *box])[None]
            (probabilities,) = session.run(None, {name: window})
            total[:, *box] += probabilities[0] * weights
        return total.argmax(0).astype(np.uint8)

    return run


def _box(start: Any, patch: Shape3) -> tuple[slice, ...]:
    return tuple(
        slice(int(first), int(first) + size) for first, size in zip(start, patch, strict=True)
    )


MONAI: Final = Peer(
    "MONAI, eager", "monai", lambda peer: _monai(peer, channels_last=False), BATCH, "MONAI"
)
MONAI_LAST: Final = Peer(
    "MONAI, channels_last_3d",
    "monai",
    lambda peer: _monai(peer, channels_last=True),
    BATCH,
    "MONAI, channels last",
)
TORCHIO: Final = Peer("TorchIO grid, Hann", "torchio", _torchio, BATCH, "TorchIO")
NNUNET: Final = Peer(
    "nnU-Net predictor, no mirroring",
    "nnunetv2",
    lambda peer: _nnunet(peer, mirroring=False),
    kind="nnU-Net",
)
NNUNET_MIRRORED: Final = Peer(
    "nnU-Net predictor, mirroring",
    "nnunetv2",
    lambda peer: _nnunet(peer, mirroring=True),
    kind="nnU-Net",
)
NNUNET_SETTINGS: Final = Peer(
    "nnU-Net's settings through MONAI, no mirroring",
    "monai",
    lambda peer: _nnunet_settings(peer, mirroring=False),
    kind="single windows",
)
NNUNET_SETTINGS_MIRRORED: Final = Peer(
    "nnU-Net's settings through MONAI, mirroring",
    "monai",
    lambda peer: _nnunet_settings(peer, mirroring=True),
    kind="single windows",
)
TUTORIAL: Final = Peer("the tutorial's uniform average", "", _tutorial, kind="single windows")
PLAIN_ONNX: Final = Peer("ONNX Runtime, plain loop", "onnxruntime", _plain_onnx)
