"""Names of modalities, and what a dataset.json of MSD or nnU-Net says of channels and labels."""

import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from runtime.bounded import MIB, read_json, words
from runtime.errors import InputError, UsageError
from runtime.labels import MODALITIES, Convention

ALIASES: Final[Mapping[str, str]] = {
    **{name: name for name in MODALITIES},
    **dict.fromkeys(("t2f", "fla", "fl"), "flair"),
    **dict.fromkeys(("t1n", "t1w"), "t1"),
    **dict.fromkeys(("t1c", "t1gd"), "t1ce"),
    "t2w": "t2",
}
"""Every name of a modality in lower case, to ours."""


def read_dataset_json(folder: Path) -> Mapping[str, Any]:
    """The dataset.json in ``folder`` or beside it; empty if there is none."""
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                continue
            value = read_json(path, MIB)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise InputError(
                path,
                found=f"no readable JSON ({words(error)})",
                expected="a dataset.json",
                remedy="mend it",
            ) from error
        if isinstance(value, dict):
            return value
    return {}


def channel_names(description: Mapping[str, Any], where: Path, case_id: str) -> dict[int, str]:
    """Number of a file or a frame to modality, as a dataset.json says; numbers may be left out.

    Args:
        description: of `read_dataset_json`.
        where: the files, for the error.
        case_id: of the case, for the error.

    Raises:
        UsageError: it names no channels, or others than modalities.
        InputError: it says two things of one channel.
    """
    tables = [description.get(key) for key in ("channel_names", "modality")]
    numbered = [table for table in tables if table and _is_numbered(table)]
    table = tables[0] or tables[1]
    if not table or not _is_numbered(table):
        raise UsageError(
            where,
            found=f"numbered channels ({case_id}) and no dataset.json that names them",
            expected="a modality for each channel",
            remedy="name them in order, for example --channels flair,t1,t1ce,t2",
        )
    if any(len({int(key) for key in one}) < len(one) for one in numbered):
        raise _contradiction(where, "one channel twice")
    names = {int(key): str(table[key]) for key in sorted(table, key=int)}
    channels = dict(zip(names, resolve_channels(where, list(names.values())), strict=True))
    for key, name in ((key, name) for one in numbered for key, name in one.items()):
        number, modality = int(key), _modality(str(name))
        if modality and channels.get(number, modality) != modality:
            raise _contradiction(where, f"channel {number} as {channels[number]} and as {modality}")
        if modality in channels.values() and number not in channels:
            raise _contradiction(where, f"{modality} on two channels")
    return channels


def _contradiction(where: Path, found: str) -> InputError:
    return InputError(
        where,
        found=f"a dataset.json that names {found}",
        expected="one modality for each channel",
        remedy="correct it, or name the channels in order, such as --channels flair,t1,t1ce,t2",
    )


def resolve_channels(where: str | Path, names: Sequence[str]) -> list[str]:
    resolved = [_modality(name) for name in names]
    if "" in resolved or len(set(resolved)) != len(resolved):
        raise UsageError(
            where,
            found=f"channels {', '.join(names)}",
            expected=f"each a different one of {', '.join(MODALITIES)} or their aliases",
            remedy="name them in order, for example --channels flair,t1,t1ce,t2",
        )
    return resolved


def convention_of(description: Mapping[str, Any]) -> Convention | None:
    """What the label names of a dataset.json say, in MSD's form (value: name) or nnU-Net's (name:
    value).
    """
    table = description.get("labels")
    if not isinstance(table, dict):
        return None
    if any(isinstance(value, list) for value in table.values()):
        return _of_regions(table)
    names: dict[int, str] = {}
    for key, value in table.items():
        number, name = (key, value) if _is_number(key) else (value, key)
        if _is_number(number):
            names[int(number)] = str(name).lower()
    if not names:
        return None
    edema = [
        number for number, name in names.items() if "edema" in name or name in ("ed", "oedema")
    ]
    if edema == [1]:
        return Convention.MSD
    if edema == [2] and 4 in names:
        return Convention.BRATS2024 if 3 in names else Convention.BRATS2020
    if edema == [2]:
        return Convention.BRATS2023
    return None


def _modality(name: str) -> str:
    """Ours of a channel's name; empty where it is none."""
    return ALIASES.get(re.sub(r"[^a-z0-9]", "", name.lower()), "")


def _is_numbered(table: object) -> bool:
    return isinstance(table, dict) and all(_is_number(key) for key in table)


def _is_number(value: object) -> bool:
    """A number of a channel or a label; there are no thousands of either."""
    return re.fullmatch(r"[0-9]{1,3}", str(value)) is not None


def _of_regions(table: Mapping[str, Any]) -> Convention | None:
    """nnU-Net's region form: {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor":
    [3]}; a region of one label may be written as a plain number.
    """
    members = (value if isinstance(value, list) else [value] for value in table.values())
    if any(
        isinstance(value, dict | list) and any(isinstance(one, list | dict) for one in value)
        for value in table.values()
    ):
        return None
    sets = sorted((found for value in members if (found := set(value)) != {0}), key=len)
    if len(sets) != 3:
        return None
    enhancing, core, whole = sets
    edema = whole - core
    if enhancing == {3} and edema == {1}:
        return Convention.MSD
    if enhancing == {3} and edema == {2}:
        return Convention.BRATS2023
    if enhancing == {4} and edema == {2}:
        return Convention.BRATS2020
    return None
