"""What do overlap, batch, threads and the size of the volume cost, and what does overlap buy?"""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter
from typing import Any, Final

import numpy as np
import pytest

from benchmarks.conftest import THREADS, Report, facts_of
from benchmarks.figures import figure, ratios
from benchmarks.new_case import as_of_a_new_patient, note_box
from benchmarks.opened import graphs_of, open_or_skip
from benchmarks.scale import Scale
from export.modes import PROPOSED
from export.parity import changed_labels
from runtime.backends import Precision
from runtime.case import Case
from runtime.labels import REGIONS, LabelMap, regions_from_labels
from runtime.metrics import PROFILES, dice
from runtime.model_dir import ONNX_INT8, ModelDir
from runtime.modes import Mode as CertifiedMode
from runtime.modes import options_of
from runtime.nifti import Volume, load
from runtime.phantom import Enhancement, write_phantom
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.truth import load_truth


@dataclass(frozen=True)
class Mode:
    """A way to segment, a row of the table and a point of the plot.

    Attributes:
        name: as it stands there.
        options: the window plan.
        precision: of the artefact that runs.
    """

    name: str
    options: SegmentOptions
    precision: Precision = "auto"

    @property
    def bound(self) -> tuple[object, ...]:
        """What a backend is opened and compiled for."""
        return (self.precision, self.options.patch)


def _proposed(mode: CertifiedMode) -> Mode:
    """A mode that is certified by name."""
    what = "box" if mode.box else f"overlap {mode.overlap}"
    int8 = ", int8" if mode.precision == "int8" else ""
    options = options_of(mode, SegmentOptions())
    return Mode(f"{what}{int8} ({mode.quality})", options, mode.precision)


MODES: Final = (
    Mode("overlap 0", SegmentOptions(overlap=0.0)),
    Mode("overlap 0.25", SegmentOptions(overlap=0.25)),
    Mode("overlap 0.375", SegmentOptions(overlap=0.375)),
    Mode("overlap 0.5", SegmentOptions(overlap=0.5)),
    Mode("overlap 0.75", SegmentOptions(overlap=0.75)),
    Mode("overlap 0.5, int8", SegmentOptions(overlap=0.5), "int8"),
    *map(_proposed, PROPOSED),
)
"""What is compared; a new way to segment is a new row here. Those in int8 need such a graph."""
REFERENCE: Final = "overlap 0.5"
"""The mode that all others are held against."""
BATCHES: Final = (1, 2, 4)
SIDES: Final = (0.5, 0.75, 1.0)


def bench_overlap(
    benchmark: Any,
    report: Report,
    model: ModelDir,
    overlap_cases: list[Case],
    rounds: int,
    network_facts: dict[str, Any],
) -> None:
    """Every mode in turn within each round on the timed case; Dice over all cases, against truth
    and against the reference mode. A box mode is timed on boxes that were not run before.
    """
    modes = [mode for mode in MODES if mode.precision != "int8" or ONNX_INT8 in model.hashes]
    cases = overlap_cases
    volumes = [load(case) for case in cases]
    seconds: dict[str, list[float]] = {mode.name: [] for mode in modes}
    with ExitStack() as stack:
        # One backend for all modes of a precision and a window shape: only a box is bound while
        # timed.
        backends = {}
        for mode in modes:
            if mode.bound not in backends:
                patch = mode.options.patch
                backends[mode.bound] = open_or_skip(model, precision=mode.precision, patch=patch)
                stack.callback(backends[mode.bound].close)
        segmenters = {mode.name: Segmenter(backends[mode.bound], mode.options) for mode in modes}
        # The first pass over the cases warms up and is the one that is scored.
        found = {
            name: [one.segment(volume) for volume in volumes] for name, one in segmenters.items()
        }
        for mode in modes:
            for one in found[mode.name] if mode.options.patch == "box" else ():
                note_box(backends[mode.bound].info, one.plan.patch)

        def in_turn() -> None:
            for name, segmenter in segmenters.items():
                volume = as_of_a_new_patient(segmenter, volumes[0])
                start = perf_counter()
                segmenter.segment(volume)
                seconds[name].append(perf_counter() - start)

        benchmark.pedantic(in_turn, rounds=rounds, iterations=1)
        info = backends[modes[0].bound].info
        graphs = graphs_of(*(backend.info for backend in backends.values()))
    truths = [load_truth(case, volume) for case, volume in _labelled(cases, volumes)]
    rows = []
    figures = {}
    for mode in modes:
        labels = [one.labels for one in found[mode.name]]
        exact = [one.labels for one in found[REFERENCE]]
        known = [made for made, case in zip(labels, cases, strict=True) if case.labels is not None]
        to_truth, to_exact = _mean_dice(known, truths), _mean_dice(labels, exact)
        over = ratios(seconds[REFERENCE], seconds[mode.name])
        changed = fmean(map(changed_labels, exact, labels))
        rows.append(
            {
                "mode": mode.name,
                "precision": found[mode.name][0].backend.precision,
                "windows": len(found[mode.name][0].plan),
                "seconds": seconds[mode.name],
                "faster": [min(over), median(over), max(over)],
                "dice_to_truth": to_truth,
                "dice_to_reference": to_exact,
                "changed_labels": changed,
            }
        )
        figures |= _figures(mode.name, seconds[mode.name], to_exact or {}, changed)
        for region, value in (to_truth or {}).items():
            figures[f"{mode.name}: {region} to truth"] = figure([value], "Dice")
    report(
        "scaling: modes",
        figures,
        rows=rows,
        reference=REFERENCE,
        left_out={
            mode.name: f"the model has no {ONNX_INT8}" for mode in MODES if mode not in modes
        },
        scored_cases=[case.case_id for case in cases],
        backend=info.name,
        device=info.device,
        model_sha256=graphs,
        **facts_of(volumes[0]),
        **network_facts,
    )


