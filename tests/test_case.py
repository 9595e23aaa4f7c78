"""Files of a case are found by name in every naming of BraTS, never by position."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime.case import Case, Dialect, find_cases, holds_images
from runtime.errors import InputError, UsageError
from runtime.labels import MODALITIES, Convention


def touch(folder: Path, *names: str) -> Path:
    """Empty files: names alone decide."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names_of(case: Case) -> dict[str, str]:
    return {modality: source.path.name for modality, source in case.images.items()}


OLD = ("flair", "t1", "t1ce", "t2")
NEW = ("t2f", "t1n", "t1c", "t2w")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("case_id", "separator", "tokens", "dialect", "convention"),
    [
        ("Brats18_2013_3_1", "_", OLD, Dialect.BRATS2018, Convention.BRATS2020),
        ("BraTS19_CBICA_AAB_1", "_", OLD, Dialect.BRATS2018, Convention.BRATS2020),
        ("BraTS20_Training_001", "_", OLD, Dialect.BRATS2018, Convention.BRATS2020),
        ("BraTS2021_00000", "_", OLD, Dialect.BRATS2018, Convention.BRATS2020),
        ("BraTS-GLI-00000-000", "-", NEW, Dialect.BRATS2023, Convention.BRATS2023),
        ("BraTS-PED-00001-000", "-", NEW, Dialect.BRATS2023, Convention.BRATS2023),
        # 2023's names with the old separator mean 2023's labels all the same.
        ("UCSF_0001", "_", NEW, Dialect.BRATS2018, Convention.BRATS2023),
    ],
)
def test_each_year_is_read(
    tmp_path: Path,
    suffix: str,
    case_id: str,
    separator: str,
    tokens: Sequence[str],
    dialect: Dialect,
    convention: Convention,
) -> None:
    folder = tmp_path / "some other name"
    touch(folder, *(f"{case_id}{separator}{token}{suffix}" for token in (*tokens, "seg")))
    case = Case.from_dir(folder)
    assert case.case_id == case_id
    assert list(case.images) == list(MODALITIES)
    assert names_of(case) == {
        modality: f"{case_id}{separator}{token}{suffix}"
        for modality, token in zip(MODALITIES, tokens, strict=True)
    }
    assert case.labels == folder / f"{case_id}{separator}seg{suffix}"
    assert case.dialect is dialect
    assert case.convention is convention
    assert case.folder == folder
    assert all(source.channel is None for source in case.images.values())


