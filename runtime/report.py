"""What a reader of a segmentation wants at a glance: volumes in ml, and a picture of the tumour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import nibabel.orientations as orientations
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from runtime import DISCLAIMER
from runtime.errors import InputError
from runtime.labels import MODALITIES, Label, LabelMap
from runtime.measure import volumes_ml
from runtime.nifti import Volume

Rgb = tuple[int, int, int]

LABEL_COLOURS: Final[dict[Label, Rgb]] = {
    # Okabe and Ito, "Color Universal Design" (2008): distinct with every kind of colour blindness.
    Label.NCR: (86, 180, 233),
    Label.ED: (0, 158, 115),
    Label.ET: (230, 159, 0),
}
_LABEL_NAMES: Final = {
    Label.NCR: "necrotic core",
    Label.ED: "edema",
    Label.ET: "enhancing",
}
_BACKGROUND: Final[Rgb] = (13, 15, 18)
_PANEL: Final[Rgb] = (0, 0, 0)
_TEXT: Final[Rgb] = (232, 234, 237)
_DIM: Final[Rgb] = (140, 146, 154)
_SIDE, _GAP, _MARGIN, _HEAD, _FOOT = 320, 10, 24, 68, 124
_FILL: Final = 0.35


@dataclass(frozen=True)
class _Slice:
    """One axial slice, cropped to a square around the brain; patient right on the left, front up.

    Attributes:
        images: modality to uint8 (rows, columns), windowed.
        prediction, truth: uint8 (rows, columns), network labels.
        size: pixels of the panel that show it, (width, height), with the voxels' true proportions.
        index: slice number from below, 1-based, and the number of slices.
    """

    images: dict[str, npt.NDArray[np.uint8]]
    prediction: LabelMap
    truth: LabelMap | None
    size: tuple[int, int]
    index: tuple[int, int]


def preview(volume: Volume, labels: LabelMap, truth: LabelMap | None = None) -> Image.Image:
    """Draw the axial slice with the largest tumour: the modalities, and the label maps over them.

    The tumour is the truth's where truth is given and not empty, else the prediction's. Orientation
    is radiological whatever the file's: the patient's right on the left, anterior up.

    Args:
        volume: the case; modalities it lacks are left out.
        labels: uint8 (X, Y, Z) in file order, network labels.
        truth: the same, drawn beside the prediction.

    Returns:
        An RGB image. A label's colour (`LABEL_COLOURS`) appears in it exactly when a label map has
        that label.

    Raises:
        InputError: a label map's shape is not the volume's.
    """
    for name, given in (("the prediction", labels), ("the truth", truth)):
        if given is not None and given.shape != volume.grid.shape:
            raise InputError(
                name,
                found=f"shape {'x'.join(map(str, given.shape))}",
                expected=f"{'x'.join(map(str, volume.grid.shape))} as {volume.case.case_id} has",
                remedy="give a label map on the case's own grid",
            )
    shown = _cut(volume, labels, truth)
    panels = list(_panels(shown))
    columns = max(len(MODALITIES), len(shown.images))
    width = 2 * _MARGIN + columns * _SIDE + (columns - 1) * _GAP
    picture = Image.new("RGB", (width, _HEAD + 2 * _SIDE + _GAP + _FOOT), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 18), volume.case.case_id, _TEXT, _font(26))
    where = f"axial slice {shown.index[0]} of {shown.index[1]}"
    draw.text((width - _MARGIN, 26), where, _DIM, _font(17), anchor="ra")
    for row, column, panel, caption in panels:
        corner = (_MARGIN + column * (_SIDE + _GAP), _HEAD + row * (_SIDE + _GAP))
        picture.paste(panel, corner)
        _annotate(draw, corner, caption)
    predicted = volumes_ml(labels, volume.grid.spacing)
    true = None if truth is None else volumes_ml(truth, volume.grid.spacing)
    _legend(draw, _HEAD + 2 * _SIDE + _GAP, predicted, true)
    draw.text((_MARGIN, picture.height - 30), DISCLAIMER, _DIM, _font(14))
    return picture


def _cut(volume: Volume, labels: LabelMap, truth: LabelMap | None) -> _Slice:
    affine = volume.grid.affine
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(("L", "P", "S"))
    )

    def turned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = orientations.apply_orientation(array, turn)
        return result

    axes = np.argsort(turn[:, 0])
    dx, dy, _ = (volume.grid.spacing[int(axis)] for axis in axes)
    images = {name: turned(image.voxels) for name, image in volume.images.items()}
    brain = np.any([image != 0 for image in images.values()], axis=0)
    prediction = turned(labels)
    true = None if truth is None else turned(truth)
    level = _level(true, prediction, brain)
    columns, rows, size = _square(brain, dx, dy)

    def plane(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Beyond the volume's end the square shows background.
        return np.pad(
            array[max(columns[0], 0) : columns[1], max(rows[0], 0) : rows[1], level].T,
            tuple(
                (max(-low, 0), max(high - length, 0))
                for (low, high), length in zip((rows, columns), array.shape[1::-1], strict=True)
            ),
        )

    windowed = {name: _window(plane(image), image) for name, image in images.items()}
    return _Slice(
        windowed,
        plane(prediction),
        None if true is None else plane(true),
        size,
        (level + 1, brain.shape[2]),
    )


def _level(truth: LabelMap | None, prediction: LabelMap, brain: npt.NDArray[np.bool_]) -> int:
    """The slice with most tumour of the first that has any, else with most brain."""
    for mask in (truth, prediction, brain):
        if mask is not None and mask.any():
            return int(np.sum(mask != 0, axis=(0, 1)).argmax())
    return int(brain.shape[2]) // 2


def _square(
    brain: npt.NDArray[np.bool_], dx: float, dy: float
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Columns and rows of a square (in mm) around the brain, and its size in pixels."""
    ranges = []
    for axis, step in ((0, dx), (1, dy)):
        inside = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, brain.shape[axis])
        ranges.append((low, high, step))
    side = 1.06 * max((high - low) * step for low, high, step in ranges)
    windows = []
    for low, high, step in ranges:
        count = max(round(side / step), 1)
        start = (low + high - count) // 2
        windows.append((start, start + count))
    counts = [
        (stop - start) * step for (start, stop), (_, _, step) in zip(windows, ranges, strict=True)
    ]
    scale = _SIDE / max(counts)
    width, height = (max(round(count * scale), 1) for count in counts)
    return windows[0], windows[1], (width, height)


