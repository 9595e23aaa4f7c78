"""Which mode fits a budget of seconds a case, by what is measured on this machine."""

import math
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

from runtime.backends import BackendOptions, open_backend
from runtime.backends.seam import Backend
from runtime.case import Case
from runtime.errors import BackendUnavailableError, BratsError, ParityError, UsageError
from runtime.labels import LabelMap
from runtime.model_dir import ModelDir
from runtime.modes import QUALITIES, Mode, certified, check_covers, options_of, wanted_of
from runtime.nifti import Volume, load
from runtime.nifti_writer import write_label_map
from runtime.postprocess import postprocess
from runtime.preprocess import prepare
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.volumes import volumes_ml

WARM_UP: Final = 1
TIMED: Final = 3
"""Windows that are run before the clock starts, and that are timed; of a single window, that one.
"""
MARGIN: Final = 1.1
"""What a forecast is multiplied by: windows of a long run differ from the first few."""


@dataclass(frozen=True)
class Forecast:
    """What a mode would take of one case.

    Attributes:
        mode: which.
        windows: how many.
        window_s: mean seconds of one, with its gathering and stitching.
        seconds: of the whole case, from its files to its label map on disk, with `MARGIN`; without
            pictures, pages and probabilities, and without opening the model, which a run does once.
    """

    mode: Mode
    windows: int
    window_s: float
    seconds: float


@dataclass(frozen=True)
class Choice:
    """What fits.

    Attributes:
        mode: the best that does.
        backend: opened for it, warm; whoever gets it closes it.
        forecasts: those that led to it, its own last.
        passed_over: why better modes were not tried, by their names.
    """

    mode: Mode
    backend: Backend
    forecasts: tuple[Forecast, ...]
    passed_over: tuple[str, ...]


def best_within(
    seconds: float, model: ModelDir, case: Case, wanted: BackendOptions, options: SegmentOptions
) -> Choice:
    """The best certified mode that is forecast to take no longer.

    Modes are measured from the best downwards, until one fits: one case is read and prepared, and a
    few of its windows are run. A mode that cannot be run here is passed over.

    Args:
        seconds: the budget of a case.
        model: whose certificate names the modes.
        case: on which they are measured.
        wanted, options: as for the run that is to follow.

    Raises:
        UsageError: not even the fastest fits.
        BratsError: the case cannot be read, or no mode can be run.
    """
    start = perf_counter()
    volume = load(case)
    load_s = perf_counter() - start
    forecasts: list[Forecast] = []
    refused: list[tuple[Mode, BratsError]] = []
    for mode in certified(model):
        try:
            check_covers(model, mode, wanted.backend, wanted.device)
            backend = open_backend(model, wanted_of(mode, wanted))
        except (BackendUnavailableError, ParityError) as error:
            refused.append((mode, error))
            continue
        with ExitStack() as held:
            held.enter_context(closing(backend))
            try:
                check_covers(model, mode, backend.info.name, backend.info.device)
            except ParityError as error:
                refused.append((mode, error))
                continue
            forecasts.append(_forecast(mode, backend, volume, load_s, options))
            if forecasts[-1].seconds <= seconds:
                held.pop_all()
                passed = tuple(f"{one.quality} is passed over: {why}" for one, why in refused)
                return Choice(mode, backend, tuple(forecasts), passed)
    if not forecasts:
        raise refused[0][1]
    fastest = min(forecasts, key=lambda one: one.seconds)
    missing = sorted({*QUALITIES} - {one.mode.quality for one in forecasts})
    raise UsageError(
        f"--budget {seconds:g}s",
        found=f"{fastest.seconds:.1f} s for {case.case_id} at --quality {fastest.mode.quality}, "
        "the fastest certified mode here",
        expected="a mode that fits",
        remedy=f"give it {math.ceil(fastest.seconds)}s"
        + (
            f", or certify {' and '.join(missing)} with brats-export {model.path} --modes "
            "--data CASES"
            if missing
            else ", or a faster machine"
        ),
    )


def _forecast(
    mode: Mode, backend: Backend, volume: Volume, load_s: float, options: SegmentOptions
) -> Forecast:
    segmenter, ops, card = Segmenter(backend, options_of(mode, options)), backend.ops, backend.card
    start = ops.mark()
    prepared = prepare(volume, card, ops, segmenter.patch, options.force_spacing)
    prepare_s = ops.seconds(start, ops.mark())
    full = ops.zeros(prepared.placement.file_shape, np.uint8, fortran=True)
    labels = prepared.placement.boxed(full)
    segmenter.stitch(prepared, labels, limit=WARM_UP)
    timed = segmenter.stitch(prepared, labels, limit=TIMED)
    seconds, windows = timed.timings, len(timed.plan)
    window_s = (seconds.gather + seconds.network + seconds.stitch) / min(TIMED, windows)
    after_s = _after(ops.download(full), backend, volume, options)
    whole = load_s + prepare_s + seconds.bind + window_s * windows + seconds.finish + after_s
    return Forecast(mode, windows, window_s, whole * MARGIN)


def _after(labels: LabelMap, backend: Backend, volume: Volume, options: SegmentOptions) -> float:
    """Seconds from the label map to its file, which is not written."""
    start = perf_counter()
    if options.postprocess:
        labels = postprocess(labels, backend.card.postprocess, volume.grid.spacing)
    volumes_ml(labels, volume.grid.spacing)
    write_label_map(Path("label map.nii.gz"), labels, volume.grid, lambda path, data: None)
    return perf_counter() - start
