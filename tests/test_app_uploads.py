"""Uploaded files: what is refused, how they are stored, and which case they become."""

import gc
import gzip
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime.app.uploads import TRUTH, Store, Upload, assemble, role_of, shown_name
from runtime.case import Case, Source
from runtime.errors import InputError
from runtime.labels import MODALITIES, Convention

SHAPE = (5, 4, 3)


def nifti(tmp_path: Path, seed: int = 0, shape: tuple[int, ...] = SHAPE, end: str = ".gz") -> bytes:
    path = tmp_path / f"made.nii{end}"
    voxels = np.random.default_rng(seed).integers(1, 99, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path.read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path, max_bytes=1 << 20)
    yield made
    made.close()


def test_a_file_is_stored_whole_under_a_name_that_nobody_can_guess(
    store: Store, tmp_path: Path
) -> None:
    data = nifti(tmp_path)
    (upload,) = store.add("Smith_John_t1ce.nii.gz", data)
    assert upload.path.read_bytes() == data
    assert re.fullmatch(r"[0-9a-f]{32}\.nii\.gz", upload.path.name)
    assert upload.path.parent.parent == store.folder
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(upload.path.stat().st_mode) == 0o600
    assert (upload.name, upload.role, upload.frame) == ("Smith_John_t1ce.nii.gz", "t1ce", None)


def test_files_are_known_by_their_bytes(store: Store, tmp_path: Path) -> None:
    one, other = nifti(tmp_path, 1), nifti(tmp_path, 2)
    (first,), (second,) = store.add("a_t1.nii.gz", one), store.add("b_t2.nii.gz", one)
    assert first.path == second.path
    (third,) = store.add("a_t1.nii.gz", other)
    assert third.path != first.path
    assert len(list(first.path.parent.iterdir())) == 2


def test_two_stores_share_nothing(tmp_path: Path) -> None:
    data = nifti(tmp_path)
    one, other = Store(tmp_path), Store(tmp_path)
    (mine,), (theirs,) = one.add("x_t1.nii.gz", data), other.add("x_t1.nii.gz", data)
    assert mine.path.parent != theirs.path.parent
    one.close()
    assert theirs.path.read_bytes() == data
    other.close()


def test_files_go_when_the_visit_is_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("x_t1.nii.gz", nifti(tmp_path))
    folder = store.folder
    store.new_folder().joinpath("result").write_text("x")
    assert folder.is_dir()
    del store
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("scan.dcm", b"x" * 400, "a name that does not end in .nii or .nii.gz"),
        ("x.nii.gz.exe", b"\x1f\x8b" * 200, "a name that does not end"),
        (".nii", b"x" * 400, "a name that does not end"),
        ("page.nii", b"<html>" * 100, "a file that starts with 3c68746d"),
        ("empty.nii.gz", b"", "a file that starts with nothing"),
        ("big.nii.gz", b"\x1f\x8b" + b"0" * (1 << 20), "1 MiB"),
        ("torn.nii.gz", b"\x1f\x8b\x08\0", "a damaged or truncated gzip stream"),
    ],
)
def test_what_is_no_image_is_refused_by_name_and_content(
    store: Store, name: str, data: bytes, found: str
) -> None:
    with pytest.raises(InputError, match=found) as caught:
        store.add(name, data)
    assert caught.value.where == name
    assert str(store.folder) not in str(caught.value)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_file_is_refused_that_has_other_bytes_than_its_header_promises(
    tmp_path: Path, end: str
) -> None:
    store = Store(tmp_path, max_bytes=4 << 20)
    plain = nifti(tmp_path, end="")
    packed = gzip.compress if end else bytes
    for data in (plain[:-1], plain[:352], plain + bytes(2 << 20)):
        with pytest.raises(InputError, match="bytes where the header promises") as caught:
            store.add(f"X_t1.nii{end}", packed(data))
        assert caught.value.where == f"X_t1.nii{end}"
    assert list((store.folder / "files").iterdir()) == []


def test_a_compressed_file_is_refused_whose_checksum_is_wrong(store: Store, tmp_path: Path) -> None:
    data = bytearray(nifti(tmp_path))
    data[-6] ^= 1
    with pytest.raises(InputError, match=r"^X_t1.nii.gz: found a damaged or truncated gzip"):
        store.add("X_t1.nii.gz", bytes(data))


@pytest.mark.parametrize("frames", [9, 300])
def test_a_series_over_time_is_no_case(store: Store, tmp_path: Path, frames: int) -> None:
    data = nifti(tmp_path, shape=(*SHAPE, frames))
    with pytest.raises(InputError, match=f"found a series of {frames} frames, expected the mod"):
        store.add("bold.nii.gz", data)
    assert list((store.folder / "files").iterdir()) == []


