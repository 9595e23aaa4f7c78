"""A case's truth as network labels, whatever convention its label map is stored in."""

import numpy as np

from runtime.case import Case
from runtime.errors import InputError
from runtime.labels import Convention, LabelMap, from_convention
from runtime.nifti import load_label_map


def load_truth(case: Case, convention: Convention | None = None) -> LabelMap:
    """Read the label map of ``case``.

    Args:
        case: with labels.
        convention: its numbering; None takes what names and dataset.json imply. There a 4 in the
            naming of 2023 means that of 2024, which kept the names and added the resection cavity.

    Returns:
        uint8 (X, Y, Z) in file order, values of `labels.Label`.

    Raises:
        InputError: the case has no labels, the file is damaged, its numbering is not known, or a
            value is outside it.
    """
    if case.labels is None:
        raise InputError(
            case.folder,
            found="no label map",
            expected="truth such as X_seg.nii.gz",
            remedy="add it, or choose a labelled data set",
        )
    stored, _ = load_label_map(case.labels)
    convention = convention or case.convention
    if convention is None:
        raise InputError(
            case.labels,
            found="labels whose numbering neither names nor dataset.json tell",
            expected="a known convention",
            remedy=f"name it with a flag ({', '.join(Convention)})",
        )
    if convention is Convention.BRATS2023 and bool(np.any(stored == 4)):
        convention = Convention.BRATS2024
    return from_convention(stored, convention, case.labels)