@pytest.mark.parametrize(
    ("tokens", "convention"), [(OLD, Convention.BRATS2020), (NEW, Convention.BRATS2023)]
)
def test_bare_names_take_the_folders(
    tmp_path: Path, tokens: Sequence[str], convention: Convention, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "patient 7"
    touch(folder, *(f"{token}.nii.gz" for token in (*tokens, "seg")))
    monkeypatch.chdir(folder)
    for given in (folder, Path()):
        case = Case.from_dir(given)
        assert case.case_id == "patient 7"
        assert case.dialect is Dialect.BARE
        assert case.convention is convention
        assert names_of(case) == {
            modality: f"{token}.nii.gz" for modality, token in zip(MODALITIES, tokens, strict=True)
        }
        assert case.labels is not None
        assert case.labels.name == "seg.nii.gz"


@pytest.mark.parametrize(
    ("token", "modality"),
    [
        ("flair", "flair"), ("FLAIR", "flair"), ("t2f", "flair"), ("fla", "flair"), ("fl", "flair"),
        ("t1", "t1"), ("T1", "t1"), ("t1n", "t1"), ("t1w", "t1"),
        ("t1ce", "t1ce"), ("t1c", "t1ce"), ("t1gd", "t1ce"), ("T1Gd", "t1ce"),
        ("t2", "t2"), ("t2w", "t2"),
    ],
)  # fmt: skip
def test_every_alias_is_known(tmp_path: Path, token: str, modality: str) -> None:
    touch(tmp_path / "a", f"X_{token}.nii.gz")
    touch(tmp_path / "b", f"X-{token}.NII.GZ")
    touch(tmp_path / "c", f"{token}.nii")
    for folder in ("a", "b", "c"):
        assert list(Case.from_dir(tmp_path / folder).images) == [modality]


def test_names_decide_and_not_their_order(tmp_path: Path) -> None:
    """Sorted, these names are in another order than the network's channels."""
    touch(tmp_path, "X_a-t1.nii", "X_t2w.nii.gz", "X_t1c.nii.gz", "X_t1n.nii.gz", "X_fla.nii.gz")
    # "X_a" with "-t1" is a case of its own.
    with pytest.raises(InputError, match="2 cases"):
        Case.from_dir(tmp_path)
    (tmp_path / "X_a-t1.nii").unlink()
    case = Case.from_dir(tmp_path)
    assert names_of(case) == {
        "flair": "X_fla.nii.gz",
        "t1": "X_t1n.nii.gz",
        "t1ce": "X_t1c.nii.gz",
        "t2": "X_t2w.nii.gz",
    }
    assert list(case.images) == ["flair", "t1", "t1ce", "t2"]


def test_a_modality_is_no_substring(tmp_path: Path) -> None:
    """The tutorial finds t1 in t1ce, and t2 in an id; here only the whole last part counts."""
    touch(tmp_path, "site_t2_t1ce.nii", "site_t2_flair.nii", "site_t2_t1.nii", "site_t2_t2.nii")
    touch(tmp_path, "site_t2_t1map.nii", "site_t2_flairmask.nii", "flair_notes.nii")
    case = Case.from_dir(tmp_path)
    assert case.case_id == "site_t2"
    assert names_of(case) == {name: f"site_t2_{name}.nii" for name in MODALITIES}
    assert case.labels is None


def test_the_odd_mask_of_case_355(tmp_path: Path) -> None:
    touch(tmp_path, *(f"BraTS20_Training_355_{name}.nii" for name in OLD))
    touch(tmp_path, "W39_1998.09.19_Segm.nii")
    case = Case.from_dir(tmp_path)
    assert case.case_id == "BraTS20_Training_355"
    assert case.labels == tmp_path / "W39_1998.09.19_Segm.nii"
    assert case.convention is Convention.BRATS2020


def test_a_doubled_modality_is_bad_input(tmp_path: Path) -> None:
    for names in (
        ("X_t1.nii", "X_t1.nii.gz"),
        ("X_t1ce.nii", "X_t1c.nii"),
        ("X_fl.nii", "X_FLAIR.nii"),
    ):
        folder = touch(tmp_path / names[0], *names)
        with pytest.raises(InputError, match="twice") as caught:
            Case.from_dir(folder)
        assert Path(caught.value.where).name in names
        with pytest.raises(InputError, match="twice"):
            find_cases(tmp_path / names[0])


def test_two_label_maps_are_bad_input(tmp_path: Path) -> None:
    touch(tmp_path, "X_t1.nii", "X_seg.nii", "X_seg.nii.gz")
    with pytest.raises(InputError, match="second label map"):
        Case.from_dir(tmp_path)


def test_a_missing_modality_leaves_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "X_t1.nii", "X_t2.nii", "X_flair.nii")
    assert list(Case.from_dir(tmp_path).images) == ["flair", "t1", "t2"]


def test_from_dir_takes_exactly_one_case(tmp_path: Path) -> None:
    empty = touch(tmp_path / "empty", "notes.txt")
    with pytest.raises(InputError, match="no MR images"):
        Case.from_dir(empty)
    with pytest.raises(InputError, match="no MR images"):
        Case.from_dir(touch(tmp_path / "mask only", "X_seg.nii.gz"))
    two = touch(tmp_path / "two", "A_t1.nii", "A_t2.nii", "B_t1.nii", "A_seg.nii", "B_seg.nii")
    with pytest.raises(InputError, match=r"2 cases \(A, B\)"):
        Case.from_dir(two)
    assert [(case.case_id, case.labels) for case in find_cases(two)] == [
        ("A", two / "A_seg.nii"),
        ("B", two / "B_seg.nii"),
    ]
    with pytest.raises(InputError, match="nothing"):
        Case.from_dir(tmp_path / "gone")
    # Not below: from_dir looks into one folder.
    with pytest.raises(InputError, match="no MR images"):
        Case.from_dir(touch(tmp_path / "deep", "case/X_t1.nii").parent / "deep")


