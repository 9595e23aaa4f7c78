"""What a TensorRT engine is: its key, the record beside its plan, and which one may run here.

An engine runs only where it was built: the same ONNX model, the same TensorRT, the same kind of
GPU. All of that is its key, its name is the hash of its key, and the record beside the plan holds
the key in full. This module needs no TensorRT.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from runtime.backends.driver import Gpu
from runtime.backends.tensorrt_library import Flavour, title
from runtime.bounded import parse_json
from runtime.errors import BackendUnavailableError, InputError
from runtime.model_card import Shape3
from runtime.model_dir import ModelDir, Verdict

ENGINE_SCHEMA: Final = 1
ENGINES: Final = "engines"
"""Folder of the model directory that holds ``<key>.plan`` and ``<key>.json``."""

EnginePrecision = Literal["fp32", "fp16", "bf16"]
InputLayout = Literal["linear", "dhwc8"]
"""How the engine takes its input: "linear" is float32 (N, C, X, Y, Z); "dhwc8" is float16 in
memory (N, X, Y, Z, 8), the channels padded to 8 with zeros.
"""

_NAME_DIGITS: Final = 16
_SHOWN: Final = 4
_BEST_FIRST: Final[tuple[Verdict, ...]] = ("pass", "inconclusive", "none", "fail")


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine accepts.

    Attributes:
        window: the one spatial shape (X, Y, Z), voxels.
        min_batch: fewest windows at a time.
        opt_batch: the number it is tuned for.
        max_batch: most windows at a time; a static batch where it equals ``min_batch``.

    Raises:
        ValueError: not 1 <= min <= opt <= max, or a size below 1.
    """

    window: Shape3
    min_batch: int
    opt_batch: int
    max_batch: int

    def __post_init__(self) -> None:
        if len(self.window) != 3 or min(self.window) < 1:
            raise ValueError(f"window {self.window}")
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(f"batch {self.min_batch}, {self.opt_batch}, {self.max_batch}")

    @property
    def static(self) -> bool:
        """Whether only one batch size is accepted."""
        return self.min_batch == self.max_batch


@dataclass(frozen=True)
class EngineKey:
    """All that a plan depends on.

    Attributes:
        onnx_sha256: hex SHA-256 of the ONNX file that it was built from.
        flavour: which TensorRT built it.
        version: of that TensorRT, in full.
        gpu: the device that it is for.
        precision: that of the graph.
        profile: shapes that it accepts.
        input_layout: see `InputLayout`.
    """

    onnx_sha256: str
    flavour: Flavour
    version: str
    gpu: Gpu
    precision: EnginePrecision
    profile: Profile
    input_layout: InputLayout

    @property
    def name(self) -> str:
        """First 16 hex digits of the SHA-256 of the key's JSON: sorted keys, no blanks, ASCII."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:_NAME_DIGITS]

    @property
    def plan(self) -> str:
        """The plan's name in a model directory."""
        return f"{ENGINES}/{self.name}.plan"

    @property
    def record(self) -> str:
        """The record's name in a model directory."""
        return f"{ENGINES}/{self.name}.json"


