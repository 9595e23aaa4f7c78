"""Cases prepared once, as the segmenter prepares them, and kept as memory-mapped arrays."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime import nifti
from runtime.atomic import check_writable, open_atomic, write_json
from runtime.atomic_directory import add_directory
from runtime.bounded import read_json
from runtime.case import Case
from runtime.errors import InputError
from runtime.labels import Convention, Label, LabelMap
from runtime.model_card import ModelCard, Shape3
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import Prepared, prepare
from runtime.truth import load_truth
from train.copies import digest, held_out_images, same_images

CACHE_SCHEMA: Final = 6
_TUMOUR: Final = (Label.NCR, Label.ED, Label.ET)
_RECORD: Final = "case.json"
_HELD_OUT: Final = "held_out"


@dataclass(frozen=True)
class CachedCase:
    """A prepared case on disk; small enough to send to a worker.

    Attributes:
        case_id: of the case.
        folder: holds the arrays.
        shape: (x, y, z) of the box.
        counts: voxels of NCR, ED and ET in the box.
        content: SHA-256 of the prepared voxels: equal for equal images, however they are stored.
    """

    case_id: str
    folder: Path
    shape: Shape3
    counts: tuple[int, int, int]
    content: str = ""

    def voxels(self) -> npt.NDArray[np.float16]:
        """float16 (C, x, y, z), memory-mapped, read-only: `preprocess.prepare`'s, rounded."""
        return _mapped(self.folder / "voxels.npy")

    def labels(self) -> LabelMap:
        """uint8 (x, y, z) network labels of the box, memory-mapped, read-only."""
        return _mapped(self.folder / "labels.npy")

    def positions(self, label: Label) -> npt.NDArray[np.int32]:
        """Flat (C order) indices into the box of the voxels of one tumour label, memory-mapped."""
        first = sum(self.counts[: label - 1])
        return _mapped(self.folder / "positions.npy")[first : first + self.counts[label - 1]]


def prepare_case(
    case: Case, card: ModelCard, convention: Convention | None = None
) -> tuple[Prepared, LabelMap]:
    """Read and prepare one case and bring its truth, uint8 (x, y, z), to the same box.

    Raises:
        InputError: the case does not suit the model, or the truth has another shape.
    """
    volume = nifti.load(case)
    prepared = prepare(volume, card, NumpyOps(), card.patch)
    truth = load_truth(case, volume, convention)
    return prepared, prepared.to_box(truth)


def cached(
    cases: Sequence[Case],
    card: ModelCard,
    cache: Path,
    convention: Convention | None = None,
    done: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
    verify: bool = True,
) -> list[CachedCase]:
    """Prepare what ``cache`` does not hold yet.

    The key of a case is the SHA-256 of its files' contents and of everything that preparation
    depends on, so that a changed file or setting makes a new entry and an old one is never misread.
    An entry appears under its name when it is complete. Every file of it is read once here and
    compared with the SHA-256 it was written with: what a disk or another program has changed since
    is not trained on but prepared anew; that takes less than a second a gigabyte. What changes
    later, while cases are trained on, is not noticed.

    Args:
        cases: labelled cases.
        card: says how they are prepared.
        cache: folder of entries; made where it is missing.
        convention: of the label maps; None as the case says.
        done: called with each case id as it is ready, in any order, in this thread.
        say: called with a line about each entry that was found damaged, in this thread.
        verify: False looks at sizes only, where another process of this machine has just verified.

    Returns:
        In the order of ``cases``.

    Raises:
        InputError: as for `prepare_case`, or two cases have the same images.
        OutputError: the cache cannot be written.
    """
    check_writable(cache)
    entries: dict[str, CachedCase] = {}
    # Inflating, hashing and NumPy release the interpreter lock; memory bounds the number.
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        futures = [pool.submit(_entry, case, card, cache, convention, verify) for case in cases]
        try:
            for future in as_completed(futures):
                entry, was_damaged = future.result()
                entries[entry.case_id] = entry
                if was_damaged and say is not None:
                    say(f"{entry.case_id} was prepared anew: {entry.folder} was damaged")
                if done is not None:
                    done(entry.case_id)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    ordered = [entries[case.case_id] for case in cases]
    _check_distinct(cases, ordered)
    return ordered


def check_prepared(
    cases: Sequence[Case], card: ModelCard, cache: Path, convention: Convention | None = None
) -> None:
    """Refuse one patient's images under two names as far as ``cache`` knows them; see `cached`.

    Nothing is prepared, and only files of cases that are in question are read.

    Raises:
        InputError: two cases have the same images.
    """
    by_id = {case.case_id: case for case in cases}
    seen: dict[str, list[CachedCase]] = defaultdict(list)
    for folder in sorted(cache.iterdir()) if cache.is_dir() else ():
        case_id = folder.name.rpartition("-")[0]
        entry = _open(case_id, folder, verify=False) if case_id in by_id else None
        if entry is not None:
            seen[entry.content].append(entry)
    for entries in seen.values():
        if len({entry.case_id for entry in entries}) > 1:
            # Of these, only what was made of the files as they are now.
            held = [by_id[entry.case_id] for entry in entries]
            now = [_folder(case, card, cache, convention) for case in held]
            pairs = zip(held, entries, now, strict=True)
            same = [(case, entry) for case, entry, folder in pairs if entry.folder == folder]
            _check_distinct([case for case, _ in same], [entry for _, entry in same])