def test_hidden_files_are_not_there(tmp_path: Path) -> None:
    """What macOS and Synology leave, and our own temporary files."""
    touch(tmp_path, *(f"X_{name}.nii.gz" for name in OLD))
    touch(tmp_path, *(f"._X_{name}.nii.gz" for name in (*OLD, "seg")), ".DS_Store")
    touch(tmp_path, ".X_seg.nii.gz.0a1b2c3d.tmp", "@eaDir/X_t1.nii.gz@SynoEAStream")
    case = Case.from_dir(tmp_path)
    assert names_of(case) == {name: f"X_{name}.nii.gz" for name in MODALITIES}
    assert case.labels is None
    touch(tmp_path, ".Trash/Y_t1.nii.gz")
    assert [case.case_id for case in find_cases(tmp_path)] == ["X"]


def test_cases_are_found_at_any_depth_and_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path, "HGG/B/B_t1.nii.gz", "LGG/deep/er/A/A_t1.nii", "C/C-t1n.nii.gz", "C/C-seg.nii.gz"
    )
    touch(tmp_path, "D/flair.nii.gz", "readme.txt", "empty/none.txt")
    cases = find_cases(tmp_path)
    assert [case.case_id for case in cases] == ["A", "B", "C", "D"]
    assert [case.dialect for case in cases] == [
        Dialect.BRATS2018,
        Dialect.BRATS2018,
        Dialect.BRATS2023,
        Dialect.BARE,
    ]
    touch(tmp_path, "again/B_t2.nii.gz")
    with pytest.raises(InputError, match="case B once more"):
        find_cases(tmp_path)


def test_nothing_found_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no MR images"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="nothing"):
        find_cases(tmp_path / "gone")


# Channels that numbers name


def described(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


MSD = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {
        "0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour",
    },
}  # fmt: skip


def test_the_decathlon_is_read(tmp_path: Path) -> None:
    root = described(tmp_path / "Task01_BrainTumour", MSD)
    touch(
        root,
        "imagesTr/BRATS_001.nii.gz",
        "imagesTr/._BRATS_001.nii.gz",
        "imagesTs/BRATS_485.nii.gz",
    )
    touch(root, "labelsTr/BRATS_001.nii.gz")
    cases = find_cases(root)
    assert [case.case_id for case in cases] == ["BRATS_001", "BRATS_485"]
    for case, labels in zip(cases, (root / "labelsTr/BRATS_001.nii.gz", None), strict=True):
        assert case.dialect is Dialect.MSD
        assert case.convention is Convention.MSD
        assert case.labels == labels
        assert {name: source.channel for name, source in case.images.items()} == {
            "flair": 0, "t1": 1, "t1ce": 2, "t2": 3,
        }  # fmt: skip
    single = Case.from_dir(root / "imagesTr" / "BRATS_001.nii.gz")
    assert single == cases[0]
    # --channels overrules the file.
    case = Case.from_dir(root / "imagesTr" / "BRATS_001.nii.gz", ["t2", "t1c", "t1n", "fla"])
    assert {name: source.channel for name, source in case.images.items()} == {
        "flair": 3, "t1": 2, "t1ce": 1, "t2": 0,
    }  # fmt: skip


def test_frames_have_the_numbers_that_name_them(tmp_path: Path) -> None:
    """Not their places in the table: frames may be left out, and "10" comes before "2"."""
    described(tmp_path, {"modality": {"10": "t2", "2": "t1", "0": "flair", "9": "t1ce"}})
    touch(tmp_path, "imagesTr/B.nii.gz")
    (case,) = find_cases(tmp_path)
    assert {name: source.channel for name, source in case.images.items()} == {
        "flair": 0, "t1": 2, "t1ce": 9, "t2": 10,
    }  # fmt: skip


def test_files_have_the_numbers_that_name_them(tmp_path: Path) -> None:
    names = {"0": "flair", "1": "t1", "3": "t1ce", "7": "t2"}
    described(tmp_path, {"channel_names": names})
    touch(tmp_path, *(f"imagesTr/B_000{number}.nii.gz" for number in names))
    (case,) = find_cases(tmp_path)
    assert names_of(case) == {name: f"B_000{number}.nii.gz" for number, name in names.items()}
    (tmp_path / "imagesTr" / "B_0007.nii.gz").rename(tmp_path / "imagesTr" / "B_0002.nii.gz")
    with pytest.raises(
        InputError, match=r"channel 2, expected channel 0 \(flair\) or 1 .*7 \(t2\)"
    ):
        find_cases(tmp_path)


