"""The figures of one label map: volumes, extents, lesions, and how its area runs over the slices.

Everything is measured on the array turned to the patient's axes, so that the orientation of the
file changes no figure, not even in its last digit.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.diameter import largest_axial_diameter, largest_diameter
from runtime.errors import InputError
from runtime.labels import REGIONS, Label, LabelMap
from runtime.lesions import count_lesions
from runtime.metrics import SCORED, mask_of
from runtime.nifti import Volume
from runtime.planes import (
    PLANES,
    Plane,
    lps_spacing,
    pixel_spacing,
    slice_axis,
    slice_count,
    stack_of,
    to_lps,
)
from runtime.printable import csv_text
from runtime.surface import Mask, Spacing, bounding_box
from runtime.volumes import voxel_ml

Areas = npt.NDArray[np.float64]

STRUCTURES: Final = SCORED
"""What is measured, in order: the regions WT, TC, ET and the labels NCR, ED."""

_COLUMNS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "structure": ("structure", ""),
        "voxels": ("voxels", "d"),
        "volume_ml": ("volume ml", ".2f"),
        "percent_of_tumour": ("% of tumour", ".1f"),
        "percent_of_brain": ("% of brain", ".2f"),
        "lesions": ("lesions", "d"),
        "diameter_mm": ("diameter mm", ".1f"),
        "axial_diameter_mm": ("axial diameter mm", ".1f"),
    }
)


@dataclass(frozen=True)
class Structure:
    """One region or label of a label map.

    Attributes:
        name: WT, TC, ET, NCR or ED; the label ET is the region ET.
        voxels: how many.
        volume_ml: ml.
        percent_of_tumour: of the whole tumour's volume; None where there is no tumour.
        percent_of_brain: of the brain's volume; None where there is no brain.
        lesions: as BraTS 2023 counts them; see `runtime.lesions.count_lesions`.
        diameter_mm: largest distance between two points of the surface, in any direction; 0 where
            the structure is absent. See `runtime.diameter`.
        axial_diameter_mm: the same within one axial slice.
    """

    name: str
    voxels: int
    volume_ml: float
    percent_of_tumour: float | None
    percent_of_brain: float | None
    lesions: int
    diameter_mm: float
    axial_diameter_mm: float


@dataclass(frozen=True)
class Measurements:
    """Everything that is measured of one label map.

    Attributes:
        structures: by name, in the order of `STRUCTURES`.
        brain_ml: volume of the voxels that are not 0 in any modality, ml.
        profiles: plane to structure name to float64 (slices,), area in mm2 per slice, numbered as
            `runtime.planes.slice_of` numbers them.
    """

    structures: Mapping[str, Structure]
    brain_ml: float
    profiles: Mapping[Plane, Mapping[str, Areas]]

    def to_json(self) -> str:
        """An object with ``brain_ml``, ``structures`` and ``profiles_mm2``, indented."""
        value = {
            "brain_ml": _rounded(self.brain_ml),
            "structures": {name: _row(one) for name, one in self.structures.items()},
            "profiles_mm2": {
                plane: {
                    name: [_rounded(float(area)) for area in areas] for name, areas in of.items()
                }
                for plane, of in self.profiles.items()
            },
        }
        return json.dumps(value, indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A row per structure; what cannot be said is left empty."""
        return csv_text(
            list(_COLUMNS), [list(_row(one).values()) for one in self.structures.values()]
        )

    def profiles_to_csv(self) -> str:
        """A row per plane and slice, counted from 1 as in the report: areas in mm2."""
        rows = [
            [plane, index + 1, *(_rounded(float(areas[index])) for areas in of.values())]
            for plane, of in self.profiles.items()
            for index in range(len(next(iter(of.values()))))
        ]
        return csv_text(["plane", "slice", *(f"{name}_mm2" for name in STRUCTURES)], rows)

    def to_text(self) -> str:
        """The structures as a table for people, then the brain's volume."""
        titles = [title for title, _ in _COLUMNS.values()]
        rows = [titles, *([*_cells(one)] for one in self.structures.values())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*lines, "", f"brain {self.brain_ml:.1f} ml"]) + "\n"