@dataclass(frozen=True)
class EngineRecord:
    """A plan's key, its hash, and how it was built.

    Attributes:
        key: all that the plan depends on.
        source: name of the ONNX file in the model directory.
        up_branch: form of the graph's up branches.
        sha256: hex, of the plan.
        bytes: size of the plan.
        seconds: that the build took.
        level: the builder's optimisation level, 0 to 5.
        workspace_bytes: device memory that the builder was allowed per layer.
        schema: version of this record.
    """

    key: EngineKey
    source: str
    up_branch: str
    sha256: str
    bytes: int
    seconds: float
    level: int
    workspace_bytes: int
    schema: int = ENGINE_SCHEMA

    def to_json(self) -> str:
        """The record as indented JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> "EngineRecord":
        """Read a record back.

        Args:
            text: what `to_json` wrote.
            where: the file it came from, for errors.

        Raises:
            InputError: not a record, of another schema, with unknown or missing fields, values
                of another type or out of range.
        """
        try:
            return _record(parse_json(text))
        except (ValueError, TypeError) as error:
            raise _unusable(where, f"an unreadable engine record ({error})") from error


def read_records(model: ModelDir) -> tuple[EngineRecord, ...]:
    """Every engine that the manifest lists, in the order of their names.

    Raises:
        InputError: a record is unreadable, is not under its key's name or has no plan; a plan
            has no record, or is not the one that its record describes.
    """
    records = []
    for name in sorted(name for name in model.hashes if name.startswith(f"{ENGINES}/")):
        stem, _, kind = name.rpartition(".")
        partner = f"{stem}.{'plan' if kind == 'json' else 'json'}"
        if kind not in ("json", "plan") or partner not in model.hashes:
            raise _unusable(model.path / name, f"no {partner} beside it")
        if not (model.path / partner).is_file():
            raise _unusable(model.path / partner, "no such file")
        if kind == "plan":
            continue
        text = model.read(name).decode("utf-8", "replace")
        record = EngineRecord.from_json(text, model.path / name)
        if record.key.record != name:
            raise _unusable(model.path / name, f"the record of {record.key.name}")
        if record.sha256 != model.hashes[record.key.plan]:
            raise _unusable(model.path / partner, "a plan other than its record describes")
        records.append(record)
    return tuple(records)


@dataclass(frozen=True)
class _Wanted:
    flavour: Flavour
    version: str
    gpu: Gpu
    precision: EnginePrecision
    window: Shape3 | None


def find_engine(
    model: ModelDir,
    library_flavour: Flavour,
    library_version: str,
    gpu: Gpu,
    precision: EnginePrecision,
    window: Shape3 | None = None,
) -> EngineRecord:
    """The engine of a model directory that runs here.

    Of several, one with a better certificate comes first, then one for the card's own patch, then
    one that takes more windows at a time, then the first by name.

    Args:
        model: an opened model directory.
        library_flavour, library_version: of the TensorRT that is here.
        gpu: the device.
        precision: arithmetic asked for.
        window: spatial shape (X, Y, Z) in voxels; None where any will do.

    Returns:
        A record; ``model.read(record.key.plan)`` gives the plan, verified. Whether its certificate
        suffices is the caller's decision: ``model.verdict(record.key.plan)``.

    Raises:
        BackendUnavailableError: no engine is for this ONNX model, TensorRT, GPU, precision and
            window; says what there is instead.
        InputError: an engine of the directory is incomplete, changed or mislabelled.
    """
    wanted = _Wanted(library_flavour, library_version, gpu, precision, window)
    records = read_records(model)
    matching = [record for record in records if not _differences(model, record, wanted)]
    if not matching:
        raise _no_engine(model, records, wanted)
    return min(
        matching,
        key=lambda record: (
            _BEST_FIRST.index(model.verdict(record.key.plan)),
            record.key.profile.window != model.card.patch,
            -record.key.profile.max_batch,
            record.key.name,
        ),
    )


def _differences(model: ModelDir, record: EngineRecord, wanted: _Wanted) -> dict[str, str]:
    """What keeps an engine from running here, each as words: what it is for -> what is wanted."""
    key = record.key
    pairs: list[tuple[str, str]] = [
        (_gpu_words(key.gpu, wanted.gpu), _gpu_words(wanted.gpu, key.gpu)),
        (f"{title(key.flavour)} {key.version}", f"{title(wanted.flavour)} {wanted.version}"),
        (key.precision, wanted.precision),
    ]
    if wanted.window is not None:
        there, here = ("x".join(map(str, one)) for one in (key.profile.window, wanted.window))
        pairs.append((f"window {there}", f"window {here}"))
    if model.hashes.get(record.source) != key.onnx_sha256:
        pairs.append((f"another {record.source}", f"the {record.source} that is here"))
    return {has: wants for has, wants in pairs if has != wants}


def _gpu_words(gpu: Gpu, other: Gpu) -> str:
    """The name alone where it tells two devices apart."""
    return gpu.name if gpu.name != other.name else str(gpu)


def _no_engine(
    model: ModelDir, records: tuple[EngineRecord, ...], wanted: _Wanted
) -> BackendUnavailableError:
    differences = [_differences(model, record, wanted) for record in records]
    # A dict keeps the order and drops what several engines share.
    there = list(dict.fromkeys(f"an engine for {', '.join(one)}" for one in differences))
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    here = dict.fromkeys(words for one in differences for words in one.values())
    everything = (wanted.gpu.name, f"{title(wanted.flavour)} {wanted.version}", wanted.precision)
    return BackendUnavailableError(
        model.path / ENGINES,
        found="; ".join(there[:_SHOWN]) + more if there else "no engine",
        expected=f"one for {', '.join(here or everything)}",
        remedy=f"build one here with brats-export {shlex.quote(str(model.path))}",
    )


def _record(value: Any) -> EngineRecord:
    record = _object(value, EngineRecord, "record")
    _whole(record["schema"], "schema", ENGINE_SCHEMA, ENGINE_SCHEMA)
    key = _object(record["key"], EngineKey, "key")
    gpu = _object(key["gpu"], Gpu, "gpu")
    profile = _object(key["profile"], Profile, "profile")
    window = profile["window"]
    if not isinstance(window, list) or len(window) != 3:
        raise ValueError(f"window {window!r}")
    x, y, z = (_whole(size, "window", 1) for size in window)
    batches = [_whole(profile[name], name, 1) for name in ("min_batch", "opt_batch", "max_batch")]
    seconds = record["seconds"]
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds {seconds!r}")
    return EngineRecord(
        key=EngineKey(
            onnx_sha256=_matching(key["onnx_sha256"], "onnx_sha256", "[0-9a-f]{64}"),
            flavour=_one_of(key["flavour"], "flavour", get_args(Flavour)),
            version=_matching(key["version"], "version", r"\S+"),
            gpu=Gpu(
                _matching(gpu["name"], "name", ".+"),
                _matching(gpu["compute_capability"], "compute_capability", r"\d+\.\d+"),
            ),
            precision=_one_of(key["precision"], "precision", get_args(EnginePrecision)),
            profile=Profile((x, y, z), *batches),
            input_layout=_one_of(key["input_layout"], "input_layout", get_args(InputLayout)),
        ),
        source=_matching(record["source"], "source", r"[^/\\]+"),
        up_branch=_matching(record["up_branch"], "up_branch", ".+"),
        sha256=_matching(record["sha256"], "sha256", "[0-9a-f]{64}"),
        bytes=_whole(record["bytes"], "bytes", 1),
        seconds=float(seconds),
        level=_whole(record["level"], "level", 0, 5),
        workspace_bytes=_whole(record["workspace_bytes"], "workspace_bytes", 1),
    )


def _object(value: Any, kind: type[Any], what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a {what} that is not an object")
    known = {item.name for item in fields(kind)}
    for wrong, names in (("unknown", set(value) - known), ("missing", known - set(value))):
        if names:
            raise ValueError(f"{wrong} field {min(names)}")
    return value


def _whole(value: Any, name: str, least: int, most: float = math.inf) -> int:
    # JSON's true and 1.0 are not whole numbers, whatever Python thinks of the first.
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} {value!r}")
    return value


def _matching(value: Any, name: str, pattern: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{name} {value!r}")
    return value


def _one_of(value: Any, name: str, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} {value!r}")
    return value


def _unusable(where: str | Path, found: str) -> InputError:
    return InputError(
        where,
        found=found,
        expected=f"an engine of schema {ENGINE_SCHEMA} as brats-export wrote it",
        remedy="copy the model directory again or build the engine again with brats-export",
    )