FOUR = {"0": "flair", "1": "t1", "2": "t1ce", "3": "t2"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps({"modality": {**FOUR, "03": "t2"}}), "one channel twice"),
        (json.dumps({"modality": {"0": "flair", "00": "t1"}}), "one channel twice"),
        (json.dumps({"modality": {**FOUR, "02": "MRI"}, "channel_names": FOUR}), "one channel"),
        (json.dumps({"modality": FOUR})[:-2] + ', "3": "t1"}}', "the key '3' twice"),
        (json.dumps({"modality": FOUR})[:-1] + ', "modality": {}}', "the key 'modality' twice"),
        (
            json.dumps({"modality": FOUR, "channel_names": {**FOUR, "1": "t1ce", "2": "t1"}}),
            "channel 1 as t1ce and as t1",
        ),
        (
            json.dumps({"modality": {"4": "t2"}, "channel_names": FOUR}),
            "t2 on two channels",
        ),
    ],
)
def test_a_dataset_json_that_contradicts_itself(tmp_path: Path, content: str, told: str) -> None:
    touch(tmp_path, "imagesTr/B.nii.gz")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=told):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"0": "Flair", "1": "T1w", "2": "T1Gd", "3": "T2w"},
        {"3": "T2", "1": "t1n"},
        {"0": "MRI"},
        {"4": "ADC"},
        {},
        "MR",
        ["MR"],
    ],
)
def test_a_second_table_of_channels_may_agree_or_name_none(tmp_path: Path, other: object) -> None:
    described(tmp_path, {"channel_names": FOUR, "modality": other})
    touch(tmp_path, "imagesTr/B.nii.gz")
    (case,) = find_cases(tmp_path)
    assert {str(source.channel): name for name, source in case.images.items()} == FOUR


NNUNET = {
    "channel_names": {"0": "T1c", "1": "FLAIR", "2": "T2w", "3": "t1n"},
    "labels": {"background": 0, "NCR": 1, "edema": 2, "ET": 3},
}


def test_nnunets_numbers_are_named_by_dataset_json(tmp_path: Path) -> None:
    root = described(tmp_path / "Dataset001", NNUNET)
    touch(root, *(f"imagesTr/BRATS_00{n}_000{c}.nii.gz" for n in (1, 2) for c in range(4)))
    touch(root, "labelsTr/BRATS_001.nii.gz")
    one, two = find_cases(root)
    assert (one.case_id, two.case_id) == ("BRATS_001", "BRATS_002")
    assert one.dialect is Dialect.NNUNET
    assert one.convention is Convention.BRATS2023
    assert (one.labels, two.labels) == (root / "labelsTr" / "BRATS_001.nii.gz", None)
    assert names_of(one) == {
        "flair": "BRATS_001_0001.nii.gz",
        "t1": "BRATS_001_0003.nii.gz",
        "t1ce": "BRATS_001_0000.nii.gz",
        "t2": "BRATS_001_0002.nii.gz",
    }


def test_numbers_without_names_ask_for_them(tmp_path: Path) -> None:
    touch(tmp_path, *(f"X_000{channel}.nii.gz" for channel in range(4)))
    for read in (Case.from_dir, find_cases):
        with pytest.raises(UsageError, match="--channels") as caught:
            read(tmp_path)
        assert caught.value.exit_code == 2
    case = Case.from_dir(tmp_path, ["t2f", "t1n", "t1c", "t2w"])
    assert names_of(case) == {name: f"X_000{index}.nii.gz" for index, name in enumerate(MODALITIES)}
    assert case.convention is None
    with pytest.raises(InputError, match="channel 2"):
        Case.from_dir(tmp_path, ["flair", "t1"])
    four = touch(tmp_path / "four", "Y.nii.gz") / "Y.nii.gz"
    with pytest.raises(UsageError, match="--channels"):
        Case.from_dir(four)


