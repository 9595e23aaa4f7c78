"""The manifest of a model directory: name, size and SHA-256 of every file, sealed by its own."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from runtime.bounded import MIB, parse_json, read_bounded, words
from runtime.errors import InputError

MANIFEST: Final = "manifest.json"
MANIFEST_SCHEMA: Final = 2

_EARLIER: Final = b'{\n  "schema": 1,'
_SEAL: Final = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES: Final = len(b',\n  "sha256": ""\n}\n') + 64
# Folders and files as this project names them: no way up or out, nothing hidden.
_NAME: Final = re.compile(r"(?:\w[\w.-]*/){0,3}\w[\w.-]*", re.ASCII)
_LONGEST: Final = 200
_LARGEST: Final = {".onnx": 2048 * MIB, ".plan": 8192 * MIB, "card.json": MIB, "engine": MIB}
_LARGEST_OTHER: Final = 64 * MIB


@dataclass(frozen=True)
class Entry:
    """A file of the manifest.

    Attributes:
        sha256: hex, of its content.
        bytes: its size.
    """

    sha256: str
    bytes: int


def manifest_of(directory: Path) -> bytes:
    """The manifest of every file in ``directory``, as it is to be written into it."""
    entries = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            data = path.read_bytes()
            name = path.relative_to(directory).as_posix()
            entries[name] = Entry(hashlib.sha256(data).hexdigest(), len(data))
    return _serialised(entries)


def read_manifest(directory: Path) -> dict[str, Entry]:
    """The files of a model directory by name, relative to it.

    The seal is checked before the JSON is read, and only the very bytes that `manifest_of` writes
    are accepted, so that there is no byte whose change goes unnoticed.

    Raises:
        InputError: missing, not a regular file, changed, or of another schema.
    """
    path = directory / MANIFEST
    data = _contained(directory, MANIFEST, MIB)
    if data.startswith(_EARLIER):
        raise InputError(
            path,
            found="schema 1, whose manifest does not vouch for itself",
            expected=f"schema {MANIFEST_SCHEMA}",
            remedy="export the model again with brats-export",
        )
    body, seal = data[:-_SEAL_BYTES], _SEAL.fullmatch(data[-_SEAL_BYTES:])
    if seal is None or hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise unusable(path, "content that differs from its own SHA-256")
    try:
        value = parse_json(data)
    except ValueError as error:
        raise unusable(path, f"invalid JSON ({words(error)})") from error
    if not isinstance(value, dict) or value.get("schema") != MANIFEST_SCHEMA:
        raise unusable(path, f"another schema than {MANIFEST_SCHEMA}")
    files = value.get("files")
    if not isinstance(files, dict):
        raise unusable(path, "no files")
    entries = {name: _entry(path, name, entry) for name, entry in files.items()}
    if _serialised(entries) != data:
        raise unusable(path, "JSON in another form than ours")
    return entries


def read_verified(directory: Path, name: str, entry: Entry) -> bytes:
    """The bytes of a file, once they are known to be those of its entry.

    Raises:
        InputError: missing, not a regular file, a link out of the directory, or changed; one of
            another size is not read.
    """
    data = _contained(directory, name, _largest(name), entry.bytes)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise unusable(directory / name, "content that differs from the manifest")
    return data


def listed_names(directory: Path) -> frozenset[str]:
    """Names in a manifest of ours of any schema, changed or not; none where it is not ours.

    For what may be replaced only: nothing is read on its word.
    """
    try:
        value = parse_json(_contained(directory, MANIFEST, MIB))
    except (InputError, ValueError):
        return frozenset()
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict) or value.get("schema") not in (1, MANIFEST_SCHEMA):
        return frozenset()
    return frozenset(files)


def unusable(path: Path, found: str) -> InputError:
    """The error of a file of a model directory in which ``found`` was found."""
    return InputError(
        path,
        found=found,
        expected="the file as brats-export wrote it",
        remedy="copy the model directory again or export the model again",
    )


def _serialised(entries: Mapping[str, Entry]) -> bytes:
    files = {name: asdict(entries[name]) for name in sorted(entries)}
    value = {"schema": MANIFEST_SCHEMA, "files": files}
    body = json.dumps(value, indent=2).encode("ascii").removesuffix(b"\n}")
    return body + b',\n  "sha256": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def _entry(path: Path, name: str, entry: object) -> Entry:
    if len(name) > _LONGEST or not _NAME.fullmatch(name) or name == MANIFEST:
        raise unusable(path, f"a name that no file of a model has ({name[:_LONGEST]!a})")
    if not isinstance(entry, dict) or entry.keys() != {"sha256", "bytes"}:
        raise unusable(path, f"an entry for {name} without sha256 and bytes")
    digest, size = entry["sha256"], entry["bytes"]
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise unusable(path, f"no SHA-256 for {name}")
    if type(size) is not int or not 0 <= size <= _largest(name):
        raise unusable(path, f"no size that {name} can have")
    return Entry(digest, size)


def _largest(name: str) -> int:
    if name.startswith("engines/") and name.endswith(".json"):
        return _LARGEST["engine"]
    return _LARGEST.get(name, _LARGEST.get(Path(name).suffix, _LARGEST_OTHER))


def _contained(directory: Path, name: str, at_most: int, exactly: int | None = None) -> bytes:
    """The bytes of a regular file that lies in ``directory``."""
    file = directory / name
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(directory)):
        raise unusable(file, "a link out of the model directory")
    try:
        return read_bounded(file, at_most, exactly)
    except (OSError, ValueError) as error:
        raise unusable(file, words(error)) from error
