"""The case doctor on real images: the awkward ones, and no false alarm on the sound ones."""

from pathlib import Path

import pytest

from runtime.case import Case, Dialect, find_cases
from runtime.cli.infer import main
from runtime.doctor.examine import examine

pytestmark = pytest.mark.real

AWKWARD = Path(__file__).parents[2] / "shared" / "data" / "awkward"


@pytest.fixture(scope="module")
def awkward() -> Path:
    if not AWKWARD.is_dir():
        pytest.skip(f"no real cases in {AWKWARD}")
    return AWKWARD


def codes_of(case: Case) -> set[str]:
    """What is found but for what lies beside the case's files and outside of its brain."""
    codes = {finding.code for finding in examine(case).findings}
    return codes - {"labels-outside", "unused"}


def told(folder: Path, *flags: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main([str(folder), *map(str, flags)])
    return code, capsys.readouterr().err


def test_four_grids_under_four_names_are_not_co_registered(
    awkward: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = awkward / "native_scanner_grids"
    code, err = told(folder, "--check", capsys=capsys)
    assert code == 3
    assert "error: not co-registered" in err
    assert "error: names of different cases" in err
    assert err.count("is the skull on?") == 4
    code, err = told(folder, "--model", tiny_model, "-o", tmp_path / "out", capsys=capsys)
    assert code == 3
    assert "not co-registered" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_modalities_lack_the_other_two(
    awkward: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = awkward / "two_modalities_zscored"
    case = Case.from_dir(folder)
    assert case.dialect is Dialect.MODALITY_FIRST
    assert list(case.images) == ["flair", "t1ce"]
    code, err = told(folder, "--check", capsys=capsys)
    assert code == 3
    assert "error: no t1 image" in err
    assert "error: no t2 image" in err
    assert err.count("z-scored already") == 2
    assert err.count("the background is") == 2
    assert "not used: OTMultiClass.nii.gz, brainmask.nii.gz" in err
    code, err = told(folder, "--model", tiny_model, "-o", tmp_path / "out", capsys=capsys)
    assert code == 3
    assert "no t1 and no t2 image" in err


def test_float64_is_fine(
    awkward: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = awkward / "float64_case"
    assert Case.from_dir(folder).labels is None
    code, err = told(folder, "--check", capsys=capsys)
    assert code == 0
    assert "float64" in err
    assert "1 case: 1 usable, 0 with errors, 0 with warnings" in err
    out = tmp_path / "out"
    flags = ("--model", tiny_model, "-o", out, "--patch", "128,128,64", "--overlap", 0)
    code, err = told(folder, *flags, "--backend", "ort", "--threads", 1, capsys=capsys)
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == [
        "float64_case.json", "float64_case_seg.nii.gz",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("truth", [True, False])
def test_every_exchange_is_noticed_and_no_sound_case_is_accused(
    real_cases: Path, truth: bool
) -> None:
    """With the truth at hand, which tells T1 from T1CE by itself, and without it."""
    for case in find_cases(real_cases):
        labels = case.labels if truth else None
        assert codes_of(Case(case.case_id, case.images, labels)) == set(), case.case_id
        for one, other in (("t1", "t1ce"), ("flair", "t2")):
            images = {**case.images, one: case.images[other], other: case.images[one]}
            found = codes_of(Case(case.case_id, images, labels))
            assert found == {f"swapped-{one}-{other}"}, case.case_id