@pytest.mark.parametrize(
    "channels", [["flair", "t1", "flair", "t2"], ["a", "b"], ["flair", "t2f"], [""]]
)
def test_channels_must_be_different_modalities(tmp_path: Path, channels: list[str]) -> None:
    touch(tmp_path, "X_0000.nii.gz")
    with pytest.raises(UsageError) as caught:
        Case.from_dir(tmp_path, channels)
    assert caught.value.where == "--channels"


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '"text"', "{}", '{"modality": ["a"]}', "[" * 99_999, '{"a": ' * 99_999]
    + [json.dumps({"modality": {key: "t1"}}) for key in ("\u00b2", "9" * 5000, "-1", "1.0")],
    ids=lambda content: content[:24],
)
def test_a_dataset_json_of_no_use(tmp_path: Path, content: str) -> None:
    touch(tmp_path, "X_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises((InputError, UsageError)):
        Case.from_dir(tmp_path)


def test_a_dataset_json_is_not_read_beyond_a_mebibyte(tmp_path: Path) -> None:
    touch(tmp_path, "X_0000.nii.gz")
    with (tmp_path / "dataset.json").open("wb") as file:
        file.truncate(40 << 30)  # sparse
    with pytest.raises(InputError, match="42949672960 bytes, 1048576 at most"):
        Case.from_dir(tmp_path)


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000, "", " 1"])
def test_label_numbers_of_no_use(tmp_path: Path, number: str) -> None:
    labels = {number: "edema", "2": "necrosis"}
    channels = {"0": "t1", "1": "t2"}
    touch(described(tmp_path, {"labels": labels, "channel_names": channels}), "X_0000.nii.gz")
    case = Case.from_dir(tmp_path)
    assert case.convention is None


@pytest.mark.parametrize(
    "names", [{"zero": "flair"}, {"0": "flair", "x": "t1"}, {"0": "brightness"}, {"0": None}]
)
def test_channel_names_of_no_use(tmp_path: Path, names: dict[str, Any]) -> None:
    touch(described(tmp_path, {"channel_names": names}), "X_0000.nii.gz")
    with pytest.raises((InputError, UsageError)):
        Case.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("labels", "convention"),
    [
        ({"0": "background", "1": "edema", "2": "ncr", "3": "et"}, Convention.MSD),
        ({"0": "background", "1": "NCR", "2": "ED", "3": "ET"}, Convention.BRATS2023),
        ({"0": "background", "1": "necrosis", "2": "oedema", "4": "ET"}, Convention.BRATS2020),
        ({"background": 0, "edema": 1, "ncr": 2, "et": 3}, Convention.MSD),
        ({"background": 0, "ncr": 1, "peritumoral edema": 2, "et": 3}, Convention.BRATS2023),
        ({"background": 0, "ncr": 1, "ed": 2, "et": 4}, Convention.BRATS2020),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3, "RC": 4}, Convention.BRATS2024),
        (
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "ET": [3]},
            Convention.MSD,
        ),
        (
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "ET": [3]},
            Convention.BRATS2023,
        ),
        (
            # nnU-Net writes a region of one label as a plain number.
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "ET": 3},
            Convention.MSD,
        ),
        (
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "ET": 3},
            Convention.BRATS2023,
        ),
        (
            {"background": 0, "ET": [4], "WT": [1, 2, 4], "TC": [1, 4]},
            Convention.BRATS2020,
        ),
        ({"background": 0, "a": 1, "b": 2, "c": 3}, None),
        ({"background": 0, "whole tumor": [1, 2]}, None),
        (None, None),
    ],
)  # fmt: skip
def test_dataset_json_tells_the_convention(
    tmp_path: Path, labels: Any, convention: Convention | None
) -> None:
    touch(described(tmp_path, NNUNET | {"labels": labels}), "X_0000.nii.gz")
    assert Case.from_dir(tmp_path).convention is convention


def test_links_to_case_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    """Selections of a data set are often folders of links, which rglob passes by."""
    real = tmp_path / "elsewhere" / "A"
    real.mkdir(parents=True)
    for modality in ("flair", "t1", "t1ce", "t2"):
        (real / f"A_{modality}.nii.gz").touch()
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "A").symlink_to(real)
    (chosen / "again").symlink_to(chosen)
    assert [case.case_id for case in find_cases(chosen)] == ["A"]


