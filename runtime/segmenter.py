"""Segment a whole case: prepare, plan windows, run them through a backend, stitch, paste back."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.backends import Backend, BackendInfo, check_window
from runtime.errors import NonFiniteError
from runtime.labels import LabelMap
from runtime.model_card import ModelCard, Shape3
from runtime.nifti import Volume
from runtime.ops import Array, Mark
from runtime.postprocess import postprocess
from runtime.preprocess import Prepared, prepare
from runtime.windows import Patch, Placement, Stitcher, WindowPlan, importance_map, plan_windows

Progress = Callable[[int, int], None]
"""progress(done, total) in windows."""
Spare = Callable[[], Backend | None]
"""Opens a backend of full precision for a case whose probabilities are not finite; None if there is
none.
"""


@dataclass(frozen=True)
class SegmentOptions:
    """How a case is segmented; None means what the model's card says.

    Attributes:
        overlap: fraction in [0, 1), or the stride in voxels per axis.
        placement: "fitted" or "stride"; see `windows.plan_windows`.
        patch: window shape (X, Y, Z), multiples of the card's divisor; or "box".
        batch: windows per step; a backend may choose fewer.
        probabilities: also return the blended class probabilities.
        force_spacing: run on a spacing that is not the model's.
        postprocess: do to the label map what the card asks for; False leaves it as after argmax.
        quality: name of the certified mode that these options are, for the record; "" where they
            are nobody's but the caller's.
    """

    overlap: float | Shape3 | None = None
    placement: Placement = "fitted"
    patch: Patch | None = None
    batch: int | None = None
    probabilities: bool = False
    force_spacing: bool = False
    postprocess: bool = True
    quality: str = ""


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

    def __init__(
        self,
        backend: Backend,
        options: SegmentOptions | None = None,
        spare: Spare | None = None,
    ) -> None:
        """
        Args:
            backend: runs the windows.
            options: how a case is segmented.
            spare: asked for a backend when a case comes back with values that are not finite; what
                it gives is closed after that case.

        Raises:
            UsageError: the options name a patch that the network does not accept.
        """
        self.backend = backend
        self.options = options or SegmentOptions()
        self._spare = spare
        self._importance: Array | None = None
        card = backend.card
        self.patch = self.options.patch or card.patch
        self.batch = self.options.batch or card.inference.batch
        self.overlap = (
            card.inference.overlap if self.options.overlap is None else self.options.overlap
        )
        if self.patch != "box":
            check_window(card, self.patch)
        # A bad overlap or placement is found before a case is read.
        patch = card.patch if self.patch == "box" else self.patch
        plan_windows(patch, patch, self.overlap, self.options.placement)

    def segment(self, volume: Volume, progress: Progress | None = None) -> Prediction:
        """Segment one case.

        Args:
            volume: raw voxels as `nifti.load` gives them.
            progress: called after each step with windows done and windows in all.

        Raises:
            InputError: the case does not suit the model; see `preprocess.prepare`.
            ComputeError: the network fails, or returns a value that is not finite and there is no
                spare backend.
        """
        try:
            return self._segment(volume, progress)
        except NonFiniteError as error:
            spare = self._spare() if self._spare is not None else None
            if spare is None:
                raise
            failed = self.backend.info
            reason = f"{failed.name} {failed.precision} gave {error.found}"
        # Outside of the handler: the error's traceback holds the failed run's arrays.
        with closing(spare):
            prediction = Segmenter(spare, self.options)._segment(volume, progress)
        return replace(
            prediction,
            backend=replace(prediction.backend, fell_back_from=reason),
            warnings=(*prediction.warnings, f"{reason}; run again in fp32"),
        )

    def _segment(self, volume: Volume, progress: Progress | None) -> Prediction:
        ops, card = self.backend.ops, self.backend.card
        start = ops.mark()
        prepared = prepare(volume, card, ops, self.patch, self.options.force_spacing)
        ready = ops.mark()
        full = ops.zeros(prepared.placement.file_shape, np.uint8, fortran=True)
        stitched = self.stitch(
            prepared, prepared.placement.boxed(full), progress, volume.case.case_id
        )
        stitched_mark = ops.mark()
        labels = ops.download(full)
        if self.options.postprocess:
            labels = postprocess(labels, card.postprocess, volume.grid.spacing)
        probabilities = None
        if stitched.probabilities is not None:
            probabilities = self._pasted(prepared, stitched.probabilities)
        timings = replace(
            stitched.timings,
            prepare=ops.seconds(start, ready),
            finish=stitched.timings.finish + ops.seconds(stitched_mark, ops.mark()),
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
        self,
        prepared: Prepared,
        labels: Array,
        progress: Progress | None = None,
        case_id: str | None = None,
        limit: int | None = None,
    ) -> Stitched:
        """Run all windows of a prepared case and put them together.

        Args:
            prepared: from `preprocess.prepare` with this segmenter's patch and the backend's ops.
            labels: uint8 (x, y, z) array of the ops' device, any strides, of the box's shape
                with or without its padding; the label map before post-processing is written there.
            progress: as for `segment`.
            case_id: names the case in an error.
            limit: run no more than the first windows, to learn how long they take.

        Raises:
            ComputeError: the network fails or returns a value that is not finite.
        """
        ops, card = self.backend.ops, self.backend.card
        start = ops.mark()
        plan, importance = self._plan(prepared.placement.shape)
        stitcher = Stitcher(plan, len(card.labels), ops, importance)
        self.backend.bind(plan.patch, min(self.batch, len(plan)))
        bound = ops.mark()
        gathers: list[tuple[Mark, Mark]] = []
        stitches: list[tuple[Mark, Mark]] = []

        def fill(first: int, last: int, inputs: Array) -> None:
            began = ops.mark()
            ops.gather(prepared.voxels, plan.starts[first:last], inputs)
            gathers.append((began, ops.mark()))

        def take(first: int, last: int, probabilities: Array) -> None:
            began = ops.mark()
            stitcher.add(first, last, probabilities)
            stitches.append((began, ops.mark()))
            if progress is not None:
                progress(last, len(plan))

        self.backend.run(min(len(plan), limit or len(plan)), fill, take)
        ran = ops.mark()
        non_finite = stitcher.count_non_finite()
        if non_finite:
            raise NonFiniteError.counted(
                non_finite, case_id or self.backend.info.name, self.backend.info.precision
            )
        stitcher.labels(labels)
        blended = stitcher.probabilities() if self.options.probabilities else None
        done = ops.mark()
        gather = sum(ops.seconds(*pair) for pair in gathers)
        stitch = sum(ops.seconds(*pair) for pair in stitches)
        timings = Timings(
            prepare=0.0,
            bind=ops.seconds(start, bound),
            gather=gather,
            network=ops.seconds(bound, ran) - gather - stitch,
            stitch=stitch,
            finish=ops.seconds(ran, done),
        )
        return Stitched(blended, plan, timings)

    def _plan(self, shape: Shape3) -> tuple[WindowPlan, Array]:
        """The windows of a box, and the importance of a window's voxels."""
        ops = self.backend.ops
        if self.patch == "box":
            # One window alone: nothing is blended.
            return plan_windows(shape, shape, 0.0), ops.upload(np.ones(shape, np.float32))
        if self._importance is None:
            self._importance = ops.upload(importance_map(self.patch))
        return (
            plan_windows(shape, self.patch, self.overlap, self.options.placement),
            self._importance,
        )

    def _pasted(self, prepared: Prepared, blended: Array) -> npt.NDArray[np.float32]:
        placement = prepared.placement
        host = self.backend.ops.download(blended)
        full = np.zeros((*placement.file_shape, len(host)), np.float32, order="F")
        full[..., 0] = 1.0
        placement.boxed(full)[...] = np.moveaxis(placement.inner(host), 0, -1)
        return full