def test_a_header_alone_makes_no_rows(store: Store) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape((1, 1, 1, 3_000_000))
    header.set_data_dtype(np.uint8)
    with pytest.raises(InputError, match="544 bytes where the header promises 3000544"):
        store.add("x.nii", bytes(header.binaryblock) + bytes(4))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd_t1.nii", "passwd_t1.nii"),
        ("C:\\patients\\X_t1.nii.gz", "X_t1.nii.gz"),
        ("a\x00b\n\x1b[31m_t1.nii", "a?b??[31m_t1.nii"),
        ("Ünïcode-é_t2.nii", "Ünïcode-é_t2.nii"),
        ("", "file"),
        ("/", "file"),
        ("n" * 300 + "_t1.nii.gz", "..." + "n" * 87 + "_t1.nii.gz"),
    ],
)
def test_names_are_shown_without_folders_and_controls(name: str, shown: str) -> None:
    assert shown_name(name) == shown


def test_a_hostile_name_writes_nothing_elsewhere(store: Store, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    data = nifti(tmp_path)
    for name in ("../../evil_t1.nii.gz", "/tmp/evil_t1.nii.gz", "..\\evil_t1.nii.gz"):
        store.add(name, data)
    new = {path for path in set(tmp_path.rglob("*")) - before if path.name != "made.nii.gz"}
    assert all(store.folder in path.parents for path in new)
    assert len(new) == 1


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("X_flair.nii.gz", "flair"),
        ("BraTS-GLI-00008-000-t1c.nii.gz", "t1ce"),
        ("t2f.nii", "flair"),
        ("X-t1n.nii.gz", "t1"),
        ("X_T2W.nii.gz", "t2"),
        ("X_seg.nii.gz", TRUTH),
        ("W39_1998.09.19_Segm.nii", TRUTH),
        ("X_0002.nii.gz", None),
        ("scan.nii.gz", None),
    ],
)
def test_the_role_of_a_file_is_what_its_name_says(name: str, role: str | None) -> None:
    assert role_of(name) == role


def seed_of(name: str) -> int:
    return sum(map(ord, name))


def uploaded(store: Store, tmp_path: Path, names: list[str]) -> list[Upload]:
    return [upload for name in names for upload in store.add(name, nifti(tmp_path, seed_of(name)))]


def as_named(uploads: list[Upload]) -> list[tuple[Upload, str | None]]:
    return [(upload, upload.role) for upload in uploads]


@pytest.mark.parametrize(
    "names",
    [
        [f"X_{name}.nii.gz" for name in (*MODALITIES, "seg")],
        [f"X-000-{name}.nii.gz" for name in ("t2f", "t1n", "t1c", "t2w", "seg")],
        [*(f"X_355_{name}.nii.gz" for name in MODALITIES), "W39_1998.09.19_Segm.nii.gz"],
        ["flair.nii.gz", "t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz"],
    ],
)
def test_the_case_is_the_one_that_a_folder_of_these_files_would_be(
    store: Store, tmp_path: Path, names: list[str]
) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(nifti(tmp_path, seed_of(name)))
    expected = Case.from_dir(folder)
    uploads = uploaded(store, tmp_path, list(reversed(names)))
    found = assemble(as_named(uploads))
    assert list(found.images) == list(expected.images)
    assert (found.case_id, found.dialect, found.convention) == (
        expected.case_id,
        expected.dialect,
        expected.convention,
    )
    assert {name: source.path.read_bytes() for name, source in found.images.items()} == {
        name: source.path.read_bytes() for name, source in expected.images.items()
    }
    assert (found.labels is None) == (expected.labels is None)
    if found.labels is not None and expected.labels is not None:
        assert found.labels.read_bytes() == expected.labels.read_bytes()


def test_the_word_of_the_user_stands_above_the_name(store: Store, tmp_path: Path) -> None:
    uploads = uploaded(store, tmp_path, [f"X_{name}.nii.gz" for name in MODALITIES])
    flair, t1, t1ce, t2 = uploads
    case = assemble([(flair, "flair"), (t1, "t1ce"), (t1ce, "t1"), (t2, "t2")])
    assert case.images["t1"] == Source(t1ce.path)
    assert case.images["t1ce"] == Source(t1.path)


def test_a_4d_file_is_offered_frame_by_frame_and_never_by_position(
    store: Store, tmp_path: Path
) -> None:
    uploads = list(store.add("BRATS_001.nii.gz", nifti(tmp_path, shape=(*SHAPE, 4))))
    assert [upload.frame for upload in uploads] == [0, 1, 2, 3]
    assert [upload.role for upload in uploads] == [None] * 4
    assert [upload.title for upload in uploads] == [f"BRATS_001.nii.gz [{i}]" for i in range(4)]
    with pytest.raises(InputError, match="no flair and no t1 and no t1ce and no t2"):
        assemble(as_named(uploads))
    case = assemble(list(zip(uploads, ("t2", "flair", "t1ce", "t1"), strict=True)))
    assert {name: source.channel for name, source in case.images.items()} == {
        "flair": 1,
        "t1": 3,
        "t1ce": 2,
        "t2": 0,
    }
    # Nothing tells the numbering of labels: the output says what it is.
    assert case.convention is None


