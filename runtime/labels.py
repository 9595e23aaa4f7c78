"""Modalities, labels, regions, and the conventions in which label maps are stored on disk."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from os import PathLike
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError

MODALITIES: Final = ("flair", "t1", "t1ce", "t2")
"""The order of the channels inside our own models."""


class Label(IntEnum):
    """A class of the network's output."""

    BACKGROUND = 0
    NCR = 1
    ED = 2
    ET = 3


REGIONS: Final[Mapping[str, tuple[Label, ...]]] = MappingProxyType(
    {
        "WT": (Label.NCR, Label.ED, Label.ET),
        "TC": (Label.NCR, Label.ET),
        "ET": (Label.ET,),
    }
)
"""The overlapping unions of labels that BraTS scores: whole tumour, tumour core, enhancing tumour.
"""


class Convention(StrEnum):
    """How labels are numbered on disk."""

    BRATS2015 = "brats2015"
    BRATS2020 = "brats2020"
    BRATS2023 = "brats2023"
    BRATS2024 = "brats2024"
    MSD = "msd"


_FROM_DISK: Final[Mapping[Convention, Mapping[int, Label]]] = {
    # 3 is non-enhancing tumour in 2015; BraTS merged it into NCR/NET from 2017 on.
    Convention.BRATS2015: {1: Label.NCR, 2: Label.ED, 3: Label.NCR, 4: Label.ET},
    Convention.BRATS2020: {1: Label.NCR, 2: Label.ED, 4: Label.ET},
    Convention.BRATS2023: {1: Label.NCR, 2: Label.ED, 3: Label.ET},
    # 4 is the resection cavity, which belongs to none of the regions.
    Convention.BRATS2024: {1: Label.NCR, 2: Label.ED, 3: Label.ET, 4: Label.BACKGROUND},
    Convention.MSD: {1: Label.ED, 2: Label.NCR, 3: Label.ET},
}

_TO_DISK: Final[Mapping[Convention, Mapping[Label, int]]] = {
    Convention.BRATS2015: {Label.NCR: 1, Label.ED: 2, Label.ET: 4},
    Convention.BRATS2020: {Label.NCR: 1, Label.ED: 2, Label.ET: 4},
    Convention.BRATS2023: {Label.NCR: 1, Label.ED: 2, Label.ET: 3},
    Convention.BRATS2024: {Label.NCR: 1, Label.ED: 2, Label.ET: 3},
    Convention.MSD: {Label.NCR: 2, Label.ED: 1, Label.ET: 3},
}

LabelMap = npt.NDArray[np.uint8]


def _table(mapping: Mapping[int, int]) -> LabelMap:
    table = np.zeros(256, np.uint8)
    for source, target in mapping.items():
        table[source] = target
    return table


def to_convention(labels: LabelMap, convention: Convention) -> LabelMap:
    """Renumber network labels for the disk.

    Args:
        labels: uint8, any shape, values 0..3 as in `Label`.
        convention: the numbering wanted.

    Returns:
        uint8 of the same shape and memory order.
    """
    numbered = np.copy(labels, order="K")
    # Label by label is five times as fast as a table, and most of a label map is background.
    for label, value in _TO_DISK[convention].items():
        if value != label:
            numbered[labels == int(label)] = value  # beside an enumeration's NumPy compares 8 bytes
    return numbered


def from_convention(
    stored: npt.NDArray[Any],
    convention: Convention,
    where: str | PathLike[str],
    flag: str = "--labels",
) -> LabelMap:
    """Renumber a stored label map into network labels.

    Args:
        stored: any numeric dtype and shape, values as on disk.
        convention: the numbering of the file.
        where: the file, for the error.
        flag: of the command, by which a user names another convention; for the error.

    Returns:
        uint8 of the same shape, values 0..3 as in `Label`.

    Raises:
        InputError: a value is not an integer or not one of the convention's.
    """
    known = _FROM_DISK[convention]
    with np.errstate(invalid="ignore"):
        as_bytes = stored.astype(np.uint8)
    if stored.dtype != np.uint8 and not np.array_equal(as_bytes, stored):
        _reject(np.unique(stored), convention, where, flag)
    present = np.flatnonzero(np.bincount(as_bytes.ravel(order="K"), minlength=256))
    if any(int(value) not in known for value in present if value != 0):
        _reject(present, convention, where, flag)
    table = _table({value: int(label) for value, label in known.items()})
    return table[as_bytes]


def as_text(value: Any) -> str:
    """A stored value in short, but never one that is no label as if it were: 1.0000001 is not 1."""
    short = f"{value:g}"
    return short if float(short) == value else str(value)


def _reject(
    values: npt.NDArray[Any], convention: Convention, where: str | PathLike[str], flag: str
) -> None:
    shown = ", ".join(map(as_text, values[:8])) + (", ..." if len(values) > 8 else "")
    allowed = ", ".join(str(value) for value in (0, *_FROM_DISK[convention]))
    raise InputError(
        where,
        found=f"label values {shown}",
        expected=f"only {allowed} as in convention {convention}",
        remedy=f"correct them, or name the numbering that they have with {flag}",
    )


def regions_from_labels(labels: LabelMap) -> dict[str, npt.NDArray[np.bool_]]:
    """Binary masks of WT, TC and ET from network labels (uint8, any shape)."""
    ncr, ed, et = (labels == int(label) for label in (Label.NCR, Label.ED, Label.ET))
    core = ncr | et
    return {"WT": core | ed, "TC": core, "ET": et}