def check_held_out_images(
    cases: Sequence[Case],
    entries: Sequence[CachedCase],
    excluded: Sequence[Case],
    card: ModelCard,
    cache: Path,
) -> None:
    """Refuse prepared cases whose images are those of an excluded one, however they are stored.

    Excluded cases are prepared as the others are, but only the hash of their voxels is kept, in
    ``cache``. One that cannot be read or does not suit the model holds nothing out.

    Args:
        cases: to train and to validate on.
        entries: of ``cases``, from `cached`.
        excluded: held out.
        card, cache: as for `cached`.

    Raises:
        InputError: names both cases.
        OutputError: the cache cannot be written.
    """
    used = {entry.content: case for case, entry in zip(cases, entries, strict=True)}
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        contents = list(pool.map(lambda case: _content(case, card, cache), excluded))
    for case, content in zip(excluded, contents, strict=True):
        if content in used:
            raise held_out_images(used[content], case.case_id)


def _content(case: Case, card: ModelCard, cache: Path) -> str | None:
    """`CachedCase.content` of a case without its label map; None where it cannot be prepared."""
    try:
        key = _key(replace(case, labels=None, convention=None), card, None)
        path = cache / _HELD_OUT / f"{case.case_id}-{key[:16]}.json"
        try:
            return str(read_json(path)["content"])
        except (OSError, ValueError, KeyError, TypeError):
            volume = nifti.load(case)
        content = _content_of(prepare(volume, card, NumpyOps(), card.patch).voxels)
    except InputError:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"content": content})
    return content


def _content_of(voxels: npt.NDArray[np.generic]) -> str:
    return hashlib.sha256(voxels.astype(np.float16).tobytes()).hexdigest()


def _check_distinct(cases: Sequence[Case], entries: Sequence[CachedCase]) -> None:
    """Refuse one patient's images under two names: both sides of a split would know them."""
    seen: dict[str, str] = {}
    for case, entry in zip(cases, entries, strict=True):
        other = seen.setdefault(entry.content, case.case_id)
        if other != case.case_id:
            raise same_images(case, other)


def _entry(
    case: Case, card: ModelCard, cache: Path, convention: Convention | None, verify: bool
) -> tuple[CachedCase, bool]:
    """The case's entry, and whether it was found damaged."""
    folder = _folder(case, card, cache, convention)
    entry = _open(case.case_id, folder, verify)
    if entry is not None:
        return entry, False
    was_damaged = folder.is_dir()
    prepared, labels = prepare_case(case, card, convention)
    add_directory(
        folder,
        lambda path: _write(path, prepared, labels),
        lambda path: _open(case.case_id, path, verify=True) is not None,
    )
    entry = _open(case.case_id, folder, verify=True)
    if entry is None:
        raise RuntimeError(f"{folder} cannot be read back")
    return entry, was_damaged


def _folder(case: Case, card: ModelCard, cache: Path, convention: Convention | None) -> Path:
    return cache / f"{case.case_id}-{_key(case, card, convention)[:16]}"


def _key(case: Case, card: ModelCard, convention: Convention | None) -> str:
    images = {name: (digest(source.path), source.channel) for name, source in case.images.items()}
    contents = {
        "schema": CACHE_SCHEMA,
        "images": images,
        "labels": digest(case.labels) if case.labels is not None else None,
        # Labels that could be of two conventions are refused unless theirs is named.
        "convention": [str(convention or case.convention), convention is not None],
        "modalities": card.modalities,
        "orientation": card.orientation,
        "spacing_mm": card.spacing_mm,
        "normalisation": card.normalisation,
        "patch": card.patch,
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, prepared: Prepared, labels: LabelMap) -> None:
    flat = labels.ravel()
    positions = [np.flatnonzero(flat == label).astype(np.int32) for label in _TUMOUR]
    voxels = prepared.voxels.astype(np.float16)
    arrays = {
        # A z-score of n voxels is below sqrt(n), so that none of them leaves the range of float16.
        "voxels.npy": voxels,
        "labels.npy": labels,
        "positions.npy": np.concatenate(positions),
    }
    for name, array in arrays.items():
        with open_atomic(folder / name) as file:
            np.save(file, array)
    record = {
        "shape": list(labels.shape),
        "counts": [len(part) for part in positions],
        "content": _content_of(voxels),
        "bytes": {name: (folder / name).stat().st_size for name in arrays},
        "sha256": {name: digest(folder / name) for name in arrays},
    }
    write_json(folder / _RECORD, {**record, "record": _digest_of(record)})


def _digest_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _open(case_id: str, folder: Path, verify: bool) -> CachedCase | None:
    """The entry in ``folder``; None where it is missing, not whole or, verified, not as written."""
    try:
        record = read_json(folder / _RECORD)
        if record.pop("record") != _digest_of(record):
            return None
        if any((folder / name).stat().st_size != n for name, n in record["bytes"].items()):
            return None
        if verify and any(digest(folder / name) != n for name, n in record["sha256"].items()):
            return None
        x, y, z = record["shape"]
        ncr, ed, et = record["counts"]
        content = str(record["content"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None
    return CachedCase(case_id, folder, (x, y, z), (ncr, ed, et), content)


def _mapped(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
