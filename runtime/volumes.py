"""Volumes of the labels and regions of one label map.

A file of its own: every prediction tells them, and what else is measured loads SciPy.
"""

import math

import numpy as np

from runtime.labels import REGIONS, Label, LabelMap


def volumes_ml(
    labels: LabelMap, spacing: tuple[float, float, float]
) -> dict[str, dict[str, float]]:
    """Volumes of labels and regions.

    Args:
        labels: uint8 (X, Y, Z), network labels.
        spacing: mm along X, Y, Z.

    Returns:
        ``{"labels": {"NCR", "ED", "ET"}, "regions": {"WT", "TC", "ET"}}`` in ml.
    """
    # A plain int: beside one of an enumeration NumPy compares 8 bytes of each voxel.
    counts = {label: int(np.count_nonzero(labels == int(label))) for label in Label if label}
    each = voxel_ml(spacing)
    return {
        "labels": {label.name: count * each for label, count in counts.items()},
        "regions": {
            name: sum(counts[label] for label in members) * each
            for name, members in REGIONS.items()
        },
    }


def voxel_ml(spacing: tuple[float, float, float]) -> float:
    """The volume of a voxel of a spacing in mm."""
    return math.prod(spacing) / 1000