def test_a_label_map_of_another_case_is_never_taken_for_truth(tmp_path: Path) -> None:
    for modality in ("flair", "t1", "t1ce", "t2"):
        (tmp_path / f"B_{modality}.nii.gz").touch()
    (tmp_path / "A_seg.nii.gz").touch()
    assert Case.from_dir(tmp_path).labels is None


def test_a_bad_case_is_told_and_the_others_are_found(tmp_path: Path) -> None:
    for case in ("A", "B"):
        folder = tmp_path / case
        folder.mkdir()
        for modality in ("flair", "t1", "t1ce", "t2"):
            (folder / f"{case}_{modality}.nii.gz").touch()
    (tmp_path / "A" / "A_t1n.nii.gz").touch()
    problems: list[InputError] = []
    assert [case.case_id for case in find_cases(tmp_path, problems=problems)] == ["B"]
    assert ["modality t1 twice" in str(problem) for problem in problems] == [True]
    with pytest.raises(InputError, match="modality t1 twice"):
        find_cases(tmp_path)


def test_relative_paths_find_dataset_json_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "imagesTr"
    images.mkdir()
    (tmp_path / "labelsTr").mkdir()
    for channel in range(4):
        (images / f"X_{channel:04d}.nii.gz").touch()
    (tmp_path / "labelsTr" / "X.nii.gz").touch()
    names = {str(i): name for i, name in enumerate(("t2", "t1", "flair", "t1ce"))}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
    monkeypatch.chdir(images)
    case = Case.from_dir(Path("."))
    assert case.images["flair"].path.name == "X_0002.nii.gz"
    assert case.labels == tmp_path / "labelsTr" / "X.nii.gz"


@pytest.mark.parametrize("name", ["t.txt", "X_flair.nii.gz"])
def test_a_file_that_is_no_4d_volume_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="give the folder"):
        find_cases(tmp_path / name)


# Names that begin with the modality


def test_names_that_begin_with_the_modality_are_read(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "pat 1",
        "Flair_subtrMeanDivStd.nii.gz", "T1c_subtrMeanDivStd.nii.gz", "OTMultiClass.nii.gz",
        "brainmask.nii.gz", "seg_subtrMeanDivStd.nii.gz",
    )  # fmt: skip
    case = Case.from_dir(folder)
    assert case.case_id == "pat 1"
    assert case.dialect is Dialect.MODALITY_FIRST
    assert case.convention is None
    assert case.labels is None
    assert names_of(case) == {
        "flair": "Flair_subtrMeanDivStd.nii.gz",
        "t1ce": "T1c_subtrMeanDivStd.nii.gz",
    }
    assert find_cases(tmp_path) == [case]
    assert holds_images(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("Flair_brain.nii.gz", "T1c_head.nii.gz"),  # they go on in two ways
        ("T1_brain.nii.gz",),  # one file is no rule
        ("T1_brain.nii.gz", "T1w_brain.nii.gz"),  # nor is one modality
        ("T1c_seg.nii.gz", "Flair_seg.nii.gz"),  # label maps
        ("T1map.nii.gz", "T2map.nii.gz"),
    ],
)
def test_other_names_that_begin_so_are_not(tmp_path: Path, names: Sequence[str]) -> None:
    touch(tmp_path, *names)
    assert not holds_images(tmp_path)
    with pytest.raises(InputError, match="no MR images"):
        find_cases(tmp_path)


def test_a_modality_at_the_end_wins_over_one_at_the_beginning(tmp_path: Path) -> None:
    touch(tmp_path, *(f"X_{name}.nii.gz" for name in OLD), "T1_mni.nii.gz", "T2_mni.nii.gz")
    (case,) = find_cases(tmp_path)
    assert (case.case_id, case.dialect) == ("X", Dialect.BRATS2018)


# Folders and files that must not end the others


def unlistable(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int = errno.EACCES) -> None:
    """As for a user without rights, or on a disk that fails: root may list everything."""
    listed = os.scandir

    def refuse(path: str | Path = ".") -> object:
        if Path(path) == folder:
            raise OSError(code, os.strerror(code), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)


