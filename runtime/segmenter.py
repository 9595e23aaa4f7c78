"""Segment a whole case: prepare, plan windows, run them through a backend, stitch, paste back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from runtime.backends import Backend, BackendInfo, check_window
from runtime.errors import NonFiniteError
from runtime.labels import LabelMap
from runtime.model_card import ModelCard, Shape3
from runtime.nifti import Volume
from runtime.ops import Array
from runtime.postprocess import postprocess
from runtime.preprocess import Prepared, prepare
from runtime.windows import Placement, Stitcher, WindowPlan, plan_windows

Progress = Callable[[int, int], None]
"""progress(done, total) in windows."""


@dataclass(frozen=True)
class SegmentOptions:
    """How a case is segmented; None means what the model's card says.

    Attributes:
        overlap: fraction in [0, 1), or the stride in voxels per axis.
        placement: "fitted" or "stride"; see `windows.plan_windows`.
        patch: window shape (X, Y, Z), multiples of the card's divisor.
        batch: windows per step; a backend may choose fewer.
        probabilities: also return the blended class probabilities.
        force_spacing: run on a spacing that is not the model's.
    """

    overlap: float | Shape3 | None = None
    placement: Placement = "fitted"
    patch: Shape3 | None = None
    batch: int | None = None
    probabilities: bool = False
    force_spacing: bool = False


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds per stage of one case; `network` is the backend's time without fill and
    take.
    """

    prepare: float
    bind: float
    gather: float
    network: float
    stitch: float
    finish: float


@dataclass(frozen=True)
class Stitched:
    """The box of a prepared case, segmented, on the ops' device.

    Attributes:
        labels: uint8 (x, y, z), before post-processing.
        probabilities: float32 (classes, x, y, z), blended; None unless asked for.
        plan: the windows.
        timings: seconds per stage, without `prepare`.
    """

    labels: Array
    probabilities: Array | None
    plan: WindowPlan
    timings: Timings


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


class Segmenter:
    """Segments one case after another with one backend.

    The backend is borrowed: whoever opened it closes it. Not for use by two threads at once.
    """

    def __init__(self, backend: Backend, options: SegmentOptions | None = None) -> None:
        """
        Raises:
            UsageError: the options name a patch that the network does not accept.
        """
        self.backend = backend
        self.options = options or SegmentOptions()
        card = backend.card
        self.patch = self.options.patch or card.patch
        self.batch = self.options.batch or card.inference.batch
        self.overlap = (
            card.inference.overlap if self.options.overlap is None else self.options.overlap
        )
        check_window(card, self.patch)
        # A bad overlap or placement is found before a case is read.
        plan_windows(self.patch, self.patch, self.overlap, self.options.placement)

    def segment(self, volume: Volume, progress: Progress | None = None) -> Prediction:
        """Segment one case.

        Args:
            volume: raw voxels as `nifti.load` gives them.
            progress: called after each step with windows done and windows in all.

        Raises:
            InputError: the case does not suit the model; see `preprocess.prepare`.
            ComputeError: the network fails or returns a value that is not finite.
        """
        start = perf_counter()
        card = self.backend.card
        prepared = prepare(volume, card, self.backend.ops, self.patch, self.options.force_spacing)
        prepare_seconds = perf_counter() - start
        stitched = self.stitch(prepared, progress, volume.case.case_id)
        start = perf_counter()
        labels = prepared.restore(stitched.labels, self.backend.ops)
        labels = postprocess(labels, card.postprocess, volume.grid.spacing)
        probabilities = None
        if stitched.probabilities is not None:
            probabilities = self._pasted(prepared, stitched.probabilities)
        timings = replace(
            stitched.timings,
            prepare=prepare_seconds,
            finish=stitched.timings.finish + perf_counter() - start,
        )
        return Prediction(
            labels=labels,
            probabilities=probabilities,
            volume=volume,
            card=card,
            backend=self.backend.info,
            plan=stitched.plan,
            timings=timings,
            warnings=prepared.warnings,
        )

    def stitch(
        self, prepared: Prepared, progress: Progress | None = None, case_id: str | None = None
    ) -> Stitched:
        """Run all windows of a prepared case and put them together.

        Args:
            prepared: from `preprocess.prepare` with this segmenter's patch and the backend's ops.
            progress: as for `segment`.
            case_id: names the case in an error.

        Raises:
            ComputeError: as for `segment`.
        """
        ops, card = self.backend.ops, self.backend.card
        start = perf_counter()
        plan = plan_windows(
            prepared.placement.shape, self.patch, self.overlap, self.options.placement
        )
        stitcher = Stitcher(plan, len(card.labels), ops)
        self.backend.bind(self.patch, min(self.batch, len(plan)))
        bound = perf_counter()
        gather = stitch = 0.0

        def fill(first: int, last: int, inputs: Array) -> None:
            nonlocal gather
            began = perf_counter()
            ops.gather(prepared.voxels, plan.starts[first:last], inputs)
            gather += perf_counter() - began

        def take(first: int, last: int, probabilities: Array) -> None:
            nonlocal stitch
            began = perf_counter()
            stitcher.add(first, last, probabilities)
            stitch += perf_counter() - began
            if progress is not None:
                progress(last, len(plan))

        self.backend.run(len(plan), fill, take)
        ran = perf_counter()
        if not stitcher.all_finite():
            error = NonFiniteError(
                case_id or self.backend.info.name,
                found="probabilities that are NaN or infinite",
                expected="finite ones",
                remedy=f"run another precision than {self.backend.info.precision} with --precision",
            )
            error.count = stitcher.count_non_finite()
            raise error
        labels = stitcher.labels()
        blended = stitcher.probabilities() if self.options.probabilities else None
        timings = Timings(
            prepare=0.0,
            bind=bound - start,
            gather=gather,
            network=ran - bound - gather - stitch,
            stitch=stitch,
            finish=perf_counter() - ran,
        )
        return Stitched(labels, blended, plan, timings)

    def _pasted(self, prepared: Prepared, blended: Array) -> npt.NDArray[np.float32]:
        placement = prepared.placement
        host = self.backend.ops.download(blended)
        full = np.zeros((*placement.file_shape, len(host)), np.float32, order="F")
        full[..., 0] = 1.0
        placement.boxed(full)[...] = np.moveaxis(placement.inner(host), 0, -1)
        return full
