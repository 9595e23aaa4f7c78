"""Cache, split and samplers: what is cut, and that nothing depends on who cuts it."""

import gzip
import hashlib
import json
import multiprocessing
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from runtime.case import Case, find_cases
from runtime.errors import InputError
from runtime.labels import MODALITIES, Convention, Label
from runtime.model_card import ModelCard
from runtime.naming import patient_of
from runtime.nifti import load
from runtime.ops.numpy import NumpyOps
from runtime.phantom import Enhancement, write_phantoms
from runtime.preprocess import prepare
from runtime.truth import load_truth
from train import data
from train.augment_torchio import PatchAugment
from train.cases import find_labelled
from train.config import AugmentConfig, SamplingConfig, SplitConfig
from train.data import CachedCase, cached, check_held_out_images, check_prepared
from train.patches import PatchDataset, patch_loader
from train.sampler import EpochSampler, GridSampler, RandomSampler
from train.split import make_split, read_split

PATCH = (32, 32, 16)
CARD = ModelCard("tiny", patch=PATCH, divisor=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train_data")
    write_phantoms(folder, 3, seed=1, shape=(64, 64, 48), enhancement=Enhancement.RIM)
    return folder


@pytest.fixture(scope="module")
def cases(root: Path) -> list[Case]:
    return list(find_labelled(root).labelled)


@pytest.fixture(scope="module")
def entries(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    return cached(cases, CARD, tmp_path_factory.mktemp("cache"))


def _made(folder: Path, voxels: np.ndarray, labels: np.ndarray) -> CachedCase:
    """A cache entry of given arrays."""
    folder.mkdir()
    positions = [np.flatnonzero(labels.ravel() == label) for label in (1, 2, 3)]
    np.save(folder / "voxels.npy", voxels.astype(np.float32))
    np.save(folder / "labels.npy", labels.astype(np.uint8))
    np.save(folder / "positions.npy", np.concatenate(positions).astype(np.int32))
    counts = (len(positions[0]), len(positions[1]), len(positions[2]))
    return CachedCase(folder.name, folder, labels.shape, counts)


# Cache


def test_training_sees_what_serving_sees(cases: list[Case], entries: list[CachedCase]) -> None:
    for case, entry in zip(cases, entries, strict=True):
        prepared = prepare(load(case), CARD, NumpyOps(), PATCH)
        np.testing.assert_allclose(entry.voxels(), prepared.voxels, rtol=2**-11, atol=1e-7)
        assert not entry.voxels()[prepared.voxels == 0].any()
        labels = prepared.to_box(load_truth(case))
        np.testing.assert_array_equal(entry.labels(), labels)
        assert entry.shape == labels.shape
        for label in (Label.NCR, Label.ED, Label.ET):
            np.testing.assert_array_equal(
                entry.positions(label), np.flatnonzero(labels.ravel() == label)
            )


def test_nothing_is_prepared_twice(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached(cases, CARD, tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(data, "prepare_case", never)
    assert cached(cases, CARD, tmp_path) == first
    with pytest.raises(AssertionError, match="prepared again"):
        cached(cases, replace(CARD, normalisation="zscore-volume"), tmp_path)


def test_a_changed_file_is_prepared_anew(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "BraTSPhantom_0001", tmp_path / "in" / "BraTSPhantom_0001")
    case = find_cases(tmp_path / "in")[0]
    (first,) = cached([case], CARD, tmp_path / "cache")
    other = root / "BraTSPhantom_0002" / "BraTSPhantom_0002_seg.nii.gz"
    assert case.labels is not None
    shutil.copy(other, case.labels)
    (second,) = cached([case], CARD, tmp_path / "cache")
    assert first.folder != second.folder
    assert first.counts != second.counts


def test_a_half_written_entry_is_not_believed(cases: list[Case], tmp_path: Path) -> None:
    (entry,) = cached(cases[:1], CARD, tmp_path)
    whole = (entry.folder / "voxels.npy").read_bytes()
    (entry.folder / "voxels.npy").write_bytes(whole[:-1])
    (again,) = cached(cases[:1], CARD, tmp_path)
    assert (again.folder / "voxels.npy").read_bytes() == whole


@pytest.mark.parametrize("name", ["voxels.npy", "labels.npy", "positions.npy", "case.json"])
@pytest.mark.parametrize("where", ["everywhere", "in the middle"])
def test_a_damaged_entry_is_prepared_anew_and_said(
    cases: list[Case], tmp_path: Path, name: str, where: str
) -> None:
    (entry,) = cached(cases[:1], CARD, tmp_path)
    path = entry.folder / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    other = bytes([whole[middle] ^ 1])
    # Of the same size: nothing but noughts, or one bit another.
    zeros = bytes(len(whole))
    path.write_bytes(
        zeros if where == "everywhere" else whole[:middle] + other + whole[middle + 1 :]
    )
    said: list[str] = []
    (again,) = cached(cases[:1], CARD, tmp_path, say=said.append)
    assert again == entry
    assert path.read_bytes() == whole
    assert said == [f"{cases[0].case_id} was prepared anew: {entry.folder} was damaged"]
    said.clear()
    cached(cases[:1], CARD, tmp_path, say=said.append)
    assert said == []


def test_a_crash_while_writing_leaves_no_entry(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "write_json", crash)
        with pytest.raises(KeyboardInterrupt):
            cached(cases[:1], CARD, tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(cached(cases[:1], CARD, tmp_path)) == 1


def _fill(cache: Path, root: Path, barrier: Any) -> None:
    barrier.wait(timeout=60)
    entries = cached(find_labelled(root).labelled, CARD, cache)
    assert all(entry.voxels().shape[1:] == entry.shape for entry in entries)


def test_writers_may_fill_one_cache_at_once(root: Path, cases: list[Case], tmp_path: Path) -> None:
    spawned = multiprocessing.get_context("spawn")
    barrier = spawned.Barrier(3)
    cache = tmp_path / "cache"
    writers = [spawned.Process(target=_fill, args=(cache, root, barrier)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    # Every entry once, whole, and nothing that was begun beside it.
    assert len(list(cache.iterdir())) == len(cases)
    alone = cached(cases, CARD, tmp_path / "alone")
    for one, two in zip(cached(cases, CARD, cache), alone, strict=True):
        assert one.folder.name == two.folder.name
        for name in ("voxels.npy", "labels.npy", "positions.npy", "case.json"):
            assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_one_case_under_two_names_is_refused(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "BraTSPhantom_0009"
    shutil.copytree(root, tmp_path / "in")
    shutil.copytree(tmp_path / "in" / "BraTSPhantom_0002", folder)
    for path in folder.iterdir():
        # Unpacked, so that no two files are alike.
        unpacked = folder / path.name.replace("0002", "0009").removesuffix(".gz")
        unpacked.write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    with pytest.raises(InputError, match="images of case BraTSPhantom_0009 are those of case Bra"):
        cached(find_labelled(tmp_path / "in").labelled, CARD, tmp_path / "cache")


def _unpacked(case: Case, folder: Path) -> Case:
    """The same images in files that are not packed, without truth."""
    folder.mkdir(parents=True)
    for source in case.images.values():
        name = source.path.name.replace(case.case_id, folder.name).removesuffix(".gz")
        (folder / name).write_bytes(gzip.decompress(source.path.read_bytes()))
    return find_cases(folder)[0]


def test_what_is_held_out_is_known_however_it_is_stored(
    cases: list[Case],
    entries: list[CachedCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = _unpacked(cases[1], tmp_path / "in" / "Held")
    cache = tmp_path / "cache"
    others = [(case, entry) for case, entry in zip(cases, entries, strict=True) if case != cases[1]]
    check_held_out_images(*zip(*others, strict=True), [copy], CARD, cache)
    name = cases[1].case_id
    match = f"images of case {name} are those of Held, which is excluded.*add {name} to"
    with pytest.raises(InputError, match=match):
        check_held_out_images(cases, entries, [copy], CARD, cache)

    # Only a hash is kept of it, and it is not prepared again.
    (kept,) = (cache / "held_out").iterdir()
    assert kept.stat().st_size < 200

    def never(*_: object) -> None:
        raise AssertionError("prepared")

    monkeypatch.setattr(data, "prepare", never)
    with pytest.raises(InputError, match=match):
        check_held_out_images(cases, entries, [copy], CARD, cache)
    # One that cannot be read holds nothing out.
    copy.images["t1"].path.write_bytes(b"damaged")
    monkeypatch.undo()
    check_held_out_images(cases, entries, [copy], CARD, cache)


def test_labels_of_two_meanings_are_refused_whatever_was_prepared_before(
    cases: list[Case], tmp_path: Path
) -> None:
    """1, 2, 3 and 4 in a case of 2023: fine while that is assumed, not where it is said."""
    folder = tmp_path / "in" / "BraTS-GLI-00001-000"
    folder.mkdir(parents=True)
    names = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"}
    for modality, source in cases[0].images.items():
        shutil.copy(source.path, folder / f"{folder.name}-{names[modality]}.nii.gz")
    assert cases[0].labels is not None
    truth = nib.load(cases[0].labels)
    labels = np.asarray(truth.dataobj).astype(np.uint8)
    labels[labels == 4] = 3
    labels[tuple(np.argwhere(labels == 3)[0])] = 4
    nib.Nifti1Image(labels, truth.affine).to_filename(folder / f"{folder.name}-seg.nii.gz")
    case = find_cases(folder)[0]
    cached([case], CARD, tmp_path / "cache")
    for cache in ("cache", "empty"):
        with pytest.raises(InputError, match=r"found .*4"):
            cached([case], CARD, tmp_path / cache, Convention.BRATS2023)


def test_a_copy_in_the_cache_is_found_without_preparing_it(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed and unpacked, so that no two files are alike."""
    folder = tmp_path / "in" / "copy"
    folder.mkdir(parents=True)
    for path in cases[0].folder.iterdir():
        name = path.name.replace(cases[0].case_id, "copy").removesuffix(".gz")
        (folder / name).write_bytes(gzip.decompress(path.read_bytes()))
    copy = find_cases(folder)[0]
    cache = tmp_path / "cache"
    for case in (*cases, copy):
        cached([case], CARD, cache)

    def never(*_: object) -> None:
        raise AssertionError("prepared")

    monkeypatch.setattr(data, "prepare_case", never)
    check_prepared(cases, CARD, cache)
    check_prepared([*cases, copy], CARD, tmp_path / "nowhere")
    match = f"images of case copy are those of case {cases[0].case_id}"
    with pytest.raises(InputError, match=match):
        check_prepared([*cases, copy], CARD, cache)
    # What was prepared of the file that was there before says nothing of the one that is now.
    path = copy.images["t1"].path
    path.write_bytes(path.read_bytes() + b"changed")
    check_prepared([*cases, copy], CARD, cache)


# Split


@pytest.mark.parametrize(
    ("case_id", "patient"),
    [
        ("BraTS-GLI-00012-001", "BraTS-GLI-00012"),
        ("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB"),
        ("BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB"),
        ("brats-gli-00012-001", "brats-gli-00012"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS2021_00001", "BraTS2021_00001"),
        ("BraTSPhantom_0001", "BraTSPhantom_0001"),
    ],
)
def test_visits_share_their_patient(case_id: str, patient: str) -> None:
    assert patient_of(case_id) == patient


def test_a_fraction_of_patients_validates() -> None:
    ids = [f"BraTS-GLI-{patient:05d}-{visit:03d}" for patient in range(10) for visit in range(2)]
    split = make_split(ids, SplitConfig(validation=0.2), seed=0)
    assert len(split.validation) == 4
    assert not {patient_of(c) for c in split.train} & {patient_of(c) for c in split.validation}
    assert sorted(split.train + split.validation) == ids
    assert make_split(ids[::-1], SplitConfig(validation=0.2), seed=0) == split
    assert make_split(ids, SplitConfig(validation=0.2), seed=1) != split


def test_folds_cover_the_patients_once() -> None:
    ids = [f"BraTS-GLI-{patient:05d}-{visit:03d}" for patient in range(12) for visit in range(2)]
    folds = [make_split(ids, SplitConfig(folds=5, fold=fold), seed=3) for fold in range(5)]
    assert sorted(case for split in folds for case in split.validation) == ids
    for split in folds:
        assert not {patient_of(c) for c in split.train} & {patient_of(c) for c in split.validation}
        assert sorted(split.train + split.validation) == ids
        assert len(split.validation) in (4, 6)
    again = make_split(ids[::-1], SplitConfig(folds=5, fold=2), seed=3)
    assert again == folds[2]
    assert make_split(ids, SplitConfig(folds=5, fold=2), seed=4) != folds[2]


def test_a_split_carries_its_hash(tmp_path: Path) -> None:
    split = make_split(["a", "b", "c"], SplitConfig(validation_cases=("c",)), 0)
    value = split.to_json()
    text = '{"excluded":[],"train":["a","b"],"validation":["c"]}'
    assert value["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**value, "train": ["a"]}))
    with pytest.raises(InputError, match="do not have the hash beside them"):
        read_split(path)
    del value["sha256"]
    path.write_text(json.dumps(value))
    assert read_split(path) == split


def test_lists_and_files_decide_the_split(tmp_path: Path) -> None:
    ids = ["a", "b", "c", "d"]
    split = make_split(ids, SplitConfig(validation_cases=("d",), exclude=("x",)), 0)
    assert (split.train, split.validation, split.excluded) == (("a", "b", "c"), ("d",), ("x",))
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split.to_json()))
    assert read_split(path) == split
    again = make_split(ids, SplitConfig(file=str(path)), 5)
    assert (again.train, again.validation) == (split.train, split.validation)
    only = make_split(ids, SplitConfig(train_cases=("a",), validation=0), 0)
    assert (only.train, only.validation) == (("a",), ())


def test_beside_a_list_to_train_on_all_other_patients_validate() -> None:
    ids = [f"BraTS-GLI-{patient:05d}-{visit:03d}" for patient in range(5) for visit in range(2)]
    split = make_split(ids, SplitConfig(train_cases=(ids[0], ids[2], ids[3]), validation=0.2), 0)
    assert split.train == (ids[0], ids[2], ids[3])
    # The second visit of the first patient is on neither side.
    assert split.validation == tuple(ids[4:])


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (SplitConfig(validation_cases=("z",)), "case z"),
        (SplitConfig(train_cases=("a",), validation_cases=("a",)), "in training and in validation"),
        (SplitConfig(validation=0.9), "none left"),
        (SplitConfig(file="missing.json"), "no readable split"),
        (SplitConfig(folds=4), "3 patients for 4 folds"),
        (
            SplitConfig(validation_cases=("Brats18_TCIA_X_1",)),
            r"patient Brats18_TCIA_X in training \(Brats18_TCIA_X_2\) and in validation",
        ),
    ],
)
def test_impossible_splits_are_input_errors(config: SplitConfig, found: str) -> None:
    with pytest.raises(InputError, match=found):
        make_split(["a", "b", "Brats18_TCIA_X_1", "Brats18_TCIA_X_2"], config, 0)


# Samplers


def test_grid_is_what_a_hand_enumeration_gives(tmp_path: Path) -> None:
    labels = np.zeros((70, 40, 33), np.uint8)
    labels[66, 5, 30] = 2
    labels[10, 38, 2] = 1
    case = _made(tmp_path / "one", np.zeros((4, *labels.shape)), labels)
    config = SamplingConfig("grid", 0, stride=(16, 32, 16), background_ratio=0.5)
    # 70 voxels, patch 32, stride 16: 0, 16, 32, and flush at 38; 40: 0, 8; 33, patch 16: 0, 16, 17.
    starts = list(product((0, 16, 32, 38), (0, 8), (0, 16, 17)))
    tumour = [
        (x, y, z)
        for x, y, z in starts
        if (x <= 66 < x + 32 and y <= 5 < y + 32 and z <= 30 < z + 16)
        or (x <= 10 < x + 32 and y <= 38 < y + 32 and z <= 2 < z + 16)
    ]
    # The first voxel lies in the windows at x 38, y 0, z 16 and 17; the second in that at 0, 8, 0.
    assert sorted(tumour) == [(0, 8, 0), (38, 0, 16), (38, 0, 17)]
    draws = GridSampler([case], PATCH, config, 0).draws(0)
    found = [draw.start for draw in draws]
    assert len(found) == len(set(found)) == 3 + 1
    assert set(tumour) < set(found) <= set(starts)


def test_grid_needs_tumour(tmp_path: Path) -> None:
    case = _made(tmp_path / "none", np.zeros((4, *PATCH)), np.zeros(PATCH))
    with pytest.raises(InputError, match="no tumour"):
        GridSampler([case], PATCH, SamplingConfig("grid", stride=(16, 16, 16)), 0)


def test_foreground_windows_hold_every_label_alike(tmp_path: Path) -> None:
    labels = np.zeros((80, 72, 48), np.uint8)
    labels[30:50, 30:50, 20:30] = Label.ED
    labels[40, 40, 25] = Label.NCR
    labels[45:47, 40, 25] = Label.ET
    case = _made(tmp_path / "one", np.zeros((4, *labels.shape)), labels)
    config = SamplingConfig(patches_per_epoch=300, foreground=1.0)
    draws = RandomSampler([case], PATCH, config, 0).draws(0)
    centres = [int(labels[tuple(np.add(draw.start, (16, 16, 8)))]) for draw in draws]
    counts = np.bincount(centres, minlength=4)
    assert counts[0] == 0
    assert (counts[1:] > 70).all()


def test_windows_stay_in_the_box_and_hold_the_tumour(entries: list[CachedCase]) -> None:
    for foreground in (0.0, 1.0):
        config = SamplingConfig(patches_per_epoch=60, foreground=foreground)
        for draw in RandomSampler(entries, PATCH, config, 0).draws(0):
            labels = entries[draw.case].labels()
            x, y, z = draw.start
            window = labels[x : x + 32, y : y + 32, z : z + 16]
            assert min(draw.start) >= 0
            assert window.shape == PATCH
            assert foreground == 0 or window.any()


def test_cases_take_turns(entries: list[CachedCase]) -> None:
    config = SamplingConfig(patches_per_epoch=7)
    sampler = RandomSampler(entries, PATCH, config, 0)
    turns = [draw.case for epoch in range(3) for draw in sampler.draws(epoch)]
    assert all(sorted(turns[i : i + 3]) == [0, 1, 2] for i in range(0, 21, 3))


@pytest.mark.parametrize("kind", [RandomSampler, GridSampler])
def test_draws_depend_on_seed_and_epoch_alone(
    kind: type[RandomSampler] | type[GridSampler], entries: list[CachedCase]
) -> None:
    config = SamplingConfig(patches_per_epoch=6, stride=(16, 16, 8))
    draws = kind(entries, PATCH, config, 3).draws(2)
    np.random.seed(1)
    torch.manual_seed(1)
    other = kind(entries, PATCH, config, 3)
    other.draws(0)
    assert other.draws(2) == draws
    assert other.draws(1) != draws
    assert kind(entries, PATCH, config, 4).draws(2) != draws


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_batches_do_not_depend_on_workers(entries: list[CachedCase]) -> None:
    augment = PatchAugment(AugmentConfig(noise=1.0, gamma=0.5), MODALITIES)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(
            RandomSampler(entries, PATCH, SamplingConfig(patches_per_epoch=5), 0), batch=2
        )
        loader = patch_loader(PatchDataset(entries, PATCH, augment), sampler, 2, workers, False)
        torch.manual_seed(workers)
        seen = []
        for epoch in (0, 1):
            sampler.epoch = epoch
            assert len(loader) == 2
            seen += [tensor for batch in loader for tensor in batch]
        batches.append(seen)
    assert len(batches[0]) == 12
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(batches[0][0], batches[0][6])


def test_a_truth_on_another_grid_is_refused(tmp_path: Path, root: Path) -> None:
    """The same voxels count, the same tumour in space, stored the other way round."""
    folder = Path(shutil.copytree(root / "BraTSPhantom_0001", tmp_path / "BraTSPhantom_0001"))
    path = folder / "BraTSPhantom_0001_seg.nii.gz"
    nib.save(nib.as_closest_canonical(nib.load(path)), path)
    with pytest.raises(InputError, match="moves a corner"):
        data.prepare_case(find_labelled(folder).labelled[0], CARD)
