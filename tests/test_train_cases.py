"""Which cases are used, left out and said to be, held out; and that each is there once."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from runtime.case import Case, find_cases
from runtime.errors import InputError
from runtime.labels import MODALITIES
from train import copies
from train.cases import check_held_out, find_labelled, find_split
from train.cli import main
from train.copies import check_copies
from train.split import Split

MakeCase = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> MakeCase:
    """make("TrainingData/X"): a case that nobody reads; its files hold what nothing else does."""

    def write(where: str, *, labelled: bool = True, content: str = "", size: int = 0) -> Path:
        folder = tmp_path / "data" / where
        folder.mkdir(parents=True)
        for name in MODALITIES:
            text = f"{content or where} {name}"
            (folder / f"{folder.name}_{name}.nii").write_text(text.center(size))
        if labelled:
            (folder / f"{folder.name}_seg.nii").write_text(where)
        return folder

    return write


def _ids(cases: Sequence[Case]) -> list[str]:
    return [case.case_id for case in cases]


# What is left out


def test_a_case_without_truth_among_others_is_refused(make: MakeCase, tmp_path: Path) -> None:
    make("A")
    make("B", labelled=False)
    make("C")
    with pytest.raises(InputError, match="case B without a label map"):
        find_labelled(tmp_path / "data")
    found = find_labelled(tmp_path / "data", exclude=["B"])
    assert (_ids(found.labelled), _ids(found.excluded)) == (["A", "C"], ["B"])
    assert found.lines("data")[1:] == ["left out: 1 case excluded (B)"]
    with pytest.raises(InputError, match="no case D"):
        find_labelled(tmp_path / "data", exclude=["D"])


def test_a_data_set_without_any_labels_is_left_out_and_said(make: MakeCase, tmp_path: Path) -> None:
    for number in range(1, 4):
        make(f"TrainingData/BraTS20_Training_{number:03d}")
    for number in range(1, 6):
        make(f"ValidationData/BraTS20_Validation_{number:03d}", labelled=False)
    found = find_labelled(tmp_path / "data")
    assert _ids(found.labelled) == [f"BraTS20_Training_{number:03d}" for number in range(1, 4)]
    names = ", ".join(f"BraTS20_Validation_{number:03d}" for number in range(1, 4))
    assert found.lines("data") == [
        "3 labelled cases in data",
        f"left out: 5 cases without a label map ({names}, ...)",
    ]
    with pytest.raises(InputError, match="BraTS20_Validation_001"):
        find_labelled(tmp_path / "data" / "ValidationData")


def test_a_case_without_truth_in_a_folder_of_its_own_is_said(
    make: MakeCase, tmp_path: Path
) -> None:
    make("P1/case1")
    make("P1/case2")
    make("P2/case3", labelled=False)
    found = find_labelled(tmp_path / "data")
    assert found.lines("data") == [
        "2 labelled cases in data",
        "left out: 1 case without a label map (case3)",
    ]


def test_a_patients_folder_is_no_data_set(make: MakeCase, tmp_path: Path) -> None:
    make("BraTS-GLI-00001/BraTS-GLI-00001-000")
    make("BraTS-GLI-00001/BraTS-GLI-00001-001")
    make("BraTS-GLI-00002/BraTS-GLI-00002-000", labelled=False)
    with pytest.raises(InputError, match="case BraTS-GLI-00002-000 without a label map"):
        find_labelled(tmp_path / "data")


def test_cases_on_neither_side_are_said(make: MakeCase, tmp_path: Path) -> None:
    for name in "ABCD":
        make(name)
    found = find_labelled(tmp_path / "data")
    assert found.split_line(Split(("A",), ("B", "C", "D"))) == "1 train, 3 validate"
    line = found.split_line(Split(("A",), ("C",)))
    assert line == "1 train, 1 validate; left out: 2 in neither (B, D)"


# What a run that is gone on with needs


def test_only_the_cases_of_a_split_are_looked_for(make: MakeCase, tmp_path: Path) -> None:
    for name in ("A", "B", "C"):
        make(name)
    make("New", labelled=False)
    make("deep/New")
    root, split = tmp_path / "data", Split(("A",), ("C",))
    found = find_split(root, (), split)
    assert (_ids(found.labelled), found.excluded, found.unlabelled) == (["A", "C"], (), ())
    shutil.rmtree(root / "B")
    shutil.rmtree(root / "C")
    assert _ids(find_split(root, (), split).labelled) == ["A"]


def test_a_case_of_a_split_must_be_as_it_was(make: MakeCase, tmp_path: Path) -> None:
    make("A")
    make("A-2", labelled=False)
    root, split = tmp_path / "data", Split(("A",), ())
    find_split(root, (), split)
    with pytest.raises(InputError, match=r"case A-2 without a label map.*put it back"):
        find_split(root, (), Split(("A",), ("A-2",)))
    make("elsewhere/A")
    with pytest.raises(InputError, match="case A once more"):
        find_split(root, (), split)


# What is held out


def test_a_patient_is_held_out_with_all_visits(make: MakeCase, tmp_path: Path) -> None:
    for visit in ("00008-000", "00008-001", "00009-000"):
        make(f"BraTS-GLI-{visit}")
    (held_out,) = find_labelled(tmp_path / "data", exclude=["BraTS-GLI-00008-001"]).excluded
    other, same = "BraTS-GLI-00009-000", "BraTS-GLI-00008-000"
    for split, side in ((Split((same, other), ()), "training"), (Split((other,), (same,)), "vali")):
        with pytest.raises(InputError) as caught:
            check_held_out(split, [held_out])
        text = str(caught.value)
        assert f"{same} of the same patient in {side}" in text
        # The list that is there stays: what it holds out must not come back.
        assert f"exclude both (add {same} to --exclude)" in text
    check_held_out(Split((other,), ()), [held_out])


def test_a_visit_without_truth_may_be_left_out(make: MakeCase, tmp_path: Path) -> None:
    make("BraTS-GLI-00008-000")
    bare = make("BraTS-GLI-00008-001", labelled=False).name
    found = find_labelled(tmp_path / "data", exclude=[bare])
    check_held_out(Split(("BraTS-GLI-00008-000",), ()), found.excluded)


# What is there twice


def test_few_files_are_read_to_know_that_none_is_there_twice(
    make: MakeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ABCD":
        make(name, size=200_000)
    make("E")
    read: list[Path] = []
    digest = copies.digest
    monkeypatch.setattr(copies, "digest", lambda path: (read.append(path), digest(path))[1])
    check_copies(find_cases(tmp_path / "data"))
    # Of one size, as volumes that are not packed are; what differs is in the middle.
    assert read == []
    for name in ("B", "D"):
        path = tmp_path / "data" / name / f"{name}_flair.nii"
        path.write_bytes(bytes(200_000 - 1) + name.encode())
    check_copies(find_cases(tmp_path / "data"))
    assert {path.parent.name for path in read} == {"B", "D"}


def test_one_case_under_two_names_is_found(make: MakeCase, tmp_path: Path) -> None:
    make("A", content="same")
    make("B")
    make("C", content="same")
    cases = find_cases(tmp_path / "data")
    with pytest.raises(InputError) as caught:
        check_copies(cases)
    text = str(caught.value)
    assert "the images of case C are those of case A" in text
    assert "exclude both (add A,C to --exclude)" in text
    # One modality alone does not make it the same case.
    (tmp_path / "data" / "C" / "C_t2.nii").write_text("another")
    check_copies(cases)


def test_a_copy_of_what_is_held_out_is_found(make: MakeCase, tmp_path: Path) -> None:
    make("A", content="same")
    make("B")
    make("C", content="same")
    make("D", content="same")
    found = find_labelled(tmp_path / "data", exclude=["C", "D"])
    with pytest.raises(InputError) as caught:
        check_copies(found.labelled, found.excluded)
    text = str(caught.value)
    assert "the images of case A are those of C, which is excluded" in text
    assert "exclude both (add A to --exclude)" in text
    # Those that are held out may be each other's.
    found = find_labelled(tmp_path / "data", exclude=["A", "C", "D"])
    check_copies(found.labelled, found.excluded)


def test_what_is_excluded_need_not_be_readable(make: MakeCase, tmp_path: Path) -> None:
    make("A")
    make("B", content="A")
    found = find_labelled(tmp_path / "data", exclude=["B"])
    for path in (tmp_path / "data" / "B").iterdir():
        path.unlink()
    check_copies(found.labelled, found.excluded)
    shutil.rmtree(tmp_path / "data" / "A")
    with pytest.raises(InputError, match=r"A_flair.nii: found No such file"):
        check_copies(found.labelled, found.excluded)


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ((), "the images of case X are those of case A"),
        (("--exclude", "X"), "the images of case A are those of X, which is excluded"),
        (("--exclude", "A,X,Brats18_S_1"), "Brats18_S_2 of the same patient in"),
    ],
)
def test_the_command_says_so_before_it_reads_a_volume(
    make: MakeCase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    found: str,
    dry: bool,
) -> None:
    make("A")
    make("X", content="A")
    for name in ("B", "Brats18_S_1", "Brats18_S_2"):
        make(name)
    folders = ["-d", str(tmp_path / "data"), "-o", str(tmp_path / "runs")]
    assert main([*folders, *flags, *["--dry-run"] * dry, "--quiet"]) == 3
    error = capsys.readouterr().err
    assert found in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_command_says_what_it_leaves_out(
    make: MakeCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("nest/P1/case1")
    make("nest/P1/case2")
    make("nest/P2/case3", labelled=False)
    # What it reads first is no volume.
    assert main(["-d", str(tmp_path / "data"), "-o", str(tmp_path / "runs"), "--dry-run"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert "left out: 1 case without a label map (case3)" in lines
    assert "1 train, 1 validate" in lines
