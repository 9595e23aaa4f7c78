"""What a model card asks to be done to a label map after argmax."""

import numpy as np
from scipy import ndimage

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
        uint8 of the same shape; the same array where no rule is on.
    """
    voxel_mm3 = spacing[0] * spacing[1] * spacing[2]
    if rule.min_component_mm3 > 0:
        components, count = ndimage.label(labels != 0, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel(), minlength=count + 1) * voxel_mm3
        small = sizes < rule.min_component_mm3
        small[0] = False
        labels = np.where(small[components], np.uint8(Label.BACKGROUND), labels)
    if rule.min_et_mm3 > 0:
        enhancing = labels == Label.ET
        if 0 < np.count_nonzero(enhancing) * voxel_mm3 < rule.min_et_mm3:
            labels = np.where(enhancing, np.uint8(Label.NCR), labels)
    return labels
