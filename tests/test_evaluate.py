"""Evaluation of files: what is matched with what, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputError, UsageError
from runtime.evaluate import evaluate
from runtime.labels import Convention, Label, LabelMap, to_convention
from runtime.metrics import PROFILES, Missing
from runtime.nifti import Grid
from runtime.nifti_writer import write_image, write_label_map

BRATS = PROFILES["brats2020"]
LESIONS = PROFILES["brats2023"]
SHAPE = (12, 10, 8)
AFFINE = np.array([[-2.0, 0, 0, 5], [0, -1, 0, 9], [0, 0, 1, 0], [0, 0, 0, 1]])
GRID = Grid.from_affine(SHAPE, AFFINE)


def labels(enhancing: int = 3, shape: tuple[int, int, int] = SHAPE) -> LabelMap:
    """Slabs along x: 1 of NCR, 2 of ED, ``enhancing`` of ET, each 24 voxels a plane."""
    made = np.zeros(shape, np.uint8)
    made[1, 2:6, 1:7] = Label.NCR
    made[2:4, 2:6, 1:7] = Label.ED
    made[4 : 4 + enhancing, 2:6, 1:7] = Label.ET
    return made


def add_truth(
    root: Path,
    case_id: str,
    truth: LabelMap | None,
    convention: Convention = Convention.BRATS2020,
) -> Path:
    modern = convention is Convention.BRATS2023
    separator, names = ("-", ("t2f", "t1n")) if modern else ("_", ("flair", "t1"))
    for name in names:
        path = root / case_id / f"{case_id}{separator}{name}.nii.gz"
        write_image(path, np.ones(SHAPE, np.int16), GRID)
    path = root / case_id / f"{case_id}{separator}seg.nii.gz"
    if truth is not None:
        write_image(path, to_convention(truth, convention), GRID)
    return path


def add_prediction(
    path: Path, made: LabelMap, convention: Convention | None, grid: Grid = GRID
) -> Path:
    stored = to_convention(made, convention or Convention.BRATS2020)
    write_label_map(path, stored, grid)
    if convention is not None:
        case_id = path.name.removesuffix(".nii.gz").removesuffix("_seg")
        path.with_name(f"{case_id}.json").write_text(json.dumps({"convention": convention}))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    for case_id in ("A", "B"):
        add_truth(tmp_path / "truth", case_id, labels())
    return tmp_path / "truth"


@pytest.mark.parametrize("name", ["{}_seg.nii.gz", "{}.nii.gz"])
def test_folders_are_matched_by_case_id(tmp_path: Path, truth: Path, name: str) -> None:
    add_prediction(tmp_path / "out" / name.format("B"), labels(1), None)
    add_prediction(tmp_path / "out" / name.format("A"), labels(3), None)
    made = evaluate(tmp_path / "out", truth, BRATS)
    assert list(made.cases) == ["A", "B"]
    assert made.missing == ()
    assert made.cases["A"]["ET"].dice == 1
    # 24 voxels predicted of 72 true ones.
    assert made.cases["B"]["ET"].dice == pytest.approx(2 * 24 / (24 + 72))
    assert made.cases["B"]["WT"].dice == pytest.approx(2 * 96 / (96 + 144))
    # Voxels are 2 mm thick along x, 2 mm^3 each.
    assert made.cases["B"]["ET"].volume_ml_truth == pytest.approx(72 * 2e-3)
    assert made.cases["B"]["ET"].hd95 == pytest.approx(4.0)


def test_the_sidecar_tells_the_convention(tmp_path: Path, truth: Path) -> None:
    for case_id, convention in (("A", Convention.BRATS2023), ("B", Convention.MSD)):
        add_prediction(tmp_path / "out" / f"{case_id}_seg.nii.gz", labels(), convention)
    made = evaluate(tmp_path / "out", truth, BRATS)
    assert all(made.cases[case]["NCR"].dice == 1 for case in "AB")
    assert all(made.cases[case]["ET"].dice == 1 for case in "AB")


def test_a_named_convention_wins_over_the_sidecar(tmp_path: Path, truth: Path) -> None:
    path = add_prediction(tmp_path / "A.nii.gz", labels(), Convention.MSD)
    path.with_name("A.json").write_text(json.dumps({"convention": "brats2023"}))
    assert evaluate(path, truth, BRATS).cases["A"]["NCR"].dice == 0
    assert evaluate(path, truth, BRATS, Convention.MSD).cases["A"]["NCR"].dice == 1


def test_without_a_sidecar_the_convention_is_the_truths(tmp_path: Path) -> None:
    add_truth(tmp_path / "truth", "M", labels(), Convention.BRATS2023)
    path = tmp_path / "out" / "M.nii.gz"
    write_label_map(path, to_convention(labels(), Convention.BRATS2023), GRID)
    made = evaluate(tmp_path / "out", tmp_path / "truth", BRATS)
    assert made.cases["M"]["ET"].dice == 1


def test_a_missing_prediction_counts_as_empty_and_is_listed(tmp_path: Path, truth: Path) -> None:
    add_truth(truth, "C", labels(0))
    add_prediction(tmp_path / "out" / "A_seg.nii.gz", labels(), None)
    made = evaluate(tmp_path / "out", truth, BRATS)
    assert made.missing == ("B", "C")
    assert made.cases["B"]["WT"].dice == 0
    assert made.cases["B"]["WT"].hd95 == 373.12866
    assert made.cases["C"]["ET"].dice == 1  # neither has enhancing tumour
    assert made.cases["C"]["TC"].dice == 0
    assert made.to_json()["missing"] == ["B", "C"]
    assert made.to_json()["missing_count_as"] == "empty"


def test_a_missing_prediction_is_a_missed_lesion_by_the_rules_of_2023(
    tmp_path: Path, truth: Path
) -> None:
    add_truth(truth, "C", labels(0))
    add_prediction(tmp_path / "out" / "A_seg.nii.gz", labels(), None)
    made = evaluate(tmp_path / "out", truth, LESIONS)
    missed = made.cases["B"]["WT"].lesions
    assert missed is not None
    assert (missed.dice, missed.hd95, missed.missed) == (0, 374, 1)
    absent = made.cases["C"]["ET"].lesions
    assert absent is not None
    assert (absent.dice, absent.hd95, absent.lesions) == (1, 0, 0)


def test_missing_predictions_are_left_out_where_the_profile_says_so(
    tmp_path: Path, truth: Path
) -> None:
    add_prediction(tmp_path / "out" / "A_seg.nii.gz", labels(), None)
    made = evaluate(tmp_path / "out", truth, replace(BRATS, missing=Missing.LEAVE_OUT))
    assert (list(made.cases), made.missing) == (["A"], ("B",))
    assert made.to_json()["summary"]["WT"]["dice"]["mean"] == 1
    assert made.to_json()["missing_count_as"] == "leave-out"


def test_missing_predictions_are_refused_where_the_profile_says_so(
    tmp_path: Path, truth: Path
) -> None:
    for case_id in "CDE":
        add_truth(truth, case_id, labels())
    add_prediction(tmp_path / "out" / "A_seg.nii.gz", labels(), None)
    strict = replace(BRATS, missing=Missing.REFUSE)
    with pytest.raises(InputError, match="no prediction of B, C, D and 1 more"):
        evaluate(tmp_path / "out", truth, strict)
    for case_id in "BCDE":
        add_prediction(tmp_path / "out" / f"{case_id}.nii.gz", labels(), None)
    assert evaluate(tmp_path / "out", truth, strict).missing == ()


@pytest.mark.parametrize("layout", ["{}_seg.nii.gz", "{0}/{0}_seg.nii.gz"])
def test_truth_may_be_label_maps_alone(tmp_path: Path, layout: str) -> None:
    for case_id in "AB":
        add_prediction(tmp_path / "t" / layout.format(case_id), labels(), None)
    add_prediction(tmp_path / "out" / "A.nii.gz", labels(1), None)
    made = evaluate(tmp_path / "out", tmp_path / "t", BRATS)
    assert made.missing == ("B",)
    assert made.cases["A"]["ET"].dice == pytest.approx(0.5)


def test_label_maps_alone_follow_their_dataset_json(tmp_path: Path) -> None:
    add_prediction(tmp_path / "out" / "A.nii.gz", labels(), Convention.MSD)
    write_label_map(
        tmp_path / "d" / "labelsTr" / "A.nii.gz", to_convention(labels(), Convention.MSD), GRID
    )
    (tmp_path / "d" / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "edema", "2": "necrosis", "3": "enhancing"}})
    )
    made = evaluate(tmp_path / "out", tmp_path / "d" / "labelsTr", BRATS)
    assert all(one.dice == 1 for one in made.cases["A"].values())


def test_two_truths_of_a_case_are_refused(tmp_path: Path) -> None:
    for name in ("A_seg.nii.gz", "A-seg.nii.gz"):
        add_prediction(tmp_path / "t" / name, labels(), None)
    add_prediction(tmp_path / "out" / "A.nii.gz", labels(), None)
    with pytest.raises(InputError, match="second label map of case A"):
        evaluate(tmp_path / "out", tmp_path / "t", BRATS)


def test_the_profile_of_2023_numbers_labels_as_2023_where_nothing_else_tells(
    tmp_path: Path,
) -> None:
    stored = to_convention(labels(), Convention.BRATS2023)
    for folder in ("p", "t"):
        write_label_map(tmp_path / folder / "X.nii.gz", stored, GRID)
    with pytest.raises(UsageError, match="--truth-labels"):
        evaluate(tmp_path / "p", tmp_path / "t", BRATS)
    made = evaluate(tmp_path / "p", tmp_path / "t", LESIONS)
    assert made.cases["X"]["ET"].dice == 1
    assert made.cases["X"]["ET"].volume_ml_truth == pytest.approx(72 * 2e-3)


def test_names_of_2020_are_renumbered_for_the_profile_of_2023(tmp_path: Path, truth: Path) -> None:
    add_prediction(tmp_path / "out" / "A_seg.nii.gz", labels(), Convention.BRATS2023)
    made = evaluate(tmp_path / "out", truth, LESIONS)
    assert all(one.dice == 1 for one in made.cases["A"].values())


def test_a_4_in_the_names_of_2023_is_the_cavity_of_2024_unless_2023_is_named(
    tmp_path: Path,
) -> None:
    path = add_truth(tmp_path / "truth", "M", labels(), Convention.BRATS2023)
    stored = to_convention(labels(), Convention.BRATS2023)
    stored[10, 2:6, 1:7] = 4
    write_image(path, stored, GRID)
    write_label_map(tmp_path / "M.nii.gz", to_convention(labels(), Convention.BRATS2023), GRID)
    made = evaluate(tmp_path / "M.nii.gz", tmp_path / "truth", LESIONS)
    assert made.cases["M"]["WT"].dice == 1
    with pytest.raises(InputError, match="label values"):
        evaluate(
            tmp_path / "M.nii.gz",
            tmp_path / "truth",
            LESIONS,
            truth_convention=Convention.BRATS2023,
        )


BOTH_NAMES = pytest.mark.parametrize("name", ["{}.nii.gz", "{}_seg.nii.gz"])


def stored_as(path: Path, convention: Convention, cavity: bool = False, enhancing: int = 3) -> Path:
    """`labels` as numbers on disk, with a slab of 4 for the resection cavity if that is wanted."""
    stored = to_convention(labels(enhancing), convention)
    if cavity:
        stored[10, 2:6, 1:7] = 4
    write_image(path, stored, GRID)
    return path


@BOTH_NAMES
@pytest.mark.parametrize("flag", [None, Convention.BRATS2023, Convention.BRATS2024])
def test_a_4_for_a_3_in_a_prediction_is_refused(
    tmp_path: Path, name: str, flag: Convention | None
) -> None:
    """The numbering of 2020 beside truth of 2023: taken for the cavity, nothing would enhance."""
    add_truth(tmp_path / "truth", "M", labels(), Convention.BRATS2023)
    path = stored_as(tmp_path / "out" / name.format("M"), Convention.BRATS2020)
    with pytest.raises(InputError) as caught:
        evaluate(path.parent, tmp_path / "truth", BRATS, truth_convention=flag)
    assert caught.value.where == str(path)
    implied = flag or Convention.BRATS2023
    assert caught.value.found == f"a 4 and no 3 where the truth implies {implied}"
    assert "--labels brats2020 for enhancing tumour" in caught.value.remedy
    made = evaluate(path.parent, tmp_path / "truth", BRATS, Convention.BRATS2020, flag)
    assert made.cases["M"]["ET"].dice == 1
    path.with_name("M.json").write_text(json.dumps({"convention": "brats2020"}))
    made = evaluate(path.parent, tmp_path / "truth", BRATS, truth_convention=flag)
    assert made.cases["M"]["ET"].dice == 1


@BOTH_NAMES
def test_a_3_for_a_4_in_a_prediction_is_refused(tmp_path: Path, truth: Path, name: str) -> None:
    path = stored_as(tmp_path / "out" / name.format("A"), Convention.BRATS2023)
    with pytest.raises(InputError, match=r"label values 0, 1, 2, 3, .*--labels") as caught:
        evaluate(path.parent, truth, BRATS)
    assert caught.value.where == str(path)
    assert evaluate(path, truth, BRATS, Convention.BRATS2023).cases["A"]["ET"].dice == 1
    path.with_name("A.json").write_text(json.dumps({"convention": "brats2023"}))
    assert evaluate(path, truth, BRATS).cases["A"]["ET"].dice == 1


@BOTH_NAMES
@pytest.mark.parametrize(
    ("said", "made"),
    [(Convention.BRATS2023, Convention.BRATS2020), (Convention.BRATS2020, Convention.BRATS2023)],
)
def test_a_prediction_that_is_not_what_its_sidecar_says_is_refused(
    tmp_path: Path, name: str, said: Convention, made: Convention
) -> None:
    add_truth(tmp_path / "truth", "M", labels(), Convention.BRATS2023)
    path = stored_as(tmp_path / "out" / name.format("M"), made)
    path.with_name("M.json").write_text(json.dumps({"convention": said}))
    with pytest.raises(InputError, match=rf"label values .* in convention {said}; .*--labels"):
        evaluate(path.parent, tmp_path / "truth", BRATS)


def test_a_sidecar_goes_with_the_name_of_its_own_label_map(tmp_path: Path, truth: Path) -> None:
    path = stored_as(tmp_path / "out" / "mine_seg.nii.gz", Convention.BRATS2023)
    path.with_name("mine.json").write_text(json.dumps({"convention": "brats2023"}))
    made = evaluate(path, truth / "A" / "A_seg.nii.gz", BRATS)
    assert made.cases["A"]["ET"].dice == 1


def test_a_4_for_a_3_in_truth_is_refused(tmp_path: Path) -> None:
    """Renamed truth in the numbering of 2020 would have no enhancing tumour, and Dice be 1."""
    true = add_truth(tmp_path / "truth", "M", None, Convention.BRATS2023)
    stored_as(true, Convention.BRATS2020)
    path = stored_as(tmp_path / "M.nii.gz", Convention.BRATS2020)
    lone = stored_as(tmp_path / "lone" / "M-seg.nii.gz", Convention.BRATS2020)
    for truth in (tmp_path / "truth", true, lone, lone.parent):
        with pytest.raises(InputError, match="4 and no 3 where the naming implies") as caught:
            evaluate(path, truth, BRATS)
        assert caught.value.where == str(lone if truth in (lone, lone.parent) else true)
        assert "--truth-labels brats2020" in caught.value.remedy
        assert "--truth-labels brats2024" in caught.value.remedy
        made = evaluate(path, truth, BRATS, truth_convention=Convention.BRATS2020)
        assert made.cases["M"]["ET"].dice == 1
    unnamed = stored_as(tmp_path / "unnamed" / "M.nii.gz", Convention.BRATS2020)
    with pytest.raises(InputError, match="where the profile implies brats2023"):
        evaluate(path, unnamed, LESIONS)


@BOTH_NAMES
@pytest.mark.parametrize("flag", [None, Convention.BRATS2024])
@pytest.mark.parametrize("cavity", [False, True])
def test_data_of_2024_are_scored_as_they_are(
    tmp_path: Path, name: str, flag: Convention | None, cavity: bool
) -> None:
    true = add_truth(tmp_path / "truth", "M", None, Convention.BRATS2023)
    stored_as(true, Convention.BRATS2024, cavity=True)
    path = stored_as(tmp_path / "out" / name.format("M"), Convention.BRATS2024, cavity, enhancing=1)
    made = evaluate(path.parent, tmp_path / "truth", LESIONS, truth_convention=flag)
    assert made.cases["M"]["ET"].dice == pytest.approx(0.5)
    assert made.cases["M"]["NCR"].dice == 1
    assert made.cases["M"]["ED"].dice == 1


@pytest.mark.parametrize("flag", [None, Convention.BRATS2024])
def test_a_cavity_without_enhancement_is_scored_once_its_numbering_is_named(
    tmp_path: Path, flag: Convention | None
) -> None:
    """Even beside truth of 2024: predicted in the numbering of 2020, it would look the same."""
    true = add_truth(tmp_path / "truth", "M", None, Convention.BRATS2023)
    stored_as(true, Convention.BRATS2024, cavity=True)
    path = stored_as(tmp_path / "M.nii.gz", Convention.BRATS2024, cavity=True, enhancing=0)
    with pytest.raises(InputError, match="--labels brats2024 for the resection cavity") as caught:
        evaluate(path, tmp_path / "truth", LESIONS, truth_convention=flag)
    assert caught.value.where == str(path)
    made = evaluate(path, tmp_path / "truth", LESIONS, Convention.BRATS2024, flag)
    assert made.cases["M"]["ET"].dice == 0
    assert made.cases["M"]["ED"].dice == 1
    path.with_name("M.json").write_text(json.dumps({"convention": "brats2024"}))
    made = evaluate(path, tmp_path / "truth", LESIONS, truth_convention=flag)
    assert made.cases["M"]["ED"].dice == 1


def test_a_prediction_without_truth_is_named(tmp_path: Path, truth: Path) -> None:
    add_truth(truth, "bare", None)
    for case_id in ("Z", "bare"):
        path = add_prediction(tmp_path / case_id / f"{case_id}_seg.nii.gz", labels(), None)
        with pytest.raises(InputError, match=f"case {case_id}, which has no truth"):
            evaluate(path.parent, truth, BRATS)


def test_files_against_files_and_folders(tmp_path: Path, truth: Path) -> None:
    path = add_prediction(tmp_path / "out" / "B_seg.nii.gz", labels(1), None)
    odd = add_prediction(tmp_path / "other" / "result.nii.gz", labels(1), None)
    true = truth / "B" / "B_seg.nii.gz"
    expected = pytest.approx(0.5)
    for one, other in ((path, true), (odd, true), (path, truth), (path.parent, true)):
        made = evaluate(one, other, BRATS)
        assert list(made.cases) == ["B"]
        assert made.cases["B"]["ET"].dice == expected


def test_truth_outside_a_case_folder(tmp_path: Path) -> None:
    one = add_prediction(tmp_path / "p" / "X.nii.gz", labels(), Convention.BRATS2023)
    lone = add_prediction(tmp_path / "t" / "X_seg.nii.gz", labels(), None)
    assert evaluate(one, lone, BRATS).cases["X"]["ET"].dice == 1
    unnamed = add_prediction(tmp_path / "u" / "X.nii.gz", labels(), None)
    with pytest.raises(UsageError, match="convention"):
        evaluate(one, unnamed, BRATS)
    made = evaluate(one, unnamed, BRATS, truth_convention=Convention.BRATS2020)
    assert made.cases["X"]["ET"].dice == 1


def test_a_folder_may_hold_probabilities_and_hidden_files(tmp_path: Path, truth: Path) -> None:
    path = add_prediction(tmp_path / "out" / "A_seg.nii.gz", labels(), None)
    path.with_name("A_prob.nii.gz").write_bytes(b"")
    path.with_name(".A_seg.nii.gz.1a2b.tmp").write_bytes(b"")
    path.with_name(".B_seg.nii.gz").write_bytes(b"")
    assert evaluate(tmp_path / "out", truth, BRATS).missing == ("B",)


def test_two_predictions_of_a_case_are_refused(tmp_path: Path, truth: Path) -> None:
    for name in ("A_seg.nii.gz", "A.nii.gz"):
        add_prediction(tmp_path / "out" / name, labels(), None)
    with pytest.raises(InputError, match="second prediction of case A"):
        evaluate(tmp_path / "out", truth, BRATS)


def test_another_shape_is_refused(tmp_path: Path, truth: Path) -> None:
    shape = (12, 10, 9)
    path = add_prediction(
        tmp_path / "A.nii.gz", labels(shape=shape), None, Grid.from_affine(shape, AFFINE)
    )
    with pytest.raises(InputError, match=r"12x10x9.*12x10x8"):
        evaluate(path, truth, BRATS)


@pytest.mark.parametrize(("shift", "accepted"), [(0.04, True), (0.06, False)])
def test_another_affine_is_refused(
    tmp_path: Path, truth: Path, shift: float, accepted: bool
) -> None:
    moved = AFFINE.copy()
    moved[1, 3] += shift  # the smallest voxel side is 1 mm
    path = add_prediction(tmp_path / "A.nii.gz", labels(), None, Grid.from_affine(SHAPE, moved))
    if accepted:
        assert evaluate(path, truth, BRATS).cases["A"]["WT"].dice == 1
    else:
        with pytest.raises(InputError, match="affine"):
            evaluate(path, truth, BRATS)


def test_an_identity_affine_is_refused(tmp_path: Path, truth: Path) -> None:
    path = add_prediction(tmp_path / "A.nii.gz", labels(), None, Grid.from_affine(SHAPE, np.eye(4)))
    with pytest.raises(InputError, match="affine"):
        evaluate(path, truth, BRATS)


def test_labels_outside_the_convention_are_refused(tmp_path: Path, truth: Path) -> None:
    path = tmp_path / "A.nii.gz"
    write_label_map(path, labels(), GRID)  # ET left at 3
    with pytest.raises(InputError, match="label values"):
        evaluate(path, truth, BRATS)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"convention": "brats1999"}'])
def test_a_broken_sidecar_is_named(tmp_path: Path, truth: Path, text: str) -> None:
    path = add_prediction(tmp_path / "A.nii.gz", labels(), None)
    path.with_name("A.json").write_text(text)
    with pytest.raises(InputError, match=r"A\.json"):
        evaluate(path, truth, BRATS)


def test_nothing_to_score_is_said(tmp_path: Path, truth: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label map"):
        evaluate(tmp_path / "empty", truth, BRATS)
    with pytest.raises(InputError, match="nothing"):
        evaluate(tmp_path / "absent", truth, BRATS)
    add_truth(tmp_path / "bare", "A", None)
    path = add_prediction(tmp_path / "A.nii.gz", labels(), None)
    with pytest.raises(InputError, match="no label map in any"):
        evaluate(path, tmp_path / "bare", BRATS)


def test_every_case_is_announced(tmp_path: Path, truth: Path) -> None:
    add_prediction(tmp_path / "out" / "A.nii.gz", labels(), None)
    seen: list[tuple[str, int]] = []
    evaluate(tmp_path / "out", truth, BRATS, on_case=lambda *what: seen.append(what))
    assert seen == [("A", 2), ("B", 2)]
