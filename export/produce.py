"""From a checkpoint, or from a model directory that was exported elsewhere, to what is released."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, get_args

import onnx

from export.build import GRAPHS, Built, file_of
from export.engines import EngineSource
from export.mixed_precision import Reduction, reduce_until_it_passes
from export.parity import Candidate, CaseList, Gate, Reference, certify, with_entry
from export.precision import Reduced
from export.up_branch import UpBranch
from runtime.engine import ENGINES
from runtime.errors import InputError
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP32, ModelDir, sha256_of

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
        """The certificate of some candidates."""
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
    """

    card: ModelCard
    files: dict[str, bytes]
    certificate: dict[str, Any]
    sources: list[EngineSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reductions:
    """Which graphs in reduced precision are wanted.

    Attributes:
        kinds: "fp16", "bf16" or both.
        strict: keep no part in fp32.
        on_gpu: makes a backend that runs an ONNX file on the GPU at hand, so that the certificate
            covers that too; None without one.
    """

    kinds: tuple[Reduced, ...] = ()
    strict: bool = False
    on_gpu: Callable[[bytes, str, str], Any] | None = None


def from_network(built: Built, card: ModelCard, parity: Parity, wanted: Reductions) -> Product:
    """Certify model.onnx, and reduce it as far as the gate lets it be.

    Args:
        built: the fp32 graphs.
        card: the contract.
        parity: reference, cases and gate.
        wanted: precisions.

    Returns:
        A product whose certificate may have failed: `release` decides.
    """
    parity.told("parity of model.onnx")
    candidates = list(built.candidates)
    if wanted.on_gpu is not None:
        candidates.append(_on_gpu(built.data["k4"], ONNX_FP32, "fp32", wanted.on_gpu))
    certificate = parity.certify(candidates)
    _close(candidates)
    product = Product(card, {}, certificate)
    for form, data in built.data.items():
        product.files[file_of("fp32", form)] = data
        product.sources.append(EngineSource(file_of("fp32", form), data, "fp32", form))
    for kind in wanted.kinds:
        for form, graph in built.graphs.items():
            _reduce(product, graph, kind, form, parity, wanted)
    return product


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
    product.certificate = with_entry(product.certificate, reduced.entry)
    product.files[file] = reduced.data
    product.sources.append(EngineSource(file, reduced.data, kind, form))
    if wanted.on_gpu is not None and form == "k4" and reduced.entry["verdict"] != "fail":
        parity.told(f"{file}: on the GPU")
        candidate = _on_gpu(reduced.data, file, kind, wanted.on_gpu)
        found = parity.certify([candidate])
        _close([candidate])
        product.certificate = with_entry(product.certificate, found["artefacts"][0])


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
    return Product(model.card, files, dict(model.certificate), sources)


def _on_gpu(data: bytes, file: str, precision: str, open_on_gpu: Any) -> Candidate:
    return Candidate(
        file,
        sha256_of(data),
        open_on_gpu(data, file, precision),
        f"{precision} by cuDNN",
        reduced=precision != "fp32",
        up_branch="k4",
    )


def _close(candidates: Iterable[Candidate]) -> None:
    for candidate in candidates:
        candidate.backend.close()