def _window(plane: npt.NDArray[Any], image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """uint8 with the brain's 1st to 99.5th percentile over the range; background stays black."""
    inside = image[image != 0]
    low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0.0, 1.0)
    # A brain voxel at the low end stays lighter than the background.
    scaled = 12 + 243 * (plane.astype(np.float64) - low) / max(float(high - low), 1e-9)
    return np.where(plane != 0, np.clip(scaled, 12, 255), 0).astype(np.uint8)


def _panels(shown: _Slice) -> list[tuple[int, int, Image.Image, str]]:
    """(row, column, panel, caption) of everything to draw."""
    panels = [
        (0, column, _grey(image, shown.size), name)
        for column, (name, image) in enumerate(shown.images.items())
    ]
    if shown.truth is None:
        for column, (name, image) in enumerate(shown.images.items()):
            panel = _overlay(_grey(image, shown.size), shown.prediction, shown.size)
            panels.append((1, column, panel, f"prediction on {name}"))
        return panels
    bases = [name for name in ("t1ce", "flair") if name in shown.images] or list(shown.images)[:1]
    column = 0
    for name in bases:
        for caption, drawn in (("prediction", shown.prediction), ("truth", shown.truth)):
            panel = _overlay(_grey(shown.images[name], shown.size), drawn, shown.size)
            panels.append((1, column, panel, f"{caption} on {name}"))
            column += 1
    return panels


def _grey(plane: npt.NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    scaled = Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    panel = Image.new("RGB", (_SIDE, _SIDE), _PANEL)
    panel.paste(scaled, ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return panel


def _overlay(panel: Image.Image, labels: LabelMap, size: tuple[int, int]) -> Image.Image:
    """Translucent fill and an opaque outline of each label, drawn at the panel's resolution."""
    # Each label is scaled on its own and the largest wins: no label appears between two others.
    shares = [
        np.asarray(
            Image.fromarray(np.where(labels == label, np.uint8(255), np.uint8(0))).resize(
                size, Image.Resampling.BILINEAR
            )
        )
        for label in Label
    ]
    fine = np.argmax(shares, axis=0)
    left, top = (_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2
    drawn = np.array(panel, np.float64)
    pixels = drawn[top : top + size[1], left : left + size[0]]
    for label, colour in LABEL_COLOURS.items():
        mask = fine == label
        # A structure thinner than a pixel must not vanish.
        if not mask.any() and (labels == label).any():
            mask = shares[label] == shares[label].max()
        pixels[mask] += _FILL * (np.array(colour) - pixels[mask])
        pixels[_outline(mask)] = colour
    return Image.fromarray(np.rint(drawn).astype(np.uint8))


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    core = padded[1:-1, 1:-1].copy()
    for shift in ((0, 1), (2, 1), (1, 0), (1, 2)):
        core &= padded[shift[0] : shift[0] + mask.shape[0], shift[1] : shift[1] + mask.shape[1]]
    return mask & ~core


def _annotate(draw: ImageDraw.ImageDraw, corner: tuple[int, int], caption: str) -> None:
    x, y = corner
    _label(draw, (x + 10, y + 8), caption, "la", 16)
    _label(draw, (x + 10, y + _SIDE // 2), "R", "lm", 13)
    _label(draw, (x + _SIDE - 10, y + _SIDE // 2), "L", "rm", 13)


def _label(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, anchor: str, size: int
) -> None:
    draw.text(at, text, _TEXT, _font(size), anchor=anchor, stroke_width=2, stroke_fill=_PANEL)


def _legend(
    draw: ImageDraw.ImageDraw,
    top: int,
    predicted: dict[str, dict[str, float]],
    true: dict[str, dict[str, float]] | None,
) -> None:
    x, y = _MARGIN, top + 18
    for label, colour in LABEL_COLOURS.items():
        volumes = [v["labels"][label.name] for v in (predicted, true) if v is not None]
        present = any(volume > 0 for volume in volumes)
        box = (x, y + 2, x + 18, y + 20)
        draw.rectangle(box, fill=colour if present else None, outline=colour if present else _DIM)
        name = f"{label.name} {_LABEL_NAMES[label]}"
        draw.text((x + 28, y), name, _TEXT if present else _DIM, _font(17))
        draw.text((x + 28, y + 24), _millilitres(volumes), _DIM, _font(15))
        x += 228
    x += 20
    for region, meaning in (("WT", "whole tumour"), ("TC", "tumour core")):
        volumes = [v["regions"][region] for v in (predicted, true) if v is not None]
        draw.text((x, y), f"{region} {meaning}", _TEXT, _font(17))
        draw.text((x, y + 24), _millilitres(volumes), _DIM, _font(15))
        x += 228


def _millilitres(volumes: Sequence[float]) -> str:
    text = f"{volumes[0]:.1f} ml"
    return text if len(volumes) == 1 else f"{text}  (truth {volumes[1]:.1f} ml)"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
