"""Which mode fits a budget of seconds a case, by what is measured on this machine."""

import math
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np

from runtime.backends import BackendOptions, open_backend
from runtime.backends.seam import Backend
from runtime.case import Case
from runtime.errors import BackendUnavailableError, UsageError
from runtime.model_dir import ModelDir
from runtime.modes import Mode, certified, options_of, wanted_of
from runtime.nifti import Volume, load
from runtime.preprocess import prepare
from runtime.segmenter import Segmenter, SegmentOptions

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
        seconds: of the whole case, with `MARGIN`.
    """

    mode: Mode
    windows: int
    window_s: float
    seconds: float


def best_within(
    seconds: float, model: ModelDir, case: Case, wanted: BackendOptions, options: SegmentOptions
) -> tuple[Mode, list[Forecast]]:
    """The best certified mode that is forecast to take no longer.

    Modes are measured from the best downwards, until one fits: one case is read and prepared, and a
    few of its windows are run. A mode whose backend is not here is passed over.

    Args:
        seconds: the budget of a case.
        model: whose certificate names the modes.
        case: on which they are measured.
        wanted, options: as for the run that is to follow.

    Returns:
        The mode, and the forecasts that led to it, its own last.

    Raises:
        UsageError: not even the fastest fits.
        BratsError: the case cannot be read, or no mode can be run.
    """
    start = perf_counter()
    volume = load(case)
    load_s = perf_counter() - start
    forecasts: list[Forecast] = []
    refused: BackendUnavailableError | None = None
    for mode in certified(model):
        try:
            backend = open_backend(model, wanted_of(mode, wanted))
        except BackendUnavailableError as error:
            refused = error
            continue
        with closing(backend):
            forecasts.append(_forecast(mode, backend, volume, load_s, options))
        if forecasts[-1].seconds <= seconds:
            return mode, forecasts
    if not forecasts:
        raise refused or RuntimeError("no mode was tried")
    fastest = min(forecasts, key=lambda one: one.seconds)
    raise UsageError(
        f"--budget {seconds:g}s",
        found=f"{fastest.seconds:.1f} s for {case.case_id} at --quality {fastest.mode.quality}, "
        "the fastest certified mode here",
        expected="a mode that fits",
        remedy=f"give it {math.ceil(fastest.seconds)}s, or certify faster modes with "
        f"brats-export {model.path} --modes --data CASES",
    )


def _forecast(
    mode: Mode, backend: Backend, volume: Volume, load_s: float, options: SegmentOptions
) -> Forecast:
    segmenter, ops = Segmenter(backend, options_of(mode, options)), backend.ops
    start = ops.mark()
    prepared = prepare(volume, backend.card, ops, segmenter.patch, options.force_spacing)
    prepare_s = ops.seconds(start, ops.mark())
    labels = ops.zeros(prepared.placement.shape, np.uint8)
    segmenter.stitch(prepared, labels, limit=WARM_UP)
    timed = segmenter.stitch(prepared, labels, limit=TIMED)
    seconds, windows = timed.timings, len(timed.plan)
    window_s = (seconds.gather + seconds.network + seconds.stitch) / min(TIMED, windows)
    whole = load_s + prepare_s + window_s * windows + seconds.finish
    return Forecast(mode, windows, window_s, whole * MARGIN)
