"""The label map of a case: what is in it, what it would be read as, and whether it lies on the
images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.case import Case, Source
from runtime.doctor.findings import Finding, error, warning
from runtime.doctor.images import Look
from runtime.errors import ComputeError, InputError
from runtime.grid import check_same_grid
from runtime.labels import Convention, LabelMap
from runtime.nifti import read_image
from runtime.truth import load_truth

_SHOWN: Final = 8


@dataclass(frozen=True)
class LabelFacts:
    """What is in a label map.

    Attributes:
        file: its name.
        dtype: in which it is stored.
        values: found, in order; the first few where there are many.
        outside: labelled voxels where every image is background; None where that was not counted.
    """

    file: str
    dtype: str
    values: tuple[float, ...]
    outside: int | None


@dataclass
class LabelLook:
    """A label map as long as its case is looked at."""

    facts: LabelFacts | None = None
    truth: LabelMap | None = None  # (X, Y, Z) on the images' grid, if it can be read
    findings: list[Finding] = field(default_factory=list)


def look_at_labels(
    case: Case, looks: Mapping[str, Look], convention: Convention | None
) -> LabelLook:
    """Read a case's label map and judge it.

    Args:
        case: whose it is.
        looks: the case's images, by modality, as far as they can be read and lie on one grid.
        convention: of the label map; None takes what names and dataset.json imply.
    """
    seen = LabelLook()
    if case.labels is None:
        return seen
    try:
        image, grid = read_image(Source(case.labels))
    except (InputError, ComputeError) as refused:
        code = "labels-unreadable" if isinstance(refused, InputError) else "memory"
        seen.findings.append(error(code, str(refused)))
        return seen
    seen.findings += [
        warning("labels-corrected", f"the label map {case.labels.name}: {text}")
        for text in image.warnings
    ]
    stored = image.voxels
    values = np.unique(stored)
    shown = tuple(float(value) for value in values[:_SHOWN])
    truth: LabelMap | None = None
    if np.any(values != np.rint(values)):
        text = (
            f"the label map {case.labels.name} has values between the labels "
            f"({', '.join(f'{value:.4g}' for value in shown)}, ...); it was interpolated: resample "
            "it with nearest neighbours"
        )
        seen.findings.append(error("labels-interpolated", text))
    else:
        try:
            truth = load_truth(case, None, convention, "--truth-labels")
        except (InputError, ComputeError) as refused:
            code = "labels-values" if isinstance(refused, InputError) else "memory"
            seen.findings.append(error(code, str(refused)))
    if not np.any(values):
        text = f"the label map {case.labels.name} is empty; is there no tumour?"
        seen.findings.append(warning("labels-empty", text))
    outside: int | None = None
    if looks:
        name, look = next(iter(looks.items()))
        try:
            remedy = "resample the label map to the images' grid"
            check_same_grid(case.labels, grid, case.images[name].path, look.facts.grid, remedy)
        except InputError as refused:
            seen.findings.append(error("labels-grid", str(refused)))
            truth = None
        else:
            outside = _outside(stored, looks)
    if outside:
        count = "1 labelled voxel lies" if outside == 1 else f"{outside} labelled voxels lie"
        text = f"{count} outside the brain"
        seen.findings.append(warning("labels-outside", text))
    seen.truth = truth
    seen.facts = LabelFacts(case.labels.name, str(stored.dtype), shown, outside)
    return seen


def _outside(stored: npt.NDArray[np.generic], looks: Mapping[str, Look]) -> int:
    labelled = stored != 0
    for look in looks.values():
        labelled &= ~look.brain
    return int(np.count_nonzero(labelled))
