"""The parity certificate: what an artefact's label maps and probabilities differ from fp32
PyTorch's, over whole cases through the `Segmenter` that serves, and the gate that decides on
release.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from export.emulate import FP16_MAX
from runtime.backends import Backend, BackendInfo
from runtime.errors import ComputeError, NonFiniteError
from runtime.labels import LabelMap, regions_from_labels
from runtime.metrics import PROFILES, dice
from runtime.model_card import ModelCard
from runtime.nifti import Volume
from runtime.segmented import Prediction
from runtime.segmenter import Segmenter, SegmentOptions

PARITY_SCHEMA: Final = 1
Verdict = Literal["pass", "fail", "inconclusive"]

# One window at a time: the result is the same, and memory is what a small machine lacks.
_OPTIONS: Final = SegmentOptions(probabilities=True, batch=1)


@dataclass(frozen=True)
class Gate:
    """What an artefact must keep.

    Attributes:
        dice: least Dice between artefact and fp32, per case and region.
        truth: least mean Dice against truth per region, as a fraction of fp32's.
        changed_fp32, changed_reduced: most changed labels, divided by the voxels that either calls
            tumour, per case; for artefacts in fp32 and in reduced precision.
        peak: largest |value| of an fp16 tensor, as a fraction of fp16's range.
        informative_cases: cases needed in which fp32 predicts enough of every region.
        informative_voxels: voxels of each region that make a case informative.
    """

    dice: float = 0.995
    truth: float = 0.999
    changed_fp32: float = 1e-4
    changed_reduced: float = 5e-3
    peak: float = 0.25
    informative_cases: int = 3
    informative_voxels: int = 100


@dataclass(frozen=True)
class ParityCase:
    """A case to compare on; ``truth`` is uint8 network labels (X, Y, Z) in file order, or None."""

    volume: Volume
    truth: LabelMap | None


@dataclass(frozen=True)
class Candidate:
    """An artefact and what executes it here.

    Attributes:
        file, sha256: the artefact.
        backend: runs it.
        arithmetic: what really executes, in words.
        reduced: whether the artefact computes in less than fp32.
        peaks: filled by an emulating backend with the largest |value| of each fp16 tensor.
        up_branch: form of the graph's up branches, for the record; "" leaves it out.
    """

    file: str
    sha256: str
    backend: Backend
    arithmetic: str
    reduced: bool
    peaks: Mapping[str, float] = field(default_factory=dict)
    up_branch: str = ""


class CaseList:
    """Cases that are read one after another when first asked for, and kept to be read again."""

    def __init__(self, cases: Iterable[ParityCase]) -> None:
        self._unread = iter(cases)
        self._read: list[ParityCase] = []

    def __iter__(self) -> Iterator[ParityCase]:
        for index in itertools.count():
            if index == len(self._read):
                case = next(self._unread, None)
                if case is None:
                    return
                self._read.append(case)
            yield self._read[index]


class Reference:
    """fp32 PyTorch, with what it predicts of a case computed once and kept.

    Kept are labels and probabilities, 17 bytes a voxel: 150 MB for a BraTS case.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._predictions: dict[tuple[str, ...], Prediction] = {}

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    @property
    def card(self) -> ModelCard:
        return self._backend.card

    def predict(self, case: ParityCase) -> Prediction:
        """Labels and probabilities of a case; cases are told apart by name and content."""
        volume = case.volume
        key = (volume.case.case_id, *(image.sha256 for image in volume.images.values()))
        if key not in self._predictions:
            self._predictions[key] = Segmenter(self._backend, _OPTIONS).segment(volume)
        return self._predictions[key]


