"""Find the files of a case by name, in every naming dialect of BraTS, never by order."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from runtime.errors import InputError, UsageError
from runtime.labels import MODALITIES, Convention
from runtime.naming import (
    LABEL_TOKENS,
    NamedFile,
    check_four_d,
    files_below,
    is_channel,
    is_nifti,
    label_beside,
    modality_first,
    stem_of,
    take_apart,
)

_NAMES_OF_2023: Final = frozenset({"t2f", "t1n", "t1c", "t2w"})


class Dialect(StrEnum):
    """How the files of a case are named."""

    BRATS2018 = "brats2018"  # X_flair.nii.gz, BraTS 2018 to 2021
    BRATS2023 = "brats2023"  # X-t2f.nii.gz, BraTS 2023 and later
    BARE = "bare"  # flair.nii.gz or t2f.nii.gz
    MSD = "msd"  # one 4D file and a dataset.json
    NNUNET = "nnunet"  # X_0000.nii.gz and a dataset.json
    MODALITY_FIRST = "modality-first"  # Flair_brain.nii.gz, T1c_brain.nii.gz: the folder is X


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


def find_cases(
    root: Path,
    channels: Sequence[str] | None = None,
    problems: list[InputError] | None = None,
) -> list[Case]:
    """All cases below ``root``, at any depth, sorted by case id.

    Args:
        root: a folder of cases, a case folder, or one 4D file.
        channels: modality of each channel for files that do not name theirs.
        problems: takes the errors of single cases and folders, which are then left out; None raises
            the first.

    Raises:
        InputError: nothing found, a folder that cannot be listed, a doubled modality, or one case
            id twice.
        UsageError: as for `Case.from_dir`; with ``problems`` only where it is all there is to say.
    """
    cases = _cases_in(root, channels, recursive=True, problems=problems)
    if not cases and not problems:
        raise InputError(
            root,
            found="no MR images in it" if root.exists() else "nothing",
            expected="BraTS cases such as X/X_flair.nii.gz",
            remedy="check the path; hidden files and names without a modality are not considered",
        )
    seen: dict[str, Case] = {}
    for case in cases:
        if case.case_id in seen:
            error = InputError(
                case.folder,
                found=f"case {case.case_id} once more (first in {seen[case.case_id].folder})",
                expected="each case once",
                remedy="remove or rename one of the two",
            )
            if problems is None:
                raise error
            problems.append(error)
        else:
            seen[case.case_id] = case
    return list(seen.values())


def holds_images(directory: Path) -> bool:
    """Whether MR images of some case lie in ``directory`` itself."""
    if not directory.is_dir():
        return False
    paths = [path for path in directory.iterdir() if is_nifti(path)]
    names = (take_apart(path) for path in paths)
    return any(name.token in ALIASES or is_channel(name) for name in names) or bool(
        modality_first(paths)
    )


def _listed(cases: Sequence[Case]) -> str:
    if not cases:
        return "no MR images"
    shown = ", ".join(case.case_id for case in cases[:3])
    return f"{len(cases)} cases ({shown}{', ...' if len(cases) > 3 else ''})"


def _cases_in(
    root: Path,
    channels: Sequence[str] | None,
    *,
    recursive: bool,
    problems: list[InputError] | None = None,
) -> list[Case]:
    if channels is not None:
        channels = resolve_channels("--channels", channels)
    root = Path(os.path.abspath(root))
    if not root.exists():
        raise InputError(root, found="nothing", expected="a case", remedy="check the path")
    if root.is_file():
        check_four_d(root)
        return [_four_d_case(root, channels)]
    # Not `Path.is_dir`, which raises where a folder may not be entered: listing it says so.
    parts = [root / name for name in ("imagesTr", "imagesTs") if os.path.isdir(root / name)]
    folders = parts or [root]
    cases: list[Case] = []
    unnamed: list[UsageError] = []
    for folder in folders:
        by_folder: dict[Path, list[Path]] = defaultdict(list)
        for path in sorted(files_below(folder, recursive=recursive, problems=problems)):
            if is_nifti(path):
                by_folder[path.parent].append(path)
        for parent, paths in by_folder.items():
            if parent.name in ("labelsTr", "labelsTs"):
                continue
            cases.extend(_group(parent, paths, channels, problems, unnamed))
    if unnamed and problems is not None:
        if not cases and not problems:
            raise unnamed[0]
        # Beside others that are sound, a stray numbered file is a bad case like any other.
        problems += [
            InputError(one.where, found=one.found, expected=one.expected, remedy=one.remedy)
            for one in unnamed
        ]
    return sorted(cases, key=lambda case: case.case_id)


def _group(
    folder: Path,
    paths: Sequence[Path],
    channels: Sequence[str] | None,
    problems: list[InputError] | None,
    unnamed: list[UsageError],
) -> list[Case]:
    """Cases among the files of one folder; what is neither modality nor label is not ours."""
    images: dict[str, list[NamedFile]] = defaultdict(list)
    labels: list[NamedFile] = []
    four_d: list[Path] = []
    for path in paths:
        named = take_apart(path)
        if named.token in ALIASES or is_channel(named):
            images[named.prefix].append(named)
        elif named.token in LABEL_TOKENS:
            labels.append(named)
        elif folder.name in ("imagesTr", "imagesTs"):
            four_d.append(path)
    cases: list[Case] = []
    for path in four_d:
        with _told(problems, unnamed):
            cases.append(_four_d_case(path, channels))
    if not images and not four_d and (leading := modality_first(paths)):
        images[""] = leading
    for prefix, files in images.items():
        own = [label for label in labels if label.prefix == prefix]
        if not own and len(images) == 1:
            # BraTS20_Training_355 carries its mask as W39_1998.09.19_Segm.nii. Only that odd name:
            # another case's X_seg must never become this one's truth.
            own = [label for label in labels if label.token == "segm"]
        with _told(problems, unnamed):
            if all(is_channel(file) for file in files):
                cases.append(_nnunet_case(folder, prefix, files, channels))
            else:
                case = _named_case(prefix or folder.resolve().name, files, own)
                if files[0].prefix != prefix:
                    # No BraTS names its files so: nothing is known of how labels are numbered.
                    case = replace(case, dialect=Dialect.MODALITY_FIRST, convention=None)
                cases.append(case)
    return cases


@contextmanager
def _told(problems: list[InputError] | None, unnamed: list[UsageError]) -> Iterator[None]:
    """Keep the error of one case from ending the others, where somebody takes it."""
    try:
        yield
    except InputError as error:
        if problems is None:
            raise
        problems.append(error)
    except UsageError as error:
        if problems is None:
            raise
        unnamed.append(error)


def _add(sources: dict[str, Source], modality: str, path: Path) -> None:
    if modality in sources:
        raise InputError(
            path,
            found=f"modality {modality} twice (also {sources[modality].path.name})",
            expected="each modality once",
            remedy="remove one of the two files",
        )
    sources[modality] = Source(path)


def _named_case(case_id: str, files: Sequence[NamedFile], labels: Sequence[NamedFile]) -> Case:
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
    dialect, convention = read_names(files)
    return Case(
        case_id=case_id,
        images={name: sources[name] for name in MODALITIES if name in sources},
        labels=labels[0].path if labels else None,
        dialect=dialect,
        convention=convention,
    )


def read_names(files: Sequence[NamedFile]) -> tuple[Dialect, Convention]:
    """How files that name their modality are named, and the numbering of labels that goes with it.

    Args:
        files: one at least; labels may be among them.
    """
    separator = files[0].separator
    if not separator:
        dialect = Dialect.BARE
    else:
        dialect = Dialect.BRATS2023 if separator == "-" else Dialect.BRATS2018
    modern = any(file.token in _NAMES_OF_2023 for file in files)
    return dialect, Convention.BRATS2023 if modern else Convention.BRATS2020


def _nnunet_case(
    folder: Path, prefix: str, files: list[NamedFile], channels: Sequence[str] | None
) -> Case:
    description = read_dataset_json(folder)
    names = dict(enumerate(channels or ())) or channel_names(description, folder, prefix)
    sources: dict[str, Source] = {}
    for file in files:
        number = int(file.token)
        if number not in names:
            raise InputError(
                file.path,
                found=f"channel {number}",
                expected="channel " + " or ".join(f"{key} ({names[key]})" for key in names),
                remedy="correct dataset.json or --channels",
            )
        _add(sources, names[number], file.path)
    return Case(
        case_id=prefix,
        images={name: sources[name] for name in MODALITIES if name in sources},
        labels=label_beside(folder, prefix),
        dialect=Dialect.NNUNET,
        convention=convention_of(description),
    )


def _four_d_case(path: Path, channels: Sequence[str] | None) -> Case:
    case_id = stem_of(path)
    description = read_dataset_json(path.parent)
    names = dict(enumerate(channels or ())) or channel_names(description, path, case_id)
    frames = {modality: number for number, modality in names.items()}
    return Case(
        case_id=case_id,
        images={name: Source(path, frames[name]) for name in MODALITIES if name in frames},
        labels=label_beside(path.parent, case_id),
        dialect=Dialect.MSD,
        convention=convention_of(description),
    )
