"""Which engines are released: for each precision the fastest that passes the parity gate on the
device itself.
"""

from contextlib import closing
from pathlib import PurePosixPath
from typing import Any, Final

from export.build import GRAPHS
from export.engine import BuildProgress
from export.engines import (
    Engine,
    EngineDevice,
    EngineOptions,
    info_of,
    open_engine,
    try_engines,
)
from export.parity import Candidate, with_entry
from export.produce import Parity, Product
from export.up_branch import UpBranch
from runtime.engine import ENGINES, EnginePrecision, EngineRecord

_ORDER: Final[tuple[EnginePrecision, ...]] = ("fp16", "bf16", "fp32")


def add_engines(
    product: Product,
    device: EngineDevice,
    options: EngineOptions,
    parity: Parity,
    timing_cache: bytes | None = None,
    progress: BuildProgress | None = None,
) -> bytes | None:
    """Build engines for the device at hand, time them, and add the fastest that passes the gate,
    for each precision of the product.

    The reduced precisions come first; the form of the graph that won there is tried first for fp32,
    which serves as the spare and is not worth timing every form.

    Args:
        product: gets plans, records, the ONNX files that they come from, and their certificates.
        device: to build for.
        options: of the builder.
        parity: reference, cases and gate.
        timing_cache: of an earlier build.
        progress: is told of the builder's phases.

    Returns:
        The timing cache for the next build.
    """
    _drop_engines_of(product, device)
    winner: UpBranch | None = None
    found: list[dict[str, Any]] = []
    for precision in _ORDER:
        sources = [source for source in product.sources if source.precision == precision]
        if precision == "fp32" and winner is not None:
            sources = [source for source in sources if source.up_branch == winner] or sources[:1]
        if not sources:
            continue
        parity.told(f"{precision} engines for {device.gpu.name}")
        tried = try_engines(sources, product.card, device, options, timing_cache, progress)
        timing_cache = tried.timing_cache
        product.notes += tried.failures
        for engine in tried.engines:
            entry = _certified(product, engine, device, parity)
            chosen = entry["verdict"] != "fail"
            found.append(_summary(engine, entry["verdict"], chosen))
            if chosen:
                winner = winner or engine.source.up_branch
                _add(product, engine, entry)
                break
            product.notes.append(f"{engine.title}: {entry['reasons'][0]}")
        found += [
            _summary(engine, "", False)
            for engine in tried.engines
            if engine.title not in {one["engine"] for one in found}
        ]
    _drop_unused(product)
    product.certificate["engines"] = {
        "gpu": device.gpu.name,
        "library": str(device.library),
        "tried": found,
    }
    return timing_cache


def _certified(
    product: Product, engine: Engine, device: EngineDevice, parity: Parity
) -> dict[str, Any]:
    parity.told(f"parity of {engine.title}")
    info = info_of(engine.record, device)
    key = engine.record.key
    backend = open_engine(engine.plan, product.card, info, key, device.library)
    candidate = Candidate(
        key.plan,
        engine.record.sha256,
        backend,
        f"{key.precision} on {device.gpu.name}",
        reduced=key.precision != "fp32",
        up_branch=engine.source.up_branch,
    )
    with closing(backend):
        found = parity.certify([candidate])
    entry: dict[str, Any] = found["artefacts"][0]
    entry["reference"] = found["reference"]
    return entry


def _add(product: Product, engine: Engine, entry: dict[str, Any]) -> None:
    record, source = engine.record, engine.source
    product.files[record.key.plan] = engine.plan
    product.files[record.key.record] = record.to_json().encode()
    product.files[source.file] = source.data
    product.certificate = with_entry(product.certificate, entry)


def _summary(engine: Engine, verdict: str, chosen: bool) -> dict[str, Any]:
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
        "chosen": chosen,
    }


def _drop_engines_of(product: Product, device: EngineDevice) -> None:
    """Take out what an earlier build for the same GPU and TensorRT has left; other machines'
    engines stay.
    """
    gone: set[str] = set()
    for name, data in product.files.items():
        if PurePosixPath(name).parts[0] != ENGINES or not name.endswith(".json"):
            continue
        key = EngineRecord.from_json(data.decode(), name).key
        if key.gpu == device.gpu and key.flavour == device.library.flavour:
            gone |= {key.plan, key.record}
    _forget(product, gone)


def _drop_unused(product: Product) -> None:
    """Take out graphs in other forms that no engine was built from."""
    used = {
        EngineRecord.from_json(data.decode(), name).source
        for name, data in product.files.items()
        if PurePosixPath(name).parts[0] == ENGINES and name.endswith(".json")
    }
    plain = set(GRAPHS.values())
    _forget(
        product,
        {
            name
            for name in product.files
            if name.endswith(".onnx") and name not in plain and name not in used
        },
    )


def _forget(product: Product, names: set[str]) -> None:
    for name in names:
        product.files.pop(name, None)
    entries = product.certificate["artefacts"]
    product.certificate["artefacts"] = [one for one in entries if one["file"] not in names]
