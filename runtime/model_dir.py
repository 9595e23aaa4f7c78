"""The model directory: card, ONNX models, engines, their hashes and their parity certificate."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from runtime.errors import InputError
from runtime.model_card import ModelCard

MANIFEST: Final = "manifest.json"
CARD: Final = "card.json"
PARITY: Final = "parity.json"
ONNX_FP32: Final = "model.onnx"
ONNX_FP16: Final = "model.fp16.onnx"
ONNX_BF16: Final = "model.bf16.onnx"
MANIFEST_SCHEMA: Final = 1
WRITTEN: Final = Path("model")
"""Where brats-export writes a model unless told otherwise."""
BUILT_IN: Final = Path(__file__).parent / "models" / "reference"
"""The reference model that is a part of this package, once one has been good enough."""
_FLAGS: Final = {ONNX_FP16: " --fp16", ONNX_BF16: " --bf16"}

Verdict = Literal["pass", "fail", "inconclusive", "none"]


def sha256_of(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class ModelDir:
    """An exported model whose manifest has been read; files are verified when their bytes are asked
    for.

    Attributes:
        path: the directory.
        card: the model's contract.
        hashes: file name to SHA-256, as the manifest says.
        certificate: content of parity.json.
    """

    path: Path
    card: ModelCard
    hashes: Mapping[str, str]
    certificate: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "ModelDir":
        """Read and verify manifest, card and certificate.

        Raises:
            InputError: the directory, its manifest or its card is missing, changed or of
                another schema.
        """
        if not path.is_dir():
            raise InputError(
                path,
                found="no such directory" if not path.exists() else "a file",
                expected="a model directory",
                remedy="write one with brats-export, or name another with --model",
            )
        manifest = _read_json(path / MANIFEST)
        files = manifest.get("files")
        if manifest.get("schema") != MANIFEST_SCHEMA or not isinstance(files, dict):
            raise _unusable(path / MANIFEST, f"schema {manifest.get('schema')!r}")
        try:
            hashes = {str(name): str(entry["sha256"]) for name, entry in files.items()}
        except (KeyError, TypeError) as error:
            raise _unusable(path / MANIFEST, "an entry without sha256") from error
        for needed in (CARD, PARITY):
            if needed not in hashes:
                raise _unusable(path / MANIFEST, f"no entry for {needed}")
        card = ModelCard.from_json(
            _verified(path, CARD, hashes).decode("utf-8", "replace"), path / CARD
        )
        certificate = _object(path / PARITY, _verified(path, PARITY, hashes))
        for part in ("artefacts", "refused"):
            listed = certificate.get(part, [])
            if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
                raise _unusable(path / PARITY, f"{part} that are not a list of objects")
        return cls(path, card, hashes, certificate)

    def read(self, name: str) -> bytes:
        """The bytes of a file of the manifest, after checking their SHA-256.

        Raises:
            InputError: not in the manifest, missing or changed.
        """
        if name not in self.hashes:
            raise InputError(
                self.path,
                found=f"no {name}",
                expected=f"one of {', '.join(sorted(self.hashes))}",
                remedy="export it with brats-export" + _FLAGS.get(name, ""),
            )
        return _verified(self.path, name, self.hashes)

    def verdict(self, name: str) -> Verdict:
        """What the certificate says of a file: the worst over the backends that ran these very
        bytes.
        """
        found: list[Verdict] = [
            entry.get("verdict", "fail")
            for entry in self.certificate.get("artefacts", [])
            if entry.get("file") == name and entry.get("sha256") == self.hashes.get(name)
        ]
        worst_first: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
        return next((verdict for verdict in worst_first if verdict in found), "none")

    def refused(self, name: str, backend: str) -> bool:
        """Whether the certificate says that these very bytes failed on a backend of a GPU, though
        others may run them.
        """
        return any(
            entry.get("file") == name
            and entry.get("sha256") == self.hashes.get(name)
            and entry.get("backend") == backend
            for entry in self.certificate.get("refused", ())
        )


def find_model(given: Path | None) -> ModelDir:
    """Open the model that is named; else ``model/``, where brats-export writes; else the one that
    is built in, where this package has one.

    Raises:
        InputError: that one cannot be used; no other takes its place.
    """
    if given is not None:
        return ModelDir.open(given)
    there = WRITTEN.exists() or WRITTEN.is_symlink() or not BUILT_IN.exists()
    return ModelDir.open(WRITTEN if there else BUILT_IN)


def foreign_files(directory: Path) -> list[str]:
    """Files in ``directory`` that its manifest does not name; all of them where it is not ours."""
    if not directory.is_dir():
        return []
    found = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    try:
        listed = _read_json(directory / MANIFEST)
    except InputError:
        return sorted(found)
    named = listed.get("files")
    if listed.get("schema") != MANIFEST_SCHEMA or not isinstance(named, dict) or CARD not in named:
        return sorted(found)
    return sorted(found - set(named) - {MANIFEST})


def manifest_of(directory: Path) -> dict[str, Any]:
    """The manifest of every file in ``directory``, by relative name."""
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            data = path.read_bytes()
            files[path.relative_to(directory).as_posix()] = {
                "sha256": sha256_of(data),
                "bytes": len(data),
            }
    return {"schema": MANIFEST_SCHEMA, "files": files}


def _verified(path: Path, name: str, hashes: Mapping[str, str]) -> bytes:
    file = path / name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _unusable(file, error.strerror or type(error).__name__) from error
    if sha256_of(data) != hashes[name]:
        raise _unusable(file, "content that differs from the manifest")
    return data


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unusable(path, error.strerror or type(error).__name__) from error
    return _object(path, data)


def _object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _unusable(path, f"invalid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _unusable(path, "JSON that is not an object")
    return value


def _unusable(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=found,
        expected="the file as brats-export wrote it",
        remedy="copy the model directory again or export the model again",
    )
