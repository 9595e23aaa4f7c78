"""A whole case through the segmenter, with a network whose every output is known in closed form."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from runtime.backends import Backend, BackendInfo, BackendOptions, Fill, Take, open_backend
from runtime.case import Case
from runtime.errors import ComputeError, InputError, UsageError
from runtime.labels import MODALITIES
from runtime.model_card import InferenceDefaults, ModelCard, PostprocessRule, Shape3
from runtime.model_dir import ModelDir
from runtime.nifti import Volume, load
from runtime.ops.numpy import NumpyOps
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.windows import plan_windows

MakeVolume = Callable[..., Volume]
WriteCase = Callable[..., Path]
Floats = npt.NDArray[np.float32]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CARD = ModelCard(
    name="closed form",
    patch=(8, 8, 4),
    divisor=2,
    inference=InferenceDefaults(overlap=0.5, batch=3),
)


def network(inputs: Floats) -> Floats:
    """Class k has the logit of modality k: voxel by voxel, so that windows do not matter."""
    odds = np.exp(2 * inputs)
    return odds / odds.sum(axis=1, keepdims=True)


class FakeBackend:
    """A plain function as a backend."""

    def __init__(
        self, function: Callable[[Floats], Floats] = network, card: ModelCard = CARD
    ) -> None:
        self.card, self.ops, self.info = card, NumpyOps(), BackendInfo("fake", "cpu", "fp32")
        self.function, self.bound, self.calls = function, [], []  # type: ignore[var-annotated]

    def bind(self, window: Shape3, batch: int) -> None:
        self.bound.append((window, batch))
        self.buffer = np.full((batch, len(self.card.modalities), *window), np.nan, np.float32)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        for first in range(0, n, len(self.buffer)):
            last = min(first + len(self.buffer), n)
            fill(first, last, self.buffer[: last - first])
            take(first, last, self.function(self.buffer[: last - first].copy()))
            self.calls.append((first, last))

    def close(self) -> None:
        pass


def lopsided(rng: np.random.Generator, shape: Shape3 = (17, 13, 11)) -> dict[str, Any]:
    """A brain that is no mirror image of itself on any axis."""
    images = {}
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    inside = (x > 2) & (y < 11) & (z > 0) & (x + 2 * y + 3 * z < 50)
    for name in MODALITIES:
        images[name] = (inside * (rng.integers(100, 900, shape) + 9 * x + 5 * y)).astype(np.int16)
    return images


def expected_of(images: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Probabilities (4, X, Y, Z) in the order of the arrays; background 1 outside the box."""
    normal = []
    for name in MODALITIES:
        values = images[name].astype(np.float64)
        own = values[values != 0]
        normal.append(np.where(values != 0, (values - own.mean()) / own.std(), 0))
    odds = np.exp(2 * np.stack(normal))
    probabilities = odds / odds.sum(axis=0)
    inside = np.argwhere(np.any([images[name] != 0 for name in MODALITIES], axis=0))
    low, high = inside.min(axis=0), inside.max(axis=0)
    outside = np.ones(images["t1"].shape, bool)
    outside[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = False
    probabilities[:, outside] = np.array([1.0, 0, 0, 0])[:, None]
    return probabilities


def turned(array: npt.NDArray[Any], affine: npt.NDArray[Any], code: str) -> Any:
    """An image reoriented by nibabel."""
    image = nib.Nifti1Image(array, affine)
    return image.as_reoriented(
        ornt_transform(nib.io_orientation(affine), axcodes2ornt(tuple(code)))
    )


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SAL", "ILA"])
def test_labels_and_probabilities_are_in_file_order(
    make_volume: MakeVolume, code: str, rng: np.random.Generator
) -> None:
    images = lopsided(rng)
    truth = expected_of(images)
    stored = {name: turned(voxels, LPS, code) for name, voxels in images.items()}
    volume = make_volume(
        {name: np.asarray(image.dataobj) for name, image in stored.items()}, stored["t1"].affine
    )
    prediction = Segmenter(FakeBackend(), SegmentOptions(probabilities=True)).segment(volume)
    labels, probabilities = prediction.labels, prediction.probabilities
    assert labels.dtype == np.uint8
    assert labels.shape == volume.grid.shape
    assert probabilities is not None
    assert probabilities.dtype == np.float32
    for index in range(4):
        back = turned(probabilities[..., index], volume.grid.affine, "LPS")
        np.testing.assert_allclose(np.asarray(back.dataobj), truth[index], atol=2e-6)
    back = turned(labels, volume.grid.affine, "LPS")
    np.testing.assert_array_equal(np.asarray(back.dataobj), truth.argmax(axis=0))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
    assert set(np.unique(labels)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "options",
    [
        SegmentOptions(),
        SegmentOptions(overlap=0.0),
        SegmentOptions(overlap=0.75, placement="stride"),
        SegmentOptions(overlap=(3, 5, 1)),
        SegmentOptions(patch=(4, 6, 10), batch=1),
        SegmentOptions(patch=(16, 2, 4), overlap=0.3, batch=100),
        SegmentOptions(patch=(32, 32, 32)),
    ],
)
def test_every_plan_gives_the_same_labels_for_a_voxelwise_network(
    make_volume: MakeVolume, options: SegmentOptions, rng: np.random.Generator
) -> None:
    images = lopsided(rng)
    backend = FakeBackend()
    prediction = Segmenter(backend, options).segment(make_volume(images))
    truth = expected_of(images).argmax(axis=0)
    np.testing.assert_array_equal(prediction.labels, truth)
    patch = options.patch or CARD.patch
    # The brain box of `lopsided`, extended to the patch.
    inside = np.argwhere(images["t1"] != 0)
    box = tuple(
        max(int(size), least)
        for size, least in zip(inside.max(axis=0) - inside.min(axis=0) + 1, patch, strict=True)
    )
    overlap = 0.5 if options.overlap is None else options.overlap
    plan = plan_windows(box, patch, overlap, options.placement)  # type: ignore[arg-type]
    np.testing.assert_array_equal(prediction.plan.starts, plan.starts)
    assert backend.bound == [(patch, min(options.batch or 3, len(plan)))]
    assert backend.calls[-1][1] == len(plan)


def test_windows_reach_the_network_as_the_plan_cuts_them(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    """A network that answers by window, not by voxel: blended in float64 by hand."""
    images = lopsided(rng)
    seen: list[Floats] = []

    def by_window(inputs: Floats) -> Floats:
        seen.extend(inputs.copy())
        odds = np.exp(inputs.mean(axis=(2, 3, 4), keepdims=True) + np.zeros_like(inputs))
        return odds / odds.sum(axis=1, keepdims=True)

    options = SegmentOptions(probabilities=True)
    prediction = Segmenter(FakeBackend(by_window), options).segment(make_volume(images))
    inside = np.argwhere(images["t1"] != 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    normal = []
    for name in MODALITIES:
        values = images[name].astype(np.float64)
        own = values[values != 0]
        normal.append(np.where(values != 0, (values - own.mean()) / own.std(), 0))
    box = np.stack(normal)[:, *(slice(a, b) for a, b in zip(low, high, strict=True))]
    axes = [np.arange(size) - (size - 1) / 2 for size in CARD.patch]
    falls = [
        np.exp(-(a**2) / (2 * (size / 8) ** 2)) for a, size in zip(axes, CARD.patch, strict=True)
    ]
    weight = np.maximum(np.einsum("i,j,k->ijk", *falls), 1e-3)
    total, norm = np.zeros(box.shape), np.zeros(box.shape[1:])
    for window, start in zip(seen, prediction.plan.starts, strict=True):
        at = tuple(slice(a, a + size) for a, size in zip(start, CARD.patch, strict=True))
        np.testing.assert_allclose(window, box[:, *at], atol=1e-6)
        odds = np.exp(box[:, *at].mean(axis=(1, 2, 3)))
        total[:, *at] += weight * (odds / odds.sum())[:, None, None, None]
        norm[at] += weight
    assert prediction.probabilities is not None
    found = prediction.probabilities[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), total / norm, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 6, 3), (9, 5, 7), (8, 8, 4), (1, 1, 2)])
