"""Label maps as network labels, whatever convention they are stored in."""

from pathlib import Path

import numpy as np

from runtime.case import Case
from runtime.errors import InputError
from runtime.grid import Grid, check_same_grid
from runtime.labels import Convention, LabelMap, from_convention
from runtime.nifti import Volume, load_label_map


def read_labels(path: Path, convention: Convention, *, implied: bool) -> tuple[LabelMap, Grid]:
    """Read a label map and renumber it.

    Args:
        path: .nii or .nii.gz.
        convention: its numbering.
        implied: the convention was only concluded from the file's name. A 4 in the naming of 2023
            then means the numbering of 2024, which kept the names and added the resection cavity.

    Returns:
        uint8 (X, Y, Z) in file order, values of `labels.Label`, and the file's grid.

    Raises:
        InputError: the file is damaged, or a value is outside the convention.
    """
    stored, grid = load_label_map(path)
    if implied and convention is Convention.BRATS2023 and bool(np.any(stored == 4)):
        convention = Convention.BRATS2024
    return from_convention(stored, convention, path), grid


def load_truth(
    case: Case, volume: Volume | None = None, convention: Convention | None = None
) -> LabelMap:
    """Read the label map of ``case``.

    Args:
        case: with labels.
        volume: its images, on whose grid the truth must lie; None leaves that unchecked.
        convention: its numbering; None takes what names and dataset.json imply.

    Returns:
        uint8 (X, Y, Z) in file order, values of `labels.Label`.

    Raises:
        InputError: the case has no labels, the file is damaged, its numbering is not known, or a
            value is outside it, or its grid is not that of the images.
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
            remedy=f"name it with a flag ({', '.join(Convention)})",
        )
    labels, grid = read_labels(case.labels, known, implied=convention is None)
    if volume is not None:
        image = next(iter(volume.images.values()))
        remedy = "resample the label map to the images' grid"
        check_same_grid(case.labels, grid, image.path, volume.grid, remedy)
    return labels
