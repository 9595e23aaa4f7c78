"""File names of cases: walked, told apart from others, and split into prefix and token."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.dataset_json import ALIASES
from runtime.errors import InputError

LABEL_TOKENS: Final = frozenset({"seg", "segm", "label", "labels"})
"""What the name of a label map ends in."""
SUFFIXES: Final = (".nii.gz", ".nii")
# At the root of a disk, for root's eyes only: no cases lie in it.
_OF_THE_FILE_SYSTEM: Final = "lost+found"

# BraTS-GLI-00000-001 is the second visit of patient BraTS-GLI-00000, Brats18_CBICA_AAB_1 the first
# of Brats18_CBICA_AAB; the numbers of BraTS20_Training_001 and BraTS2021_00001 are patients.
_VISITS: Final = (
    re.compile(r"(BraTS-[A-Z-]+-\d{5})-\d{3}", re.IGNORECASE),
    re.compile(r"(BraTS1[789]_.+)_\d", re.IGNORECASE),
)


@dataclass(frozen=True)
class NamedFile:
    """A file name taken apart: ``prefix`` + separator + ``token``."""

    path: Path
    prefix: str
    separator: str
    token: str


def files_below(
    folder: Path, *, recursive: bool, problems: list[InputError] | None = None
) -> Iterator[Path]:
    """Files below ``folder`` that are not hidden; links to folders are followed, once each.

    Args:
        folder: where to begin.
        recursive: look into the folders in it as well.
        problems: takes the errors of folders that cannot be listed; None raises the first.

    Raises:
        InputError: a folder cannot be listed: what lies in it would be left out without a word.
    """
    seen: set[str] = set()

    def unlisted(error: OSError) -> None:
        problem = InputError(
            error.filename or folder,
            found=error.strerror or type(error).__name__,
            expected="a folder that can be listed",
            remedy="check its permissions and its disk, or move it away",
        )
        if problems is None:
            raise problem from error
        problems.append(problem)

    for where, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        seen.add(os.path.realpath(where))
        yield from (Path(where, name) for name in names if not name.startswith("."))
        folders[:] = [
            name
            for name in folders
            if recursive
            and not name.startswith(".")
            and name != _OF_THE_FILE_SYSTEM
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


def modality_first(paths: Iterable[Path]) -> list[NamedFile]:
    """Files that begin with their modality and all go on alike: T1c_brain, Flair_brain.

    Args:
        paths: NIfTI files of one folder, of which none ends in a modality.

    Returns:
        Those that begin with a modality, ``prefix`` being what follows it; none of them where one
        goes on in another way or all are of one modality: then the first word is no rule.
    """
    found: list[NamedFile] = []
    for path in paths:
        match = re.fullmatch(r"([^_-]+)([_-])(.+)", stem_of(path), re.DOTALL)
        if match and match[1].lower() in ALIASES and take_apart(path).token not in LABEL_TOKENS:
            found.append(NamedFile(path, match[3], match[2], match[1].lower()))
    alike = len({(file.separator, file.prefix) for file in found}) == 1
    return found if alike and len({ALIASES[file.token] for file in found}) > 1 else []


def patient_of(case_id: str) -> str:
    """The patient a case belongs to; the case itself where its name does not say."""
    for pattern in _VISITS:
        match = pattern.fullmatch(case_id)
        if match:
            return match[1]
    return case_id


def is_nifti(path: Path) -> bool:
    """Whether the name, which is not hidden, ends as a NIfTI file's does."""
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def is_channel(named: NamedFile) -> bool:
    """Whether the token is a channel number of nnU-Net's."""
    return named.separator == "_" and re.fullmatch(r"\d{4}", named.token) is not None


def check_four_d(path: Path) -> None:
    """Refuse a file that, by its name, is not all of a case.

    Raises:
        InputError: no NIfTI file, one modality, or a label map.
    """
    named = take_apart(path) if is_nifti(path) else None
    if named is None or named.token in ALIASES or named.token in LABEL_TOKENS:
        raise InputError(
            path,
            found="a file that is not a NIfTI" if named is None else f"one {named.token} file",
            expected="a case folder, or one 4D file with all modalities",
            remedy="give the folder in which the case's files lie",
        )


def label_beside(folder: Path, case_id: str) -> Path | None:
    """The label map, in labelsTr, of a case in imagesTr; also one that may not be looked at."""
    sibling = folder.with_name(folder.name.replace("images", "labels"))
    for suffix in SUFFIXES:
        path = sibling / f"{case_id}{suffix}"
        try:
            found = stat.S_ISREG(path.stat().st_mode)
        except OSError as error:
            found = error.errno not in (errno.ENOENT, errno.ENOTDIR)
        if sibling != folder and found:
            return path
    return None