def test_a_volume_smaller_than_the_patch_is_segmented(
    make_volume: MakeVolume, shape: Shape3, rng: np.random.Generator
) -> None:
    images = {name: rng.integers(1, 900, shape).astype(np.int16) for name in MODALITIES}
    for options in (SegmentOptions(probabilities=True), SegmentOptions(patch=(16, 16, 16))):
        prediction = Segmenter(FakeBackend(), options).segment(make_volume(images))
        np.testing.assert_array_equal(prediction.labels, expected_of(images).argmax(axis=0))
        if prediction.probabilities is not None:
            np.testing.assert_allclose(
                np.moveaxis(prediction.probabilities, -1, 0), expected_of(images), atol=2e-6
            )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_stop_the_case(
    make_volume: MakeVolume, bad: float, rng: np.random.Generator
) -> None:
    calls = itertools.count()

    def broken(inputs: Floats) -> Floats:
        outputs = network(inputs)
        if next(calls) == 2:
            outputs[-1, 3, 0, 0, 0] = bad
        return outputs

    with pytest.raises(ComputeError) as caught:
        Segmenter(FakeBackend(broken)).segment(make_volume(lopsided(rng)))
    assert caught.value.exit_code == 8


def overflowing(inputs: Floats) -> Floats:
    outputs = network(inputs)
    outputs[-1, 3, 0, 0, 0] = np.inf
    return outputs


