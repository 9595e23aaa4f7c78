"""The case doctor: read a case, say what is in it, and what would keep a model from using it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import aff2axcodes
from rich.console import Console
from rich.table import Table

from runtime.case import Case
from runtime.errors import InputError
from runtime.labels import MODALITIES, Convention
from runtime.nifti import Volume, load
from runtime.truth import load_truth


@dataclass(frozen=True)
class Finding:
    """Something about a case: an ``error`` keeps every model from using it, a warning does not."""

    error: bool
    text: str


def examine(
    case: Case, convention: Convention | None = None
) -> tuple[Volume | None, tuple[Finding, ...]]:
    """Read a case and judge it without a model.

    Args:
        case: to be read.
        convention: of its label map; None takes what names and dataset.json imply.

    Returns:
        The volume, or None if it cannot be loaded, and what was found.
    """
    findings = [Finding(True, f"no {name} image") for name in MODALITIES if name not in case.images]
    try:
        volume = load(case)
    except InputError as error:
        return None, (*findings, Finding(True, str(error)))
    seen: dict[str, str] = {}
    for name, image in volume.images.items():
        if image.sha256 in seen and case.images[name].channel is None:
            findings.append(Finding(True, f"{name} and {seen[image.sha256]} are the same file"))
        seen[image.sha256] = name
        brain = np.count_nonzero(image.voxels) / image.voxels.size
        if brain == 0:
            findings.append(Finding(True, f"{name} is all zeros"))
        elif np.ptp(image.voxels[image.voxels != 0]) == 0:
            findings.append(Finding(True, f"{name} is constant over the brain"))
        elif brain > 0.6:
            findings.append(
                Finding(False, f"{name}: {brain:.0%} of the voxels are not 0; is the skull on?")
            )
        if image.voxels.min() < 0:
            findings.append(Finding(False, f"{name} has negative values; is it z-scored already?"))
    off = max(abs(size - 1) for size in volume.grid.spacing)
    if off > 0.05:
        shown = "x".join(f"{size:.3g}" for size in volume.grid.spacing)
        findings.append(Finding(False, f"spacing {shown} mm, BraTS models expect 1x1x1"))
    if case.labels is not None:
        findings += _examine_labels(case, volume, convention)
    return volume, tuple(findings)


def _examine_labels(case: Case, volume: Volume, convention: Convention | None) -> list[Finding]:
    if case.labels is None:
        return []
    try:
        truth = load_truth(case, volume, convention, "--truth-labels")
    except InputError as error:
        return [Finding(True, str(error))]
    brain = np.logical_or.reduce([image.voxels != 0 for image in volume.images.values()])
    outside = int(np.count_nonzero((truth != 0) & ~brain))
    if outside:
        return [Finding(False, f"{outside} labelled voxels lie outside the brain")]
    return []


def check_cases(
    cases: list[Case],
    console: Console,
    problems: Sequence[InputError] = (),
    convention: Convention | None = None,
) -> int:
    """Examine every case and print what was found.

    Args:
        cases: to be examined.
        console: where it is told; errors are told even where it is quiet.
        problems: cases that could not even be put together from their files.
        convention: of their label maps; None as each case says.

    Returns:
        0 if no case has an error.

    Raises:
        InputError: some case has an error; all have been printed by then.
    """
    loud = Console(stderr=True, soft_wrap=True) if console.quiet else console
    bad: list[str] = []
    for problem in problems:
        loud.print(f"error: {problem}", style="red", markup=False)
        bad.append(problem.where)
    for case in cases:
        volume, findings = examine(case, convention)
        console.print(f"{case.case_id} ({case.dialect} naming)", style="bold", markup=False)
        if volume is not None:
            console.print(_table(volume))
        for finding in findings:
            style, word = ("red", "error") if finding.error else ("yellow", "warning")
            where = loud if finding.error else console
            head = f"{case.case_id} " if console.quiet else "  "
            where.print(f"{head}{word}: {finding.text}", style=style, markup=False)
        if any(finding.error for finding in findings):
            bad.append(case.case_id)
    if bad:
        raise InputError(
            ", ".join(bad[:5]),
            found=f"{len(bad)} of {len(cases) + len(problems)} cases that cannot be used",
            expected="none",
            remedy="mend what is named above",
        )
    return 0


def _table(volume: Volume) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("modality", "shape", "spacing mm", "axes", "dtype", "non-zero", "mean", "std"):
        table.add_column(name)
    grid = volume.grid
    for name, image in volume.images.items():
        brain = image.voxels[image.voxels != 0]
        table.add_row(
            name,
            "x".join(map(str, grid.shape)),
            "x".join(f"{size:.3g}" for size in grid.spacing),
            "".join(aff2axcodes(grid.affine)),
            str(image.voxels.dtype),
            f"{brain.size / image.voxels.size:.0%}",
            f"{brain.mean(dtype=np.float64):.1f}" if brain.size else "",
            f"{brain.std(dtype=np.float64):.1f}" if brain.size else "",
        )
    return table
