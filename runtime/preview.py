"""A picture of a prediction: the tumour's largest axial slice in all modalities, with volumes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from runtime import DISCLAIMER
from runtime.labels import MODALITIES, LabelMap
from runtime.measure import brain_of, check_shape
from runtime.nifti import INTENT_NAME, Volume
from runtime.overlay import LABEL_COLOURS, LABEL_NAMES, Overlay, Rgb
from runtime.planes import (
    Contrast,
    fullest_slice,
    lps_spacing,
    pixel_spacing,
    slice_of,
    to_lps,
)
from runtime.printable import printable
from runtime.volumes import volumes_ml

_BACKGROUND: Final[Rgb] = (13, 15, 18)
_PANEL: Final[Rgb] = (0, 0, 0)
_TEXT: Final[Rgb] = (232, 234, 237)
_DIM: Final[Rgb] = (140, 146, 154)
_MOST_PIXELS: Final = 4096
_SIDE, _GAP, _MARGIN, _HEAD, _FOOT = 320, 10, 24, 68, 124


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
        if given is not None:
            check_shape(name, given, volume)
    shown = _cut(volume, labels, truth)
    panels = list(_panels(shown))
    columns = max(len(MODALITIES), len(shown.images))
    width = 2 * _MARGIN + columns * _SIDE + (columns - 1) * _GAP
    picture = Image.new("RGB", (width, _HEAD + 2 * _SIDE + _GAP + _FOOT), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 18), printable(volume.case.case_id), _TEXT, _font(26))
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


def marked_png(picture: Image.Image) -> bytes:
    """A picture as PNG that is known as ours, with or without its sidecar."""
    marks = PngInfo()
    marks.add_text("Software", INTENT_NAME)
    data = io.BytesIO()
    picture.save(data, "PNG", pnginfo=marks)
    return data.getvalue()


def _cut(volume: Volume, labels: LabelMap, truth: LabelMap | None) -> _Slice:
    affine = volume.grid.affine
    brain = to_lps(brain_of(volume), affine)
    prediction = to_lps(labels, affine)
    true = None if truth is None else to_lps(truth, affine)
    level = fullest_slice("axial", true, prediction, brain)
    dy, dx = pixel_spacing(lps_spacing(volume.grid), "axial")
    columns, rows, size = _square(brain, dx, dy)

    def plane(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Beyond the volume's end the square shows background.
        shown = slice_of(array, "axial", level)
        return np.pad(
            shown[max(rows[0], 0) : rows[1], max(columns[0], 0) : columns[1]],
            tuple(
                (max(-low, 0), max(high - length, 0))
                for (low, high), length in zip((rows, columns), shown.shape, strict=True)
            ),
        )

    windowed = {
        name: Contrast.of(image.voxels).apply(plane(to_lps(image.voxels, affine)))
        for name, image in volume.images.items()
    }
    return _Slice(
        windowed,
        plane(prediction),
        None if true is None else plane(true),
        size,
        (level + 1, brain.shape[2]),
    )


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
        # Of a plane whose pixels are no squares at all a part is shown, not a picture of any size.
        count = max(round(min(side / step, _MOST_PIXELS)), 1)
        start = (low + high - count) // 2
        windows.append((start, start + count))
    counts = [
        (stop - start) * step for (start, stop), (_, _, step) in zip(windows, ranges, strict=True)
    ]
    scale = _SIDE / max(counts)
    width, height = (max(round(count * scale), 1) for count in counts)
    return windows[0], windows[1], (width, height)


def _panels(shown: _Slice) -> list[tuple[int, int, Image.Image, str]]:
    """(row, column, panel, caption) of everything to draw."""
    greys = {name: _scaled(image, shown.size) for name, image in shown.images.items()}
    panels = [(0, column, _panel(grey), name) for column, (name, grey) in enumerate(greys.items())]
    prediction = Overlay.of(shown.prediction, shown.size)
    if shown.truth is None:
        for column, (name, grey) in enumerate(greys.items()):
            panels.append((1, column, _panel(prediction.on(grey)), f"prediction on {name}"))
        return panels
    truth = Overlay.of(shown.truth, shown.size)
    bases = [name for name in ("t1ce", "flair") if name in greys] or list(greys)[:1]
    column = 0
    for name in bases:
        for caption, overlay in (("prediction", prediction), ("truth", truth)):
            panels.append((1, column, _panel(overlay.on(greys[name])), f"{caption} on {name}"))
            column += 1
    return panels


def _scaled(plane: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))


def _panel(drawn: npt.NDArray[np.uint8]) -> Image.Image:
    """In the middle of a black square, as RGB."""
    panel = Image.new("RGB", (_SIDE, _SIDE), _PANEL)
    height, width = drawn.shape[:2]
    picture = Image.fromarray(drawn).convert("RGB")
    panel.paste(picture, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return panel


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
        name = f"{label.name} {LABEL_NAMES[label]}"
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
