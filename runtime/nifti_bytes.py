"""The bytes of a NIfTI file, held against what its header promises.

A file is read once, from a descriptor that was looked at before: the bytes that are hashed are the
bytes that are inflated. No more of a gzip stream is inflated than its header promises: a thousandth
of its size is enough to pack one that fills any memory.
"""

import hashlib
import io
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from isal import igzip, isal_zlib

from runtime.errors import ComputeError, InputError
from runtime.nifti_header import HEADER_BYTES, Data, Header, damaged, parse_header
from runtime.threads import Threads

GZIP_ERRORS: Final[Any] = (EOFError, OSError, zlib.error, isal_zlib.error)
_GZIP_MAGIC: Final = b"\x1f\x8b"
# Some writers pad the end, to a block or a page. No more than a hundredth of a larger image: one
# whose header has come to promise fewer bytes a voxel, or fewer voxels, is damaged, not padded.
_MIN_PADDING: Final = 1 << 12
_MAX_PADDING: Final = 1 << 20
_PADDED_PART: Final = 100
# Deflate packs no more than 1032 bytes into one, and adds less than an eighth to what it cannot
# pack, members of 64 kB with their headers included.
_MAX_RATIO: Final = 1032
_MAX_GROWTH: Final = 8
_PART: Final = 1 << 19
# What may stand before the deflated bytes of a gzip stream, extra fields of 64 KiB included.
_START: Final = 1 << 17


@dataclass(frozen=True)
class Stored:
    """A file taken apart.

    Attributes:
        header: what it says of itself.
        raw: its bytes uncompressed, header included.
        sha256: of its bytes, compressed as they lie.
        warnings: what had to be corrected to read it.
    """

    header: Header
    raw: Data
    sha256: str
    warnings: tuple[str, ...]


def read_stored(path: Path) -> Stored:
    """Read and verify a file.

    Raises:
        InputError: it cannot be opened, is no regular file, no NIfTI file of three or four axes,
            damaged, or of other than the bytes that its header promises.
        ComputeError: too little memory for it.
    """
    with enough_memory(path):
        return _read_stored(path)


@contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Say which file it was that did not fit into memory.

    Raises:
        ComputeError: it did not.
    """
    try:
        yield
    except MemoryError as error:
        raise ComputeError(
            path,
            found="too little memory for its voxels" + (f" ({error})" if str(error) else ""),
            expected="room for all images of a case",
            remedy="close other programs, or crop the images",
        ) from error


def _read_stored(path: Path) -> Stored:
    with _opened(path) as (file, start, header, size):
        stored = _read_all(file, size)
    if len(stored) != size or not stored.startswith(start):
        remedy = "wait until it is written, and run again"
        raise damaged(path, "a file that changes while it is read", remedy)
    # Beside the inflating, where a core is free for it.
    with Threads(1) as hasher:
        digest = hasher.submit(lambda: hashlib.sha256(stored).hexdigest())
        raw = _content(path, stored, header)
    warnings = [*header.warnings]
    compressed = stored[:2] == _GZIP_MAGIC
    if compressed != path.name.lower().endswith(".gz"):
        warnings.append(f"it is {'' if compressed else 'not '}compressed, unlike its name")
    if len(raw) > header.end:
        warnings.append(f"{len(raw) - header.end} bytes after its voxels were left aside")
    if not _extensions_fit(header, raw):
        warnings.append("its header extensions are unreadable and were left aside")
    return Stored(replace(header, warnings=()), raw, digest.result(), tuple(warnings))


def stored_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as of `read_stored`, without inflating or keeping them.

    Raises:
        InputError: as for `read_stored`, as far as the header and the file's size tell.
    """
    digest = hashlib.sha256()
    with _opened(path) as (file, part, _, _):
        while part:
            digest.update(part)
            part = file.read(_PART)
    return digest.hexdigest()


def promised_size(path: Path) -> tuple[int, int]:
    """How many voxels a file's header promises, and the bytes of each.

    Raises:
        InputError: as for `stored_digest`.
    """
    with _opened(path) as (_, _, header, _):
        return math.prod(header.shape), header.dtype.itemsize


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.FileIO, bytes, Header, int]]:
    """A regular file that is no longer than what it says it holds: the open file, the first bytes,
    which have been read from it, the header that they hold, and the file's size.
    """
    try:
        # A pipe would keep an ordinary open waiting for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise damaged(path, f"a {_kind(status.st_mode)}", "give the image file itself")
            start = file.read(_START)
            header = _header(path, start)
            _check_stored(path, start, header, status.st_size)
            yield file, start, header, status.st_size
    except OSError as error:
        raise InputError(
            path,
            found=error.strerror or type(error).__name__,
            expected="a readable file",
            remedy="check the path and its permissions",
        ) from error