def test_a_spare_backend_takes_the_case_whose_probabilities_are_not_finite(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    volume = make_volume(lopsided(rng))
    half = FakeBackend(overflowing)
    half.info = replace(half.info, precision="fp16")
    closed: list[bool] = []
    spare = FakeBackend()
    spare.close = lambda: closed.append(True)  # type: ignore[method-assign]
    prediction = Segmenter(half, spare=lambda: spare).segment(volume)
    expected = Segmenter(FakeBackend()).segment(volume)
    np.testing.assert_array_equal(prediction.labels, expected.labels)
    assert prediction.backend.precision == "fp32"
    assert "fake fp16" in str(prediction.backend.fell_back_from)
    assert any("fp32" in warning for warning in prediction.warnings)
    assert closed == [True]


def test_a_spare_that_is_not_there_or_no_better_is_no_way_out(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    volume = make_volume(lopsided(rng))
    with pytest.raises(ComputeError):
        Segmenter(FakeBackend(overflowing), spare=lambda: None).segment(volume)
    with pytest.raises(ComputeError):
        Segmenter(FakeBackend(overflowing), spare=lambda: FakeBackend(overflowing)).segment(volume)


def test_a_spare_is_not_asked_for_where_all_is_well(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    def never() -> Backend:
        raise AssertionError("asked for")

    prediction = Segmenter(FakeBackend(), spare=never).segment(make_volume(lopsided(rng)))
    assert prediction.backend.fell_back_from is None


def test_progress_counts_every_window_once_and_timings_add_up(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    seen: list[tuple[int, int]] = []
    prediction = Segmenter(FakeBackend(), SegmentOptions(batch=5)).segment(
        make_volume(lopsided(rng)), lambda done, total: seen.append((done, total))
    )
    assert len(prediction.plan) == 24  # the last step is shorter than the batch
    assert seen == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]
    timings = prediction.timings
    assert min(vars(timings).values()) >= 0
    assert timings.prepare > 0
    assert timings.network > 0


@pytest.mark.parametrize(
    "options",
    [
        SegmentOptions(patch=(8, 8, 5)),
        SegmentOptions(patch=(0, 8, 4)),
        SegmentOptions(overlap=1.0),
        SegmentOptions(overlap=(9, 1, 1)),
    ],
)
def test_bad_options_are_found_before_a_case_is_read(options: SegmentOptions) -> None:
    with pytest.raises(UsageError):
        Segmenter(FakeBackend(), options)


def test_the_cards_rules_and_warnings_reach_the_prediction(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    images = lopsided(rng)
    truth = expected_of(images).argmax(axis=0)
    enhancing = int((truth == 3).sum())
    rule = PostprocessRule(min_et_mm3=enhancing * 8 + 1)  # voxels of 8 mm3
    affine = LPS * [2, 2, 2, 1]
    card = replace(CARD, postprocess=rule)
    with pytest.raises(InputError, match="--force-spacing"):
        Segmenter(FakeBackend(card=card)).segment(make_volume(images, affine))
    options = SegmentOptions(force_spacing=True)
    prediction = Segmenter(FakeBackend(card=card), options).segment(make_volume(images, affine))
    np.testing.assert_array_equal(prediction.labels, np.where(truth == 3, 1, truth))
    assert len(prediction.warnings) == 1
    plain = replace(options, postprocess=False)
    prediction = Segmenter(FakeBackend(card=card), plain).segment(make_volume(images, affine))
    np.testing.assert_array_equal(prediction.labels, truth)
    card = replace(CARD, postprocess=PostprocessRule(min_et_mm3=enhancing * 8))
    prediction = Segmenter(FakeBackend(card=card), options).segment(make_volume(images, affine))
    np.testing.assert_array_equal(prediction.labels, truth)


def test_one_segmenter_serves_case_after_case(
    make_volume: MakeVolume, rng: np.random.Generator
) -> None:
    segmenter = Segmenter(FakeBackend())
    for shape in ((17, 13, 11), (9, 8, 6), (20, 12, 10)):
        images = lopsided(rng, shape)
        prediction = segmenter.segment(make_volume(images))
        np.testing.assert_array_equal(prediction.labels, expected_of(images).argmax(axis=0))


# One case, however it is stored, gives one label map.


@pytest.fixture(scope="module")
def backend(tiny_model: Path) -> Iterator[Backend]:
    opened = open_backend(ModelDir.open(tiny_model), BackendOptions("ort", threads=2))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return lopsided(np.random.default_rng(5), (40, 34, 22))


@pytest.fixture(scope="module")
def reference(backend: Backend, make_volume: MakeVolume, small: dict[str, Any]) -> Any:
    """Labels in LPS."""
    labels = Segmenter(backend).segment(make_volume(small)).labels
    counts = np.bincount(labels.ravel(), minlength=4)
    assert (counts > 50).sum() >= 3, counts  # a label map worth comparing
    return labels


NAMES_OF_2023 = dict(zip(MODALITIES, ("t2f", "t1n", "t1c", "t2w"), strict=True))


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
@pytest.mark.parametrize(
    ("pattern", "modern"),
    [
        ("X_{}.nii.gz", False),
        ("X_{}.nii", False),
        ("X-{}.nii.gz", True),
        ("{}.nii", False),
        ("{}.nii.gz", True),
        ("four", False),
        ("numbered", False),
    ],
)
def test_every_dialect_gives_the_same_label_map(
    tmp_path: Path,
    write_case: WriteCase,
    backend: Backend,
    small: dict[str, Any],
    reference: Any,
    pattern: str,
    modern: bool,
    dtype: str,
) -> None:
    stored = {name: voxels.astype(dtype) for name, voxels in small.items()}
    channels = ["t1ce", "t2", "flair", "t1"]
    if pattern == "four":
        image = nib.Nifti1Image(np.stack([stored[name] for name in channels], axis=-1), LPS)
        nib.save(image, tmp_path / "X.nii.gz")
        case = Case.from_dir(tmp_path / "X.nii.gz", channels)
    elif pattern == "numbered":
        write_case(tmp_path, {f"{channels.index(name):04}": stored[name] for name in MODALITIES})
        case = Case.from_dir(tmp_path, channels)
    else:
        named = {NAMES_OF_2023[name] if modern else name: stored[name] for name in MODALITIES}
        case = Case.from_dir(write_case(tmp_path, named, pattern=pattern))
    labels = Segmenter(backend).segment(load(case)).labels
    np.testing.assert_array_equal(labels, reference)


def test_all_48_orientations_give_the_same_label_map(
    backend: Backend, make_volume: MakeVolume, small: dict[str, Any], reference: Any
) -> None:
    segmenter = Segmenter(backend, SegmentOptions(overlap=0.25))
    truth = segmenter.segment(make_volume(small)).labels
    assert (truth != reference).mean() < 0.1
    codes = [
        "".join(code)
        for axes in itertools.permutations(("LR", "PA", "IS"))
        for code in itertools.product(*axes)
    ]
    assert len(codes) == 48
    for code in codes:
        transform = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(tuple(code)))
        affine = LPS @ inv_ornt_aff(transform, small["t1"].shape)
        stored = {name: nib.apply_orientation(voxels, transform) for name, voxels in small.items()}
        labels = segmenter.segment(make_volume(stored, affine)).labels
        back = turned(labels, affine, "LPS")
        np.testing.assert_array_equal(np.asarray(back.dataobj), truth, code)
