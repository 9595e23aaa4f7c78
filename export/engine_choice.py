"""Which engines are released: for each precision the fastest that passes the parity gate on the
device itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from export.build import GRAPHS
from export.engine import BuildProgress
from export.engines import (
    Engine,
    EngineDevice,
    EngineOptions,
    EngineSource,
    Failure,
    info_of,
    open_engine,
    try_engines,
)
from export.half_weights import is_halved
from export.parity import Candidate
from export.produce import Parity, Product
from export.up_branch import UpBranch
from runtime.engine import ENGINES, EnginePrecision, EngineRecord
from runtime.model_dir import ONNX_INT8

_ORDER: Final[tuple[EnginePrecision, ...]] = ("fp16", "bf16", "fp32")


@dataclass
class EngineChoice:
    """What came of the engines for one device.

    Attributes:
        timing_cache: for the next build.
        chosen: certificate entries of the engines that joined the product, by precision.
        rejected: those of the fastest engine of each precision of which none passed.
        tried: for parity.json, every engine that was built, the fastest of a precision first.
        failures: what could not be built or run.
    """

    timing_cache: bytes | None
    chosen: dict[EnginePrecision, dict[str, Any]] = field(default_factory=dict)
    rejected: dict[EnginePrecision, dict[str, Any]] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def undecided(self) -> bool:
        """Whether the cases could not decide on an engine that was chosen."""
        return any(entry["verdict"] != "pass" for entry in self.chosen.values())

    def record(self, device: EngineDevice) -> dict[str, Any]:
        """For parity.json: what was tried, how fast it was, what was chosen."""
        return {
            "gpu": device.gpu.name,
            "library": str(device.tensorrt),
            "tried": self.tried,
            "unusable": [
                {
                    "file": failure.source.file,
                    "input_layout": failure.input_layout,
                    "reason": failure.reason,
                }
                for failure in self.failures
            ],
        }


def add_engines(
    product: Product,
    device: EngineDevice,
    options: EngineOptions,
    parity: Parity,
    timing_cache: bytes | None = None,
    progress: BuildProgress | None = None,
) -> EngineChoice:
    """Build engines for the device at hand, time them, and add the fastest that passes the gate,
    for each precision of the product.

    The reduced precisions come first; the form of the graph that won there is tried first for fp32,
    which serves as the spare and is not worth timing every form. An engine takes the place of those
    that the same TensorRT built for the same kind of GPU in the same precision; engines of other
    machines stay, and so does an earlier one where none passes now.

    Args:
        product: gets plans, records and their certificates.
        device: to build for.
        options: of the builder.
        parity: reference, cases and gate.
        timing_cache: of an earlier build.
        progress: is told of the builder's phases.
    """
    choice = EngineChoice(timing_cache)
    winner: UpBranch | None = None
    for precision in _ORDER:
        for sources in _rounds(product, precision, winner):
            if precision in choice.chosen:
                break
            tried = try_engines(
                sources, product.card, device, options, choice.timing_cache, progress, parity.told
            )
            choice.timing_cache = tried.timing_cache
            choice.failures += tried.failures
            for engine in tried.engines:
                entry = None
                if precision not in choice.chosen:
                    entry = _certified(product, engine, device, parity)
                    _judge(product, choice, engine, entry)
                    if entry["verdict"] != "fail":
                        winner = winner or engine.source.up_branch
                choice.tried.append(_summary(engine, entry))
    product.certificate = {**product.certificate, "engines": choice.record(device)}
    return choice


def _rounds(
    product: Product, precision: EnginePrecision, winner: UpBranch | None
) -> list[list[EngineSource]]:
    """Graphs to try together, and what to try only where none of them will do."""
    sources = [source for source in product.sources if source.precision == precision]
    first = [source for source in sources if source.up_branch == winner]
    if precision != "fp32" or not first:
        return [sources] if sources else []
    rest = [source for source in sources if source.up_branch != winner]
    return [first, rest] if rest else [first]


def _judge(product: Product, choice: EngineChoice, engine: Engine, entry: dict[str, Any]) -> None:
    precision = engine.source.precision
    if entry["verdict"] == "fail":
        choice.rejected.setdefault(precision, entry)
        product.notes.append(f"{engine.title}: not used: {entry['reasons'][0]}")
        return
    choice.chosen[precision] = entry
    choice.rejected.pop(precision, None)
    _add(product, engine, entry)


def drop_unused_forms(product: Product) -> None:
    """Take out the forms of a graph that no engine was built from; model.onnx and its like stay."""
    used = {record.source for record in _records(product)} | {*GRAPHS.values(), ONNX_INT8}
    product.forget([name for name in product.files if name.endswith(".onnx") and name not in used])


def _certified(
    product: Product, engine: Engine, device: EngineDevice, parity: Parity
) -> dict[str, Any]:
    """The certificate entry of an engine: what it was built from, and what it was compared with."""
    parity.told(f"parity of the engine: {engine.title}")
    info = info_of(engine.record, device)
    key = engine.record.key
    backend = open_engine(engine.plan, product.card, info, key, device.tensorrt)
    candidate = Candidate(
        key.plan,
        engine.record.sha256,
        backend,
        f"{key.precision} on {device.gpu.name}",
        reduced=key.precision != "fp32" or is_halved(engine.source.data),
        up_branch=engine.source.up_branch,
    )
    with closing(backend):
        found = parity.certify([candidate])
    (entry,) = found["artefacts"]
    entry["built_from"] = engine.source.file
    entry["reference"] = found["reference"]
    entry |= product.other_terms(found)
    for one in product.certificate["artefacts"]:
        if one["file"] == engine.source.file and "kept" in one:
            entry["kept"] = one["kept"]
    return dict(entry)


def _add(product: Product, engine: Engine, entry: Mapping[str, Any]) -> None:
    new = engine.record.key
    earlier = [
        record.key
        for record in _records(product)
        if (record.key.gpu, record.key.flavour, record.key.version, record.key.precision)
        == (new.gpu, new.flavour, new.version, new.precision)
    ]
    product.forget([name for key in earlier for name in (key.plan, key.record)])
    product.files[new.plan] = engine.plan
    product.files[new.record] = engine.record.to_json().encode()
    product.cover(entry)


def _records(product: Product) -> Iterator[EngineRecord]:
    for name, data in product.files.items():
        if PurePosixPath(name).parts[0] == ENGINES and name.endswith(".json"):
            yield EngineRecord.from_json(data.decode("utf-8", "replace"), name)


def _summary(engine: Engine, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    verdict = "" if entry is None else entry["verdict"]
    return {
        "engine": engine.title,
        "file": engine.source.file,
        "precision": engine.source.precision,
        "up_branch": engine.source.up_branch,
        "input_layout": engine.record.key.input_layout,
        "window_ms": round(1e3 * engine.window_seconds, 4),
        "build_s": round(engine.record.seconds, 2),
        "bytes": engine.record.bytes,
        "verdict": verdict,
        "reasons": [] if entry is None else entry["reasons"],
        "warnings": list(engine.warnings),
        "chosen": verdict in ("pass", "inconclusive"),
    }
