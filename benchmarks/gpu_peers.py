"""The peers of `gpu_check`: PyTorch AMP, torch.compile and MONAI, with the same weights, case and
windows on the same device.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime.case import Case
from runtime.model_card import ModelCard
from runtime.nifti import load
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import Prepared, prepare
from runtime.windows import importance_map, plan_windows
from train.checkpoint import load_model


@dataclass(frozen=True)
class Peer:
    """A network in PyTorch as a user would run it.

    Attributes:
        network: on its device, channels last.
        card: of the model.
        device: where.
        autocast: of convolutions.
    """

    network: nn.Module
    card: ModelCard
    device: torch.device
    autocast: torch.dtype

    @classmethod
    def of(cls, network: nn.Module, card: ModelCard, device: str, autocast: torch.dtype) -> "Peer":
        """Move ``network`` to ``device``, channels last."""
        target = torch.device(device)
        if target.type == "cuda":
            torch.backends.cudnn.benchmark = True
        moved = network.to(target, memory_format=torch.channels_last_3d)
        return cls(moved.eval(), card, target, autocast)

    def compiled(self) -> "Peer":
        """The same through torch.compile."""
        return Peer(torch.compile(self.network), self.card, self.device, self.autocast)

    def probabilities(self, windows: Tensor) -> Tensor:
        """float32 (n, classes, X, Y, Z) of (n, C, X, Y, Z)."""
        with torch.autocast(self.device.type, self.autocast):
            logits = self.network(windows.contiguous(memory_format=torch.channels_last_3d))
        return torch.softmax(logits.float(), dim=1)

    def seconds(self, step: Callable[[], Any], rounds: int, warm_up: int = 2) -> float:
        """Median time of ``step``, the device waited for."""
        times = []
        for _ in range(warm_up + rounds):
            self._wait()
            began = perf_counter()
            step()
            self._wait()
            times.append(perf_counter() - began)
        return median(times[warm_up:])

    def window_seconds(self, batch: int, rounds: int) -> float:
        """Per window, network alone, on noise."""
        shape = (batch, len(self.card.modalities), *self.card.patch)
        windows = torch.randn(shape, device=self.device)
        with torch.inference_mode():
            return self.seconds(lambda: self.probabilities(windows), rounds) / batch

    def windows(self, voxels: npt.NDArray[np.float32], batch: int) -> Callable[[], Tensor]:
        """Our default window plan as plain PyTorch: from the normalised box on the device to
        labels on the device.
        """
        box = torch.from_numpy(voxels).to(self.device)
        patch = self.card.patch
        plan = plan_windows(box.shape[1:], patch, self.card.inference.overlap)  # type: ignore[arg-type]
        importance = torch.from_numpy(importance_map(patch).copy()).to(self.device)
        places = [
            (
                slice(None),
                *(slice(int(a), int(a) + size) for a, size in zip(start, patch, strict=True)),
            )
            for start in plan.starts
        ]

        @torch.inference_mode()
        def run() -> Tensor:
            total = torch.zeros((len(self.card.labels), *box.shape[1:]), device=self.device)
            for first in range(0, len(places), batch):
                chosen = places[first : first + batch]
                for place, values in zip(
                    chosen,
                    self.probabilities(torch.stack([box[place] for place in chosen])),
                    strict=True,
                ):
                    total[place] += values * importance
            return total.argmax(0).to(torch.uint8)

        return run

    def monai(self, voxels: npt.NDArray[np.float32], batch: int) -> Callable[[], Tensor]:
        """MONAI's sliding window with its gaussian blending: from the normalised array on the
        device to labels on the device.

        Raises:
            ImportError: MONAI is not installed.
        """
        from monai.inferers import sliding_window_inference

        inputs = torch.from_numpy(voxels)[None].to(self.device)

        @torch.inference_mode()
        def run() -> Tensor:
            blended = sliding_window_inference(
                inputs,
                roi_size=self.card.patch,
                sw_batch_size=batch,
                predictor=self.probabilities,
                overlap=self.card.inference.overlap,
                mode="gaussian",
            )
            labels: Tensor = blended[0].argmax(0).to(torch.uint8)  # type: ignore[union-attr,index]
            return labels

        return run

    def monai_disk_to_disk(self, case: Case, out: Path, batch: int) -> Callable[[], None]:
        """Four files to a label map as a MONAI script does it: load, normalise over the non-zero
        voxels, slide over the full volume, save.

        Raises:
            ImportError: MONAI is not installed.
        """
        from monai.transforms import LoadImage, NormalizeIntensity

        load = LoadImage(image_only=True, ensure_channel_first=True)
        normalise = NormalizeIntensity(nonzero=True, channel_wise=True)
        paths = [case.images[name].path for name in self.card.modalities]

        def run() -> None:
            images = [load(path) for path in paths]
            voxels = np.asarray(normalise(torch.cat(images)), dtype=np.float32)
            labels = self.monai(voxels, batch)().cpu().numpy()
            nib.save(nib.Nifti1Image(labels, nib.load(paths[0]).affine), out)

        return run

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def normalised(volume: Any, card: ModelCard) -> tuple[Prepared, npt.NDArray[np.float32]]:
    """The prepared brain box, and the same in the uncropped volume (C, X, Y, Z)."""
    prepared = prepare(volume, card, NumpyOps(), card.patch)
    placement = prepared.placement
    full = np.zeros((*placement.file_shape, len(prepared.voxels)), np.float32)
    placement.boxed(full)[...] = np.moveaxis(placement.inner(prepared.voxels), 0, -1)
    oriented = placement.oriented(full)
    return prepared, np.ascontiguousarray(np.moveaxis(oriented, -1, 0))


@dataclass(frozen=True)
class PeerBench:
    """The peers on one case.

    Attributes:
        peer: the network.
        case: what is segmented.
        box, full: its normalised voxels, float32 (C, X, Y, Z): the brain box and the whole volume.
        rounds: times each is taken.
    """

    peer: Peer
    case: Case
    box: npt.NDArray[np.float32]
    full: npt.NDArray[np.float32]
    rounds: int

    @classmethod
    def of(cls, checkpoint: Path, case: Case, device: str, rounds: int) -> "PeerBench":
        """The network of ``checkpoint`` on ``device``: fp16 on a GPU, bf16 on a CPU."""
        network, card = load_model(checkpoint)
        half = torch.bfloat16 if device == "cpu" else torch.float16
        prepared, full = normalised(load(case), card)
        return cls(Peer.of(network, card, device, half), case, prepared.voxels, full, rounds)

    @cached_property
    def compiled(self) -> Peer:
        return self.peer.compiled()

    def milliseconds(self, title: str) -> float:
        """Median time of one measurement.

        Args:
            title: monai_full_ms, monai_box_ms, monai_disk_to_disk_ms, amp_patient_ms,
                amp_window_N_ms at batch N, compiled_patient_ms, compiled_window_ms.

        Raises:
            ModuleNotFoundError: MONAI is not installed.
        """
        peer, batch = self.peer, self.peer.card.inference.batch
        if title == "monai_disk_to_disk_ms":
            with tempfile.TemporaryDirectory() as folder:
                step = peer.monai_disk_to_disk(self.case, Path(folder) / "labels.nii.gz", batch)
                return 1e3 * peer.seconds(step, max(3, self.rounds // 4), 1)
        if title == "compiled_window_ms":
            return 1e3 * self.compiled.window_seconds(batch, self.rounds)
        if title.startswith("amp_window_"):
            size = int(title.removeprefix("amp_window_").removesuffix("_ms"))
            return 1e3 * peer.window_seconds(size, self.rounds)
        steps: dict[str, Callable[[], Callable[[], Any]]] = {
            "monai_full_ms": lambda: peer.monai(self.full, batch),
            "monai_box_ms": lambda: peer.monai(self.box, batch),
            "amp_patient_ms": lambda: peer.windows(self.box, batch),
            "compiled_patient_ms": lambda: self.compiled.windows(self.box, batch),
        }
        return 1e3 * peer.seconds(steps[title](), self.rounds)
