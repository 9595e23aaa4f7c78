"""The only reader of NIfTI files.

Every gzip stream is inflated to its end, so that its CRC and length are checked, and the SHA-256 of
the file's bytes comes from the same pass. nibabel and SimpleITK stop at the last voxel and load
damaged files without a word.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.case import Case, Source
from runtime.errors import InputError
from runtime.grid import Grid, check_one_grid
from runtime.nifti_bytes import (
    GZIP_ERRORS,
    Stored,
    enough_memory,
    first_bytes,
    promised_size,
    read_stored,
)
from runtime.nifti_header import damaged
from runtime.threads import Threads

# Of two images every eighth voxel on each axis tells whether they need to be compared.
_THIN: Final = 8
INTENT_NAME: Final = "brats-deploy"
"""Carried by our label maps, so that one left without its sidecar is known as ours."""


@dataclass(frozen=True)
class Image:
    """One modality as stored.

    Attributes:
        voxels: (X, Y, Z) in file order, Fortran-contiguous, the file's dtype (float32 where the
            header scales).
        sha256: of the file's bytes, compressed as they lie.
        path: the file.
        warnings: what had to be corrected to read it, each a sentence about "it".
    """

    voxels: npt.NDArray[Any]
    sha256: str
    path: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    """A loaded case: raw voxels of each modality on one grid.

    Attributes:
        case: where it came from.
        images: modality to its image, in the order of `MODALITIES`.
        grid: the grid all of them share.
    """

    case: Case
    images: dict[str, Image]
    grid: Grid

    @property
    def warnings(self) -> tuple[str, ...]:
        """What had to be corrected to read the files, by modality."""
        return tuple(
            f"{modality}: {text}"
            for modality, image in self.images.items()
            for text in image.warnings
        )


def load(case: Case, workers: int = 4) -> Volume:
    """Read and verify every modality of ``case``, in parallel.

    Args:
        case: the files to read.
        workers: threads; inflating releases the interpreter lock.

    Returns:
        Raw voxels in file order on one common grid.

    Raises:
        InputError: a file is missing, truncated, damaged, not a 3D NIfTI (4D where the case
            says so), a single slice, has another shape or affine than most, holds non-finite
            voxels, or the bytes or voxels of another modality.
        ComputeError: too little memory.
    """
    paths = list(dict.fromkeys(source.path for source in case.images.values()))
    with Threads(min(workers, len(paths))) as pool:
        files = dict(zip(paths, pool.map(read_stored, paths), strict=True))
    if not files:
        raise InputError(
            case.case_id,
            found="no images",
            expected="four modalities",
            remedy="check the case folder",
        )
    grids = [(source.path, files[source.path].header.grid) for source in case.images.values()]
    check_depth(*grids[0])
    check_one_grid(grids, "co-register and resample all modalities to one grid")
    images = {
        modality: _image(source, files[source.path]) for modality, source in case.images.items()
    }
    _check_distinct(case, images)
    return Volume(case, images, grids[0][1])


def promised_sizes(case: Case) -> list[tuple[int, int]]:
    """How many voxels `load` will keep of each file of a case, by its header, and the bytes of
    each.

    Raises:
        InputError: a file cannot be opened, or its header is of no use.
    """
    return [promised_size(path) for path in {source.path for source in case.images.values()}]


def read_image(source: Source) -> tuple[Image, Grid]:
    """Read and verify one modality, or anything else that is one 3D image.

    Args:
        source: the file, and which of its frames where it is 4D.

    Returns:
        The image, and the grid it lies on.

    Raises:
        InputError, ComputeError: as for `load`, as far as one file can tell.
    """
    file = read_stored(source.path)
    return _image(source, file), file.header.grid


def load_label_map(path: Path) -> tuple[npt.NDArray[Any], Grid]:
    """Read and verify one stored label map.

    Returns:
        Values as stored, (X, Y, Z) in file order, and the grid; renumber with
        `labels.from_convention`.

    Raises:
        InputError, ComputeError: as for `read_image`.
    """
    image, grid = read_image(Source(path))
    return image.voxels, grid


def is_ours(path: Path, mark: str = INTENT_NAME) -> bool:
    """Whether the header of ``path`` carries our mark; False for anything unreadable."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            head = first_bytes(file.read(4096))
    except GZIP_ERRORS:
        return False
    return len(head) >= 348 and head[328:344].rstrip(b"\0") == mark.encode()


