"""Segment a whole case: prepare, plan windows, run them through a backend, stitch, paste back.

In three steps, `Segmenter.ready`, `Segmenter.run` and `Segmenter.finish`, of which only the middle
one needs the backend: what the host does before and after it may be done by other threads for other
cases meanwhile.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from runtime.backends import Backend, check_window
from runtime.errors import NonFiniteError
from runtime.labels import LabelMap
from runtime.model_card import Shape3
from runtime.nifti import Volume
from runtime.ops import Array, Mark
from runtime.postprocess import postprocess
from runtime.preprocess import BoxPlacement, Prepared, prepare
from runtime.segmented import Prediction, Ran, Ready, Stitched, Timings
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


class Segmenter:
    """Segments one case after another with one backend.

    The backend is borrowed: whoever opened it closes it. Only one thread may `run`, `stitch` or
    `segment` at a time; others may meanwhile make cases `ready` and `finish` them.
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
        return self.finish(self.run(self.ready(volume), progress))

    def ready(self, volume: Volume) -> Ready:
        """Do what can be done of a case before the backend's turn.

        Raises:
            InputError: the case does not suit the model; see `preprocess.prepare`.
        """
        if not self.backend.ops.on_host:
            return Ready(volume)
        return Ready(volume, *self._prepared(volume))

    def run(self, ready: Ready, progress: Progress | None = None) -> Ran:
        """Run the windows of a case.

        Args:
            ready: from `ready`.
            progress: as for `segment`.

        Raises:
            InputError, ComputeError: as for `segment`.
        """
        try:
            return self._run(ready, progress)
        except NonFiniteError as error:
            spare = self._spare() if self._spare is not None else None
            if spare is None:
                raise
            failed = self.backend.info
            reason = f"{failed.name} {failed.precision} gave {error.found}"
        # Outside of the handler: the error's traceback holds the failed run's arrays.
        with closing(spare):
            again = Segmenter(spare, self.options)
            ran = again._with_labels(again._run(Ready(ready.volume), progress))
        return replace(
            ran,
            backend=replace(ran.backend, fell_back_from=reason),
            warnings=(*ran.warnings, f"{reason}; run again in fp32"),
        )

    def finish(self, ran: Ran) -> Prediction:
        """Make the label map of what `run` gave."""
        labels, probabilities, seconds = self._labels(ran)
        start = perf_counter()
        if self.options.postprocess:
            rule = self.backend.card.postprocess
            labels = postprocess(labels, rule, ran.volume.grid.spacing)
        seconds += ran.timings.finish + perf_counter() - start
        return Prediction(
            labels=labels,
            probabilities=probabilities,
            volume=ran.volume,
            card=self.backend.card,
            backend=ran.backend,
            plan=ran.plan,
            timings=replace(ran.timings, finish=seconds),
            warnings=ran.warnings,
        )

    def _prepared(self, volume: Volume) -> tuple[Prepared, float]:
        """The case as the network sees it, and the seconds that it took."""
        ops = self.backend.ops
        start = ops.mark()
        prepared = prepare(volume, self.backend.card, ops, self.patch, self.options.force_spacing)
        return prepared, ops.seconds(start, ops.mark())

    def _run(self, ready: Ready, progress: Progress | None) -> Ran:
        prepared, seconds = ready.prepared, ready.seconds
        if prepared is None:
            prepared, seconds = self._prepared(ready.volume)
        stitcher, plan, timings = self._windows(prepared, progress, ready.volume.case.case_id)
        ran = Ran(
            volume=ready.volume,
            placement=prepared.placement,
            backend=self.backend.info,
            plan=plan,
            timings=replace(timings, prepare=seconds),
            warnings=prepared.warnings,
            result=stitcher,
        )
        return ran if self.backend.ops.on_host else self._with_labels(ran)

    def _with_labels(self, ran: Ran) -> Ran:
        labels, probabilities, seconds = self._labels(ran)
        return replace(
            ran, timings=replace(ran.timings, finish=seconds), result=(labels, probabilities)
        )

    def _labels(self, ran: Ran) -> tuple[LabelMap, npt.NDArray[np.float32] | None, float]:
        """Label map after argmax, probabilities, and the seconds that they took now."""
        if not isinstance(ran.result, Stitcher):
            return (*ran.result, 0.0)
        ops = self.backend.ops
        start = ops.mark()
        full = ops.zeros(ran.placement.file_shape, np.uint8, fortran=True)
        ran.result.labels(ran.placement.boxed(full))
        labels = ops.download(full)
        probabilities = None
        if self.options.probabilities:
            probabilities = pasted(ran.placement, ops.download(ran.result.probabilities()))
        return labels, probabilities, ops.seconds(start, ops.mark())

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
        stitcher, plan, timings = self._windows(prepared, progress, case_id, limit)
        ops = self.backend.ops
        start = ops.mark()
        stitcher.labels(labels)
        blended = stitcher.probabilities() if self.options.probabilities else None
        seconds = timings.finish + ops.seconds(start, ops.mark())
        return Stitched(blended, plan, replace(timings, finish=seconds))

    def _windows(
        self,
        prepared: Prepared,
        progress: Progress | None,
        case_id: str | None,
        limit: int | None = None,
    ) -> tuple[Stitcher, WindowPlan, Timings]:
        """Run the windows of a prepared case and add them up; see `stitch`."""
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
        gather = sum(ops.seconds(*pair) for pair in gathers)
        stitch = sum(ops.seconds(*pair) for pair in stitches)
        timings = Timings(
            prepare=0.0,
            bind=ops.seconds(start, bound),
            gather=gather,
            network=ops.seconds(bound, ran) - gather - stitch,
            stitch=stitch,
            finish=0.0,
        )
        return stitcher, plan, timings

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


def pasted(placement: BoxPlacement, blended: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities of the box as a volume: float32 (classes, x, y, z), with or without its
    padding, becomes (X, Y, Z, classes) in file order; background is 1 outside of it.
    """
    full = np.zeros((*placement.file_shape, len(blended)), np.float32, order="F")
    full[..., 0] = 1.0
    placement.boxed(full)[...] = np.moveaxis(placement.inner(blended), 0, -1)
    return full
