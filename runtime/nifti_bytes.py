"""The bytes of a NIfTI file, held against what its header promises.

No more of a gzip stream is inflated than that: a thousandth of its size is enough to pack one that
fills any memory.
"""

import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from isal import igzip, isal_zlib
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from runtime.errors import InputError

GZIP_ERRORS: Final[Any] = (EOFError, OSError, zlib.error, isal_zlib.error)
_GZIP_MAGIC: Final = b"\x1f\x8b"
_HEADER: Final = 540  # bytes, enough for either header
_MAX_VOXELS: Final = 1 << 30
# Between header and voxels lie extensions, and some writers pad the end.
_MAX_OFFSET: Final = 64 << 20
_MAX_PADDING: Final = 1 << 20
# Deflate packs no more than 1032 bytes into one.
_MAX_RATIO: Final = 1032
_PART: Final = 1 << 20


@dataclass(frozen=True)
class Promise:
    """What a header says of the voxels that follow it."""

    header: Nifti1Header
    shape: tuple[int, ...]  # (X, Y, Z) or (X, Y, Z, T)
    dtype: np.dtype[Any]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    @property
    def most(self) -> int:
        """Bytes of the longest file that this can be the header of, and one more."""
        return self.end + _MAX_PADDING + 1


def content(path: Path, stored: bytes) -> tuple[Promise, bytes]:
    """A file taken apart.

    Args:
        path: of the file, for the error.
        stored: its bytes, compressed as they lie.

    Returns:
        What the header says, and the bytes uncompressed, header included.

    Raises:
        InputError: no NIfTI file of three or four axes, damaged, or with other than the bytes that
            its header promises.
    """
    if stored[:2] != _GZIP_MAGIC:
        promise, raw = _promise(path, stored), stored
    else:
        promise = _promise(path, _inflate(path, stored, _HEADER))
        raw = _inflate(path, stored, promise.most)
    _check_size(path, len(raw), promise)
    return promise, raw


def count_frames(path: Path, stored: bytes) -> int:
    """How many volumes a file holds on its fourth axis; 1 where it is 3D.

    The values of the voxels are not looked at, and never all in memory.

    Args:
        path: of the file, for the error.
        stored: its bytes, compressed as they lie.

    Raises:
        InputError: as for `content`.
    """
    if stored[:2] != _GZIP_MAGIC:
        promise = _promise(path, stored)
        _check_size(path, len(stored), promise)
    else:
        promise = _promise(path, _inflate(path, stored, _HEADER))
        _check_size(path, _inflated_size(path, stored, promise.most), promise)
    return (*promise.shape, 1)[3]


def first_bytes(stored: bytes) -> bytes:
    """What a file begins with, uncompressed: enough for either header.

    Args:
        stored: the first bytes of the file, compressed as they lie.

    Raises:
        one of `GZIP_ERRORS`: it is compressed, and damaged.
    """
    if stored[:2] != _GZIP_MAGIC:
        return stored
    return bytes(isal_zlib.decompressobj(wbits=31).decompress(stored, _HEADER))


def damaged(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=found,
        expected="an undamaged NIfTI file (.nii or .nii.gz)",
        remedy="fetch or convert the file again",
    )


def _inflate(path: Path, stored: bytes, most: int) -> bytes:
    """The first ``most`` bytes; where there are fewer, the stream has been checked to its end."""
    try:
        with igzip.open(io.BytesIO(stored)) as stream:
            # Room for all that is asked for is taken at once: no more than can be in there.
            return bytes(stream.read(min(most, _MAX_RATIO * len(stored))))
    except GZIP_ERRORS as error:
        raise damaged(path, f"a damaged or truncated gzip stream ({error})") from error


def _inflated_size(path: Path, stored: bytes, most: int) -> int:
    """How much `_inflate` would give, without keeping it."""
    size = 0
    try:
        with igzip.open(io.BytesIO(stored)) as stream:
            while size < most and (part := stream.read(min(_PART, most - size))):
                size += len(part)
    except GZIP_ERRORS as error:
        raise damaged(path, f"a damaged or truncated gzip stream ({error})") from error
    return size


def _promise(path: Path, raw: bytes) -> Promise:
    header = _parse_header(path, raw)
    shape = _shape(path, header)
    try:
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"]) or header.single_vox_offset
    except (HeaderDataError, ValueError, OverflowError, KeyError) as error:
        raise damaged(path, f"an unreadable header ({error})") from error
    if dtype.kind not in "iuf" or not header.single_vox_offset <= offset <= _MAX_OFFSET:
        raise damaged(path, f"voxels of type {dtype} from byte {offset} on")
    return Promise(header, shape, dtype, offset)


def _check_size(path: Path, size: int, promise: Promise) -> None:
    if size < promise.end:
        raise damaged(path, f"{size} bytes where the header promises {promise.end}")
    if size >= promise.most:
        raise damaged(
            path, f"more than {promise.most - 1} bytes where the header promises {promise.end}"
        )


def _parse_header(path: Path, raw: bytes) -> Nifti1Header:
    size = int.from_bytes(raw[:4], "little")
    swapped = int.from_bytes(raw[:4], "big")
    if 348 in (size, swapped):
        kind, length = Nifti1Header, 348
    elif 540 in (size, swapped):
        kind, length = Nifti2Header, 540
    else:
        raise damaged(path, f"a file that starts with {raw[:4].hex() or 'nothing'}")
    if len(raw) < length:
        raise damaged(path, f"a header of {len(raw)} bytes")
    try:
        header: Nifti1Header = kind.from_fileobj(
            io.BytesIO(raw[:length] + b"\0\0\0\0"), check=False
        )
        return header
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise damaged(path, f"an unreadable header ({error})") from error


def _shape(path: Path, header: Nifti1Header) -> tuple[int, ...]:
    """Three axes, or four where the last has more than one frame."""
    try:
        shape = tuple(int(size) for size in header.get_data_shape())
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise damaged(path, f"an unreadable header ({error})") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1 or math.prod(shape) > _MAX_VOXELS:
        raise damaged(path, f"a volume of shape {'x'.join(map(str, shape)) or 'nothing'}")
    return shape