def measure(labels: LabelMap, volume: Volume) -> Measurements:
    """Measure a label map.

    Args:
        labels: uint8 (X, Y, Z) in the file order of ``volume``, network labels.
        volume: the case; its grid gives the spacing, its images the brain.

    Raises:
        InputError: the label map's shape is not the volume's.
    """
    check_shape("the label map", labels, volume)
    grid = volume.grid
    turned, spacing = to_lps(labels, grid.affine), lps_spacing(grid)
    brain = int(np.count_nonzero(brain_of(volume)))
    box = bounding_box(turned != 0) if labels.any() else (slice(0, 1),) * 3
    # In one piece and small: every mask that is made of it is, too.
    boxed = np.ascontiguousarray(turned[box])
    masks = {name: mask_of(boxed, REGIONS.get(name) or (Label[name],)) for name in STRUCTURES}
    tumour = int(np.count_nonzero(masks["WT"]))
    shape = (turned.shape[0], turned.shape[1], turned.shape[2])
    profiles = {
        plane: {
            name: _areas(mask, plane, box, slice_count(shape, plane), spacing)
            for name, mask in masks.items()
        }
        for plane in PLANES
    }
    return Measurements(
        MappingProxyType(
            {name: _structure(name, mask, spacing, tumour, brain) for name, mask in masks.items()}
        ),
        brain * voxel_ml(spacing),
        MappingProxyType({plane: MappingProxyType(of) for plane, of in profiles.items()}),
    )


def check_shape(what: str, labels: LabelMap, volume: Volume) -> None:
    """Refuse a label map that does not lie on the grid of its case.

    Args:
        what: the label map's name in the error.
        labels: uint8 (X, Y, Z).
        volume: the case.

    Raises:
        InputError: the shapes differ.
    """
    if labels.shape != volume.grid.shape:
        raise InputError(
            what,
            found=f"shape {'x'.join(map(str, labels.shape))}",
            expected=f"{'x'.join(map(str, volume.grid.shape))} as {volume.case.case_id} has",
            remedy="give a label map on the case's own grid",
        )


def brain_of(volume: Volume) -> Mask:
    """Boolean (X, Y, Z) in file order: where any modality is not 0."""
    images = iter(volume.images.values())
    brain: Mask = next(images).voxels != 0
    for image in images:
        brain |= image.voxels != 0
    return brain


def _structure(name: str, mask: Mask, spacing: Spacing, tumour: int, brain: int) -> Structure:
    voxels = int(np.count_nonzero(mask))
    return Structure(
        name=name,
        voxels=voxels,
        volume_ml=voxels * voxel_ml(spacing),
        percent_of_tumour=100 * voxels / tumour if tumour else None,
        percent_of_brain=100 * voxels / brain if brain else None,
        lesions=count_lesions(mask, spacing),
        diameter_mm=largest_diameter(mask, spacing),
        axial_diameter_mm=largest_axial_diameter(mask, spacing),
    )


def _areas(
    mask: Mask, plane: Plane, box: tuple[slice, ...], slices: int, spacing: Spacing
) -> Areas:
    """Area in mm2 per slice of the whole volume, of a mask that is cut to a box of it."""
    height, width = pixel_spacing(spacing, plane)
    areas = np.zeros(slices)
    areas[box[slice_axis(plane)]] = np.count_nonzero(stack_of(mask, plane), axis=(1, 2)) * (
        height * width
    )
    return areas


def _rounded(value: float) -> float:
    return round(value, 6)


def _row(structure: Structure) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, float) else value
        for key, value in asdict(structure).items()
    }


def _cells(structure: Structure) -> list[str]:
    return [
        "-" if value is None else format(value, form)
        for value, (_, form) in zip(asdict(structure).values(), _COLUMNS.values(), strict=True)
    ]