@dataclass
class _Outcome:
    """What was found of one candidate so far."""

    candidate: Candidate
    cases: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def certify(
    reference: Backend | Reference,
    candidates: Sequence[Candidate],
    cases: Iterable[ParityCase],
    gate: Gate,
    source: str,
    *,
    stop_at_failure: bool = False,
) -> dict[str, Any]:
    """Compare candidates with the fp32 reference on whole cases.

    Cases are read until enough of them are informative. Every backend is run with the card's own
    window plan.

    Args:
        reference: fp32 PyTorch; a `Reference` where more than one certificate needs its
            predictions.
        candidates: artefacts with the same card.
        cases: read lazily, one at a time.
        gate: what must be kept.
        source: where the cases come from, for the record.
        stop_at_failure: read no further case when no candidate can pass any more.

    Returns:
        The content of parity.json, verdict included.
    """
    outcomes = [_Outcome(candidate) for candidate in candidates]
    used: list[dict[str, Any]] = []
    informative = 0
    for case in cases:
        if isinstance(reference, Reference):
            expected = reference.predict(case)
        else:
            expected = Segmenter(reference, _OPTIONS).segment(case.volume)
        voxels = {
            name: int(np.count_nonzero(mask))
            for name, mask in regions_from_labels(expected.labels).items()
        }
        counts = min(voxels.values()) >= gate.informative_voxels
        informative += counts
        used.append(
            {
                "case_id": case.volume.case.case_id,
                "inputs": {name: image.sha256 for name, image in case.volume.images.items()},
                "predicted_voxels": voxels,
                "informative": counts,
            }
        )
        for outcome in outcomes:
            _compare(outcome, case, expected, gate)
        if informative >= gate.informative_cases:
            break
        if stop_at_failure and all(
            outcome.reasons or _overflow(outcome.candidate, gate) for outcome in outcomes
        ):
            break
    for outcome in outcomes:
        _judge_truth(outcome, gate)
        # First, as whatever else went wrong may follow from it.
        outcome.reasons[:0] = _overflow(outcome.candidate, gate)
    enough = informative >= gate.informative_cases
    entries = [_entry(outcome, enough, gate, informative) for outcome in outcomes]
    return {
        "schema": PARITY_SCHEMA,
        "verdict": _worst(entries),
        "gate": asdict(gate),
        "reference": _identified(reference.info),
        "source": source,
        "cases": used,
        "artefacts": entries,
    }


def _identified(info: BackendInfo) -> dict[str, str]:
    """What artefacts were compared with."""
    found = {"backend": info.name, "device": info.device, "arithmetic": info.precision}
    return found | ({"file": info.artefact, "sha256": info.sha256} if info.artefact else {})


