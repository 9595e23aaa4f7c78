"""File names of cases: walked, told apart from others, and split into prefix and token."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUFFIXES: Final = (".nii.gz", ".nii")


@dataclass(frozen=True)
class NamedFile:
    """A file name taken apart: ``prefix`` + separator + ``token``."""

    path: Path
    prefix: str
    separator: str
    token: str


def files_below(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """Files below ``folder`` that are not hidden; links to folders are followed, once each."""
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(where))
        yield from (Path(where, name) for name in names if not name.startswith("."))
        folders[:] = [
            name
            for name in folders
            if recursive
            and not name.startswith(".")
            and os.path.realpath(Path(where, name)) not in seen
        ]


def stem_of(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    name = path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def take_apart(path: Path) -> NamedFile:
    """Split at the last underscore or hyphen: X_flair, X-t2f, X_0000, flair."""
    stem = stem_of(path)
    match = re.fullmatch(r"(?:(.*)([_-]))?([^_-]+)", stem, re.DOTALL)
    if match is None:
        return NamedFile(path, stem, "", "")
    return NamedFile(path, match[1] or "", match[2] or "", match[3].lower())


def is_nifti(path: Path) -> bool:
    """Whether the name, which is not hidden, ends as a NIfTI file's does."""
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def is_channel(named: NamedFile) -> bool:
    """Whether the token is a channel number of nnU-Net's."""
    return named.separator == "_" and re.fullmatch(r"\d{4}", named.token) is not None
