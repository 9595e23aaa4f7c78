"""An int8 graph that passes the parity gate on every CPU backend: calibrated, run over whole cases,
with as few layers in fp32 as the gate allows.

Nothing is emulated: OpenVINO executes the convolutions of the graph in int8 on a CPU, which its
compiled model confirms, and ONNX Runtime executes them in fp32 on the same rounded values.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import onnx

from export.bisect import EVALUATIONS, Judgement, Kept, find_kept
from export.calibrate import Calibration
from export.cpu_backends import cpu_backends
from export.int8 import QUANTIZED, quantize
from export.parity import Candidate, Gate, ParityCase, Reference, certify
from export.precision import parts
from runtime.backends import Backend, BackendInfo
from runtime.model_dir import ONNX_INT8, sha256_of

# A step of int8 is 1/127 of a tensor's range; fp16's is 1/2048 of the value itself. Its label maps
# are other ones at every border, so that the gate asks what a user does: whether they are as good.
_DICE: Final = 0.98
_TRUTH: Final = 0.99
_CHANGED: Final = 0.03
INTEGERS: Final = ("u8", "i8")
"""What OpenVINO calls the types of a convolution in int8."""


def int8_gate(gate: Gate) -> Gate:
    """What an int8 graph must keep: mean Dice against truth per region at least 0.99 of fp32's (or
    what ``gate`` asks, if that is less), Dice to fp32 at least 0.98 per case and region, at most
    3% changed labels. What makes cases informative stays.
    """
    truth = min(gate.truth, _TRUTH)
    return replace(gate, dice=_DICE, truth=truth, changed_reduced=_CHANGED)


@dataclass(frozen=True)
class QuantizedModel:
    """An int8 graph with its certificates.

    Attributes:
        data: the graph as it is to be stored.
        entries: of parity.json, one for each backend that ran it.
        kept: which parts are in fp32, and why.
    """

    data: bytes
    entries: tuple[Mapping[str, Any], ...]
    kept: Kept


def quantize_until_it_passes(
    model: onnx.ModelProto,
    reference: Reference,
    cases: Iterable[ParityCase],
    gate: Gate,
    calibration: Calibration,
    threads: int | None = None,
    told: Callable[[str], None] = lambda line: None,
    evaluations: int = EVALUATIONS,
) -> QuantizedModel:
    """Quantise a graph, keeping in fp32 the layers without which the gate fails.

    Which these are is searched for on the fastest CPU backend here. The graph that is found is then
    certified on all of them.

    Args:
        model: fp32, as `export.fuse` leaves it.
        reference: fp32.
        cases: read once for each evaluation: a sequence or a `parity.CaseList`.
        gate: as `int8_gate` makes it. A verdict of "inconclusive" is no failure.
        calibration: limits of the activations.
        threads: for the backends; None means all cores.
        told: called with a line before each evaluation, which may take minutes.
        evaluations: most graphs to judge in the search.

    Returns:
        The graph whose certificates pass; where no part can be in int8, the graph with nothing kept
        and its failed certificate, which says why.
    """
    evaluation = _Evaluation(model, reference, cases, gate, calibration, threads, told)
    names = [part.name for part in evaluation.parts]
    kept = find_kept(names, evaluation.judge, evaluations)
    if len(kept.parts) == len(names):
        kept = Kept((), kept.evaluations, gave_up="no part passes in int8")
    chosen = frozenset(part.part for part in kept.parts)
    found = [evaluation.entries[chosen]]
    others = evaluation.runners[1:]
    if found[0]["verdict"] != "fail" and others:
        told(f"parity on {' and '.join(name for name, _ in others)}")
        found += [evaluation.certified(chosen, name, search=False) for name, _ in others]
    entries = []
    for entry in found:
        gave_up = [f"bisection: {kept.gave_up}"] if kept.gave_up else []
        entries.append(
            {
                **entry,
                "reasons": [*entry["reasons"], *gave_up],
                "kept": kept.record(),
                "calibration": calibration.record,
            }
        )
    return QuantizedModel(evaluation.data(chosen), tuple(entries), kept)


class _Evaluation:
    """Judges graphs by running them over whole cases; remembers their certificates."""

    def __init__(
        self,
        model: onnx.ModelProto,
        reference: Reference,
        cases: Iterable[ParityCase],
        gate: Gate,
        calibration: Calibration,
        threads: int | None,
        told: Callable[[str], None],
    ) -> None:
        # Only convolutions are quantised; what opens a part without one has nothing to keep.
        opening = {node.name for node in model.graph.node if node.op_type in QUANTIZED}
        self.parts = [part for part in parts(model) if opening.intersection(part.nodes)]
        self.runners = cpu_backends()
        self.entries: dict[frozenset[str], dict[str, Any]] = {}
        self._model = model
        self._reference = reference
        self._cases = cases
        self._gate = gate
        self._limits = calibration.limits
        self._threads = threads
        self._told = told

    def data(self, kept: frozenset[str]) -> bytes:
        nodes = [node for part in self.parts if part.name in kept for node in part.nodes]
        stored: bytes = quantize(self._model, self._limits, nodes).SerializeToString()
        return stored

    def judge(self, kept: frozenset[str]) -> Judgement:
        count = len(self.entries) + 1
        name = self.runners[0][0]
        self._told(f"evaluation {count} on {name}: {len(kept)} of {len(self.parts)} parts in fp32")
        entry = self.certified(kept, name, search=True)
        self.entries[kept] = entry
        return Judgement(tuple(entry["reasons"]) if entry["verdict"] == "fail" else ())

    def certified(self, kept: frozenset[str], name: str, *, search: bool) -> dict[str, Any]:
        """The entry of the graph with some parts kept, run by one of the backends."""
        data = self.data(kept)
        info = BackendInfo(name, "cpu", "int8", ONNX_INT8, sha256_of(data))
        card = self._reference.card
        backend = dict(self.runners)[name](data, card, info, self._threads)
        try:
            backend.bind(card.patch, 1)
            candidate = Candidate(
                ONNX_INT8, info.sha256, backend, arithmetic_of(backend), True, up_branch="k4"
            )
            certificate = certify(
                self._reference, [candidate], self._cases, self._gate, "", stop_at_failure=search
            )
        finally:
            backend.close()
        (entry,) = certificate["artefacts"]
        return dict(entry)


def arithmetic_of(backend: Backend) -> str:
    """What a backend executes of a Q/DQ graph, in words; it must be bound."""
    executed = getattr(backend, "convolutions", None)
    if executed is None:
        # ONNX Runtime has an int8 convolution, but takes it only where a tensor is quantised right
        # after the convolution, its bias too. Ours is rectified first.
        return "fp32, of values rounded to int8"
    counts: Mapping[str, int] = executed()
    integers = sum(counts.get(kind, 0) for kind in INTEGERS)
    return f"int8 in {integers} of {sum(counts.values())} convolutions, fp32 elsewhere"
