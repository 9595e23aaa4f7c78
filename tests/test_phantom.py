"""Phantoms look like BraTS to a segmenter, and no shortcut segments them."""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from runtime.case import find_cases
from runtime.errors import UsageError
from runtime.labels import MODALITIES, Convention, Label, from_convention, regions_from_labels
from runtime.nifti import is_ours, load, load_label_map
from runtime.phantom import Enhancement, Phantom, phantom_case, write_phantoms

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "brats18"
SMALL = (96, 96, 80)

Images = dict[str, npt.NDArray[np.int16]]
Means = dict[tuple[str, Label], float]


@pytest.fixture(scope="module")
def full() -> Phantom:
    return phantom_case(seed=0, case=4)


@pytest.fixture(scope="module")
def series() -> list[Phantom]:
    return [phantom_case(seed=3, case=case, shape=SMALL) for case in range(1, 9)]


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def z_means(images: Images, labels: npt.NDArray[np.uint8]) -> Means:
    """Mean z-score of each tumour label, each modality scored over its own non-zero voxels."""
    means = {}
    for modality, voxels in images.items():
        own = voxels[voxels != 0].astype(np.float64)
        for label in (Label.NCR, Label.ED, Label.ET):
            inside = voxels[labels == label]
            if inside.size >= 100:
                means[modality, label] = float((inside.mean() - own.mean()) / own.std())
    return means


def average(cases: Iterator[Means]) -> Means:
    collected: dict[tuple[str, Label], list[float]] = {}
    for means in cases:
        for key, value in means.items():
            collected.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in collected.items()}


