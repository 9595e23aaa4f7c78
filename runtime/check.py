"""The case doctor: read cases, say what is in them, and what would keep a model from using them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from runtime.case import Case
from runtime.doctor.dataset import compare
from runtime.doctor.examine import CaseReport, examine
from runtime.doctor.findings import Severity, error, in_short
from runtime.doctor.record import check_place, write_record
from runtime.doctor.view import CheckView
from runtime.errors import InputError
from runtime.labels import Convention
from runtime.model_card import ModelCard
from runtime.strangers import Strangers, set_apart

_NAMED: Final = 5


def check_cases(
    cases: Sequence[Case],
    console: Console,
    problems: Sequence[InputError] = (),
    convention: Convention | None = None,
    card: ModelCard | None = None,
    record: Path | None = None,
    force_spacing: bool = False,
) -> int:
    """Examine every case, one after the other, and print what was found.

    Args:
        cases: to be examined.
        console: where it is told; errors are told even where it is quiet.
        problems: cases that could not even be put together from their files.
        convention: of their label maps; None as each case says.
        card: of the model that they are meant for; None for none in particular.
        record: JSON file that takes everything; None for none.
        force_spacing: take a spacing that is not the model's, with a warning.

    Returns:
        0 if no case has an error.

    Raises:
        InputError: some case has an error; all have been told by then, and the record is written.
        UsageError, OutputError: the record cannot be written there (`doctor.record.check_place`).
    """
    if record is not None:
        check_place(record, cases)
    whole, strangers = set_apart(cases)
    view = CheckView(console, [case.case_id for case in whole])
    alone = len(problems) == 1 and not cases
    for problem in problems:
        if not alone:  # else the command ends with that very error
            view.problem(str(problem))
    reports: list[CaseReport] = []
    for one in strangers:
        reports.append(_unrelated(one, card, force_spacing))
        view.case(reports[-1])
    for case in whole:
        reports.append(examine(case, convention, card, force_spacing))
        view.case(reports[-1])
    findings = compare(reports)
    view.data_set(reports, len(problems), findings)
    if record is not None:
        write_record(record, reports, problems, findings)
    if alone:
        raise problems[0]
    bad = [
        f"{report.case.case_id} ({in_short(report.of(Severity.ERROR))})"
        for report in reports
        if not report.usable
    ]
    bad += [problem.where for problem in problems]
    if bad:
        count = len(reports) + len(problems)
        raise InputError(
            ", ".join(bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else ""),
            found=f"{len(bad)} of {count} cases that cannot be used",
            expected="none",
            remedy="mend what is named above",
        )
    return 0


def _unrelated(strangers: Strangers, card: ModelCard | None, force_spacing: bool) -> CaseReport:
    """What the files would be as one case, and that nothing says they are."""
    report = examine(strangers.as_one(), None, card, force_spacing)
    text = (
        f"names of different cases ({strangers.names()}); name them alike if they are one "
        "patient's, such as X_flair, X_t1, X_t1ce and X_t2, or give each patient a folder"
    )
    return replace(report, findings=(error("unrelated-names", text), *report.findings))
