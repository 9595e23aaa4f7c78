"""Label maps as network labels, whatever convention they are stored in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from runtime.case import Case, Source
from runtime.errors import InputError
from runtime.grid import Grid, check_same_grid
from runtime.labels import Convention, LabelMap, from_convention
from runtime.nifti import Volume, read_image


@dataclass(frozen=True)
class _Doubt:
    """A value that means enhancing tumour in one convention and something else in another.

    Attributes:
        value: in doubt.
        other: stands for enhancing tumour where ``value`` does not; a map that has both leaves no
            doubt.
        meanings: of ``value``, by convention.
    """

    value: int
    other: int
    meanings: Mapping[Convention, str]


# Data of 2024 kept the names of 2023, and data of 2020 are often renamed to them.
_FOUR: Final = _Doubt(
    4,
    3,
    {
        Convention.BRATS2020: "enhancing tumour",
        Convention.BRATS2024: "the resection cavity",
    },
)
_THREE: Final = _Doubt(
    3,
    4,
    {
        Convention.BRATS2023: "enhancing tumour",
        Convention.BRATS2015: "non-enhancing tumour",
    },
)
_DOUBTS: Final[Mapping[Convention, _Doubt]] = {
    Convention.BRATS2023: _FOUR,
    Convention.BRATS2024: _FOUR,
    Convention.BRATS2015: _THREE,
}


def read_labels(
    path: Path,
    convention: Convention,
    *,
    assumed: str | None = None,
    flag: str = "--labels",
    told: list[str] | None = None,
) -> tuple[LabelMap, Grid]:
    """Read a label map and renumber it.

    Args:
        path: .nii or .nii.gz.
        convention: its numbering.
        assumed: what the convention was only concluded from, such as "the naming"; None where it
            was named. A value that another convention uses for enhancing tumour is then refused:
            taken for something else, it would leave the case without any, and nobody told. Under
            the names of 2023 a 4 beside a 3 is the resection cavity of 2024.
        flag: of the command, by which a user names the convention; for the error.
        told: takes what had to be corrected to read the file, with its name.

    Returns:
        uint8 (X, Y, Z) in file order, values of `labels.Label`, and the file's grid.

    Raises:
        InputError: the file is damaged, or a value is outside the convention or in doubt.
    """
    image, grid = read_image(Source(path))
    stored = image.voxels
    if told is not None:
        told += [f"{path.name}: {text}" for text in image.warnings]
    doubt = _DOUBTS.get(convention) if assumed is not None else None
    if doubt is not None and np.any(stored == doubt.value):
        if not np.any(stored == doubt.other):
            either = (f"{flag} {name} for {what}" for name, what in doubt.meanings.items())
            raise InputError(
                path,
                found=f"a {doubt.value} and no {doubt.other} where {assumed} implies {convention}",
                expected="1, 2 and 3"
                if convention is Convention.BRATS2023
                else f"a {doubt.other} beside it",
                remedy=f"say what {doubt.value} is: {', '.join(either)}",
            )
        if convention is Convention.BRATS2023:
            convention = Convention.BRATS2024
    return from_convention(stored, convention, path, flag), grid


def load_truth(
    case: Case,
    volume: Volume | None = None,
    convention: Convention | None = None,
    flag: str = "--labels",
) -> LabelMap:
    """Read the label map of ``case``.

    Args:
        case: with labels.
        volume: its images, on whose grid the truth must lie; None leaves that unchecked.
        convention: its numbering; None takes what names and dataset.json imply.
        flag: of the command, by which a user names ``convention``; for the error.

    Returns:
        uint8 (X, Y, Z) in file order, values of `labels.Label`.

    Raises:
        InputError: the case has no labels, the file is damaged, its numbering is not known, or a
            value is outside it or in doubt (`read_labels`), or its grid is not that of the images.
    """
    if case.labels is None:
        raise InputError(
            case.folder,
            found="no label map",
            expected="truth such as X_seg.nii.gz",
            remedy="add it, or choose a labelled data set",
        )
    known = convention or case.convention
    if known is None:
        raise InputError(
            case.labels,
            found="labels whose numbering neither names nor dataset.json tell",
            expected="a known convention",
            remedy=f"name it with {flag} ({', '.join(Convention)})",
        )
    # No names imply 2024: that is a dataset.json, which says what its 4 is.
    certain = convention is not None or known is Convention.BRATS2024
    assumed = None if certain else "the naming"
    labels, grid = read_labels(case.labels, known, assumed=assumed, flag=flag)
    if volume is not None:
        image = next(iter(volume.images.values()))
        remedy = "resample the label map to the images' grid"
        check_same_grid(case.labels, grid, image.path, volume.grid, remedy)
    return labels
