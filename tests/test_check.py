"""The case doctor names what is wrong with a case, and nothing that is not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from runtime.case import Case, Source, find_cases
from runtime.check import check_cases
from runtime.cli.infer import main
from runtime.doctor.examine import examine
from runtime.errors import InputError
from runtime.grid import Grid
from runtime.model_card import ModelCard
from runtime.nifti import load, load_label_map, read_image
from runtime.nifti_writer import write_image
from runtime.phantom import Enhancement, write_phantoms


@pytest.fixture
def copied(phantom_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_dir, tmp_path / phantom_dir.name))


def _texts(folder: Path, tolerated: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    """Severity, code and text of what is found."""
    card = ModelCard("tolerant", tolerates_missing=tolerated) if tolerated else None
    report = examine(Case.from_dir(folder), card=card)
    return [(finding.severity, finding.code, finding.text) for finding in report.findings]


def _codes(folder: Path) -> list[str]:
    return [code for _, code, _ in _texts(folder)]


def _rewrite(folder: Path, modality: str, change: object) -> None:
    image, grid = read_image(Case.from_dir(folder).images[modality])
    write_image(image.path, change(image.voxels), grid)  # type: ignore[operator]


def test_a_sound_case_has_no_findings(phantom_dir: Path) -> None:
    assert _texts(phantom_dir) == []


def test_missing_modality_is_an_error_unless_the_model_does_without_it(copied: Path) -> None:
    (copied / f"{copied.name}_t2.nii.gz").unlink()
    assert _texts(copied) == [("error", "missing", "no t2 image")]
    told = ("warning", "missing", "no t2 image; the model does without it")
    assert _texts(copied, ("t2",)) == [told]


def test_the_same_image_twice_is_an_error_however_it_is_stored(copied: Path) -> None:
    shutil.copy(copied / f"{copied.name}_t1.nii.gz", copied / f"{copied.name}_t1ce.nii.gz")
    text = "t1ce and t1 are the same file; give each its own image"
    assert _texts(copied) == [("error", "same-image", text)]
    _rewrite(copied, "t1ce", lambda voxels: voxels.astype(np.float64))
    text = "t1ce and t1 hold the same voxels; give each its own image"
    assert _texts(copied) == [("error", "same-image", text)]


def test_everything_that_is_wrong_is_told_at_once(copied: Path) -> None:
    """Damage in one file does not hide what is wrong with the others."""
    flair, t2 = (copied / f"{copied.name}_{name}.nii.gz" for name in ("flair", "t2"))
    flair.write_bytes(flair.read_bytes()[:-20])
    volume = load(Case("X", {"t1": Source(copied / f"{copied.name}_t1.nii.gz")}))
    moved = volume.grid.affine.copy()
    moved[0, 3] += 5
    t1 = volume.images["t1"]
    write_image(t1.path, t1.voxels, Grid.from_affine(volume.grid.shape, moved))
    t2.write_bytes(b"no image")
    zeros = np.zeros(volume.grid.shape, np.int16, order="F")
    write_image(copied / f"{copied.name}_t1ce.nii.gz", zeros, volume.grid)
    found = _texts(copied)
    assert [(severity, code) for severity, code, _ in found] == [
        ("error", "unreadable"), ("error", "all-zero"), ("error", "unreadable"),
        ("error", "not-co-registered"),
    ]  # fmt: skip
    assert str(flair) in found[0][2]
    assert str(t2) in found[2][2]
    assert "not co-registered" in found[3][2]
    assert "moves a corner of the volume by 5 mm" in found[3][2]


def test_intensities_are_judged(copied: Path) -> None:
    _rewrite(copied, "flair", lambda voxels: np.where(voxels == 0, 3, voxels).astype(np.int16))
    _rewrite(copied, "t1", lambda voxels: (voxels - 700 * (voxels > 0)).astype(np.int16))
    squeezed = lambda voxels: np.rint(voxels * (255 / voxels.max())).astype(np.int16)  # noqa: E731
    _rewrite(copied, "t2", squeezed)
    found = _texts(copied)
    assert {severity for severity, _, _ in found} == {"warning"}
    assert [code for _, code, _ in found] == ["background", "negative", "narrow-range"]
    assert "the background is 3, not 0" in found[0][2]
    assert "t1 has negative values" in found[1][2]
    assert "scaled to a byte" in found[2][2]


def test_a_skull_is_noticed(copied: Path) -> None:
    generator = np.random.default_rng(0)

    def noisy(voxels: np.ndarray) -> np.ndarray:
        air = generator.integers(0, 9, voxels.shape)
        return np.where(voxels == 0, air, voxels).astype(np.int16)

    _rewrite(copied, "t2", noisy)
    (skull, _brains) = _texts(copied)
    assert skull[:2] == ("warning", "skull")
    assert "of the voxels are not 0; is the skull on?" in skull[2]


@pytest.mark.parametrize("background", [True, False])
def test_z_scores_are_recognised(copied: Path, background: bool) -> None:
    def scored(voxels: np.ndarray) -> np.ndarray:
        brain = voxels[voxels != 0].astype(float)
        scores = (voxels - brain.mean()) / brain.std()
        return (scores if background else np.where(voxels == 0, 0, scores)).astype(np.float32)

    _rewrite(copied, "t1", scored)
    ((severity, code, text),) = _texts(copied)
    assert (severity, code) == ("warning", "z-scored")
    assert ("the background is" in text) == background
    assert "mean 0.00, standard deviation 1.00" in text


def test_a_constant_image_is_an_error(copied: Path) -> None:
    _rewrite(copied, "t2", lambda voxels: (5 * (voxels != 0)).astype(np.int16))
    assert _texts(copied) == [
        ("error", "constant", "t2 is constant over the brain (5); export it again")
    ]


def test_another_brain_is_noticed(copied: Path) -> None:
    _rewrite(copied, "t2", lambda voxels: np.roll(voxels, 4, axis=1))
    assert "different-brains" in _codes(copied)


@pytest.mark.parametrize("with_truth", [True, False])
@pytest.mark.parametrize(("one", "other"), [("t1", "t1ce"), ("flair", "t2")])
def test_exchanged_images_are_noticed(copied: Path, one: str, other: str, with_truth: bool) -> None:
    first, second = (copied / f"{copied.name}_{name}.nii.gz" for name in (one, other))
    exchanged = first.read_bytes(), second.read_bytes()
    second.write_bytes(exchanged[0])
    first.write_bytes(exchanged[1])
    if not with_truth:
        (copied / f"{copied.name}_seg.nii.gz").unlink()
    ((severity, code, text),) = _texts(copied)
    assert (severity, code) == ("warning", f"swapped-{one}-{other}")
    assert f"{one} and {other} are probably swapped" in text


@pytest.mark.parametrize("enhancement", list(Enhancement))
def test_no_phantom_is_accused(tmp_path: Path, enhancement: Enhancement) -> None:
    """Not even where nothing enhances but vessels."""
    for folder in write_phantoms(tmp_path, 2, 11, (64, 56, 48), enhancement):
        assert _texts(folder) == []


def test_spacing_is_a_warning(copied: Path) -> None:
    volume = load(Case.from_dir(copied))
    stored, _ = load_label_map(copied / f"{copied.name}_seg.nii.gz")
    grid = Grid.from_affine(volume.grid.shape, volume.grid.affine @ np.diag([1, 1, 3.0, 1]))
    for modality in volume.images:
        write_image(volume.images[modality].path, volume.images[modality].voxels, grid)
    write_image(copied / f"{copied.name}_seg.nii.gz", stored, grid)
    text = "spacing 1x1x3 mm, BraTS models expect 1x1x1; resample the case"
    assert _texts(copied) == [("warning", "spacing", text)]


def test_labels_outside_the_brain_are_counted(copied: Path) -> None:
    path = copied / f"{copied.name}_seg.nii.gz"
    stored, grid = load_label_map(path)
    changed = stored.copy(order="F")
    changed[0, 0, :3] = 2
    write_image(path, changed, grid)
    text = "3 labelled voxels lie outside the brain"
    assert _texts(copied) == [("warning", "labels-outside", text)]


def test_interpolated_and_empty_label_maps_are_told(copied: Path) -> None:
    path = copied / f"{copied.name}_seg.nii.gz"
    stored, grid = load_label_map(path)
    changed = stored.astype(np.float32)
    changed[changed == 4] = 3.5
    write_image(path, np.asfortranarray(changed), grid)
    ((severity, code, text),) = _texts(copied)
    assert (severity, code) == ("error", "labels-interpolated")
    assert "3.5" in text
    write_image(path, np.zeros_like(stored), grid)
    assert [code for _, code, _ in _texts(copied)] == ["labels-empty"]


def test_what_no_name_explains_is_listed(copied: Path) -> None:
    shutil.copy(copied / f"{copied.name}_seg.nii.gz", copied / "brain.nii.gz")
    assert _texts(copied) == [("info", "unused", "not used: brain.nii.gz")]


def test_labels_on_another_grid_are_an_error(copied: Path) -> None:
    path = copied / f"{copied.name}_seg.nii.gz"
    stored, grid = load_label_map(path)
    moved = grid.affine.copy()
    moved[0, 3] += 5
    write_image(path, stored, Grid.from_affine(grid.shape, moved))
    ((severity, code, text),) = _texts(copied)
    assert (severity, code) == ("error", "labels-grid")
    assert "moves a corner of the volume by 5 mm" in text


@pytest.fixture
def renamed(copied: Path, tmp_path: Path) -> Path:
    """The case, numbered as in 2020, under the names of 2023."""
    folder = tmp_path / "renamed" / "X"
    folder.mkdir(parents=True)
    names = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}
    for old, new in names.items():
        shutil.copy(copied / f"{copied.name}_{old}.nii.gz", folder / f"X-{new}.nii.gz")
    return folder


def test_labels_of_2020_under_the_names_of_2023_are_an_error(
    renamed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(renamed), "--check", "--quiet"]) == 3
    told = capsys.readouterr().err.splitlines()[0]
    assert told == (
        f"X error: {renamed / 'X-seg.nii.gz'}: found a 4 and no 3 where the naming implies "
        "brats2023, expected 1, 2 and 3; say what 4 is: --truth-labels brats2020 for enhancing "
        "tumour, --truth-labels brats2024 for the resection cavity."
    )
    for convention in ("brats2020", "brats2024"):
        assert main([str(renamed), "--check", "--quiet", "--truth-labels", convention]) == 0
    assert main([str(renamed), "--check", "--quiet", "--truth-labels", "brats2023"]) == 3
    assert "with --truth-labels." in capsys.readouterr().err


def test_all_cases_are_told_before_the_bad_one_fails_the_command(
    phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(phantom_root, tmp_path / "root"))
    flair = root / "BraTSPhantom_0001" / "BraTSPhantom_0001_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-20])
    with pytest.raises(InputError, match="1 of 2 cases"):
        check_cases(find_cases(root), Console(width=200))
    shown = capsys.readouterr().out
    assert "BraTSPhantom_0001_flair.nii.gz" in shown
    assert "BraTSPhantom_0002" in shown
