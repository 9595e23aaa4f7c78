"""A case before, between and after its windows, as `runtime.segmenter` passes it on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.backends import BackendInfo
from runtime.labels import LabelMap
from runtime.model_card import ModelCard
from runtime.nifti import Volume
from runtime.ops import Array
from runtime.preprocess import BoxPlacement, Prepared
from runtime.windows import Stitcher, WindowPlan


@dataclass(frozen=True)
class Timings:
    """Seconds per stage of one case in the order of the device's work; `network` is the backend's
    time without fill and take.
    """

    prepare: float
    bind: float
    gather: float
    network: float
    stitch: float
    finish: float


@dataclass(frozen=True)
class Stitched:
    """What was made of the box of a prepared case beside its labels.

    Attributes:
        probabilities: float32 (classes, x, y, z), blended, on the ops' device; None unless asked
            for.
        plan: the windows.
        timings: seconds per stage, without `prepare`.
    """

    probabilities: Array | None
    plan: WindowPlan
    timings: Timings


@dataclass(frozen=True)
class Ready:
    """A case that waits for the backend.

    Attributes:
        volume: raw voxels.
        prepared: as the network sees it; None where that is the device's work.
        seconds: that preparing took.
    """

    volume: Volume
    prepared: Prepared | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Ran:
    """A case that the backend is done with.

    Attributes:
        volume: raw voxels.
        placement: of the box.
        backend: what really executed.
        plan: the windows.
        timings: seconds per stage so far.
        warnings: what a person should know.
        result: the sums of the windows, on the host; or, where they were a device's, what has
            become of them: the label map after argmax and the probabilities, as in `Prediction`.
    """

    volume: Volume
    placement: BoxPlacement
    backend: BackendInfo
    plan: WindowPlan
    timings: Timings
    warnings: tuple[str, ...]
    result: Stitcher | tuple[LabelMap, npt.NDArray[np.float32] | None]


@dataclass(frozen=True)
class Prediction:
    """A segmented case.

    Attributes:
        labels: uint8 (X, Y, Z) in file order, values of `labels.Label`.
        probabilities: float32 (X, Y, Z, classes) in file order, background 1 outside the box;
            None unless asked for.
        volume: what was segmented.
        card: the model's contract.
        backend: what really executed.
        plan: the windows.
        timings: seconds per stage.
        warnings: what a person should know.
    """

    labels: LabelMap
    probabilities: npt.NDArray[np.float32] | None
    volume: Volume
    card: ModelCard
    backend: BackendInfo
    plan: WindowPlan
    timings: Timings
    warnings: tuple[str, ...]
