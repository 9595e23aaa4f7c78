"""Segment a whole case: prepare, plan windows, run them through a backend, stitch, paste back."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt

from runtime.backends import Backend, BackendInfo, check_window
from runtime.errors import ComputeError
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
        ops, card = self.backend.ops, self.backend.card
        prepared = prepare(volume, card, ops, self.patch, self.options.force_spacing)
        plan = plan_windows(
            prepared.placement.shape, self.patch, self.overlap, self.options.placement
        )
        stitcher = Stitcher(plan, len(card.labels), ops)
        ready = perf_counter()
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
            raise ComputeError(
                volume.case.case_id,
                found="probabilities that are NaN or infinite",
                expected="finite ones",
                remedy=f"run another precision than {self.backend.info.precision} with --precision",
            )
        labels, probabilities = self._finish(prepared, stitcher, volume)
        done = perf_counter()
        return Prediction(
            labels=labels,
            probabilities=probabilities,
            volume=volume,
            card=card,
            backend=self.backend.info,
            plan=plan,
            timings=Timings(
                prepare=ready - start,
                bind=bound - ready,
                gather=gather,
                network=ran - bound - gather - stitch,
                stitch=stitch,
                finish=done - ran,
            ),
            warnings=prepared.warnings,
        )

    def _finish(
        self, prepared: Prepared, stitcher: Stitcher, volume: Volume
    ) -> tuple[LabelMap, npt.NDArray[np.float32] | None]:
        ops, placement = self.backend.ops, prepared.placement
        labels = prepared.restore(stitcher.labels(), ops)
        labels = postprocess(labels, self.backend.card.postprocess, volume.grid.spacing)
        if not self.options.probabilities:
            return labels, None
        blended = ops.download(stitcher.probabilities())
        full = np.zeros((*placement.file_shape, len(blended)), np.float32, order="F")
        full[..., 0] = 1.0
        placement.boxed(full)[...] = np.moveaxis(placement.inner(blended), 0, -1)
        return labels, full