@pytest.mark.parametrize(
    ("last", "found"),
    [(None, "the case: found no t2, expected"), ("t1", "X_t2.*: found t1 twice.*X_t1")],
)
def test_what_is_no_case_is_told_in_one_sentence(
    store: Store, tmp_path: Path, last: str | None, found: str
) -> None:
    uploads = uploaded(store, tmp_path, [f"X_{name}.nii.gz" for name in MODALITIES])
    with pytest.raises(InputError, match=found):
        assemble([*as_named(uploads[:3]), (uploads[3], last)])


@pytest.mark.parametrize("row", [1, 4])
def test_of_a_file_that_came_twice_either_can_be_left_out(
    store: Store, tmp_path: Path, row: int
) -> None:
    names = [f"X_{name}.nii.gz" for name in (*MODALITIES, "t1")]
    chosen = as_named(uploaded(store, tmp_path, names))
    with pytest.raises(InputError, match="found t1 twice"):
        assemble(chosen)
    chosen[row] = (chosen[row][0], None)
    assert list(assemble(chosen).images) == list(MODALITIES)


def test_files_of_two_patients_are_no_case(store: Store, tmp_path: Path) -> None:
    names = ["A_flair.nii.gz", "A_t1.nii.gz", "B_t1ce.nii.gz", "A_t2.nii.gz"]
    uploads = uploaded(store, tmp_path, names)
    with pytest.raises(InputError, match=r"names of several cases.*'A', 'B'"):
        assemble(as_named(uploads))


@pytest.mark.parametrize(
    ("name", "role"), [("truthmask.nii.gz", TRUTH), ("C_segm.nii.gz", TRUTH), ("scan.nii.gz", "t2")]
)
def test_a_name_that_tells_nothing_does_not_hide_that_others_are_of_two_patients(
    store: Store, tmp_path: Path, name: str, role: str
) -> None:
    names = ["A_flair.nii.gz", "A_t1.nii.gz", "B_t1ce.nii.gz", "B_t2.nii.gz"]
    uploads = uploaded(store, tmp_path, names)
    (odd,) = uploaded(store, tmp_path, [name])
    chosen = [one for one in as_named(uploads) if one[1] != role]
    with pytest.raises(InputError, match=r"names of several cases.*'A', 'B'"):
        assemble([*chosen, (odd, role)])


@pytest.mark.parametrize(
    ("name", "role", "good"),
    [
        ("W39_Segm.nii.gz", TRUTH, True),
        ("B_seg.nii.gz", TRUTH, False),
        ("truth of A.nii.gz", TRUTH, True),
        # Called a truth and taken for an image: nothing about it is certain.
        ("B_segm.nii.gz", "t2", False),
    ],
)
def test_another_cases_truth_is_not_taken_for_this_ones(
    store: Store, tmp_path: Path, name: str, role: str, good: bool
) -> None:
    images = uploaded(store, tmp_path, [f"A_{one}.nii.gz" for one in MODALITIES])
    (odd,) = uploaded(store, tmp_path, [name])
    chosen = [(odd, role), *(one for one in as_named(images) if one[1] != role)]
    if good:
        case = assemble(chosen)
        assert (case.case_id, case.labels) == ("A", odd.path)
        return
    with pytest.raises(InputError, match=r"names of several cases.*'A', 'B'"):
        assemble(chosen)


def test_a_frame_of_a_4d_file_is_no_truth(store: Store, tmp_path: Path) -> None:
    uploads = store.add("all.nii.gz", nifti(tmp_path, shape=(*SHAPE, 5)))
    chosen = list(zip(uploads, (*MODALITIES, TRUTH), strict=True))
    with pytest.raises(InputError, match=r"\[4\]: found a frame of a 4D file") as caught:
        assemble(chosen)
    assert "--" not in str(caught.value)
    (truth,) = store.add("mask.nii.gz", nifti(tmp_path))
    case = assemble([*chosen[:4], (uploads[4], None), (truth, TRUTH)])
    assert case.labels == truth.path


def test_a_model_that_does_without_a_modality_does_without_its_file(
    store: Store, tmp_path: Path
) -> None:
    uploads = uploaded(store, tmp_path, ["X_flair.nii.gz", "X_t1ce.nii.gz", "X_t2.nii.gz"])
    case = assemble(as_named(uploads), ("flair", "t1ce", "t2"))
    assert list(case.images) == ["flair", "t1ce", "t2"]
    assert case.convention is Convention.BRATS2020


def test_messages_name_files_as_the_user_knows_them(store: Store, tmp_path: Path) -> None:
    (upload,) = store.add("X_t1.nii.gz", nifti(tmp_path))
    said = store.plain(f"{upload.path}: found an error in {upload.path.name}{os.sep}")
    assert said == f"X_t1.nii.gz: found an error in X_t1.nii.gz{os.sep}"
