"""Whole cases through the served `Segmenter`: Dice while training, all figures at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from time import monotonic

from torch import nn

from runtime import nifti
from runtime.case import Case
from runtime.labels import REGIONS, Label, LabelMap
from runtime.metrics import PROFILES, SCORED, dice, mask_of
from runtime.model_card import ModelCard
from runtime.ops import Array
from runtime.segmented import Prediction
from runtime.segmenter import Segmenter, SegmentOptions
from train.backend import TorchBackend
from train.device import Compute

PROFILE = PROFILES["brats2020"]


@dataclass(frozen=True)
class Validation:
    """Dice of each of `SCORED` over some cases.

    Attributes:
        cases: case id to Dice by region and label.
        seconds: what it took.
    """

    cases: dict[str, dict[str, float]]
    seconds: float

    def mean(self) -> dict[str, float]:
        """Mean over the cases, by region and label."""
        return {name: fmean(case[name] for case in self.cases.values()) for name in SCORED}

    def score(self) -> float:
        """Mean over cases and the three regions: what early stopping and best.pt look at."""
        mean = self.mean()
        return fmean(mean[name] for name in REGIONS)


def segment_cases(
    model: nn.Module,
    card: ModelCard,
    compute: Compute,
    cases: Sequence[Case],
    overlap: float,
    without: str | None = None,
) -> Iterator[Prediction]:
    """Segment case after case with a live network, in the arithmetic of ``compute``.

    Args:
        model: maps normalised modalities to logits.
        card: its contract.
        compute: device and arithmetic.
        cases: in order.
        overlap: of windows.
        without: a modality that is left out of each case, as if it had no file.

    Raises:
        InputError: a case does not suit the model.
        ComputeError: the network fails, or gives values that are not finite.
    """
    backend = TorchBackend(model, card, compute.device, compute.autocast)
    try:
        # On a CPU a larger batch takes memory and saves no time.
        batch = 1 if compute.device.type == "cpu" else card.inference.batch
        segmenter = Segmenter(backend, SegmentOptions(overlap=overlap, batch=batch))
        for case in cases:
            volume = nifti.load(case)
            if without is not None:
                kept = {name: image for name, image in volume.images.items() if name != without}
                volume = replace(volume, images=kept)
            yield segmenter.segment(volume)
    finally:
        backend.close()


def dice_of(labels: LabelMap, truth: LabelMap) -> dict[str, float]:
    """Dice of each of `SCORED` between two network label maps of one shape."""
    scores = {}
    for name in SCORED:
        members = REGIONS.get(name) or (Label[name],)
        called, true = (mask_of(array, members) for array in (labels, truth))
        scores[name] = dice(called, true, PROFILE)
    return scores


def seconds_per_window(model: nn.Module, card: ModelCard, compute: Compute) -> float:
    """Measured on a window of noughts, after one that does not count."""
    backend = TorchBackend(model, card, compute.device, compute.autocast)
    backend.bind(card.patch, 1)

    def fill(first: int, last: int, inputs: Array) -> None:
        inputs[...] = 0

    def take(first: int, last: int, probabilities: Array) -> None:
        pass

    backend.run(1, fill, take)
    began = monotonic()
    backend.run(1, fill, take)
    seconds = monotonic() - began
    backend.close()
    return seconds
