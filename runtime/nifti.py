"""The only reader of NIfTI files.

Every gzip stream is inflated to its end, so that its CRC and length are checked, and the SHA-256 of
the file's bytes comes from the same pass. nibabel and SimpleITK stop at the last voxel and load
damaged files without a word.
"""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from runtime.case import Case, Source
from runtime.errors import InputError
from runtime.grid import Grid, check_same_grid
from runtime.nifti_bytes import GZIP_ERRORS, content, damaged, first_bytes

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
        warnings: what the header had wrong and was corrected.
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


@dataclass(frozen=True)
class _File:
    voxels: npt.NDArray[Any]  # (X, Y, Z) or (X, Y, Z, T), Fortran order, as stored
    grid: Grid
    slope: float
    intercept: float
    sha256: str


def load(case: Case, workers: int = 4) -> Volume:
    """Read and verify every modality of ``case``, in parallel.

    Args:
        case: the files to read.
        workers: threads; inflating releases the interpreter lock.

    Returns:
        Raw voxels in file order on one common grid.

    Raises:
        InputError: a file is missing, truncated, damaged, not a 3D NIfTI (4D where the case
            says so), has another shape or affine than the first, or holds non-finite voxels.
    """
    paths = list(dict.fromkeys(source.path for source in case.images.values()))
    with ThreadPoolExecutor(max(1, min(workers, len(paths)))) as pool:
        files = dict(zip(paths, pool.map(_read, paths), strict=True))
    images: dict[str, Image] = {}
    first: tuple[Path, Grid] | None = None
    for modality, source in case.images.items():
        file = files[source.path]
        if first is None:
            first = (source.path, file.grid)
        check_same_grid(
            source.path, file.grid, *first, "co-register and resample all modalities to one grid"
        )
        voxels = _channel(source.path, file.voxels, source.channel)
        voxels = _scaled(voxels, file.slope, file.intercept)
        _check_finite(source.path, voxels)
        images[modality] = Image(voxels, file.sha256, source.path)
    if first is None:
        raise InputError(
            case.case_id,
            found="no images",
            expected="four modalities",
            remedy="check the case folder",
        )
    return Volume(case, images, first[1])


def read_image(source: Source) -> tuple[Image, Grid]:
    """Read and verify one modality by itself.

    Returns:
        Raw voxels in file order, and the grid on which they lie.

    Raises:
        InputError: as for `load`, but for what only several files can differ in.
    """
    file = _read(source.path)
    voxels = _scaled(_channel(source.path, file.voxels, source.channel), file.slope, file.intercept)
    _check_finite(source.path, voxels)
    return Image(voxels, file.sha256, source.path), file.grid


def load_label_map(path: Path) -> tuple[npt.NDArray[Any], Grid]:
    """Read and verify one stored label map.

    Returns:
        Values as stored, (X, Y, Z) in file order, and the grid; renumber with
        `labels.from_convention`.

    Raises:
        InputError: as for `load`.
    """
    file = _read(path)
    voxels = _scaled(_channel(path, file.voxels, None), file.slope, file.intercept)
    _check_finite(path, voxels)
    return voxels, file.grid


def is_ours(path: Path) -> bool:
    """Whether the header of ``path`` carries our mark; False for anything unreadable."""
    try:
        with path.open("rb") as file:
            head = first_bytes(file.read(4096))
    except GZIP_ERRORS:
        return False
    return len(head) >= 348 and head[328:344].rstrip(b"\0") == INTENT_NAME.encode()


def _read(path: Path) -> _File:
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise InputError(
            path,
            found=error.strerror or type(error).__name__,
            expected="a readable file",
            remedy="check the path and its permissions",
        ) from error
    digest = hashlib.sha256(stored).hexdigest()
    promise, raw = content(path, stored)
    shape, dtype = promise.shape, promise.dtype
    voxels = np.frombuffer(raw, dtype, math.prod(shape), promise.offset).reshape(shape, order="F")
    if not dtype.isnative:
        voxels = voxels.astype(dtype.newbyteorder("="))
    slope, intercept = _slope(path, promise.header)
    return _File(
        voxels,
        _grid(path, promise.header, (shape[0], shape[1], shape[2])),
        slope,
        intercept,
        digest,
    )


def _slope(path: Path, header: Nifti1Header) -> tuple[float, float]:
    """Factor and addend of the voxels as stored; 1 and 0 where they are the values themselves."""
    try:
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise damaged(path, f"an unreadable header ({error})") from error
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _grid(path: Path, header: Nifti1Header, shape: tuple[int, int, int]) -> Grid:
    try:
        qform, qform_code = header.get_qform(coded=True)
        sform, sform_code = header.get_sform(coded=True)
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise damaged(path, f"an unreadable orientation ({error})") from error
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3]))
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not (np.isfinite(affine).all() and np.isfinite(spacing).all() and 1e-9 <= volume < np.inf):
        raise damaged(path, "an affine that is singular or not finite")
    x, y, z = (float(size) for size in spacing)
    return Grid(shape, affine, qform, sform, int(qform_code), int(sform_code), (x, y, z))


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
    if voxels.dtype.kind == "f" and not np.isfinite(voxels.sum(dtype=np.float64)):
        bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        if bad:
            raise InputError(
                path,
                found=f"{bad} voxels that are NaN or infinite",
                expected="finite intensities",
                remedy="repair the image; the toolkit does not guess what they were",
            )
