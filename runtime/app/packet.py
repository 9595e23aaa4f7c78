"""A case as the browser's viewer takes it: greys, label maps and probabilities in one piece of
bytes.

    uint32 little-endian   length of the header
    header                 JSON, UTF-8
    gzip                   the layers one after another, uint8, x fastest, axes L, P, S

Only the box around the brain is sent, one byte a voxel: about a fifth of a case's own size.
"""

import hashlib
import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from isal import igzip

from runtime.labels import REGIONS, LabelMap
from runtime.measure import brain_of
from runtime.nifti import Volume
from runtime.overlay import LABEL_COLOURS, LABEL_NAMES
from runtime.planes import PLANES, Contrast, fullest_slice, lps_spacing, slice_axis, to_lps
from runtime.surface import Mask, bounding_box

GZIP_LEVEL: Final = 1
_PREFERRED: Final = ("t1ce", "flair")
Layer = npt.NDArray[np.uint8]


def pack(
    volume: Volume,
    prediction: LabelMap | None,
    truth: LabelMap | None = None,
    probabilities: npt.NDArray[np.float32] | None = None,
) -> bytes:
    """Pack a case for the viewer.

    Args:
        volume: images in file order.
        prediction, truth: uint8 (X, Y, Z) in file order, network labels; None leaves one out.
        probabilities: float32 (X, Y, Z, 4) in file order, as `Segmenter` gives them; shown for
            each region as the sum over its labels.

    Returns:
        The packet; equal for equal input.
    """
    affine = volume.grid.affine
    brain = to_lps(brain_of(volume), affine)
    maps = {
        name: to_lps(labels, affine)
        for name, labels in (("prediction", prediction), ("truth", truth))
        if labels is not None
    }
    box = _box(brain, *maps.values())
    layers: dict[str, Layer] = {}
    for name, image in volume.images.items():
        greys = to_lps(image.voxels, affine)[box]
        layers[name] = Contrast.of(image.voxels).apply(greys)
    layers |= {name: labels[box] for name, labels in maps.items()}
    if probabilities is not None:
        boxed = to_lps(probabilities, affine)[box]
        for region, members in REGIONS.items():
            summed = boxed[..., [int(label) for label in members]].sum(axis=-1)
            layers[f"heat_{region}"] = np.rint(255 * np.clip(summed, 0, 1)).astype(np.uint8)
    body = b"".join(layer.tobytes(order="F") for layer in layers.values())
    packed = igzip.compress(body, compresslevel=GZIP_LEVEL, mtime=0)
    header = {
        "sha256": hashlib.sha256(packed).hexdigest(),
        **_header(volume, brain, maps, box, list(layers)),
    }
    text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    return len(text).to_bytes(4, "little") + text + packed


def _header(
    volume: Volume,
    brain: Mask,
    maps: dict[str, LabelMap],
    box: tuple[slice, ...],
    layers: list[str],
) -> dict[str, Any]:
    at = [0, 0, 0]
    for plane in PLANES:
        axis = slice_axis(plane)
        fullest = fullest_slice(plane, maps.get("prediction"), maps.get("truth"), brain)
        at[axis] = fullest - box[axis].start
    shown = [name for name in (*_PREFERRED, *volume.images) if name in volume.images]
    return {
        "case": volume.case.case_id,
        "shape": [one.stop - one.start for one in box],
        "start": [one.start for one in box],
        "full": list(brain.shape),
        "spacing": list(lps_spacing(volume.grid)),
        "modalities": list(volume.images),
        "modality": shown[0],
        "labels": [
            {
                "value": int(label),
                "name": label.name,
                "title": LABEL_NAMES[label],
                "colour": list(colour),
            }
            for label, colour in LABEL_COLOURS.items()
        ],
        "regions": {name: [int(label) for label in members] for name, members in REGIONS.items()},
        "at": at,
        "layers": layers,
    }


def _box(*masks: npt.NDArray[Any]) -> tuple[slice, ...]:
    """Around everything that is not 0, a voxel wider where there is room."""
    present = np.logical_or.reduce([mask != 0 for mask in masks])
    if not present.any():
        return tuple(slice(0, size) for size in present.shape)
    return tuple(
        slice(max(one.start - 1, 0), min(one.stop + 1, size))
        for one, size in zip(bounding_box(present), present.shape, strict=True)
    )