def test_geometry_is_that_of_brats(full: Phantom) -> None:
    brain = full.images["t1"] > 0
    assert full.labels.shape == (240, 240, 155)
    assert full.labels.dtype == np.uint8
    np.testing.assert_array_equal(
        full.grid.affine, [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    assert nib.aff2axcodes(full.grid.affine) == ("L", "P", "S")
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    sides = [part.stop - part.start for part in box]
    assert sides == pytest.approx([135, 167, 138], abs=12)
    assert 1.1e6 < brain.sum() < 1.75e6


def test_background_is_zero_in_all_modalities_and_the_brain_positive_in_all(
    full: Phantom, series: list[Phantom]
) -> None:
    for phantom in (full, *series):
        brain = phantom.images["flair"] != 0
        for voxels in phantom.images.values():
            assert voxels.dtype == np.int16
            np.testing.assert_array_equal(voxels > 0, brain)
            assert (voxels >= 0).all()
        assert brain[phantom.labels > 0].all()
        assert not brain[0].any()
        assert not brain[:, :, -1].any()


def test_labels_are_nested(full: Phantom, series: list[Phantom]) -> None:
    for phantom in (full, *series):
        regions = regions_from_labels(phantom.labels)
        brain = phantom.images["t1"] > 0
        hull = ndimage.binary_fill_holes(phantom.labels == Label.ED)
        assert (ndimage.binary_fill_holes(regions["WT"]) >= regions["TC"]).all()
        # Stepping out of the core one meets edema, or the end of the brain or a ventricle.
        shell = ndimage.binary_dilation(regions["TC"]) & ~regions["TC"] & brain
        assert (phantom.labels[shell] == Label.ED).mean() > 0.8
        assert hull.any()


def test_volumes_are_those_of_gliomas() -> None:
    ratio = np.prod(SMALL) / np.prod((240, 240, 155))
    counts = [
        np.bincount(phantom_case(9, case, SMALL, Enhancement.RIM).labels.ravel(), minlength=4)[1:]
        for case in range(1, 17)
    ]
    whole, enhancing = np.sum(counts, axis=1) / ratio / 1000, np.array(counts)[:, 2] / ratio / 1000
    assert 30 < np.median(whole) < 80
    assert whole.min() > 8
    assert whole.max() < 250
    assert 3 < np.median(enhancing) < 25


@pytest.mark.parametrize(("enhancement", "least", "most"), [("none", 0, 0), ("tiny", 0, 400)])
def test_enhancement_can_be_tiny_or_absent(enhancement: str, least: int, most: int) -> None:
    for case in range(1, 5):
        labels = phantom_case(1, case, SMALL, Enhancement(enhancement)).labels
        assert least <= (labels == Label.ET).sum() <= most
        assert (labels == Label.NCR).any()


def test_every_kind_of_tumour_is_drawn() -> None:
    enhancing = [
        int((phantom_case(0, case, (48, 48, 40)).labels == Label.ET).sum()) for case in range(60)
    ]
    assert 1 <= enhancing.count(0) <= 20
    assert np.median(enhancing) > 20


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_phantoms(tmp_path / folder, 2, seed=5, shape=SMALL)
    files = sorted(path.relative_to(tmp_path / "one") for path in tmp_path.glob("one/*/*"))
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_case_does_not_depend_on_those_before_it(tmp_path: Path) -> None:
    folders = write_phantoms(tmp_path, 2, seed=5, shape=SMALL)
    stored = np.asarray(nib.load(folders[1] / "BraTSPhantom_0002_t2.nii.gz").dataobj)
    np.testing.assert_array_equal(stored, phantom_case(5, 2, SMALL).images["t2"])


def test_seeds_and_cases_differ() -> None:
    brains = [phantom_case(*key, SMALL).images["t1"] for key in ((0, 1), (0, 2), (1, 1))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (brains[one] != brains[other]).mean() > 0.1


def test_what_is_written_is_read_back_as_a_case(tmp_path: Path) -> None:
    folders = write_phantoms(tmp_path, 1, seed=2, shape=SMALL)
    phantom = phantom_case(2, 1, SMALL)
    assert folders == [tmp_path / "BraTSPhantom_0001"]
    (case,) = find_cases(tmp_path)
    assert case.case_id == "BraTSPhantom_0001"
    assert case.convention is Convention.BRATS2020
    volume = load(case)
    for modality in MODALITIES:
        np.testing.assert_array_equal(volume.images[modality].voxels, phantom.images[modality])
    assert case.labels is not None
    assert not is_ours(case.labels)
    stored, grid = load_label_map(case.labels)
    assert set(np.unique(stored)) == {0, 1, 2, 4}
    np.testing.assert_array_equal(
        from_convention(stored, Convention.BRATS2020, case.labels), phantom.labels
    )
    np.testing.assert_array_equal(grid.affine, phantom.grid.affine)


def best_threshold_dice(voxels: npt.NDArray[np.int16], truth: npt.NDArray[np.bool_]) -> float:
    """The best Dice of all ``voxels >= t`` and ``0 < voxels <= t``, from the two histograms."""
    size = int(voxels.max()) + 1
    of_truth = np.bincount(voxels[truth], minlength=size)
    of_brain = np.bincount(voxels[voxels > 0], minlength=size)
    best = 0.0
    for step in (1, -1):
        hits, called = of_truth[::step].cumsum(), of_brain[::step].cumsum()
        best = max(best, float((2 * hits / np.maximum(called + truth.sum(), 1)).max()))
    return best


def test_no_threshold_on_one_modality_segments_the_core(
    full: Phantom, series: list[Phantom]
) -> None:
    for region, limit in (("TC", 0.4), ("ET", 0.35)):
        for modality in MODALITIES:
            scores = [
                best_threshold_dice(phantom.images[modality], truth)
                for phantom in (full, *series)
                if (truth := regions_from_labels(phantom.labels)[region]).sum() > 50
            ]
            assert np.mean(scores) < limit, (region, modality, scores)


def test_constant_and_random_predictions_score_near_nothing(full: Phantom) -> None:
    brain = full.images["t1"] > 0
    random = np.random.default_rng(0).random(brain.shape) < 0.5
    for region in ("TC", "ET"):
        truth = regions_from_labels(full.labels)[region]
        assert dice(brain, truth) < 0.05
        assert dice(brain & random, truth) < 0.05
        assert dice(np.zeros_like(brain), truth) == 0


def test_contrasts_follow_radiology(series: list[Phantom]) -> None:
    mean = average(z_means(phantom.images, phantom.labels) for phantom in series)
    assert mean["t1ce", Label.ET] > max(mean["t1ce", Label.NCR], mean["t1ce", Label.ED]) + 1.2
    assert mean["t1ce", Label.NCR] < 0
    assert mean["t1", Label.NCR] < 0
    assert mean["t2", Label.NCR] > mean["t2", Label.ED] > 0.4
    assert mean["flair", Label.ED] > 1.2


@pytest.mark.real
def test_contrasts_are_close_to_those_of_real_cases() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real cases at {REAL}")

    def read() -> Iterator[Means]:
        for case in find_cases(REAL)[:6]:
            assert case.labels is not None
            stored, _ = load_label_map(case.labels)
            labels = from_convention(stored, Convention.BRATS2020, case.labels)
            volume = load(case)
            yield z_means({name: one.voxels for name, one in volume.images.items()}, labels)

    real = average(read())
    phantoms = (phantom_case(0, case, SMALL) for case in range(1, 21))
    ours = average(z_means(phantom.images, phantom.labels) for phantom in phantoms)
    assert ours.keys() == real.keys()
    for key, value in real.items():
        assert ours[key] == pytest.approx(value, abs=1.0), key


def test_too_small_a_shape_is_named() -> None:
    with pytest.raises(UsageError, match="96x96x8"):
        phantom_case(0, shape=(96, 96, 8))
