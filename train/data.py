"""Cases prepared once, as the segmenter prepares them, and kept as memory-mapped arrays."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime import nifti
from runtime.atomic import add_directory, check_writable, open_atomic, write_json
from runtime.case import Case, Dialect, find_cases
from runtime.errors import InputError
from runtime.labels import Convention, Label, LabelMap
from runtime.model_card import ModelCard, Shape3
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import Prepared, prepare
from runtime.truth import load_truth

CACHE_SCHEMA: Final = 4
_TUMOUR: Final = (Label.NCR, Label.ED, Label.ET)
_RECORD: Final = "case.json"


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


def find_labelled(
    root: Path, channels: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Case]:
    """The labelled cases below ``root`` except ``exclude``, sorted by id.

    Cases lie side by side in a data set's folder. Where none of them has a label map (BraTS ships
    its validation data so, beside the training data), that data set is not meant for training and
    is left out; where only some have none, something is missing.

    Raises:
        InputError: no case, an excluded id that is not there, no labelled case at all, or one
            without a label map among others that have theirs.
        UsageError: channels that nothing names.
    """
    cases = find_cases(root, channels or None)
    unknown = sorted(set(exclude) - {case.case_id for case in cases})
    if unknown:
        raise InputError(
            root,
            found=f"no case {unknown[0]}, which is to be excluded",
            expected=f"ids among its {len(cases)} cases, such as {cases[0].case_id}",
            remedy="correct split.exclude (--exclude)",
        )
    kept = [case for case in cases if case.case_id not in exclude]
    if not kept:
        raise InputError(
            root, found="every case excluded", expected="cases to train on", remedy="exclude fewer"
        )
    labelled = {_data_set(case) for case in kept if case.labels is not None}
    for case in kept:
        if case.labels is None and (not labelled or _data_set(case) in labelled):
            raise InputError(
                case.folder,
                found=f"case {case.case_id} without a label map",
                expected="the truth beside the images, such as X_seg.nii.gz",
                remedy="add it, or leave the case out with --exclude",
            )
    return [case for case in kept if case.labels is not None]


def _data_set(case: Case) -> Path:
    """The folder in which the case lies beside others of its data set."""
    in_own_folder = case.dialect not in (Dialect.MSD, Dialect.NNUNET)
    return case.folder.parent if in_own_folder else case.folder


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
) -> list[CachedCase]:
    """Prepare what ``cache`` does not hold yet.

    The key of a case is the SHA-256 of its files' contents and of everything that preparation
    depends on, so that a changed file or setting makes a new entry and an old one is never misread.
    An entry appears under its name when it is complete.

    Args:
        cases: labelled cases.
        card: says how they are prepared.
        cache: folder of entries; made where it is missing.
        convention: of the label maps; None as the case says.
        done: called with each case id as it is ready, in any order, in this thread.

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
        futures = [pool.submit(_entry, case, card, cache, convention) for case in cases]
        try:
            for future in as_completed(futures):
                entry = future.result()
                entries[entry.case_id] = entry
                if done is not None:
                    done(entry.case_id)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    ordered = [entries[case.case_id] for case in cases]
    _check_distinct(cases, ordered)
    return ordered


def _check_distinct(cases: Sequence[Case], entries: Sequence[CachedCase]) -> None:
    """Refuse one patient's images under two names: both sides of a split would know them."""
    seen: dict[str, str] = {}
    for case, entry in zip(cases, entries, strict=True):
        other = seen.setdefault(entry.content, case.case_id)
        if other != case.case_id:
            raise InputError(
                case.folder,
                found=f"the images of case {case.case_id} are those of case {other}",
                expected="each case once",
                remedy=f"leave one of them out (--exclude {case.case_id})",
            )


def _entry(case: Case, card: ModelCard, cache: Path, convention: Convention | None) -> CachedCase:
    folder = cache / f"{case.case_id}-{_key(case, card, convention)[:16]}"
    entry = _open(case.case_id, folder)
    if entry is None:
        prepared, labels = prepare_case(case, card, convention)
        add_directory(
            folder,
            lambda path: _write(path, prepared, labels),
            lambda path: _open(case.case_id, path) is not None,
        )
        entry = _open(case.case_id, folder)
    if entry is None:
        raise RuntimeError(f"{folder} cannot be read back")
    return entry


def _key(case: Case, card: ModelCard, convention: Convention | None) -> str:
    images = {name: (_digest(source.path), source.channel) for name, source in case.images.items()}
    contents = {
        "schema": CACHE_SCHEMA,
        "images": images,
        "labels": _digest(case.labels) if case.labels is not None else None,
        "convention": str(convention or case.convention),
        "modalities": card.modalities,
        "orientation": card.orientation,
        "spacing_mm": card.spacing_mm,
        "normalisation": card.normalisation,
        "patch": card.patch,
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            path,
            found=error.strerror or type(error).__name__,
            expected="a readable file",
            remedy="check the path and its permissions",
        ) from error


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
        "content": hashlib.sha256(voxels.tobytes()).hexdigest(),
        "bytes": {name: (folder / name).stat().st_size for name in arrays},
    }
    write_json(folder / _RECORD, record)


def _open(case_id: str, folder: Path) -> CachedCase | None:
    """The entry in ``folder``; None where it is missing or not whole."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        if any((folder / name).stat().st_size != n for name, n in record["bytes"].items()):
            return None
        x, y, z = record["shape"]
        ncr, ed, et = record["counts"]
        content = str(record["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return CachedCase(case_id, folder, (x, y, z), (ncr, ed, et), content)


def _mapped(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    return array
