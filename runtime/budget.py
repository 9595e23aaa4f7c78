"""Which mode fits a budget of seconds a case, by what is measured on this machine."""

import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

from runtime.backends import BackendOptions, open_backend
from runtime.backends.seam import Backend
from runtime.case import Case
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    ComputeError,
    InputError,
    ParityError,
    UsageError,
)
from runtime.labels import LabelMap
from runtime.model_dir import ModelDir
from runtime.modes import (
    EXACT,
    QUALITIES,
    Mode,
    certified,
    check_covers,
    options_of,
    placed,
    wanted_of,
)
from runtime.nifti import Volume, load
from runtime.nifti_writer import write_label_map, write_probabilities
from runtime.ops import Array
from runtime.postprocess import postprocess
from runtime.preprocess import Prepared, prepare
from runtime.segmenter import Segmenter, SegmentOptions, pasted
from runtime.volumes import volumes_ml

WARM_UP: Final = 1
TIMED: Final = 3
"""Windows that are run before the clock starts, and that are timed. Of one over the brain box the
first is timed, as its shape is another in each case: see `_warm_up`.
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
        seconds: of the whole case, from its files to its label map (and probabilities) on disk,
            with `MARGIN`; without pictures and pages, and without opening the model, which a run
            does once.
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
        passed_over: why better modes cannot be run here, by their names.
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
    few of its windows are run. A mode that cannot be run here, or not on this case, is passed over.

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
            backend, forecast = _tried(mode, model, wanted, volume, load_s, options)
        except (BackendUnavailableError, ParityError, InputError, ComputeError) as error:
            if mode == EXACT and isinstance(error, InputError):
                raise  # no mode reads what that one cannot
            refused.append((mode, error))
            continue
        forecasts.append(forecast)
        if forecast.seconds <= seconds:
            passed = tuple(f"{one.quality} is passed over: {why}" for one, why in refused)
            return Choice(mode, backend, tuple(forecasts), passed)
        backend.close()
    if not forecasts:
        raise refused[0][1]
    fastest = min(forecasts, key=lambda one: one.seconds)
    raise UsageError(
        f"--budget {seconds:g}s",
        found="; ".join((
            f"{fastest.seconds:.1f} s for {case.case_id} at --quality {fastest.mode.quality}, "
            "the fastest certified mode here",
            *(f"{one.quality} is passed over: {why.where}: {why.found}" for one, why in refused),
        )),
        expected="a mode that fits",
        remedy=f"give it {math.ceil(fastest.seconds)}s, or {_faster(model, forecasts, refused)}",
    )  # fmt: skip


def _faster(
    model: ModelDir, forecasts: Sequence[Forecast], refused: Sequence[tuple[Mode, BratsError]]
) -> str:
    """What might help; no certificate does where a mode has failed for another reason."""
    lost = {mode.quality for mode, why in refused if not isinstance(why, ParityError)}
    measured = {one.mode.quality for one in forecasts}
    missing = [one for one in QUALITIES if one not in measured | lost]
    if not missing:
        return "a faster machine"
    return f"certify {' and '.join(missing)} with brats-export {model.path} --modes --data CASES"


def _tried(
    mode: Mode,
    model: ModelDir,
    wanted: BackendOptions,
    volume: Volume,
    load_s: float,
    options: SegmentOptions,
) -> tuple[Backend, Forecast]:
    """A backend for a mode, open, and what it would take.

    Raises:
        BratsError: the mode cannot be run here, or not on this case.
    """
    backend = open_backend(model, placed(model, mode, wanted_of(mode, wanted)))
    with ExitStack() as held:
        held.enter_context(closing(backend))
        check_covers(model, mode, backend.info.name, backend.info.device)
        try:
            forecast = _forecast(mode, backend, volume, load_s, options)
        except MemoryError as error:
            raise ComputeError(
                f"--quality {mode.quality}",
                found="too little memory" + (f" ({error})" if str(error) else ""),
                expected=f"room for {volume.case.case_id}",
                remedy="close other programs, or choose another --quality",
            ) from error
        held.pop_all()
    return backend, forecast


def _forecast(
    mode: Mode, backend: Backend, volume: Volume, load_s: float, options: SegmentOptions
) -> Forecast:
    segmenter, ops, card = Segmenter(backend, options_of(mode, options)), backend.ops, backend.card
    start = ops.mark()
    prepared = prepare(volume, card, ops, segmenter.patch, options.force_spacing)
    prepare_s = ops.seconds(start, ops.mark())
    full = ops.zeros(prepared.placement.file_shape, np.uint8, fortran=True)
    labels = prepared.placement.boxed(full)
    _warm_up(segmenter, prepared, labels)
    timed = segmenter.stitch(prepared, labels, limit=TIMED)
    seconds, windows = timed.timings, len(timed.plan)
    window_s = (seconds.gather + seconds.network + seconds.stitch) / min(TIMED, windows)
    whole = load_s + prepare_s + seconds.bind + window_s * windows + seconds.finish
    whole += _labels_s(ops.download(full), backend, volume, options)
    if timed.probabilities is not None:
        whole += _probabilities_s(timed.probabilities.shape, prepared, volume)
    return Forecast(mode, windows, window_s, whole * MARGIN)


def _warm_up(segmenter: Segmenter, prepared: Prepared, labels: Array) -> None:
    """Pay what a run pays once, and nothing of what each of its cases pays.

    Where the window is the brain box, a backend meets a new shape with nearly every case (OpenVINO
    chooses its kernels when it does), so that another shape than this case's warms it up.
    """
    if segmenter.patch != "box":
        segmenter.stitch(prepared, labels, limit=WARM_UP)
        return
    card, backend = segmenter.backend.card, segmenter.backend
    x, y, z = card.patch
    if prepared.placement.shape == card.patch:
        x += card.divisor
    backend.bind((x, y, z), 1)
    backend.run(WARM_UP, lambda *windows: None, lambda *windows: None)


def _labels_s(labels: LabelMap, backend: Backend, volume: Volume, options: SegmentOptions) -> float:
    """Seconds from the label map to its file, which is not written."""
    start = perf_counter()
    if options.postprocess:
        labels = postprocess(labels, backend.card.postprocess, volume.grid.spacing)
    volumes_ml(labels, volume.grid.spacing)
    write_label_map(Path("label map.nii.gz"), labels, volume.grid, lambda path, data: None)
    return perf_counter() - start


def _probabilities_s(shape: tuple[int, ...], prepared: Prepared, volume: Volume) -> float:
    """Seconds from blended probabilities to their file: of noise, which nothing compresses worse
    than, as the few windows that were run leave most of them at 0.
    """
    noise = np.random.default_rng(0).random(shape, np.float32)
    start = perf_counter()
    full = pasted(prepared.placement, noise)
    write_probabilities(Path("all.nii.gz"), full, volume.grid, lambda path, data: None)
    return perf_counter() - start
