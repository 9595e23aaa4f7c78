"""Which cases a run may use: found, left out, held out, each once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.case import Case, Dialect, find_cases
from runtime.errors import InputError
from runtime.naming import patient_of
from train.split import Split

_SHOWN = 3


@dataclass(frozen=True)
class Found:
    """What lies below a data root; each tuple sorted by case id.

    Attributes:
        labelled: cases to train and to validate on.
        excluded: cases that are to be left out.
        unlabelled: cases of data sets that have no label map at all, left out as well.
    """

    labelled: tuple[Case, ...]
    excluded: tuple[Case, ...] = ()
    unlabelled: tuple[Case, ...] = ()

    def lines(self, root: str) -> list[str]:
        """What was found, and all that is left out, for people.

        Args:
            root: as the user named it.
        """
        text = [f"{_counted(self.labelled, 'labelled case')} in {root}"]
        for cases, kind in ((self.unlabelled, "without a label map"), (self.excluded, "excluded")):
            if cases:
                text.append(f"left out: {_counted(cases, 'case')} {kind} ({_named(cases)})")
        return text

    def split_line(self, split: Split) -> str:
        """How many cases train and validate, and which labelled ones do neither."""
        used = {*split.train, *split.validation}
        unused = [case for case in self.labelled if case.case_id not in used]
        text = f"{len(split.train)} train, {len(split.validation)} validate"
        return f"{text}; left out: {len(unused)} in neither ({_named(unused)})" if unused else text


def find_labelled(root: Path, channels: Sequence[str] = (), exclude: Sequence[str] = ()) -> Found:
    """Find the labelled cases below ``root`` except ``exclude``.

    Cases lie side by side in a data set's folder, or in folders that are named after their patients
    and lie there. Where none of a data set has a label map (BraTS ships its validation data so,
    beside the training data), it is not meant for training and is left out; where only some have
    none, something is missing.

    Raises:
        InputError: no case, an excluded id that is not there, no labelled case at all, or one
            without a label map among others that have theirs.
        UsageError: channels that nothing names.
    """
    cases = find_cases(root, channels or None)
    unknown = sorted(set(exclude) - {case.case_id for case in cases})
    if unknown:
        raise InputError(
            root,
            found=f"no case {unknown[0]}, which is to be excluded",
            expected=f"ids among its {len(cases)} cases, such as {cases[0].case_id}",
            remedy="correct split.exclude (--exclude)",
        )
    kept = [case for case in cases if case.case_id not in exclude]
    if not kept:
        raise InputError(
            root, found="every case excluded", expected="cases to train on", remedy="exclude fewer"
        )
    labelled = {_data_set(case) for case in kept if case.labels is not None}
    for case in kept:
        if case.labels is None and (not labelled or _data_set(case) in labelled):
            raise InputError(
                case.folder,
                found=f"case {case.case_id} without a label map",
                expected="the truth beside the images, such as X_seg.nii.gz",
                remedy="add it, or leave the case out with --exclude",
            )
    return Found(
        tuple(case for case in kept if case.labels is not None),
        tuple(case for case in cases if case.case_id in exclude),
        tuple(case for case in kept if case.labels is None),
    )


def find_split(root: Path, channels: Sequence[str], split: Split) -> Found:
    """Find the cases of a split below ``root``; whatever else has come to lie there is left out.

    Those that are not there are missing from the result.

    Raises:
        InputError: no case, or one of the split without a label map, there twice or damaged.
        UsageError: channels that nothing names.
    """
    wanted = {*split.train, *split.validation}
    problems: list[InputError] = []
    found = find_cases(root, channels or None, problems)
    # What is wrong with other cases is not this run's trouble.
    named = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in wanted))
    for problem in problems:
        if wanted and named.search(str(problem)):
            raise problem
    cases = [case for case in found if case.case_id in wanted]
    for case in cases:
        if case.labels is None:
            raise InputError(
                case.folder,
                found=f"case {case.case_id} without a label map",
                expected="the truth that it had when the run was begun",
                remedy="put it back, or begin another run",
            )
    return Found(tuple(cases))


def check_held_out(split: Split, excluded: Sequence[Case]) -> None:
    """Refuse a split that knows a patient who is held out by excluding one of the visits.

    What validates counts too: the best epoch and the thresholds are chosen by it. An excluded visit
    without a label map holds nothing out, and its patient's others may be used.

    Raises:
        InputError: names both cases.
    """
    held_out = {patient_of(case.case_id): case for case in excluded if case.labels is not None}
    for side, names in (("training", split.train), ("validation", split.validation)):
        for name in names:
            case = held_out.get(patient_of(name))
            if case is not None:
                raise InputError(
                    f"--exclude {case.case_id}",
                    found=f"{name} of the same patient in {side}",
                    expected="a patient held out with all visits",
                    remedy=f"exclude both (add {name} to --exclude), or neither",
                )


def _data_set(case: Case) -> Path:
    """The folder in which the case lies beside others of its data set."""
    if case.dialect in (Dialect.MSD, Dialect.NNUNET):
        return case.folder
    folder = case.folder.parent
    return folder.parent if folder.name == patient_of(case.case_id) else folder


def _counted(cases: Sequence[Case], what: str) -> str:
    return f"{len(cases)} {what}{'s' * (len(cases) != 1)}"


def _named(cases: Sequence[Case]) -> str:
    names = ", ".join(case.case_id for case in cases[:_SHOWN])
    return names + ", ..." * (len(cases) > _SHOWN)
