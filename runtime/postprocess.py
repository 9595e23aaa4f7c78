"""What a model card asks to be done to a label map after argmax."""

import numpy as np
import numpy.typing as npt

from runtime.labels import Label, LabelMap
from runtime.model_card import PostprocessRule


def postprocess(
    labels: LabelMap, rule: PostprocessRule, spacing: tuple[float, float, float]
) -> LabelMap:
    """Apply the card's rules, small components first.

    Args:
        labels: uint8 (X, Y, Z), values of `Label`; not changed.
        rule: thresholds in mm3; 0 switches one off.
        spacing: mm per voxel along X, Y, Z.

    Returns:
        uint8 of the same shape and memory order; the same array where no rule changes it.
    """
    voxel_mm3 = spacing[0] * spacing[1] * spacing[2]
    if rule.min_component_mm3 > 0:
        labels = _without_small(labels, rule.min_component_mm3, voxel_mm3)
    if rule.min_et_mm3 > 0:
        enhancing = labels == int(Label.ET)
        if 0 < np.count_nonzero(enhancing) * voxel_mm3 < rule.min_et_mm3:
            labels = labels.copy(order="K")
            labels[enhancing] = Label.NCR
    return labels


def _without_small(labels: LabelMap, least_mm3: float, voxel_mm3: float) -> LabelMap:
    box = _bounding_box(labels != 0)
    if box is None:
        return labels
    # It takes longer to load than all the rest takes.
    from scipy import ndimage

    # The box of the tumour is a twentieth of a case, and the tumour a tenth of its box.
    tumour = np.ascontiguousarray(labels[box]) != 0
    components, _ = ndimage.label(tumour, structure=np.ones((3, 3, 3)))
    component = components[tumour]
    small = np.bincount(component) * voxel_mm3 < least_mm3
    removed = small[component]
    if not removed.any():
        return labels
    labels = labels.copy(order="K")
    inner = labels[box]
    inner[tumour] = np.where(removed, np.uint8(Label.BACKGROUND), inner[tumour])
    return labels


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds all voxels of a mask; None where there are none."""
    slices = [slice(0, size) for size in mask.shape]
    # The axis that varies slowest in memory first: what is left is in one piece.
    for axis in sorted(range(3), key=lambda axis: -abs(mask.strides[axis])):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(mask[tuple(slices)].any(axis=others))
        if hits.size == 0:
            return None
        slices[axis] = slice(int(hits[0]), int(hits[-1]) + 1)
    return tuple(slices)