def _image(source: Source, file: Stored) -> Image:
    header = file.header
    with enough_memory(source.path):
        voxels = _channel(source.path, _voxels(file), source.channel)
        voxels = _scaled(voxels, header.slope, header.intercept)
        _check_finite(source.path, voxels)
    return Image(voxels, file.sha256, source.path, file.warnings)


def _check_distinct(case: Case, images: dict[str, Image]) -> None:
    """One image under two names is a mistake that no network notices."""
    for one, other in combinations(images, 2):
        alike = ""
        if images[one].sha256 == images[other].sha256 and case.images[other].channel is None:
            alike = "bytes"
        elif _same_voxels(images[one].voxels, images[other].voxels):
            alike = "voxels"
        if alike:
            raise InputError(
                images[other].path,
                found=f"the same {alike} as {images[one].path.name}",
                expected=f"{other} and {one} to be different images",
                remedy="find the right file for one of them",
            )


def _same_voxels(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two images of one shape are one, however they are stored; not two that are empty."""
    thin = (slice(None, None, _THIN),) * 3
    # Hardly ever are more than the few looked at.
    return np.array_equal(one[thin], other[thin]) and np.array_equal(one, other) and bool(one.any())


def check_depth(path: Path, grid: Grid) -> None:
    """Refuse an image that is no volume.

    Raises:
        InputError: a single slice.
    """
    if min(grid.shape) == 1:
        raise InputError(
            path,
            found=f"a single slice ({'x'.join(map(str, grid.shape))})",
            expected="a volume",
            remedy="give the whole 3D image",
        )


def _voxels(file: Stored) -> npt.NDArray[Any]:
    """(X, Y, Z) or (X, Y, Z, T), Fortran order, as stored but for its byte order."""
    header = file.header
    flat = np.frombuffer(file.raw, header.dtype, math.prod(header.shape), header.offset)
    voxels = flat.reshape(header.shape, order="F")
    return voxels if header.dtype.isnative else voxels.astype(header.dtype.newbyteorder("="))


def _channel(path: Path, voxels: npt.NDArray[Any], channel: int | None) -> npt.NDArray[Any]:
    if voxels.ndim == 3:
        if channel is None:
            return voxels
        raise damaged(path, "a 3D volume where a 4D one was declared")
    if channel is None:
        raise InputError(
            path,
            found=f"a 4D volume of {voxels.shape[3]} frames",
            expected="one 3D volume per modality",
            remedy="give the 4D file itself with --channels, or split it",
        )
    if channel >= voxels.shape[3]:
        raise InputError(
            path,
            found=f"{voxels.shape[3]} channels",
            expected=f"channel {channel}",
            remedy="correct dataset.json or --channels",
        )
    return voxels[..., channel]


def _scaled(voxels: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    if slope == 1.0 and intercept == 0.0:
        return voxels
    # What float32 cannot hold becomes infinite, and `_check_finite` says so.
    with np.errstate(over="ignore", invalid="ignore"):
        return (voxels * np.float64(slope) + np.float64(intercept)).astype(np.float32, order="K")


def _check_finite(path: Path, voxels: npt.NDArray[Any]) -> None:
    if voxels.dtype.kind != "f":
        return
    # The largest of values among which there is a NaN is that.
    with np.errstate(invalid="ignore"):
        ends = voxels.max(), voxels.min()
    if not np.isfinite(ends).all():
        bad = voxels.size - np.count_nonzero(np.isfinite(voxels))
        raise InputError(
            path,
            found=f"{bad} voxels that are NaN or infinite",
            expected="finite intensities",
            remedy="repair the image; the toolkit does not guess what they were",
        )
