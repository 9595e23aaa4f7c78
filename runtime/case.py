"""Find the files of a case by name, in every naming dialect of BraTS, never by order."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from runtime.dataset_json import (
    ALIASES,
    channel_names,
    convention_of,
    read_dataset_json,
    resolve_channels,
)
from runtime.errors import InputError
from runtime.labels import MODALITIES, Convention

_LABEL_TOKENS: Final = frozenset({"seg", "segm", "label", "labels"})
_NAMES_OF_2023: Final = frozenset({"t2f", "t1n", "t1c", "t2w"})
_SUFFIXES: Final = (".nii.gz", ".nii")


class Dialect(StrEnum):
    """How the files of a case are named."""

    BRATS2018 = "brats2018"  # X_flair.nii.gz, BraTS 2018 to 2021
    BRATS2023 = "brats2023"  # X-t2f.nii.gz, BraTS 2023 and later
    BARE = "bare"  # flair.nii.gz or t2f.nii.gz
    MSD = "msd"  # one 4D file and a dataset.json
    NNUNET = "nnunet"  # X_0000.nii.gz and a dataset.json


@dataclass(frozen=True)
class Source:
    """Where one modality lies: a 3D file, or one index on the last axis of a 4D file."""

    path: Path
    channel: int | None = None


@dataclass(frozen=True)
class Case:
    """One patient visit's files.

    Attributes:
        case_id: the files' common name.
        images: modality (`MODALITIES` names) to its source; not necessarily all four.
        labels: the truth's label map, if there is one.
        dialect: how the files are named.
        convention: the labels' numbering that names and dataset.json imply; None where they
            leave it open.
    """

    case_id: str
    images: Mapping[str, Source]
    labels: Path | None = None
    dialect: Dialect = Dialect.BRATS2018
    convention: Convention | None = Convention.BRATS2020

    @property
    def folder(self) -> Path:
        """The directory that holds the images."""
        return next(iter(self.images.values())).path.parent

    @classmethod
    def from_dir(cls, directory: Path, channels: Sequence[str] | None = None) -> "Case":
        """The one case in ``directory`` (or the 4D file ``directory``).

        Args:
            directory: a case folder, or one 4D NIfTI file.
            channels: modality of each channel for files that do not name theirs.

        Raises:
            InputError: no case, more than one, a doubled modality, or files of different cases.
            UsageError: channels that only ``channels`` or a dataset.json could name.
        """
        cases = _cases_in(directory, channels, recursive=False)
        if len(cases) != 1:
            raise InputError(
                directory,
                found=_listed(cases),
                expected="one case, such as X_flair, X_t1, X_t1ce and X_t2 (.nii or .nii.gz)",
                remedy="give the folder that holds exactly one case",
            )
        return cases[0]


def find_cases(root: Path, channels: Sequence[str] | None = None) -> list[Case]:
    """All cases below ``root``, at any depth, sorted by case id.

    Args:
        root: a folder of cases, a case folder, or one 4D file.
        channels: modality of each channel for files that do not name theirs.

    Raises:
        InputError: nothing found, a doubled modality, or one case id twice.
        UsageError: as for `Case.from_dir`.
    """
    cases = _cases_in(root, channels, recursive=True)
    if not cases:
        raise InputError(
            root,
            found="no MR images in it" if root.exists() else "nothing",
            expected="BraTS cases such as X/X_flair.nii.gz",
            remedy="check the path; hidden files and names without a modality are not considered",
        )
    seen: dict[str, Case] = {}
    for case in cases:
        if case.case_id in seen:
            raise InputError(
                case.folder,
                found=f"case {case.case_id} once more (first in {seen[case.case_id].folder})",
                expected="each case once",
                remedy="remove or rename one of the two",
            )
        seen[case.case_id] = case
    return cases


def _listed(cases: Sequence[Case]) -> str:
    if not cases:
        return "no MR images"
    shown = ", ".join(case.case_id for case in cases[:3])
    return f"{len(cases)} cases ({shown}{', ...' if len(cases) > 3 else ''})"


@dataclass(frozen=True)
class _Named:
    """A file name taken apart: ``prefix`` + separator + ``token``."""

    path: Path
    prefix: str
    separator: str
    token: str


def _cases_in(root: Path, channels: Sequence[str] | None, *, recursive: bool) -> list[Case]:
    if channels is not None:
        channels = resolve_channels("--channels", channels)
    if not root.exists():
        raise InputError(root, found="nothing", expected="a case", remedy="check the path")
    if root.is_file():
        return [_four_d_case(root, channels)]
    if (root / "imagesTr").is_dir() or (root / "imagesTs").is_dir():
        folders = [folder for name in ("imagesTr", "imagesTs") if (folder := root / name).is_dir()]
    else:
        folders = [root]
    cases: list[Case] = []
    for folder in folders:
        by_folder: dict[Path, list[Path]] = defaultdict(list)
        for path in sorted(_files(folder, recursive=recursive)):
            if path.name.lower().endswith(_SUFFIXES):
                by_folder[path.parent].append(path)
        for parent, paths in by_folder.items():
            if parent.name in ("labelsTr", "labelsTs"):
                continue
            cases.extend(_group(parent, paths, channels))
    return sorted(cases, key=lambda case: case.case_id)


def _files(folder: Path, *, recursive: bool) -> Iterator[Path]:
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


def _stem(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _take_apart(path: Path) -> _Named:
    stem = _stem(path)
    match = re.fullmatch(r"(?:(.*)([_-]))?([^_-]+)", stem)
    if match is None:
        return _Named(path, stem, "", "")
    return _Named(path, match[1] or "", match[2] or "", match[3].lower())


def _group(folder: Path, paths: Iterable[Path], channels: Sequence[str] | None) -> list[Case]:
    """Cases among the files of one folder; what is neither modality nor label is not ours."""
    images: dict[str, list[_Named]] = defaultdict(list)
    labels: list[_Named] = []
    four_d: list[Path] = []
    for path in paths:
        named = _take_apart(path)
        if named.token in ALIASES or _is_channel(named):
            images[named.prefix].append(named)
        elif named.token in _LABEL_TOKENS:
            labels.append(named)
        elif folder.name in ("imagesTr", "imagesTs"):
            four_d.append(path)
    cases = [_four_d_case(path, channels) for path in four_d]
    for prefix, files in images.items():
        if all(_is_channel(file) for file in files):
            cases.append(_nnunet_case(folder, prefix, files, channels))
        else:
            own = [label for label in labels if label.prefix == prefix]
            # BraTS20_Training_355 carries its mask as W39_1998.09.19_Segm.nii.
            if not own and len(images) == 1:
                own = labels
            cases.append(_named_case(folder, prefix, files, own))
    return cases


def _is_channel(named: _Named) -> bool:
    return named.separator == "_" and re.fullmatch(r"\d{4}", named.token) is not None


def _add(sources: dict[str, Source], modality: str, path: Path) -> None:
    if modality in sources:
        raise InputError(
            path,
            found=f"modality {modality} twice (also {sources[modality].path.name})",
            expected="each modality once",
            remedy="remove one of the two files",
        )
    sources[modality] = Source(path)


def _named_case(folder: Path, prefix: str, files: list[_Named], labels: list[_Named]) -> Case:
    case_id = prefix or folder.resolve().name
    sources: dict[str, Source] = {}
    for file in files:
        modality = ALIASES.get(file.token)
        if modality is None:
            continue
        _add(sources, modality, file.path)
    if len(labels) > 1:
        raise InputError(
            labels[1].path,
            found=f"a second label map (also {labels[0].path.name})",
            expected="at most one",
            remedy="remove one of the two files",
        )
    modern = any(file.token in _NAMES_OF_2023 for file in files)
    separator = next(iter(files)).separator
    if not separator:
        dialect = Dialect.BARE
    else:
        dialect = Dialect.BRATS2023 if separator == "-" else Dialect.BRATS2018
    return Case(
        case_id=case_id,
        images={name: sources[name] for name in MODALITIES if name in sources},
        labels=labels[0].path if labels else None,
        dialect=dialect,
        convention=Convention.BRATS2023 if modern else Convention.BRATS2020,
    )


def _nnunet_case(
    folder: Path, prefix: str, files: list[_Named], channels: Sequence[str] | None
) -> Case:
    description = read_dataset_json(folder)
    names = channels or channel_names(description, folder, prefix)
    sources: dict[str, Source] = {}
    for file in files:
        index = int(file.token)
        if index >= len(names):
            raise InputError(
                file.path,
                found=f"channel {index}",
                expected=f"channels 0 to {len(names) - 1} ({', '.join(names)})",
                remedy="correct dataset.json or --channels",
            )
        modality = names[index]
        _add(sources, modality, file.path)
    return Case(
        case_id=prefix,
        images={name: sources[name] for name in MODALITIES if name in sources},
        labels=_label_beside(folder, prefix),
        dialect=Dialect.NNUNET,
        convention=convention_of(description),
    )


def _four_d_case(path: Path, channels: Sequence[str] | None) -> Case:
    case_id = _stem(path)
    description = read_dataset_json(path.parent)
    names = channels or channel_names(description, path, case_id)
    return Case(
        case_id=case_id,
        images={name: Source(path, names.index(name)) for name in MODALITIES if name in names},
        labels=_label_beside(path.parent, case_id),
        dialect=Dialect.MSD,
        convention=convention_of(description),
    )


def _label_beside(folder: Path, case_id: str) -> Path | None:
    sibling = folder.with_name(folder.name.replace("images", "labels"))
    for suffix in _SUFFIXES:
        path = sibling / f"{case_id}{suffix}"
        if sibling != folder and path.is_file():
            return path
    return None
