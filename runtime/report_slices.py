"""The key slices of a case: for each plane the one with most tumour, in all modalities and with the
label maps over them.
"""

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.labels import LabelMap
from runtime.markup import Markup, element, joined
from runtime.measure import brain_of
from runtime.nifti import Volume
from runtime.overlay import Overlay
from runtime.planes import (
    PLANES,
    SIDES,
    Contrast,
    Plane,
    fullest_slice,
    lps_spacing,
    pixel_spacing,
    slice_axis,
    slice_count,
    slice_of,
    to_lps,
)
from runtime.surface import Mask, Spacing, bounding_box

_LONG_SIDE: Final = 400
"""Pixels of the longer side of a picture."""
_FINER: Final = 2
"""Label maps are drawn this much finer than the images: they are sharp, and small as files."""
_MARGIN_MM: Final = 10.0
_BAR_MM: Final = 50
_BASES: Final = ("t1ce", "flair")


@dataclass(frozen=True)
class KeySlices:
    """The slices of a case that are shown.

    Attributes:
        numbers: plane to its slice, numbered from 0.
        counts: plane to how many slices the volume has.
        pictures: plane to its pictures, as HTML.
    """

    numbers: Mapping[Plane, int]
    counts: Mapping[Plane, int]
    pictures: Mapping[Plane, Markup]


def key_slices(volume: Volume, prediction: LabelMap, truth: LabelMap | None = None) -> KeySlices:
    """Choose and draw them.

    The tumour is the truth's where truth is given and not empty, else the prediction's; without
    either it is the brain.

    Args:
        volume: the case.
        prediction, truth: uint8 (X, Y, Z) in file order, network labels.
    """
    affine = volume.grid.affine
    brain = to_lps(brain_of(volume), affine)
    maps = {"prediction": to_lps(prediction, affine)}
    if truth is not None:
        maps["truth"] = to_lps(truth, affine)
    numbers = {
        plane: fullest_slice(plane, maps.get("truth"), maps["prediction"], brain)
        for plane in PLANES
    }
    spacing = lps_spacing(volume.grid)
    # Labels may lie outside of the brain, and are shown all the same.
    everything = np.logical_or.reduce([brain, *(labels != 0 for labels in maps.values())])
    box = _around(everything, spacing)
    images = {
        name: (to_lps(image.voxels, affine)[box], Contrast.of(image.voxels))
        for name, image in volume.images.items()
    }
    boxed = {name: labels[box] for name, labels in maps.items()}
    counts = {
        plane: slice_count((brain.shape[0], brain.shape[1], brain.shape[2]), plane)
        for plane in PLANES
    }
    pictures = {}
    for plane in PLANES:
        inside = numbers[plane] - box[slice_axis(plane)].start
        greys = {
            name: contrast.apply(slice_of(voxels, plane, inside))
            for name, (voxels, contrast) in images.items()
        }
        slices = {name: slice_of(labels, plane, inside) for name, labels in boxed.items()}
        where = f"{plane} slice {numbers[plane] + 1} of {counts[plane]}"
        pictures[plane] = _pictures(plane, where, greys, slices, pixel_spacing(spacing, plane))
    return KeySlices(numbers, counts, pictures)


def _around(shown: Mask, spacing: Spacing) -> tuple[slice, ...]:
    """The box of a mask with a margin, within the volume; all of it where the mask is empty."""
    if not shown.any():
        return tuple(slice(0, size) for size in shown.shape)
    margins = [round(_MARGIN_MM / step) for step in spacing]
    return tuple(
        slice(max(along.start - margin, 0), min(along.stop + margin, size))
        for along, margin, size in zip(bounding_box(shown), margins, shown.shape, strict=True)
    )


def _pictures(
    plane: Plane,
    where: str,
    greys: Mapping[str, npt.NDArray[np.uint8]],
    maps: Mapping[str, LabelMap],
    pixel: tuple[float, float],
) -> Markup:
    rows, columns = next(iter(greys.values())).shape
    height, width = rows * pixel[0], columns * pixel[1]
    scale = _LONG_SIDE / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    bases = {name: _data(_png(grey, size)) for name, grey in greys.items()}
    layers = {
        name: _data(Overlay.of(labels, (_FINER * size[0], _FINER * size[1])).layer())
        for name, labels in maps.items()
    }
    # The style shows it in the first picture only.
    bar = element(
        "span", f"{_BAR_MM} mm", class_="bar", style=f"width:{100 * _BAR_MM / width:.2f}%",
        aria_hidden="true",
    )  # fmt: skip
    marks = [*_side_marks(plane), bar]
    plain = {
        name: _figure([base], size, f"{where}, {name.upper()}", name.upper(), marks)
        for name, base in bases.items()
    }
    chosen = [name for name in _BASES if name in bases] or list(bases)[:1]
    drawn = [
        _figure(
            [bases[name], layer],
            size,
            f"{where}, {name.upper()}, with the label map of the {source}",
            f"{source.capitalize()} on {name.upper()}",
            marks,
        )
        for name in chosen
        for source, layer in layers.items()
    ]
    if len(maps) > 1:
        order, across = [*plain.values(), *drawn], 4
    else:
        # Three across: what is drawn stands below the image that it is drawn on.
        others = [plain[name] for name in plain if name not in chosen]
        order = [*(plain[name] for name in chosen), *others[:1], *drawn, *others[1:]]
        across = 3
    return element("div", joined(order, "\n"), class_=f"pictures across{across}")


def _side_marks(plane: Plane) -> list[Markup]:
    return [
        element("span", letter, class_=f"side {side}", aria_hidden="true")
        for side, letter in SIDES[plane]._asdict().items()
    ]


def _figure(
    layers: list[str], size: tuple[int, int], alternative: str, caption: str, marks: list[Markup]
) -> Markup:
    """Pictures one over the other, the lowest first, and marks over all of them."""
    base, *over = layers
    width, height = size
    parts = [element("img", src=base, alt=alternative, width=width, height=height)]
    parts += [
        element("img", src=layer, alt="", width=width, height=height, class_="over")
        for layer in over
    ]
    panel = element("div", *parts, *marks, class_="panel")
    return element("figure", panel, element("figcaption", caption))


def _png(grey: npt.NDArray[Any], size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).save(data, "PNG", optimize=True)
    return data.getvalue()


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