def named(root: Path, *cases: str) -> Path:
    return touch(root, *(f"{case}/{case}_{modality}.nii.gz" for case in cases for modality in OLD))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    named(tmp_path, "A", "B")
    unlistable(monkeypatch, tmp_path / "A", code)
    problems: list[InputError] = []
    assert [case.case_id for case in find_cases(tmp_path, problems=problems)] == ["B"]
    (problem,) = problems
    assert problem.where == str(tmp_path / "A")
    assert os.strerror(code) in str(problem)
    with pytest.raises(InputError, match=os.strerror(code)):
        find_cases(tmp_path)
    with pytest.raises(InputError, match=os.strerror(code)):
        Case.from_dir(tmp_path / "A")


def test_what_the_file_system_keeps_for_itself_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root of every ext4 disk has a lost+found that nobody but root may list."""
    named(tmp_path, "A")
    (tmp_path / "lost+found").mkdir()
    unlistable(monkeypatch, tmp_path / "lost+found")
    assert [case.case_id for case in find_cases(tmp_path)] == ["A"]


@pytest.mark.parametrize("hidden", ["labelsTr/", "dataset.json"])
def test_what_may_not_be_looked_at_is_not_taken_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    """The doctor finds that they cannot be read; nobody takes the case for one without truth."""
    described(tmp_path, {"modality": {str(i): name for i, name in enumerate(OLD)}})
    touch(tmp_path, "imagesTr/X.nii.gz", "labelsTr/X.nii.gz")
    looked = os.stat

    def refuse(path: object, *args: object, **how: object) -> object:
        if hidden in os.fspath(path):  # type: ignore[call-overload]
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return looked(path, *args, **how)  # type: ignore[call-overload]

    opened = os.open

    def refuse_open(path: object, *args: object, **how: object) -> object:
        if hidden in os.fspath(path):  # type: ignore[call-overload]
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "open", refuse_open)
    if hidden == "labelsTr/":
        assert find_cases(tmp_path)[0].labels == tmp_path / "labelsTr" / "X.nii.gz"
        return
    with pytest.raises(InputError, match=r"dataset\.json: found .*Permission denied"):
        find_cases(tmp_path)


def test_a_stray_numbered_file_ends_no_cohort(tmp_path: Path) -> None:
    named(tmp_path, "A", "B")
    touch(tmp_path, "B/scan_0001.nii.gz")
    problems: list[InputError] = []
    assert [case.case_id for case in find_cases(tmp_path, problems=problems)] == ["A", "B"]
    (problem,) = problems
    assert problem.where == str(tmp_path / "B")
    assert "numbered channels (scan)" in str(problem)
    assert "--channels flair,t1,t1ce,t2" in str(problem)
    with pytest.raises(UsageError, match="numbered channels"):
        find_cases(tmp_path)


def test_numbers_alone_are_still_a_matter_of_the_command_line(tmp_path: Path) -> None:
    touch(tmp_path, *(f"X/X_000{channel}.nii.gz" for channel in range(4)), "Y/Y_0000.nii.gz")
    with pytest.raises(UsageError, match="--channels"):
        find_cases(tmp_path, problems=[])


def test_a_damaged_description_ends_no_cohort(tmp_path: Path) -> None:
    touch(tmp_path, "one/imagesTr/X.nii.gz")
    (tmp_path / "one" / "dataset.json").write_text("{")
    named(tmp_path, "A")
    problems: list[InputError] = []
    assert [case.case_id for case in find_cases(tmp_path, problems=problems)] == ["A"]
    assert [problem.where for problem in problems] == [str(tmp_path / "one" / "dataset.json")]


def test_a_folder_without_any_rights_is_named_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is in it can be looked at nor itself be listed."""
    named(tmp_path, "A")
    unlistable(monkeypatch, tmp_path / "A")
    looked = os.stat

    def refuse(path: object, *args: object, **how: object) -> object:
        if isinstance(path, str | Path) and Path(path).parent == tmp_path / "A":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return looked(path, *args, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError, match="Permission denied") as caught:
        find_cases(tmp_path / "A")
    assert caught.value.where == str(tmp_path / "A")