def _figures(
    mode: str, seconds: list[float], to_exact: dict[str, float], changed: float
) -> dict[str, Any]:
    """Of a mode: its time and, unless it is the reference, how far its labels are from that."""
    figures = {f"{mode}: time": figure(seconds, "s")}
    if mode != REFERENCE:
        figures[f"{mode}: changed labels"] = figure([changed], "changed")
        for region, value in to_exact.items():
            figures[f"{mode}: {region} to {REFERENCE}"] = figure([value], "Dice")
    return figures


def _labelled(cases: list[Case], volumes: list[Volume]) -> list[tuple[Case, Volume]]:
    pairs = zip(cases, volumes, strict=True)
    return [(case, volume) for case, volume in pairs if case.labels is not None]


def _mean_dice(found: list[LabelMap], wanted: list[LabelMap]) -> dict[str, float] | None:
    """Mean over the cases by region; None where there are none."""
    if not wanted:
        return None
    masks = [
        (regions_from_labels(one), regions_from_labels(other))
        for one, other in zip(found, wanted, strict=True)
    ]
    profile = PROFILES["brats2020"]
    return {name: fmean(dice(a[name], b[name], profile) for a, b in masks) for name in REGIONS}


def bench_batch(
    benchmark: Any,
    report: Report,
    model: ModelDir,
    volume: Volume,
    rounds: int,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    """Windows per step, in turn, where the backend takes more than one."""
    backend = open_or_skip(model)
    seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    try:
        if backend.info.device == "cpu":
            pytest.skip(
                f"{backend.info.name} on a CPU runs one window at a time, whatever batch is asked "
                "for"
            )
        segmenters = {n: Segmenter(backend, SegmentOptions(batch=n)) for n in BATCHES}

        def in_turn() -> None:
            for batch, segmenter in segmenters.items():
                start = perf_counter()
                segmenter.segment(volume)
                seconds[batch].append(perf_counter() - start)

        segmenters[BATCHES[-1]].segment(volume)
        benchmark.pedantic(in_turn, rounds=rounds, iterations=1)
        info = backend.info
    finally:
        backend.close()
    report(
        "scaling: batch",
        {f"batch {batch}": figure(values, "s") for batch, values in seconds.items()},
        backend=info.name,
        device=info.device,
        model_sha256=graphs_of(info),
        points=[{"at": batch, "seconds": values} for batch, values in seconds.items()],
        **case_facts,
        **network_facts,
    )


def bench_threads(
    benchmark: Any,
    report: Report,
    model: ModelDir,
    volume: Volume,
    rounds: int,
    case_facts: dict[str, Any],
    network_facts: dict[str, Any],
) -> None:
    """The network's threads from one to the machine's cores, in turn."""
    counts = sorted({1, THREADS, *(n for n in (4, 8, 16) if n <= (os.cpu_count() or 1))})
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    with ExitStack() as stack:
        segmenters = {}
        for count in counts:
            backend = open_or_skip(model, threads=count)
            stack.callback(backend.close)
            segmenters[count] = Segmenter(backend, SegmentOptions(overlap=0.0))
            segmenters[count].segment(volume)
        info = backend.info

        def in_turn() -> None:
            for count, segmenter in segmenters.items():
                start = perf_counter()
                segmenter.segment(volume)
                seconds[count].append(perf_counter() - start)

        benchmark.pedantic(in_turn, rounds=rounds, iterations=1)
    report(
        "scaling: threads",
        {f"{count} threads": figure(values, "s") for count, values in seconds.items()},
        backend=info.name,
        device=info.device,
        model_sha256=graphs_of(info),
        points=[{"at": count, "seconds": values} for count, values in seconds.items()],
        **case_facts,
        **network_facts,
    )


def bench_volume(
    benchmark: Any,
    report: Report,
    model: ModelDir,
    rounds: int,
    scale: Scale,
    network_facts: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Phantoms of half, three quarters and all of the sides of the standard one, in turn."""
    volumes = []
    for side in SIDES:
        x, y, z = (max(32, round(size * side)) for size in scale.phantom)
        out = tmp_path_factory.mktemp("size")
        volumes.append(
            load(
                Case.from_dir(
                    write_phantom(out, 1, 3, shape=(x, y, z), enhancement=Enhancement.RIM)
                )
            )
        )
    seconds: list[list[float]] = [[] for _ in volumes]
    windows = [0] * len(volumes)
    backend = open_or_skip(model)
    try:
        segmenter = Segmenter(backend)
        segmenter.segment(volumes[0])

        def in_turn() -> None:
            for index, volume in enumerate(volumes):
                start = perf_counter()
                windows[index] = len(segmenter.segment(volume).plan)
                seconds[index].append(perf_counter() - start)

        benchmark.pedantic(in_turn, rounds=rounds, iterations=1)
        info = backend.info
    finally:
        backend.close()
    shapes = ["x".join(map(str, volume.grid.shape)) for volume in volumes]
    voxels = [int(np.prod(volume.grid.shape)) for volume in volumes]
    report(
        "scaling: volume",
        {shape: figure(values, "s") for shape, values in zip(shapes, seconds, strict=True)},
        backend=info.name,
        device=info.device,
        model_sha256=graphs_of(info),
        points=[
            {"at": shape, "voxels": count, "windows": n, "seconds": values}
            for shape, count, n, values in zip(shapes, voxels, windows, seconds, strict=True)
        ],
        case="phantoms",
        **network_facts,
    )
