"""A patient whose brain box was not seen before, for modes that run one window over that box.

A backend whose windows vary chooses its kernels, and grows its memory, when a shape is first run:
with the built-in network on two cores the first run of a shape took 1.45 times as long as the next
ones in int8 (OpenVINO, median of seven shapes: 1.12 to 1.66), 1.04 times in fp32 (1.01 to 1.18; on
ONNX Runtime up to 1.32, where memory grew). Binding the shape once more shows nothing of that, nor
does a backend opened anew: kernels are kept for the process (1.08 times in place of 1.42).
"""

from dataclasses import replace
from itertools import product
from math import prod
from typing import Final

import numpy as np

from runtime.backends import BackendInfo
from runtime.backends.seam import LARGEST_PATCH
from runtime.model_card import Shape3
from runtime.nifti import Volume
from runtime.segmenter import Segmenter

MOST: Final = 1.25
"""Most voxels of a new box, to those of the case's own."""
_RAN: Final[set[tuple[str, str, Shape3]]] = set()
"""Backend, precision and box of all that this process has run."""


def note_box(info: BackendInfo, box: Shape3) -> None:
    """A window over a whole box was run."""
    _RAN.add((info.name, info.precision, box))


def as_of_a_new_patient(segmenter: Segmenter, volume: Volume) -> Volume:
    """The case as it is to be timed: where a mode runs one window over the brain box, with a box
    that this process has not run, the least that has no fewer voxels; otherwise as it is.

    The brain is cut along one axis and extended along another, in its middle, and means nothing any
    more: it is to be timed alone. The box is noted as run.

    Args:
        segmenter: a mode and its backend.
        volume: raw voxels, whose axes the model has in the same order.

    Raises:
        ValueError: every box of up to `MOST` times the voxels was run.
    """
    if segmenter.patch != "box":
        return volume
    backend = segmenter.backend
    step = backend.card.divisor
    found = _extent(volume)
    own = [_up(last - first, step) for first, last in found]
    info = backend.info
    sizes = (range(step, _up(length, step) + 1, step) for length in volume.grid.shape)
    allowed = prod(own), min(MOST * prod(own), LARGEST_PATCH)
    boxes = [
        (x, y, z) for x, y, z in product(*sizes) if allowed[0] <= prod((x, y, z)) <= allowed[1]
    ]
    # Of those of a size the one that is most like the case's own.
    boxes.sort(key=lambda box: (prod(box), sum(abs(n - m) for n, m in zip(box, own, strict=True))))
    for box in boxes:
        alike = all(n <= 2 * m and m <= 2 * n for n, m in zip(box, own, strict=True))
        if alike and list(box) != own and (info.name, info.precision, box) not in _RAN:
            note_box(info, box)
            return _with_box(volume, found, box)
    raise ValueError(
        f"all boxes like {'x'.join(map(str, own))} were run in {volume.grid.shape}: take fewer "
        "rounds, or a larger case"
    )


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _extent(volume: Volume) -> list[tuple[int, int]]:
    """First and last + 1 voxel of the brain along each axis."""
    brain = np.any([image.voxels != 0 for image in volume.images.values()], axis=0)
    ranges = []
    for axis in range(3):
        (inside,) = np.nonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))
        ranges.append((int(inside[0]), int(inside[-1]) + 1))
    return ranges


def _with_box(volume: Volume, found: list[tuple[int, int]], box: Shape3) -> Volume:
    """The case with nothing outside of a box of that shape, whose first and last corner hold 1."""
    slices = []
    for (first, last), size, length in zip(found, box, volume.grid.shape, strict=True):
        size = min(size, length)
        start = min(max(0, (first + last - size) // 2), length - size)
        slices.append(slice(start, start + size))
    images = {}
    for name, image in volume.images.items():
        voxels = np.zeros_like(image.voxels)
        voxels[tuple(slices)] = image.voxels[tuple(slices)]
        voxels[tuple(one.start for one in slices)] = 1
        voxels[tuple(one.stop - 1 for one in slices)] = 1
        images[name] = replace(image, voxels=voxels)
    return replace(volume, images=images)
