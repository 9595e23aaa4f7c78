"""What the viewer in the browser gets: decoded here by hand, and compared with the case."""

import gzip
import json
from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.app.packet import pack
from runtime.labels import MODALITIES, REGIONS
from runtime.nifti import Volume

MakeVolume = Callable[..., Volume]
SHAPE = (9, 8, 7)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Layers = dict[str, npt.NDArray[np.uint8]]


def unpack(packet: bytes) -> tuple[dict[str, Any], Layers]:
    """The format by its description, without our code."""
    length = int.from_bytes(packet[:4], "little")
    header = json.loads(packet[4 : 4 + length])
    body = np.frombuffer(gzip.decompress(packet[4 + length :]), np.uint8)
    parts = body.reshape(len(header["layers"]), -1)
    layers = {
        name: part.reshape(header["shape"], order="F")
        for name, part in zip(header["layers"], parts, strict=True)
    }
    return header, layers


@pytest.fixture
def images(rng: np.random.Generator) -> dict[str, npt.NDArray[np.int16]]:
    """A brain with background around it: x 2 to 6, y 1 to 5, z 3 to 5."""
    found = {}
    for name in MODALITIES:
        found[name] = np.zeros(SHAPE, np.int16)
        found[name][2:7, 1:6, 3:6] = rng.integers(1, 900, (5, 5, 3))
    return found


@pytest.fixture
def labels() -> npt.NDArray[np.uint8]:
    found = np.zeros(SHAPE, np.uint8)
    found[3:6, 2:4, 4] = 2
    found[4, 2, 4] = 3
    found[4, 3, 4] = 1
    return found


def test_the_box_lies_where_it_says_and_holds_the_label_map(
    make_volume: MakeVolume, images: Any, labels: Any
) -> None:
    header, layers = unpack(pack(make_volume(images), labels))
    # The brain and one voxel around it.
    assert header["start"] == [1, 0, 2]
    assert header["shape"] == [7, 7, 5]
    assert header["full"] == list(SHAPE)
    np.testing.assert_array_equal(layers["prediction"], labels[1:8, 0:7, 2:7])
    assert header["layers"] == [*MODALITIES, "prediction"]
    assert header["modality"] == "t1ce"


def test_greys_tell_brain_from_background_and_keep_the_order(
    make_volume: MakeVolume, images: Any, labels: Any
) -> None:
    _, layers = unpack(pack(make_volume(images), labels))
    for name in MODALITIES:
        stored, grey = images[name][1:8, 0:7, 2:7], layers[name]
        np.testing.assert_array_equal(grey == 0, stored == 0)
        order = np.argsort(stored[stored != 0], kind="stable")
        assert (np.diff(grey[stored != 0][order].astype(int)) >= 0).all()
        assert len(np.unique(grey)) > 20


def test_it_opens_at_the_slices_with_most_tumour(
    make_volume: MakeVolume, images: Any, labels: Any
) -> None:
    header, _ = unpack(pack(make_volume(images), labels))
    at = [start + index for start, index in zip(header["start"], header["at"], strict=True)]
    counts = [np.count_nonzero(labels, axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    assert at == [int(count.argmax()) for count in counts]


ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_the_orientation_of_the_file_changes_nothing(
    make_volume: MakeVolume, images: Any, labels: Any, order: Any, signs: Any
) -> None:
    """The same patient, stored along other axes."""
    affine = LPS @ np.diag([1.0, 1.5, 2.0, 1.0])
    expected = unpack(pack(make_volume(images, affine), labels, labels))

    def stored(array: Any) -> Any:
        turned = np.transpose(array, order)
        return turned[tuple(slice(None, None, sign) for sign in signs)]

    # Voxel (i, j, k) of the stored array lies where the voxel it came from lay.
    back = np.zeros((4, 4))
    back[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        back[old, new] = sign
        back[old, 3] = 0 if sign > 0 else SHAPE[old] - 1
    volume = make_volume({name: stored(image) for name, image in images.items()}, affine @ back)
    header, layers = unpack(pack(volume, stored(labels), stored(labels)))
    assert header == expected[0]
    for name, layer in layers.items():
        np.testing.assert_array_equal(layer, expected[1][name])


def test_probabilities_of_a_region_are_those_of_its_labels_together(
    make_volume: MakeVolume, images: Any, labels: Any, rng: np.random.Generator
) -> None:
    probabilities = rng.dirichlet((4, 1, 2, 1), SHAPE).astype(np.float32)
    header, layers = unpack(pack(make_volume(images), labels, None, probabilities))
    assert header["layers"][-3:] == ["heat_WT", "heat_TC", "heat_ET"]
    boxed = probabilities[1:8, 0:7, 2:7]
    for region, members in REGIONS.items():
        expected = 255 * sum(boxed[..., int(label)].astype(np.float64) for label in members)
        assert np.abs(layers[f"heat_{region}"] - expected).max() <= 0.501


def test_tumour_outside_the_brain_is_sent_too(make_volume: MakeVolume, images: Any) -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[0, 7, 0] = 2
    header, layers = unpack(pack(make_volume(images), None, truth))
    assert "prediction" not in layers
    assert np.count_nonzero(layers["truth"]) == 1
    assert header["start"] == [0, 0, 0]


def test_another_label_map_is_another_packet(
    make_volume: MakeVolume, images: Any, labels: Any
) -> None:
    volume = make_volume(images)
    one, again = pack(volume, labels), pack(volume, labels.copy())
    assert one == again
    changed = labels.copy()
    changed[3, 2, 4] = 1
    other = pack(volume, changed)
    assert unpack(one)[0]["sha256"] != unpack(other)[0]["sha256"]


def test_a_case_without_a_brain_is_shown_whole(make_volume: MakeVolume) -> None:
    nothing = {name: np.zeros(SHAPE, np.int16) for name in MODALITIES}
    header, layers = unpack(pack(make_volume(nothing), np.zeros(SHAPE, np.uint8)))
    assert header["shape"] == list(SHAPE)
    assert not any(layer.any() for layer in layers.values())
