"""A label map over an image: a translucent fill and an outline, in colours that every eye tells
apart.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.labels import Label, LabelMap
from runtime.surface import Mask

Rgb = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

LABEL_COLOURS: Final[Mapping[Label, Rgb]] = MappingProxyType(
    {
        # Okabe and Ito, "Color Universal Design" (2008): distinct with every kind of colour
        # blindness.
        Label.NCR: (86, 180, 233),
        Label.ED: (0, 158, 115),
        Label.ET: (230, 159, 0),
    }
)
LABEL_NAMES: Final[Mapping[Label, str]] = MappingProxyType(
    {Label.NCR: "necrotic core", Label.ED: "edema", Label.ET: "enhancing"}
)
REGION_COLOURS: Final[Mapping[str, Rgb]] = MappingProxyType(
    {
        # Of the label that a region has and the next smaller one has not.
        "WT": LABEL_COLOURS[Label.ED],
        "TC": LABEL_COLOURS[Label.NCR],
        "ET": LABEL_COLOURS[Label.ET],
    }
)
FILL: Final = 0.35
"""Opacity of the fill, unless told otherwise."""


@dataclass(frozen=True)
class Overlay:
    """A slice of a label map at the resolution it is shown in.

    Attributes:
        fill: uint8 (rows, columns), the label of each pixel.
        outline: uint8 (rows, columns), the label whose outline runs through the pixel, 0 elsewhere.
    """

    fill: LabelMap
    outline: LabelMap

    @classmethod
    def of(cls, labels: LabelMap, size: tuple[int, int]) -> "Overlay":
        """Scale a slice to the screen, with smooth edges.

        Args:
            labels: uint8 (rows, columns), network labels, as `runtime.planes.slice_of` gives them.
            size: pixels of the screen, (width, height).
        """
        # Each label is scaled on its own and the largest wins: no label appears between two others.
        shares = [
            np.asarray(
                Image.fromarray(np.where(labels == label, np.uint8(255), np.uint8(0))).resize(
                    size, Image.Resampling.BILINEAR
                )
            )
            for label in Label
        ]
        fill = np.argmax(shares, axis=0).astype(np.uint8)
        for label in LABEL_COLOURS:
            # A structure thinner than a pixel must not vanish.
            if (labels == label).any() and not (fill == label).any():
                fill[shares[label] == shares[label].max()] = label
        outline = np.zeros_like(fill)
        for label in LABEL_COLOURS:
            outline[_border(fill == label)] = label
        return cls(fill, outline)

    def on(self, grey: Pixels, opacity: float = FILL) -> Pixels:
        """Draw over an image.

        Args:
            grey: uint8 (rows, columns) of the same shape.
            opacity: of the fill, 0 to 1; the outline is opaque.

        Returns:
            uint8 (rows, columns, 3), RGB; ``grey`` stays as it is.
        """
        drawn = np.repeat(grey.astype(np.float64)[..., None], 3, axis=2)
        for label, colour in LABEL_COLOURS.items():
            mask = self.fill == label
            drawn[mask] += opacity * (np.array(colour) - drawn[mask])
            drawn[self.outline == label] = colour
        return np.rint(drawn).astype(np.uint8)

    def layer(self, opacity: float = FILL, outline: bool = True) -> bytes:
        """A PNG to lay over an image of the same proportions: transparent where there is no label.

        Args:
            opacity: of the fill, 0 to 1.
            outline: also draw the outlines, opaque.
        """
        indices = np.where(self.outline, self.outline + len(Label), self.fill)
        image = Image.fromarray(indices.astype(np.uint8) if outline else self.fill)
        colours = [LABEL_COLOURS.get(label, (0, 0, 0)) for label in Label]
        image.putpalette([value for colour in (*colours, *colours) for value in colour])
        fills = [round(255 * opacity)] * (len(Label) - 1)
        data = io.BytesIO()
        image.save(data, "PNG", transparency=bytes([0, *fills, 0, *[255] * len(fills)]), bits=4)
        return data.getvalue()


def _border(mask: Mask) -> Mask:
    """Voxels of a mask with a neighbour across an edge that is outside; so is what lies beyond."""
    padded = np.pad(mask, 1)
    core = padded[1:-1, 1:-1].copy()
    for shift in ((0, 1), (2, 1), (1, 0), (1, 2)):
        core &= padded[shift[0] : shift[0] + mask.shape[0], shift[1] : shift[1] + mask.shape[1]]
    border: Mask = mask & ~core
    return border
