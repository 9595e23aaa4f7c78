"""From a checkpoint, or from a model directory that was exported elsewhere, to what is released."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, get_args

import onnx

from export.build import GRAPHS, Built, file_of
from export.calibrate import CalibrationCases, apart_from, calibrate
from export.engines import EngineSource
from export.half_weights import is_halved, restore_weights
from export.int8_search import int8_gate, quantize_until_it_passes
from export.mixed_precision import Reduction, reduce_until_it_passes
from export.parity import Candidate, CaseList, Gate, Reference, certify, with_entry
from export.precision import Reduced
from export.up_branch import UpBranch
from runtime.engine import ENGINES
from runtime.errors import BratsError, InputError
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP32, ONNX_INT8, ModelDir, sha256_of

Told = Callable[[str], None]
"""told(line): what is about to be done, which may take minutes."""


@dataclass(frozen=True)
class Parity:
    """How everything that is produced is judged.

    Attributes:
        reference: fp32, its predictions kept.
        cases: read once.
        gate: what must be kept.
        source: where the cases come from, for the record.
        told: is told of what takes long.
    """

    reference: Reference
    cases: CaseList
    gate: Gate
    source: str
    told: Told

    def certify(self, candidates: Iterable[Candidate]) -> dict[str, Any]:
        """The certificate of some candidates, which names what they were compared with."""
        return certify(self.reference, tuple(candidates), self.cases, self.gate, self.source)


@dataclass
class Product:
    """What is to be released, as it grows.

    Attributes:
        card: the contract.
        files: name to bytes, without card, certificate and manifest.
        certificate: content of parity.json.
        sources: graphs that engines can be built from.
        notes: what a person should know.
        undecided_before: whether the model was released, by wish, although its certificate could
            not decide.
    """

    card: ModelCard
    files: dict[str, bytes]
    certificate: dict[str, Any]
    sources: list[EngineSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    undecided_before: bool = False

    def other_terms(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """What an entry has to say of how it was judged, because the graphs were judged otherwise:
        as where something is added to a model that was exported elsewhere.

        Args:
            found: the certificate that the entry is from.
        """
        names = {"reference": "reference", "source": "source", "gate": "gate", "cases": "inputs"}
        return {
            there: found[name]
            for name, there in names.items()
            if found[name] != self.certificate.get(name)
        }

    def cover(self, entry: Mapping[str, Any]) -> None:
        """Add an entry to the certificate, whose verdict is that of all its entries."""
        self.certificate = with_entry(self.certificate, entry)

    def refuse(self, entry: Mapping[str, Any]) -> None:
        """Record that one backend must not run a file that others may."""
        refused = [*self.certificate.get("refused", ()), dict(entry)]
        self.certificate = {**self.certificate, "refused": refused}
        self.notes.append(
            f"{entry['file']}: not to be run by {entry['backend']} on {entry['device']}: "
            f"{entry['reasons'][0]}"
        )

    def forget(self, names: Collection[str]) -> None:
        """Drop files, and what the certificate says of them: it judges what is released."""
        for name in names:
            self.files.pop(name, None)
        entries = self.certificate["artefacts"]
        self.certificate = {**self.certificate, "artefacts": []}
        for entry in entries:
            if entry["file"] not in names:
                self.cover(entry)


@dataclass(frozen=True)
class Reductions:
    """Which graphs in reduced precision are wanted.

    Attributes:
        kinds: "fp16", "bf16" or both.
        strict: keep no part in fp32.
        on_gpu: makes a backend that runs an ONNX file on the GPU at hand, so that the certificate
            covers that too; None without one.
        calibration: what an int8 graph is calibrated on; None where none is wanted.
        threads: CPU threads that it is judged with; None means all cores.
    """

    kinds: tuple[Reduced, ...] = ()
    strict: bool = False
    on_gpu: Callable[[bytes, str, str], Any] | None = None
    calibration: CalibrationCases | None = None
    threads: int | None = None


def from_network(built: Built, card: ModelCard, parity: Parity, wanted: Reductions) -> Product:
    """Certify model.onnx, and reduce it as far as the gate lets it be.

    Args:
        built: the fp32 graphs.
        card: the contract.
        parity: reference, cases and gate.
        wanted: precisions.

    Returns:
        A product whose certificate may have failed: `release` decides. Forms of a graph other than
        "k4", which only engines are built from, are left out where they fail, with a note.
    """
    parity.told(f"parity of {ONNX_FP32}")
    candidates = list(built.candidates)
    product = Product(card, {}, parity.certify(candidates))
    _close(candidates)
    for form, data in built.data.items():
        file = file_of("fp32", form)
        failed = [
            entry
            for entry in product.certificate["artefacts"]
            if entry["file"] == file and entry["verdict"] == "fail"
        ]
        if failed and form != "k4":
            product.notes.append(_left_out(file, failed[0]))
            product.forget([file])
            continue
        product.files[file] = data
        product.sources.append(EngineSource(file, data, "fp32", form))
    _certify_on_gpu(
        product, EngineSource(ONNX_FP32, built.data["k4"], "fp32", "k4"), parity, wanted
    )
    for kind in wanted.kinds:
        for form, graph in built.graphs.items():
            _reduce(product, graph, kind, form, parity, wanted)
    _quantize(product, built.graphs["k4"], parity, wanted)
    return product


def add_reduced(product: Product, parity: Parity, wanted: Reductions) -> None:
    """Add graphs in reduced precision to a model that was exported without them.

    They are made of model.onnx, so that the up branches are composed as they are there; where one
    fails, so does the certificate.
    """
    graph = restore_weights(onnx.load_model_from_string(product.files[ONNX_FP32]))
    for kind in wanted.kinds:
        if GRAPHS[kind] not in product.files:
            _reduce(product, graph, kind, "k4", parity, wanted)
    if ONNX_INT8 not in product.files:
        _quantize(product, graph, parity, wanted)


def _quantize(product: Product, graph: onnx.ModelProto, parity: Parity, wanted: Reductions) -> None:
    """Add an int8 graph, judged by a gate of its own on cases that it was not calibrated on."""
    if wanted.calibration is None:
        return

    def told(line: str) -> None:
        parity.told(f"{ONNX_INT8}: {line}")

    calibration = calibrate(graph, product.card, wanted.calibration, told)
    cases = parity.cases
    if not wanted.calibration.shared:
        cases = CaseList(apart_from(cases, calibration.cases))
    own = replace(parity, cases=cases, gate=int8_gate(parity.gate))
    quantized = quantize_until_it_passes(
        graph, own.reference, own.cases, own.gate, calibration, wanted.threads, told
    )
    terms = product.other_terms(own.certify(()))
    for entry in quantized.entries:
        product.cover({**entry, **terms})
    product.files[ONNX_INT8] = quantized.data


def _reduce(
    product: Product,
    graph: onnx.ModelProto,
    kind: Reduced,
    form: UpBranch,
    parity: Parity,
    wanted: Reductions,
) -> None:
    file = file_of(kind, form)
    reduced = reduce_until_it_passes(
        graph,
        parity.reference,
        parity.cases,
        parity.gate,
        Reduction(file, kind, wanted.strict, form),
        lambda line: parity.told(f"{file}: {line}"),
    )
    failed = reduced.entry["verdict"] == "fail"
    if failed and form != "k4":
        product.notes.append(_left_out(file, reduced.entry))
        return
    judged = parity.certify(())
    product.cover({**reduced.entry, **product.other_terms(judged)})
    product.files[file] = reduced.data
    if failed:
        return
    source = EngineSource(file, reduced.data, kind, form)
    product.sources.append(source)
    if form == "k4":
        _certify_on_gpu(product, source, parity, wanted)


def _certify_on_gpu(
    product: Product, source: EngineSource, parity: Parity, wanted: Reductions
) -> None:
    """Certify a graph on ONNX Runtime on the GPU too, where that runs it.

    Engines need only TensorRT, and a CPU neither: a graph that fails here is released all the same
    and recorded as refused, so that ONNX Runtime does not run it on a GPU.
    """
    if wanted.on_gpu is None:
        return
    parity.told(f"parity of {source.file} on the GPU")
    try:
        backend = wanted.on_gpu(source.data, source.file, source.precision)
    except BratsError as error:
        product.notes.append(
            f"{source.file}: not certified with ONNX Runtime on the GPU: {error.found}"
        )
        return
    candidate = Candidate(
        source.file,
        sha256_of(source.data),
        backend,
        f"{source.precision} by cuDNN",
        reduced=source.precision != "fp32" or is_halved(source.data),
        up_branch=source.up_branch,
    )
    (entry,) = parity.certify([candidate])["artefacts"]
    _close([candidate])
    if entry["verdict"] == "fail":
        product.refuse(entry)
    else:
        product.cover(entry)


def _left_out(file: str, entry: Mapping[str, Any]) -> str:
    return f"{file}: left out, as it fails the parity gate: {entry['reasons'][0]}"


def from_model(model: ModelDir) -> Product:
    """What an exported model holds, so that engines can be added.

    Raises:
        InputError: a file is missing or changed, or the model holds no graph.
    """
    if ONNX_FP32 not in model.hashes:
        raise InputError(
            model.path / ONNX_FP32,
            found="no such file in the manifest",
            expected="the fp32 graph, which engines are compared with",
            remedy="export the model again from its checkpoint",
        )
    files = {
        name: model.read(name)
        for name in sorted(model.hashes)
        if name.endswith(".onnx") or PurePosixPath(name).parts[0] == ENGINES
    }
    sources = [
        EngineSource(file_of(precision, form), files[file_of(precision, form)], precision, form)
        for precision in GRAPHS
        for form in get_args(UpBranch)
        if file_of(precision, form) in files and model.verdict(file_of(precision, form)) != "fail"
    ]
    undecided = model.certificate.get("allow_inconclusive") is True
    return Product(model.card, files, dict(model.certificate), sources, undecided_before=undecided)


def _close(candidates: Iterable[Candidate]) -> None:
    for candidate in candidates:
        candidate.backend.close()
