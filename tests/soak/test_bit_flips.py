"""Bar: of a real image's damaged copies none is taken for the image, or for another one."""

import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from runtime.case import Case, Source
from runtime.errors import BratsError
from runtime.nifti import load
from runtime.phantom import BRATS_SHAPE, write_phantom
from tests.soak.bar import FULL, LINUX, bar, memory_limit, times

SHARED = Path(__file__).parents[3] / "shared" / "data" / "brats18"
REAL = SHARED / "Brats18_2013_3_1" / "Brats18_2013_3_1_t1ce.nii.gz"
LAST = 64  # bytes of the end where cuts are made more often: the trailer is in them

Read = tuple[Any, Any, bool]
"""Voxels, geometry, and whether anything was told beside them."""


class Ours:
    def __call__(self, path: Path) -> Read:
        volume = load(Case("X", {"t1ce": Source(path)}))
        told = bool(getattr(volume, "warnings", ()))
        return volume.images["t1ce"].voxels, volume.grid.affine, told


class Nibabel:
    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = self.records.append  # type: ignore[method-assign]
        nib.imageglobals.logger.addHandler(handler)

    def __call__(self, path: Path) -> Read:
        self.records.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image = nib.load(path)
            voxels = np.asarray(image.dataobj)
        return voxels, image.affine, bool(caught or self.records)


class SimpleItk:
    """Its C++ tells warnings to the process's own standard error; they are counted, not shown."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def __call__(self, path: Path) -> Read:
        with tempfile.TemporaryFile() as said:
            kept = os.dup(2)
            os.dup2(said.fileno(), 2)
            try:
                image = self.library.ReadImage(str(path))
                voxels = self.library.GetArrayViewFromImage(image).copy()
            finally:
                os.dup2(kept, 2)
                os.close(kept)
            told = said.seek(0, os.SEEK_END) > 0
        geometry = (*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection())
        return voxels, np.array(geometry), told


def readers() -> dict[str, Callable[[Path], Read]]:
    found: dict[str, Callable[[Path], Read]] = {"ours": Ours(), "nibabel": Nibabel()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import SimpleITK
    except ImportError:
        return found
    return {**found, "SimpleITK": SimpleItk(SimpleITK)}


def damaged(data: bytes, flips: int, cuts: int) -> Iterator[tuple[str, bytes]]:
    """Copies with one bit flipped, then copies cut short, each at a random place."""
    rng = np.random.default_rng(18)
    for bit in rng.choice(8 * len(data), flips, replace=False):
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << (bit % 8)
        yield "flips", bytes(copy)
    for index in range(cuts):
        low = max(0, len(data) - LAST) if index % 5 == 0 else 0
        yield "cuts", data[: rng.integers(low, len(data))]


def verdict(read: Callable[[Path], Read], path: Path, whole: Read) -> str:
    """refused; or harmless: the very same image; or told or silent: another one, with a warning or
    without one.
    """
    try:
        voxels, geometry, told = read(path)
    except BratsError:
        return "refused"
    except Exception:
        # A peer refuses in its own words; any other error of our reader is a crash.
        return "crashed" if isinstance(read, Ours) else "refused"
    same = (
        voxels.dtype == whole[0].dtype
        and np.array_equal(voxels, whole[0])
        and np.array_equal(geometry, whole[1])
    )
    return "harmless" if same else "told" if told else "silent"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real image where there is one and time for it, else a phantom's."""
    if FULL and REAL.is_file():
        return REAL
    shape = BRATS_SHAPE if FULL else (40, 36, 32)
    folder = write_phantom(tmp_path_factory.mktemp("image"), 1, 5, shape)
    return next(folder.glob("*_t1ce.nii.gz"))


@pytest.mark.skipif(not LINUX, reason="memory is limited by what Linux offers")
def test_no_damaged_copy_is_taken_for_an_image(image: Path, tmp_path: Path) -> None:
    data = image.read_bytes()
    counts: dict[str, Counter[str]] = {}
    with bar("bit_flips") as figures:
        figures["file"] = "real, 240x240x155" if image == REAL else "phantom"
        figures["flips"], figures["cuts"] = times(200, 2000), times(50, 500)
        found = readers()
        figures["absent"] = [name for name in ("SimpleITK",) if name not in found]
        whole = {name: read(image) for name, read in found.items()}
        path = tmp_path / "X_t1ce.nii.gz"
        silent: list[str] = []
        # A header that is damaged where nobody checks asks for any amount of memory.
        with memory_limit(4 << 30):
            for number, (kind, copy) in enumerate(damaged(data, figures["flips"], figures["cuts"])):
                path.write_bytes(copy)
                for name, read in found.items():
                    result = verdict(read, path, whole[name])
                    counts.setdefault(name, Counter())[f"{kind} {result}"] += 1
                    if name == "ours" and result in ("silent", "crashed"):
                        silent.append(f"{kind} {number}")
        figures["readers"] = {name: dict(sorted(count.items())) for name, count in counts.items()}
        assert silent == []
        # The damage is real: a reader that does not look at the CRC takes most of it for an image.
        assert counts["nibabel"]["flips silent"] > figures["flips"] / 2
