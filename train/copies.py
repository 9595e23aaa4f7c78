"""The same images under two names, found in seconds: before anything is prepared from them."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Final

from runtime.case import Case
from runtime.errors import InputError

# From the middle of a file, where a volume's brain is.
_SAMPLE: Final = 1 << 16


def check_copies(cases: Sequence[Case], excluded: Sequence[Case] = ()) -> None:
    """Refuse cases whose files are those of another case, byte for byte.

    Few files are read: only where all sizes are another case's too a sample of one file, and only
    where that is the same as well the whole of them. Images that are the same but stored in another
    way are found when they have been prepared (`cached` and `check_held_out_images` of
    `train.data`).

    Args:
        cases: to train and to validate on.
        excluded: held out: none of them may be among ``cases`` under another name. One that cannot
            be read is passed over.

    Raises:
        InputError: names both cases; or one of ``cases`` cannot be read.
    """
    held_out = {case.case_id for case in excluded}
    alike = _alike([*cases, *excluded], _sizes, held_out)
    for group in alike:
        for again in _alike(group, _sample, held_out):
            for same in _alike(again, _digests, held_out):
                raise _error(same, held_out)


def same_images(case: Case, other: str) -> InputError:
    """The error of a case whose images are those of the case ``other``."""
    return InputError(
        case.folder,
        found=f"the images of case {case.case_id} are those of case {other}",
        expected="each case once",
        remedy="remove one of the two from the data, or exclude both "
        f"(add {other},{case.case_id} to --exclude)",
    )


def held_out_images(case: Case, excluded: str) -> InputError:
    """The error of a case whose images are those of the case ``excluded``."""
    return InputError(
        case.folder,
        found=f"the images of case {case.case_id} are those of {excluded}, which is excluded",
        expected="nothing of what is held out",
        remedy=f"exclude both (add {case.case_id} to --exclude), or remove one of the two from the "
        "data",
    )


def digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _files(case: Case) -> dict[str, Path]:
    """Those of the images, by modality; a 4D file stands under each."""
    return {name: source.path for name, source in case.images.items()}


def _sizes(case: Case) -> Hashable:
    return tuple((name, _size(path)) for name, path in _files(case).items())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _sample(case: Case) -> Hashable:
    path = next(iter(_files(case).values()))
    try:
        with path.open("rb") as file:
            file.seek(max(0, (path.stat().st_size - _SAMPLE) // 2))
            return file.read(_SAMPLE)
    except OSError as error:
        raise _unreadable(path, error) from error


def _digests(case: Case) -> Hashable:
    files = _files(case)
    digests = {path: digest(path) for path in files.values()}
    return tuple((name, digests[path]) for name, path in files.items())


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        path,
        found=error.strerror or type(error).__name__,
        expected="a readable file",
        remedy="check the path and its permissions",
    )


def _error(same: Sequence[Case], held_out: set[str]) -> InputError:
    used = [case for case in same if case.case_id not in held_out]
    if len(used) > 1:
        return same_images(used[1], used[0].case_id)
    name = next(case.case_id for case in same if case.case_id in held_out)
    return held_out_images(used[0], name)


def _alike(
    cases: Iterable[Case], trait: Callable[[Case], Hashable], held_out: set[str]
) -> list[list[Case]]:
    """Groups of two cases or more with the same trait, one of them not held out at least."""
    groups: dict[Hashable, list[Case]] = defaultdict(list)
    for case in cases:
        try:
            groups[trait(case)].append(case)
        except InputError:
            if case.case_id not in held_out:
                raise
    return [
        group
        for group in groups.values()
        if len(group) > 1 and not held_out.issuperset(case.case_id for case in group)
    ]
