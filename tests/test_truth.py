"""A label map whose values have two meanings is refused until its numbering is named."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.case import Case, find_cases
from runtime.cli.infer import main as infer
from runtime.errors import InputError
from runtime.labels import Convention
from runtime.model_card import ModelCard
from runtime.nifti import Grid, load
from runtime.nifti_writer import write_image
from runtime.preview import preview
from runtime.truth import load_truth, read_labels

NAMES = {"2020": "X/X_{}.nii.gz", "2023": "X/X-{}.nii.gz", "bare": "X/{}.nii.gz"}
IMAGES = {"2020": ("flair", "t1"), "2023": ("t2f", "t1n"), "bare": ("t2f", "t1n")}


def stored(values: Sequence[int]) -> np.ndarray:
    made = np.zeros((6, 2, 2), np.uint8)
    made[: len(values)] = np.array(values, np.uint8)[:, None, None]
    return made


def case_of(root: Path, names: str, values: Sequence[int]) -> Case:
    """A case whose label map has a plane of each of ``values``."""
    voxels = stored(values)
    grid = Grid.from_affine(voxels.shape, np.eye(4))
    for token in IMAGES[names]:
        write_image(root / NAMES[names].format(token), np.ones(voxels.shape, np.int16), grid)
    write_image(root / NAMES[names].format("seg"), voxels, grid)
    return Case.from_dir(root / "X")


def planes(case: Case, convention: Convention | None = None) -> list[int]:
    return [int(value) for value in load_truth(case, None, convention)[:, 0, 0]]


@pytest.mark.parametrize("names", ["2023", "bare"])
@pytest.mark.parametrize("values", [(0, 1, 2, 4), (4,), (0, 1, 4)])
def test_a_4_without_a_3_under_the_names_of_2023_is_refused(
    tmp_path: Path, names: str, values: tuple[int, ...]
) -> None:
    """The numbering of 2020 under newer names, or a cavity of 2024 without enhancing tumour."""
    with pytest.raises(InputError) as caught:
        load_truth(case_of(tmp_path, names, values))
    error = caught.value
    assert error.where == str(tmp_path / NAMES[names].format("seg"))
    assert error.found == "a 4 and no 3 where the naming implies brats2023"
    assert error.expected == "1, 2 and 3"
    assert "--labels brats2020 for enhancing tumour" in error.remedy
    assert "--labels brats2024 for the resection cavity" in error.remedy


def test_the_flag_of_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say what 4 is: --truth-labels brats2020"):
        load_truth(case_of(tmp_path / "a", "2023", (0, 1, 2, 4)), flag="--truth-labels")
    with pytest.raises(InputError, match="with --truth-labels"):
        load_truth(case_of(tmp_path / "b", "2020", (0, 1, 2, 3)), flag="--truth-labels")


@pytest.mark.parametrize(
    ("convention", "expected"),
    [(Convention.BRATS2020, [0, 1, 2, 3, 0, 0]), (Convention.BRATS2024, [0, 1, 2, 0, 0, 0])],
)
def test_a_named_convention_settles_it(
    tmp_path: Path, convention: Convention, expected: list[int]
) -> None:
    assert planes(case_of(tmp_path, "2023", (0, 1, 2, 4)), convention) == expected


def test_a_3_beside_the_4_is_the_numbering_of_2024(tmp_path: Path) -> None:
    assert planes(case_of(tmp_path, "2023", (0, 1, 2, 3, 4))) == [0, 1, 2, 3, 0, 0]


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 1, 2), (0, 2, 3), (0,)])
def test_without_a_4_the_names_of_2023_are_believed(
    tmp_path: Path, values: tuple[int, ...]
) -> None:
    expected = [*values, *[0] * (6 - len(values))]
    assert planes(case_of(tmp_path, "2023", values)) == expected


def test_names_of_2020_know_a_4_and_no_3(tmp_path: Path) -> None:
    assert planes(case_of(tmp_path / "a", "2020", (0, 1, 2, 4))) == [0, 1, 2, 3, 0, 0]
    with pytest.raises(InputError, match="label values 0, 1, 2, 3"):
        load_truth(case_of(tmp_path / "b", "2020", (0, 1, 2, 3)))


def test_a_dataset_json_that_names_the_cavity_is_believed(tmp_path: Path) -> None:
    case = case_of(tmp_path, "2023", (0, 1, 2, 4))
    told = Case(case.case_id, case.images, case.labels, case.dialect, Convention.BRATS2024)
    assert planes(told) == [0, 1, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("convention", "values", "expected"),
    [
        (Convention.BRATS2023, (0, 1, 2, 4), None),
        (Convention.BRATS2023, (0, 1, 2, 3, 4), [0, 1, 2, 3, 0, 0]),
        (Convention.BRATS2024, (0, 1, 2, 4), None),
        (Convention.BRATS2024, (0, 1, 2, 3), [0, 1, 2, 3, 0, 0]),
        # In 2015 it is the 3 that another numbering uses for enhancing tumour.
        (Convention.BRATS2015, (0, 1, 2, 3), None),
        (Convention.BRATS2015, (0, 1, 2, 3, 4), [0, 1, 2, 1, 3, 0]),
        (Convention.BRATS2015, (0, 1, 2, 4), [0, 1, 2, 3, 0, 0]),
        (Convention.BRATS2020, (0, 1, 2, 4), [0, 1, 2, 3, 0, 0]),
    ],
)
def test_a_convention_taken_over_from_elsewhere_is_questioned(
    tmp_path: Path, convention: Convention, values: tuple[int, ...], expected: list[int] | None
) -> None:
    path, grid = tmp_path / "X.nii", Grid.from_affine((6, 2, 2), np.eye(4))
    write_image(path, stored(values), grid)
    if expected is None:
        with pytest.raises(InputError, match=rf"where the truth implies {convention}, .*--labels"):
            read_labels(path, convention, assumed="the truth")
    else:
        found, _ = read_labels(path, convention, assumed="the truth")
        assert found[:, 0, 0].tolist() == expected


@pytest.fixture
def renamed(tmp_path: Path) -> Path:
    """A whole case, numbered as in 2020, under the names of 2023."""
    shape = (16, 16, 16)
    grid, draw = Grid.from_affine(shape, np.diag([-1.0, -1.0, 1.0, 1.0])), np.random.default_rng(0)
    folder = tmp_path / "data" / "BraTS-GLI-00001-000"
    for token in ("t2f", "t1n", "t1c", "t2w"):
        voxels = np.zeros(shape, np.int16)
        voxels[2:14, 2:14, 2:14] = draw.integers(1, 99, (12, 12, 12))
        write_image(folder / f"{folder.name}-{token}.nii.gz", voxels, grid)
    labels = np.zeros(shape, np.uint8)
    for plane, value in ((4, 1), (5, 2), (6, 4)):
        labels[plane, 4:12, 4:12] = value
    write_image(folder / f"{folder.name}-seg.nii.gz", labels, grid)
    return folder.parent


def test_training_on_values_in_doubt_is_refused(renamed: Path, tmp_path: Path) -> None:
    from train.data import cached

    card = ModelCard(name="tiny", patch=(16, 16, 16), divisor=4)
    with pytest.raises(InputError, match=r"-seg\.nii\.gz: found a 4 and no 3 .*--labels brats2024"):
        cached(find_cases(renamed), card, tmp_path / "cache")
    for convention, enhancing in ((Convention.BRATS2020, 64), (Convention.BRATS2024, 0)):
        (case,) = cached(find_cases(renamed), card, tmp_path / "cache", convention)
        assert case.counts == (64, 64, enhancing)


def test_certifying_on_values_in_doubt_is_refused(renamed: Path) -> None:
    from export.cases import parity_cases

    with pytest.raises(InputError, match="say what 4 is: --labels brats2020"):
        list(parity_cases(renamed, 3))
    (case,) = parity_cases(renamed, 3, Convention.BRATS2020)
    assert case.truth is not None
    assert np.bincount(case.truth.ravel(), minlength=4)[1:].tolist() == [64, 64, 64]


def test_a_preview_shows_truth_once_its_numbering_is_named(
    renamed: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = find_cases(renamed)
    words = [str(renamed), "--model", str(tiny_model), "-o", str(tmp_path / "out"), "--preview"]

    def shown(*flags: str) -> np.ndarray:
        assert infer([*words, "--overwrite", *flags]) == 0
        return np.asarray(Image.open(tmp_path / "out" / f"{case.case_id}_preview.png"))

    def expected(truth: np.ndarray | None) -> np.ndarray:
        made, _ = read_labels(tmp_path / "out" / f"{case.case_id}_seg.nii.gz", Convention.BRATS2023)
        return np.asarray(preview(load(case), made, truth))

    np.testing.assert_array_equal(shown(), expected(None))
    told = " ".join(capsys.readouterr().err.split())
    assert "shown without truth" in told
    assert "--truth-labels brats2020 for enhancing tumour" in told
    np.testing.assert_array_equal(
        shown("--truth-labels", "brats2020"),
        expected(load_truth(case, None, Convention.BRATS2020)),
    )
    assert "shown without truth" not in capsys.readouterr().err