def with_entry(certificate: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A certificate that also covers an artefact certified on the same cases by the same gate.

    Args:
        certificate: content of parity.json, from `certify`.
        entry: one of another certificate's ``artefacts``.
    """
    entries = [*certificate["artefacts"], dict(entry)]
    return {**certificate, "verdict": _worst(entries), "artefacts": entries}


def _worst(entries: Sequence[Mapping[str, Any]]) -> Verdict:
    verdicts = [entry["verdict"] for entry in entries]
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "pass")


def _entry(outcome: _Outcome, enough: bool, gate: Gate, informative: int) -> dict[str, Any]:
    candidate = outcome.candidate
    verdict: Verdict = "fail" if outcome.reasons else "pass" if enough else "inconclusive"
    reasons = outcome.reasons
    if verdict == "inconclusive":
        reasons = [
            f"fp32 predicts {gate.informative_voxels} voxels of every region in {informative} "
            f"cases of {len(outcome.cases)}, {gate.informative_cases} are needed"
        ]
    entry: dict[str, Any] = {
        "file": candidate.file,
        "sha256": candidate.sha256,
        "backend": candidate.backend.info.name,
        "device": candidate.backend.info.device,
        "arithmetic": candidate.arithmetic,
        "verdict": verdict,
        "reasons": reasons,
        "cases": outcome.cases,
    }
    if candidate.up_branch:
        entry["up_branch"] = candidate.up_branch
    if candidate.peaks:
        name = max(candidate.peaks, key=lambda key: candidate.peaks[key])
        peak = candidate.peaks[name]
        entry["peak"] = {"tensor": name, "value": peak if np.isfinite(peak) else "infinite"}
    return entry


def _compare(outcome: _Outcome, case: ParityCase, expected: Prediction, gate: Gate) -> None:
    case_id = case.volume.case.case_id
    candidate = outcome.candidate
    try:
        found = Segmenter(candidate.backend, _OPTIONS).segment(case.volume)
    except ComputeError as error:
        outcome.reasons.append(f"{case_id}: {error.found}")
        count = error.count if isinstance(error, NonFiniteError) else None
        outcome.cases.append({"case_id": case_id, "non_finite": count or "unknown"})
        return
    profile = PROFILES["brats2020"]
    ours, theirs = regions_from_labels(found.labels), regions_from_labels(expected.labels)
    between = {name: dice(ours[name], theirs[name], profile) for name in ours}
    changed = changed_labels(found.labels, expected.labels)
    most, mean = _probability_error(found, expected)
    record: dict[str, Any] = {
        "case_id": case_id,
        "non_finite": 0,
        "dice_to_fp32": between,
        "changed_labels": changed,
        "max_probability_error": most,
        "mean_probability_error": mean,
    }
    if case.truth is not None:
        truth = regions_from_labels(case.truth)
        record["dice_to_truth"] = {
            "fp32": {name: dice(theirs[name], truth[name], profile) for name in truth},
            "artefact": {name: dice(ours[name], truth[name], profile) for name in truth},
        }
    outcome.cases.append(record)
    for name, value in between.items():
        if value < gate.dice:
            outcome.reasons.append(
                f"{case_id}: Dice of {name} to fp32 is {value:.4f} < {gate.dice}"
            )
    limit = gate.changed_reduced if candidate.reduced else gate.changed_fp32
    if changed > limit:
        outcome.reasons.append(f"{case_id}: changed labels {changed:.2e} > {limit:.0e}")


def changed_labels(one: LabelMap, other: LabelMap) -> float:
    """Voxels whose label differs, divided by the voxels that either calls tumour; 0 if neither
    does.

    Both uint8 of equal shape.
    """
    tumour = int(np.count_nonzero((one != 0) | (other != 0)))
    return float(np.count_nonzero(one != other)) / tumour if tumour else 0.0


def _probability_error(found: Prediction, expected: Prediction) -> tuple[float, float]:
    """Largest and mean |difference| of the blended probabilities over the whole grid."""
    if found.probabilities is None or expected.probabilities is None:
        raise ValueError("parity needs the probabilities of both predictions")
    error: npt.NDArray[np.float32] = np.abs(found.probabilities - expected.probabilities)
    return float(error.max()), float(error.mean(dtype=np.float64))


def _judge_truth(outcome: _Outcome, gate: Gate) -> None:
    """Mean Dice against truth per region: the artefact's must be nearly that of fp32."""
    scored = [record["dice_to_truth"] for record in outcome.cases if "dice_to_truth" in record]
    if not scored:
        return
    for name in scored[0]["fp32"]:
        fp32 = float(np.mean([record["fp32"][name] for record in scored]))
        artefact = float(np.mean([record["artefact"][name] for record in scored]))
        if artefact < gate.truth * fp32:
            outcome.reasons.append(
                f"mean Dice of {name} against truth is {artefact:.4f} < {gate.truth} x {fp32:.4f}"
            )


def _overflow(candidate: Candidate, gate: Gate) -> list[str]:
    """Why the range of fp16 does not suffice, by the first tensor that leaves its margin; empty if
    it does.
    """
    limit = gate.peak * FP16_MAX
    return [
        f"tensor {name} reaches {value:.3g} in fp16, over the margin of {limit:.0f}"
        for name, value in candidate.peaks.items()
        if not value < limit
    ][:1]
