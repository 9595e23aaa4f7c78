"""What `brats-infer --check --json FILE` writes."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from runtime import DISCLAIMER, __version__
from runtime.atomic import check_writable, sweep, unwritable, write_json
from runtime.bounded import read_json
from runtime.case import Case, holds_images
from runtime.doctor.dataset import totals
from runtime.doctor.examine import CaseReport
from runtime.doctor.findings import Finding
from runtime.doctor.images import Facts
from runtime.errors import InputError, OutputError, UsageError
from runtime.naming import is_nifti

SCHEMA: Final = 1
_COMMAND: Final = "brats-infer --check"


def check_place(path: Path, cases: Sequence[Case] = ()) -> None:
    """Look at the place of the record before any case is read, and remove what killed runs left
    half-written there.

    Args:
        path: of the record.
        cases: nothing is written into their folders.

    Raises:
        UsageError: a file that this command did not write lies there, the name is an image's or one
            that would describe a data set, or the place is inside the folder of a case.
        OutputError: it is a folder, or cannot be written.
    """
    # Not `Path.is_dir`, which raises where the system does not take the name: that is told below.
    if os.path.isdir(path):
        raise OutputError(
            path, found="a folder", expected="a name for a file", remedy="name a file in it"
        )
    if is_nifti(path) or path.name == "dataset.json":
        raise UsageError(
            path,
            found="a name that means something in a data set",
            expected="a name for the findings, such as check.json",
            remedy="choose another name",
        )
    target = Path(os.path.realpath(path.parent))
    folders = {
        Path(os.path.realpath(file.parent))
        for case in cases
        for file in (case.labels, *(source.path for source in case.images.values()))
        if file is not None
    }
    try:
        if not folders.isdisjoint((target, *target.parents)) or holds_images(target):
            raise UsageError(
                path,
                found="a place inside the folder of a case",
                expected="a name for the findings outside of the cases",
                remedy="choose another folder",
            )
        if path.exists() and not (path.is_file() and _is_ours(path)):
            raise UsageError(
                path,
                found="a file that brats-infer --check did not write",
                expected="a free name, or earlier findings",
                remedy="choose another name or move the file away",
            )
    except OSError as error:
        raise unwritable(path, error) from error
    check_writable(path.parent)
    sweep(path.parent)


def write_record(
    path: Path,
    reports: Sequence[CaseReport],
    problems: Sequence[InputError],
    findings: Sequence[Finding],
) -> None:
    """Write everything that was found.

    Args:
        path: of the file; `check_place` has looked at it.
        reports: of the cases.
        problems: of files of which no case could be made.
        findings: about the data set.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(
        path,
        {
            "schema": SCHEMA,
            "command": _COMMAND,
            "version": __version__,
            "disclaimer": DISCLAIMER,
            "cases": [_case(report) for report in reports],
            "not_cases": [str(problem) for problem in problems],
            "data_set": {
                **totals(reports, len(problems)),
                "findings": [_finding(finding) for finding in findings],
            },
        },
    )


def _case(report: CaseReport) -> dict[str, Any]:
    labels = report.labels
    return {
        "case_id": report.case.case_id,
        "usable": report.usable,
        "dialect": report.case.dialect.value,
        "convention": report.convention.value if report.convention is not None else None,
        "modalities": {name: _image(facts) for name, facts in report.images.items()},
        "labels": None
        if labels is None
        else {
            "file": labels.file,
            "dtype": labels.dtype,
            "values": [_number(value) for value in labels.values],
            "outside_brain": labels.outside,
        },
        "findings": [_finding(finding) for finding in report.findings],
    }


def _image(facts: Facts) -> dict[str, Any]:
    return {
        "file": facts.file,
        "channel": facts.channel,
        "sha256": facts.sha256,
        "shape": list(facts.grid.shape),
        "spacing": list(facts.grid.spacing),
        "orientation": facts.axes,
        "dtype": facts.dtype,
        "min": _number(facts.minimum),
        "max": _number(facts.maximum),
        "mean": _number(facts.mean),
        "std": _number(facts.std),
        "nonzero": facts.nonzero,
        "background": _number(facts.background),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "modality": finding.modality,
        "text": finding.text,
    }


def _number(value: float) -> float | None:
    """JSON has no infinity, which the moments of the largest numbers are."""
    return value if math.isfinite(value) else None


def _is_ours(path: Path) -> bool:
    try:
        value = read_json(path)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("command") == _COMMAND and "data_set" in value
