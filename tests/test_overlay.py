"""What is drawn over an image: which pixels, in which colour, and how opaque."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from runtime.labels import Label, LabelMap
from runtime.overlay import LABEL_COLOURS, Overlay


@pytest.fixture
def labels() -> LabelMap:
    """A square of edema with one of enhancing tumour in it; (rows, columns)."""
    made = np.zeros((20, 24), np.uint8)
    made[4:16, 4:16] = Label.ED
    made[7:12, 8:13] = Label.ET
    return made


def rgba_of(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_at_its_own_size_each_pixel_has_its_label(labels: LabelMap) -> None:
    overlay = Overlay.of(labels, (24, 20))
    np.testing.assert_array_equal(overlay.fill, labels)
    # Of a square of n pixels a side, 4 (n - 1) are its border; that of the edema also runs along
    # the 5 pixels on each side of the square within.
    assert np.count_nonzero(overlay.outline == Label.ET) == 4 * 4
    assert np.count_nonzero(overlay.outline == Label.ED) == 4 * 11 + 4 * 5
    assert set(np.unique(labels[overlay.outline > 0])) == {Label.ED, Label.ET}


def test_the_fill_lets_the_image_through_and_the_outline_does_not(labels: LabelMap) -> None:
    overlay = Overlay.of(labels, (24, 20))
    grey = np.full(labels.shape, 100, np.uint8)
    drawn = overlay.on(grey, 0.25)
    colour = np.array(LABEL_COLOURS[Label.ET])
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[9, 10].tolist() == np.rint(75 + 0.25 * colour).astype(int).tolist()
    assert drawn[7, 8].tolist() == colour.tolist()
    assert (grey == 100).all()


@pytest.mark.parametrize("outline", [True, False])
def test_a_layer_over_an_image_is_what_is_drawn_on_it(labels: LabelMap, outline: bool) -> None:
    overlay = Overlay.of(labels, (240, 200))
    layer = rgba_of(overlay.layer(0.4, outline))
    assert layer.shape == (200, 240, 4)
    grey = np.random.default_rng(0).integers(0, 256, (200, 240)).astype(np.uint8)
    alpha = layer[..., 3:] / 255
    over = grey[..., None] * (1 - alpha) + layer[..., :3] * alpha
    expected = overlay.on(grey, 0.4)
    same = np.ones(grey.shape, bool) if outline else overlay.outline == 0
    assert np.abs(over - expected)[same].max() < 1
    assert (layer[..., 3] > 0).sum() == (overlay.fill > 0).sum()
    assert ((layer[..., 3] == 255).sum() == (overlay.outline > 0).sum()) == outline


def test_one_voxel_among_others_is_drawn_when_it_is_shrunk() -> None:
    labels = np.full((60, 60), Label.ED, np.uint8)
    labels[31, 31] = Label.NCR
    overlay = Overlay.of(labels, (10, 10))
    assert np.count_nonzero(overlay.fill == Label.NCR) == 1
    assert np.count_nonzero(overlay.outline == Label.NCR) == 1


def test_nothing_is_drawn_of_nothing() -> None:
    overlay = Overlay.of(np.zeros((8, 9), np.uint8), (18, 16))
    assert not rgba_of(overlay.layer())[..., 3].any()
