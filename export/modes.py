"""What the faster modes of a model lose: their label maps beside its exact ones, case by case."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import product as every
from typing import Any, Final

import numpy as np

from export.calibrate import apart_from
from export.cpu_backends import Opener, cpu_backends
from export.parity import ParityCase, Verdict, changed_labels
from export.produce import Product
from runtime.backends import Backend, BackendInfo
from runtime.errors import BratsError, ParityError
from runtime.labels import REGIONS, regions_from_labels
from runtime.metrics import PROFILES, dice
from runtime.model_dir import ONNX_INT8, sha256_of
from runtime.modes import EXACT, Mode, options_of
from runtime.segmented import Prediction
from runtime.segmenter import Segmenter, SegmentOptions

PROPOSED: Final = (Mode("balanced", box=True), Mode("fast", precision="int8", box=True))
"""What is certified where nothing else is asked for."""


@dataclass(frozen=True)
class ModeGate:
    """What a mode must keep.

    Attributes:
        truth: least mean Dice against truth per region, as a fraction of the exact way's.
        exact: least mean Dice between its label maps and the exact way's, per region.
        case: the least of that in any case: a mean hides one that is lost.
        informative_cases: cases with truth needed in which the exact way finds enough of every
            region.
        informative_voxels: voxels of each region that make a case informative.
    """

    truth: float = 0.99
    exact: float = 0.95
    case: float = 0.9
    informative_cases: int = 3
    informative_voxels: int = 100


@dataclass
class _Outcome:
    mode: Mode
    segmenter: Segmenter
    sha256: str
    cases: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def certify_modes(
    exact: Backend,
    modes: Sequence[tuple[Mode, Backend]],
    cases: Iterable[ParityCase],
    gate: ModeGate,
    source: str,
) -> list[dict[str, Any]]:
    """Run every mode on every case beside the exact way.

    Args:
        exact: runs the fp32 graph as the card says.
        modes: each with what runs it, which may be ``exact`` itself; one mode may be run by
            several. Not closed here.
        cases: read one at a time.
        gate: what must be kept.
        source: where the cases come from, for the record.

    Returns:
        Entries for ``modes`` of parity.json.
    """
    reference = Segmenter(exact, options_of(EXACT, SegmentOptions()))
    outcomes = [
        _Outcome(mode, Segmenter(backend, options_of(mode, SegmentOptions())), backend.info.sha256)
        for mode, backend in modes
    ]
    informative = 0
    for case in cases:
        expected = reference.segment(case.volume)
        least = min(int(mask.sum()) for mask in regions_from_labels(expected.labels).values())
        informative += case.truth is not None and least >= gate.informative_voxels
        for outcome in outcomes:
            try:
                found = outcome.segmenter.segment(case.volume)
            except BratsError as error:
                outcome.errors.append(f"{case.volume.case.case_id}: {error.found}")
                continue
            outcome.cases.append(_compared(case, expected, found))
    return [_entry(outcome, gate, informative, source) for outcome in outcomes]


def add_modes(
    product: Product,
    cases: Iterable[ParityCase],
    source: str,
    threads: int | None,
    proposed: Sequence[Mode] = PROPOSED,
) -> None:
    """Certify the modes whose graphs a product holds, on every CPU backend that is here.

    Args:
        product: gets ``modes`` in its certificate, and a note for a mode that lacks its graph.
        cases: as for `certify_modes`.
        source: of the cases.
        threads: CPU threads; None means all cores.
        proposed: the modes.
    """
    wanted = [mode for mode in proposed if mode.artefact in product.files]
    product.notes += [
        f"quality {mode.quality}: not certified, as there is no {mode.artefact} (--int8)"
        for mode in proposed
        if mode not in wanted
    ]
    runners = cpu_backends()
    with ExitStack() as held:

        def opened(mode: Mode, name: str, opener: Opener) -> Backend:
            precision = "int8" if mode.artefact == ONNX_INT8 else "fp32"
            data = product.files[mode.artefact]
            info = BackendInfo(name, "cpu", precision, mode.artefact, sha256_of(data))
            backend = opener(data, product.card, info, threads, varying=mode.box)
            return held.enter_context(closing(backend))

        exact = opened(EXACT, *runners[0])
        modes = [(mode, opened(mode, *runner)) for mode in wanted for runner in runners]
        calibrated = [
            case["inputs"]
            for entry in product.certificate["artefacts"]
            if "calibration" in entry
            for case in entry["calibration"]["cases"]
        ]
        entries = certify_modes(exact, modes, apart_from(cases, calibrated), ModeGate(), source)
    product.certificate = {**product.certificate, "modes": entries}


def check_modes(product: Product, allow_inconclusive: bool) -> None:
    """Tell of the modes that will be refused.

    Raises:
        ParityError: there is one, with what it loses.
    """
    bad = ("fail",) if allow_inconclusive else ("fail", "inconclusive")
    lost = [entry for entry in product.certificate.get("modes", ()) if entry["verdict"] in bad]
    if lost:
        told = "; ".join(
            f"{entry['quality']} on {entry['backend']}: {entry['verdict']}: {entry['reasons'][0]}"
            for entry in lost
        )
        raise ParityError(
            "--modes",
            found=told,
            expected="modes that pass their gate",
            remedy="run the model, which is written, with --quality exact, as it refuses these; "
            "give --data more cases where it could not be decided",
        )


def _compared(case: ParityCase, expected: Prediction, found: Prediction) -> dict[str, Any]:
    profile = PROFILES["brats2020"]
    ours, theirs = regions_from_labels(found.labels), regions_from_labels(expected.labels)
    record: dict[str, Any] = {
        "case_id": case.volume.case.case_id,
        "inputs": {name: image.sha256 for name, image in case.volume.images.items()},
        "windows": len(found.plan),
        "exact_voxels": {name: int(mask.sum()) for name, mask in theirs.items()},
        "dice_to_exact": {name: dice(ours[name], theirs[name], profile) for name in ours},
        "changed_labels": changed_labels(found.labels, expected.labels),
        "seconds": {"exact": _seconds(expected), "mode": _seconds(found)},
    }
    if case.truth is not None:
        truth = regions_from_labels(case.truth)
        record["dice_to_truth"] = {
            "exact": {name: dice(theirs[name], truth[name], profile) for name in truth},
            "mode": {name: dice(ours[name], truth[name], profile) for name in truth},
        }
    return record


def _seconds(prediction: Prediction) -> float:
    stages: dict[str, float] = asdict(prediction.timings)
    return round(sum(stages.values()), 4)


def _entry(outcome: _Outcome, gate: ModeGate, informative: int, source: str) -> dict[str, Any]:
    info = outcome.segmenter.backend.info
    reasons = [*outcome.errors, *_losses(outcome.cases, gate)]
    verdict: Verdict = "fail" if reasons else "pass"
    if not reasons and informative < gate.informative_cases:
        verdict = "inconclusive"
        reasons = [
            f"{informative} labelled cases in which {gate.informative_voxels} voxels of every "
            f"region are found, {gate.informative_cases} are needed"
        ]
    ratios = [one["seconds"]["exact"] / one["seconds"]["mode"] for one in outcome.cases]
    return {
        **outcome.mode.record(),
        "file": outcome.mode.artefact,
        "sha256": outcome.sha256,
        "backend": info.name,
        "device": info.device,
        "arithmetic": info.precision,
        "verdict": verdict,
        "reasons": reasons,
        "gate": asdict(gate),
        "source": source,
        "times_faster": round(float(np.median(ratios)), 2) if ratios else None,
        "cases": outcome.cases,
    }


def _losses(cases: Sequence[Mapping[str, Any]], gate: ModeGate) -> list[str]:
    """What is lost beyond the gate."""
    found = []
    for region, one in every(REGIONS, cases):
        value = one["dice_to_exact"][region]
        if value < gate.case and one["exact_voxels"][region] >= gate.informative_voxels:
            found.append(
                f"Dice of {region} to the exact way is {value:.4f} < {gate.case} "
                f"in {one['case_id']}"
            )
    for region in REGIONS:
        kept = mean_over(cases, "dice_to_exact", region)
        if kept is not None and kept < gate.exact:
            found.append(f"mean Dice of {region} to the exact way is {kept:.4f} < {gate.exact}")
        scored = [one["dice_to_truth"] for one in cases if "dice_to_truth" in one]
        exact = mean_over(scored, "exact", region)
        mode = mean_over(scored, "mode", region)
        if exact is not None and mode is not None and mode < gate.truth * exact:
            found.append(
                f"mean Dice of {region} against truth is {mode:.4f} < {gate.truth} x {exact:.4f}"
            )
    return found


def mean_over(records: Sequence[Mapping[str, Any]], name: str, region: str) -> float | None:
    """Mean of one region's score; None where there is no record."""
    values = [record[name][region] for record in records]
    return float(np.mean(values)) if values else None
