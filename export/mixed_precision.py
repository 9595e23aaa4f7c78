"""A graph in reduced precision that passes the parity gate: whatever loses too much in fp16 or bf16
stays in fp32, found by emulating mixed graphs on whole cases.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx

from export.bisect import EVALUATIONS, Judgement, Kept, find_kept
from export.emulate import FP16_MAX, EmulatedBackend, EmulatedGraph
from export.parity import Candidate, Gate, ParityCase, Reference, certify
from export.precision import Part, Reduced, parts, reduce
from runtime.backends import BackendInfo
from runtime.model_dir import sha256_of

_PASSED_ON: Final = ("Relu", "MaxPool", "Concat", "Reshape", "Transpose", "Slice")


@dataclass(frozen=True)
class Reduction:
    """What is to be made of a graph.

    Attributes:
        file: name of the artefact.
        kind: the type to compute in.
        strict: keep nothing in fp32, whatever the gate says.
        up_branch: form of the graph's up branches, for the record.
        evaluations: most graphs to judge.
    """

    file: str
    kind: Reduced = "fp16"
    strict: bool = False
    up_branch: str = ""
    evaluations: int = EVALUATIONS


@dataclass(frozen=True)
class ReducedModel:
    """A graph in reduced precision with its certificate.

    Attributes:
        model: the graph.
        data: the graph as it is to be stored.
        entry: its entry of parity.json, with the verdict and what is kept.
        kept: which parts are in fp32, and why.
    """

    model: onnx.ModelProto
    data: bytes
    entry: Mapping[str, Any]
    kept: Kept


def reduce_until_it_passes(
    model: onnx.ModelProto,
    reference: Reference,
    cases: Iterable[ParityCase],
    gate: Gate,
    options: Reduction,
    told: Callable[[str], None] = lambda line: None,
) -> ReducedModel:
    """Type a graph in reduced precision, with as few parts in fp32 as the gate allows.

    Args:
        model: fp32, as `export.fuse` leaves it.
        reference: fp32 PyTorch.
        cases: read once for each evaluation: a sequence or a `parity.CaseList`.
        gate: what must be kept. A verdict of "inconclusive" is no failure, and nothing is searched
            for.
        options: what is to be made.
        told: called with a line before each evaluation, which may take minutes.

    Returns:
        The graph whose certificate passes. Where that is not to be had, or ``options.strict`` asks
        for no search, the graph with nothing kept and its failed certificate, which says why; after
        a search it covers the cases up to the first that fails.
    """
    evaluation = _Evaluation(model, reference, cases, gate, options, told)
    names = [part.name for part in evaluation.parts]
    if options.strict:
        evaluation.judge(frozenset())
        kept = Kept((), evaluations=1)
    else:
        kept = find_kept(names, evaluation.judge, options.evaluations)
        if len(kept.parts) == len(names):
            kept = Kept((), kept.evaluations, gave_up=f"no part passes in {options.kind}")
    chosen = frozenset(part.part for part in kept.parts)
    entry = dict(evaluation.entries[chosen])
    if kept.gave_up:
        entry["reasons"] = [*entry["reasons"], f"bisection: {kept.gave_up}"]
    entry["kept"] = kept.record()
    reduced = evaluation.reduced(chosen)
    return ReducedModel(reduced, reduced.SerializeToString(), entry, kept)


class _Evaluation:
    """Judges mixed graphs by emulating them on whole cases; remembers their certificates."""

    def __init__(
        self,
        model: onnx.ModelProto,
        reference: Reference,
        cases: Iterable[ParityCase],
        gate: Gate,
        options: Reduction,
        told: Callable[[str], None],
    ) -> None:
        self.parts = parts(model)
        self.entries: dict[frozenset[str], dict[str, Any]] = {}
        self._model = model
        self._reference = reference
        self._cases = cases
        self._gate = gate
        self._options = options
        self._told = told

    def reduced(self, kept: frozenset[str]) -> onnx.ModelProto:
        nodes = [node for part in self.parts if part.name in kept for node in part.nodes]
        return reduce(self._model, self._options.kind, nodes)

    def judge(self, kept: frozenset[str]) -> Judgement:
        options = self._options
        self._told(
            f"evaluation {len(self.entries) + 1}: {options.kind}, "
            f"{len(kept)} of {len(self.parts)} parts in fp32"
        )
        model = self.reduced(kept)
        digest = sha256_of(model.SerializeToString())
        graph = EmulatedGraph(model)
        backend = EmulatedBackend(
            graph,
            self._reference.card,
            BackendInfo("emulation", "cpu", options.kind, options.file, digest),
        )
        candidate = Candidate(
            options.file,
            digest,
            backend,
            f"{options.kind} (emulated)",
            reduced=True,
            peaks=graph.peaks,
            up_branch=options.up_branch,
        )
        certificate = certify(
            self._reference,
            [candidate],
            self._cases,
            self._gate,
            "",
            stop_at_failure=not options.strict,
        )
        backend.close()
        (entry,) = certificate["artefacts"]
        self.entries[kept] = entry
        if entry["verdict"] != "fail":
            return Judgement(())
        limit = self._gate.peak * FP16_MAX
        return Judgement(
            tuple(entry["reasons"]), touching(self.parts, overflowing(model, graph.peaks, limit))
        )


def overflowing(model: onnx.ModelProto, peaks: Mapping[str, float], limit: float) -> frozenset[str]:
    """Tensors that leave the margin of fp16 by themselves, by their names in the fp32 graph.

    What is computed from an infinite value says nothing about its own layer. Where that value is
    only passed on, as by a Relu, the next layer still reads it.

    Args:
        model: as `precision.reduce` makes it.
        peaks: largest |value| of each fp16 tensor, as emulated.
        limit: largest value allowed.
    """
    found: set[str] = set()
    spoilt: set[str] = set()
    for node in model.graph.node:
        name = node.output[0]
        peak = peaks.get(name, 0.0)
        if node.op_type == "Shape":
            continue
        if spoilt.intersection(node.input):
            if node.op_type in _PASSED_ON and found.intersection(node.input) and not peak < limit:
                found.add(name)
            spoilt.add(name)
            continue
        if not peak < limit:
            found.add(node.input[0] if node.op_type == "Cast" else name)
        if not math.isfinite(peak):
            spoilt.add(name)
    return frozenset(found)


def touching(layers: Iterable[Part], tensors: frozenset[str]) -> frozenset[str]:
    """Names of the parts that make or read one of the tensors: a reader would need it cast."""
    return frozenset(part.name for part in layers if tensors.intersection(part.makes | part.reads))