def count_frames(path: Path, stored: Data) -> int:
    """How many volumes a file holds on its fourth axis; 1 where it is 3D.

    The values of the voxels are not looked at, and never all in memory.

    Args:
        path: of the file, for the error.
        stored: its bytes, compressed as they lie.

    Raises:
        InputError: no NIfTI file of three or four axes, damaged, or with other than the bytes that
            its header promises.
    """
    header = _header(path, stored)
    if stored[:2] != _GZIP_MAGIC:
        _check_size(path, len(stored), header)
    else:
        _check_packed(path, len(stored), header)
        _check_size(path, _inflated_size(path, stored, _most(header)), header)
    return (*header.shape, 1)[3]


def first_bytes(stored: bytes) -> bytes:
    """What a file begins with, uncompressed: enough for either header.

    Args:
        stored: the first bytes of the file, compressed as they lie.

    Raises:
        one of `GZIP_ERRORS`: it is compressed, and damaged.
    """
    if stored[:2] != _GZIP_MAGIC:
        return stored
    return bytes(isal_zlib.decompressobj(wbits=31).decompress(stored, HEADER_BYTES))


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    return "pipe" if stat.S_ISFIFO(mode) else "device or socket"


def _most(header: Header) -> int:
    """Bytes of the longest file that this can be the header of, and one more."""
    part = (header.end - header.offset) // _PADDED_PART
    return header.end + min(max(part, _MIN_PADDING), _MAX_PADDING) + 1


def _header(path: Path, start: Data) -> Header:
    """What a file says of itself that begins so, compressed as it lies."""
    compressed = start[:2] == _GZIP_MAGIC
    return parse_header(path, _inflate(path, start, HEADER_BYTES) if compressed else start)


def _content(path: Path, stored: Data, header: Header) -> Data:
    """A file's bytes uncompressed, header included: as many as the header promises, or padded."""
    if stored[:2] == _GZIP_MAGIC:
        _check_packed(path, len(stored), header)
        raw: Data = _inflate(path, stored, _most(header))
    else:
        raw = stored
    _check_size(path, len(raw), header)
    return raw


def _check_stored(path: Path, start: bytes, header: Header, size: int) -> None:
    """A file that is far longer than what it says it holds is not even read."""
    if size <= len(start):
        return
    most = _most(header) - 1
    if start[:2] == _GZIP_MAGIC:
        most += most // _MAX_GROWTH
    if size > most:
        raise damaged(path, f"a file of {size} bytes, where its header accounts for {most}")


def _read_all(file: io.FileIO, size: int) -> bytes:
    """All bytes of a file from its beginning; one more than ``size`` where it has grown."""
    file.seek(0)
    stored = file.read(size + 1)
    # One call of the system gives no more than 2 GB.
    while len(stored) < size and (more := file.read(size + 1 - len(stored))):
        stored += more
    return stored


def _inflate(path: Path, stored: Data, most: int) -> memoryview:
    """The first ``most`` bytes; where there are fewer, the stream has been checked to its end.

    Room for all that is asked for is taken at once, no more than can be in there. NumPy asks the
    system for huge pages, and each part's CRC is made while the part is in the cache: that makes a
    third of the time.
    """
    room = np.empty(min(most, _MAX_RATIO * len(stored)), np.uint8).data
    size = 0
    try:
        with igzip.open(io.BytesIO(stored)) as stream:
            while count := stream.readinto(room[size : size + _PART]):
                size += count
    except GZIP_ERRORS as error:
        raise _damaged_stream(path, error) from error
    return room[:size].toreadonly()


def _inflated_size(path: Path, stored: Data, most: int) -> int:
    """How much `_inflate` would give, without keeping it."""
    size = 0
    try:
        with igzip.open(io.BytesIO(stored)) as stream:
            while size < most and (part := stream.read(min(_PART, most - size))):
                size += len(part)
    except GZIP_ERRORS as error:
        raise _damaged_stream(path, error) from error
    return size


def _damaged_stream(path: Path, error: Exception) -> InputError:
    return damaged(path, f"a damaged or truncated gzip stream ({error})")


def _check_packed(path: Path, size: int, header: Header) -> None:
    """A promise that the file is too small to keep is not even tried."""
    if header.end > _MAX_RATIO * size:
        raise damaged(
            path, f"{size} bytes, which cannot hold the {header.end} that the header promises"
        )


def _check_size(path: Path, size: int, header: Header) -> None:
    if size < header.end:
        raise damaged(path, f"{size} bytes where the header promises {header.end}")
    if size >= _most(header):
        raise damaged(
            path, f"more than {_most(header) - 1} bytes where the header promises {header.end}"
        )


def _extensions_fit(header: Header, raw: Data) -> bool:
    """Whether the extensions, each of which begins with its size, end where the voxels begin or
    before.
    """
    place = header.size + 4
    if header.offset < place + 8 or not raw[header.size]:
        return True
    while place + 8 <= header.offset:
        size = int.from_bytes(raw[place : place + 4], header.order, signed=True)
        if size == 0:
            return True  # padding up to the voxels
        if size < 16 or size % 16 or place + size > header.offset:
            return False
        place += size
    return True
