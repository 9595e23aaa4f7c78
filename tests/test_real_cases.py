"""One real case, written in every way it could reach us, gives one label map."""

import json
import shutil
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from runtime.backends import BackendOptions, open_backend
from runtime.case import Case, find_cases
from runtime.model_dir import ModelDir
from runtime.nifti import load
from runtime.segmenter import Segmenter, SegmentOptions

pytestmark = [pytest.mark.real, pytest.mark.slow]

NAMES = ("flair", "t1", "t1ce", "t2")
NAMES_2023 = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"}
CASE = "Brats18_2013_3_1"
Images = dict[str, nib.Nifti1Image]


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Iterator[Segmenter]:
    backend = open_backend(ModelDir.open(tiny_model), BackendOptions(backend="ort"))
    yield Segmenter(backend, SegmentOptions(patch=(128, 128, 64), overlap=0.25))
    backend.close()


@pytest.fixture(scope="module")
def images(real_cases: Path) -> Images:
    return {name: nib.load(real_cases / CASE / f"{CASE}_{name}.nii.gz") for name in NAMES}


@pytest.fixture(scope="module")
def expected(real_cases: Path, segmenter: Segmenter) -> npt.NDArray[np.uint8]:
    labels = segmenter.segment(load(Case.from_dir(real_cases / CASE))).labels
    assert len(np.unique(labels)) > 2, "a label map of one label would prove nothing"
    return labels


def _labels(segmenter: Segmenter, case: Case) -> npt.NDArray[np.uint8]:
    return segmenter.segment(load(case)).labels


def _write(folder: Path, pattern: str, images: Images, dtype: type[np.generic]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        stored = nib.Nifti1Image(np.asarray(image.dataobj).astype(dtype), image.affine)
        nib.save(stored, folder / pattern.format(name=name, modern=NAMES_2023[name]))
    return folder


@pytest.mark.parametrize(
    "pattern", ["X_{name}", "X-{modern}", "{name}", "{modern}"], ids=["2018", "2023", "old", "new"]
)
@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".nii", np.int16), (".nii.gz", np.float32), (".nii", np.float32)]
)
def test_dialects_suffixes_and_dtypes(
    pattern: str,
    suffix: str,
    dtype: type[np.generic],
    tmp_path: Path,
    images: Images,
    segmenter: Segmenter,
    expected: npt.NDArray[np.uint8],
) -> None:
    case = Case.from_dir(_write(tmp_path / "case", pattern + suffix, images, dtype))
    assert np.array_equal(_labels(segmenter, case), expected)


def test_msd_and_nnunet(
    tmp_path: Path, images: Images, segmenter: Segmenter, expected: npt.NDArray[np.uint8]
) -> None:
    order = ("t2", "flair", "t1ce", "t1")
    affine = images["flair"].affine
    stacked = np.stack([np.asarray(images[name].dataobj) for name in order], axis=-1)
    msd = tmp_path / "Task01_BrainTumour"
    (msd / "imagesTr").mkdir(parents=True)
    nib.save(nib.Nifti1Image(stacked, affine), msd / "imagesTr" / "BRATS_001.nii")
    described = {"modality": {str(i): name for i, name in enumerate(order)}}
    (msd / "dataset.json").write_text(json.dumps(described))
    assert np.array_equal(_labels(segmenter, find_cases(msd)[0]), expected)
    nnunet = tmp_path / "Dataset001" / "imagesTr"
    nnunet.mkdir(parents=True)
    for channel, name in enumerate(order):
        nib.save(images[name], nnunet / f"X_{channel:04d}.nii")
    assert np.array_equal(_labels(segmenter, find_cases(nnunet.parent, order)[0]), expected)


def test_all_48_orientations(
    tmp_path: Path, images: Images, segmenter: Segmenter, expected: npt.NDArray[np.uint8]
) -> None:
    shape = expected.shape
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        orientation = np.array(list(zip(axes, signs, strict=True)), float)
        turned = {
            name: nib.Nifti1Image(
                apply_orientation(np.asarray(image.dataobj), orientation),
                image.affine @ inv_ornt_aff(orientation, shape),
            )
            for name, image in images.items()
        }
        folder = _write(tmp_path / "case", "X_{name}.nii", turned, np.int16)
        found = _labels(segmenter, Case.from_dir(folder))
        assert np.array_equal(found, apply_orientation(expected, orientation)), orientation
        shutil.rmtree(folder)
