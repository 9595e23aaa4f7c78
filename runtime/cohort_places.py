"""Whether a cohort's own files may take their places: whose is what lies there, of what cases."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.atomic import unwritable
from runtime.bounded import digest_of, read_json
from runtime.cohort_files import COLUMNS, FAILURES, OPENING, Names, seal_of
from runtime.errors import UsageError
from runtime.nifti import INTENT_NAME

_MARK: Final = b'<meta name="generator" content="' + INTENT_NAME.encode()
_JSON_BYTES: Final = 1 << 30
"""Of a cohort's record: a kilobyte for each of a million cases."""


@dataclass(frozen=True)
class Replacing:
    """What the user said of an earlier run's files.

    Attributes:
        overwrite: they may go, edited ones too.
        resume: this run goes on from it.
    """

    overwrite: bool = False
    resume: bool = False


def check_places(names: Names, cases: Collection[str], replacing: Replacing) -> list[str]:
    """Look at what lies where the files are to go, before hours are spent and right before they do.

    An earlier cohort's files give way where they are as they were written and all its cases are
    among those of this one; else the user has to say so.

    Args:
        names: where.
        cases: identifiers of all cases of this run.
        replacing: what the user said.

    Returns:
        Cases of the earlier cohort that the new files will not tell of, by their names.

    Raises:
        UsageError: a file is there that is not one of these, or that was edited; or cases of an
            earlier cohort would be told of no more.
        OutputError: it cannot be looked at.
    """
    try:
        earlier, edited = _record(names.record)
        if edited and not replacing.overwrite:
            raise _edited(names.record, "what brats-infer wrote")
        for path in reversed(names.all()):  # what vouches for the others first
            if path.exists():
                _check(path, names, earlier.get("files", {}), replacing)
    except OSError as error:
        raise unwritable(Path(error.filename or names.directory), error) from error
    told = {*earlier.get("results", {}), *(one["case_id"] for one in earlier.get("failures", []))}
    gone = sorted(told - {*cases, ""})
    if gone and not (replacing.overwrite or replacing.resume):
        count = f"{len(gone)} case{'s' * (len(gone) > 1)}"
        raise UsageError(
            names.record,
            found=f"the results of {count} that this run does not take, such as {gone[0]}",
            expected="no earlier cohort, or one whose cases are all among those of this run",
            remedy="choose another folder with -o, or replace its tables with --overwrite",
        )
    return gone


def _record(path: Path) -> tuple[dict[str, Any], bool]:
    """The earlier record, empty where there is none; and whether it was edited."""
    if not _starts(path, OPENING):
        return {}, False
    try:
        value: dict[str, Any] = read_json(path, _JSON_BYTES)
        shaped = (
            isinstance(value["files"], dict)
            and isinstance(value["results"], dict)
            and all(isinstance(one["case_id"], str) for one in value["failures"])
        )
        if not shaped:
            return {}, True
        sealed = value.pop("sha256", None)  # an earlier version wrote none
        return value, sealed is not None and sealed != seal_of(value)
    except (ValueError, KeyError, TypeError):
        return {}, True


def _check(path: Path, names: Names, vouched: dict[str, str], replacing: Replacing) -> None:
    if not path.is_file():
        raise _foreign(path)
    if path == names.record:
        if not _starts(path, OPENING):
            raise _foreign(path)
        return
    if path.name in vouched:
        if not replacing.overwrite and digest_of(path) != vouched[path.name]:
            raise _edited(path, f"the file that {names.record.name} names")
        return
    if not _is_ours(path):
        raise _foreign(path)
    if not (replacing.overwrite or replacing.resume):
        raise UsageError(
            path,
            found=f"a file of an earlier cohort that no {names.record.name} vouches for",
            expected="a free name",
            remedy="go on with that cohort by --resume, or replace it with --overwrite",
        )


def _is_ours(path: Path) -> bool:
    if path.suffix == ".html":
        with path.open("rb") as file:
            return _MARK in file.read(1024)
    columns = FAILURES if path.name.startswith("failures") else COLUMNS
    return _starts(path, ",".join(columns).encode() + b"\n")


def _starts(path: Path, text: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(text)) == text


def _foreign(path: Path) -> UsageError:
    return UsageError(
        path,
        found="a file that brats-infer did not write",
        expected="that name free for the cohort's own files",
        remedy="move it away, or choose another folder with -o",
    )


def _edited(path: Path, expected: str) -> UsageError:
    return UsageError(
        path,
        found="a file that was edited after brats-infer wrote it",
        expected=expected,
        remedy="move it away to keep it, or replace it with --overwrite",
    )
