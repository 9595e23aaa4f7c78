"""The model directory: card, ONNX models, engines, their hashes and their parity certificate."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from runtime.atomic_directory import set_aside
from runtime.bounded import parse_json, words
from runtime.errors import InputError
from runtime.manifest import MANIFEST, Entry, listed_names, read_manifest, read_verified, unusable
from runtime.model_card import ModelCard
from runtime.onnx_bytes import check_onnx

CARD: Final = "card.json"
PARITY: Final = "parity.json"
ONNX_FP32: Final = "model.onnx"
ONNX_FP16: Final = "model.fp16.onnx"
ONNX_BF16: Final = "model.bf16.onnx"
ONNX_INT8: Final = "model.int8.onnx"
WRITTEN: Final = Path("model")
"""Where brats-export writes a model unless told otherwise."""
BUILT_IN: Final = Path(__file__).parent / "models" / "reference"
"""The reference model that is a part of this package, once one has been good enough."""
_FLAGS: Final = {ONNX_FP16: " --fp16", ONNX_BF16: " --bf16", ONNX_INT8: " --int8"}

Verdict = Literal["pass", "fail", "inconclusive", "none"]


def sha256_of(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class ModelDir:
    """An exported model whose manifest has been read; a file is verified when its bytes are asked
    for, and these bytes are what is used: no library of any backend is ever given a path.

    Attributes:
        path: the directory.
        card: the model's contract.
        hashes: file name to SHA-256, as the manifest says.
        sizes: file name to bytes, as the manifest says.
        certificate: content of parity.json.
    """

    path: Path
    card: ModelCard
    hashes: Mapping[str, str]
    sizes: Mapping[str, int]
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
        entries = read_manifest(path)
        for needed in (CARD, PARITY):
            if needed not in entries:
                raise unusable(path / MANIFEST, f"no entry for {needed}")
        card = ModelCard.from_json(
            read_verified(path, CARD, entries[CARD]).decode("utf-8", "replace"), path / CARD
        )
        certificate = _certificate(path / PARITY, read_verified(path, PARITY, entries[PARITY]))
        hashes = {name: entry.sha256 for name, entry in entries.items()}
        sizes = {name: entry.bytes for name, entry in entries.items()}
        return cls(path, card, hashes, sizes, certificate)

    def read(self, name: str) -> bytes:
        """The bytes of a file of the manifest, after checking their size and SHA-256; those of an
        ONNX model also hold this model's card and refer to nothing outside.

        Raises:
            InputError: not in the manifest, missing, changed, or not such a model.
        """
        if name not in self.hashes:
            raise InputError(
                self.path,
                found=f"no {name}",
                expected=f"one of {', '.join(sorted(self.hashes))}",
                remedy="export it with brats-export" + _FLAGS.get(name, ""),
            )
        data = read_verified(self.path, name, Entry(self.hashes[name], self.sizes[name]))
        if name.endswith(".onnx"):
            check_onnx(data, self.card, self.path / name)
        return data

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
    wanted = WRITTEN if given is None else given
    left = set_aside(wanted)
    if left is not None:
        raise InputError(
            wanted,
            found="an export that was killed while it replaced this model",
            expected="a model directory",
            remedy=f"run brats-export again, or rename {left.name} to {wanted.name}",
        )
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
    named = listed_names(directory)
    return sorted(found - named - {MANIFEST} if CARD in named else found)


def _certificate(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data)
    except ValueError as error:
        raise unusable(path, f"invalid JSON ({words(error)})") from error
    if not isinstance(value, dict):
        raise unusable(path, "JSON that is not an object")
    for part in ("artefacts", "refused", "modes"):
        listed = value.get(part, [])
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise unusable(path, f"{part} that are not a list of objects")
    return value
