"""Which cases train and which validate; visits of one patient never stand on both sides."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.naming import patient_of
from train.config import SplitConfig


@dataclass(frozen=True)
class Split:
    """Case ids, each tuple sorted, disjoint."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    excluded: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As stored in split.json, with a hash by which two runs can be told to share a split."""
        lists = self._lists()
        return {**lists, "sha256": self.digest()}

    def digest(self) -> str:
        """SHA-256 of the lists as compact JSON with sorted keys."""
        text = json.dumps(self._lists(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _lists(self) -> dict[str, list[str]]:
        return {
            "train": list(self.train),
            "validation": list(self.validation),
            "excluded": list(self.excluded),
        }


def make_split(case_ids: Sequence[str], config: SplitConfig, seed: int) -> Split:
    """Split ``case_ids``, from which the excluded ones have been taken already.

    A split.json wins over explicit lists, those over folds, and those over the fraction. Where only
    cases to train on are listed, all other patients validate, or nobody if the fraction is 0, and
    unlisted visits of the listed patients do neither; where only cases to validate on are listed,
    all others train. The fraction is of patients, at least one where it is not 0. Nothing depends
    on the order of ``case_ids``; visits of one patient stay together, in lists as well.

    Raises:
        InputError: a listed case is not there or on both sides, a patient is on both sides, there
            are fewer patients than folds, or no case is left to train on.
    """
    if config.file:
        split = read_split(Path(config.file))
        lists = SplitConfig(train_cases=split.train, validation_cases=split.validation)
        return _by_lists(case_ids, lists, config.exclude, config.file)
    if config.validation_cases or config.train_cases:
        validation = config.validation_cases
        if not validation and config.validation > 0:
            known = {patient_of(case_id) for case_id in config.train_cases}
            validation = tuple(name for name in sorted(case_ids) if patient_of(name) not in known)
        lists = SplitConfig(train_cases=config.train_cases, validation_cases=validation)
        return _by_lists(case_ids, lists, config.exclude, "split.train_cases")
    patients: dict[str, list[str]] = defaultdict(list)
    for case_id in sorted(case_ids):
        patients[patient_of(case_id)].append(case_id)
    names = list(patients)
    if config.folds:
        return _fold(patients, config, seed)
    count = max(1, round(config.validation * len(names))) if config.validation > 0 else 0
    if count >= len(names):
        raise _nothing_left("split.validation", len(case_ids))
    order = np.random.default_rng([seed, 0]).permutation(len(names))
    chosen = {names[index] for index in order[:count]}
    return Split(
        train=_members(patients, (name for name in names if name not in chosen)),
        validation=_members(patients, chosen),
        excluded=tuple(sorted(config.exclude)),
    )


def _fold(patients: Mapping[str, list[str]], config: SplitConfig, seed: int) -> Split:
    names = list(patients)
    if config.folds > len(names):
        raise InputError(
            "split.folds",
            found=f"{len(names)} patients for {config.folds} folds",
            expected="a patient for each fold",
            remedy="lower --folds, or add cases",
        )
    order = np.random.default_rng([seed, 0]).permutation(len(names))
    chosen = {names[index] for index in order[config.fold :: config.folds]}
    return Split(
        train=_members(patients, (name for name in names if name not in chosen)),
        validation=_members(patients, chosen),
        excluded=tuple(sorted(config.exclude)),
    )


def read_split(path: Path, remedy: str = "correct split.file (--split.file)") -> Split:
    """Read a split.json.

    Args:
        path: of the file.
        remedy: what can be done where it is missing or damaged.

    Raises:
        InputError: missing or not a split.
    """
    try:
        value = json.loads(path.read_text())
        split = Split(
            tuple(map(str, value["train"])),
            tuple(map(str, value["validation"])),
            tuple(map(str, value.get("excluded", ()))),
        )
        stored = value.get("sha256", split.digest())
        if not split.train:
            raise ValueError("no case to train on")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise InputError(
            path,
            found=f"no readable split ({why})",
            expected='a JSON object with lists "train" and "validation", as in a run directory',
            remedy=remedy,
        ) from error
    if stored != split.digest():
        raise InputError(
            path,
            found="lists that do not have the hash beside them",
            expected="a split as it was written",
            remedy="restore it, or remove its sha256 if it was changed on purpose",
        )
    return split


def _by_lists(
    case_ids: Sequence[str], lists: SplitConfig, exclude: Sequence[str], where: str
) -> Split:
    validation = set(lists.validation_cases)
    train = set(lists.train_cases) or set(case_ids) - validation
    for name in sorted(train | validation):
        if name not in case_ids:
            raise InputError(
                where,
                found=f"case {name}, which is not among the {len(case_ids)} cases",
                expected="ids of cases in the data root that are not excluded",
                remedy="correct the list or the data root",
            )
    both = sorted(train & validation)
    if both:
        raise InputError(
            where,
            found=f"case {both[0]} in training and in validation",
            expected="each case once",
            remedy="take it out of one of the lists",
        )
    shared = {patient_of(name) for name in train} & {patient_of(name) for name in validation}
    if shared:
        patient = min(shared)
        one, other = (
            min(name for name in side if patient_of(name) == patient)
            for side in (train, validation)
        )
        raise InputError(
            where,
            found=f"patient {patient} in training ({one}) and in validation ({other})",
            expected="all visits of a patient on one side",
            remedy="put both on one side",
        )
    if not train:
        raise _nothing_left(where, len(case_ids))
    return Split(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(exclude)))


def _members(patients: Mapping[str, list[str]], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(case_id for name in names for case_id in patients[name]))


def _nothing_left(where: str, cases: int) -> InputError:
    return InputError(
        where,
        found=f"{cases} case{'s' * (cases != 1)} and none left to train on",
        expected="two patients or more, or split.validation 0",
        remedy="add cases or lower split.validation",
    )
