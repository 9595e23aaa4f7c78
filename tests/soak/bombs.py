"""Twenty files that promise far more than they hold, or hold far more than they promise."""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from isal import isal_zlib

SMALL: Final = (12, 10, 8)
MIB: Final = 1 << 20


def header(
    shape: tuple[int, ...] = SMALL, dtype: str = "i2", offset: int = 0, version: int = 1
) -> bytes:
    """Header and the four bytes after it, as the libraries that write NIfTI would make them."""
    made = nib.Nifti1Header() if version == 1 else nib.Nifti2Header()
    made.set_data_dtype(np.dtype(dtype))
    made["dim"] = (len(shape), *shape, *([1] * (7 - len(shape))))
    made.set_sform(np.diag([-1.0, -1, 1, 1]), 1)
    made["vox_offset"] = offset or made.single_vox_offset
    made["magic"] = b"n+1" if version == 1 else b"n+2"
    return bytes(made.binaryblock) + bytes(4)


def image(shape: tuple[int, ...] = SMALL, dtype: str = "i2") -> bytes:
    """A whole small file, uncompressed."""
    return header(shape, dtype) + bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)


def zeros(count: int, start: bytes = b"", tail: bytes = b"") -> bytes:
    """``start``, ``count`` zero bytes and ``tail`` in one gzip member, with a right CRC."""
    packer = isal_zlib.compressobj(1, wbits=31)
    parts = [packer.compress(start)]
    block = bytes(MIB)
    for _ in range(count // MIB):
        parts.append(packer.compress(block))
    return b"".join([*parts, packer.compress(tail), packer.flush()])


@cache
def member(size: int = MIB) -> bytes:
    return gzip.compress(bytes(size), 9)


def sparse(path: Path, start: bytes, size: int) -> None:
    """A file of any length that takes a few blocks of the disk."""
    path.write_bytes(start)
    os.truncate(path, size)


def with_extensions(sizes: list[int], claims: list[int]) -> bytes:
    """Extensions of these real sizes that claim those, then the voxels of a small image."""
    blocks = b"".join(
        struct.pack("<ii", claim, 6) + bytes(size - 8)
        for size, claim in zip(sizes, claims, strict=True)
    )
    head = bytearray(header(offset=352 + len(blocks)))
    head[348] = 1
    return bytes(head) + blocks + image()[352:]


def gzip_fields(flags: int, field: bytes) -> bytes:
    """A gzip member whose own header carries an optional field."""
    packer = zlib.compressobj(1, wbits=-15)
    data = image()
    body = packer.compress(data) + packer.flush()
    trailer = struct.pack("<II", zlib.crc32(data), len(data))
    return struct.pack("<4BI2B", 31, 139, 8, flags, 0, 0, 255) + field + body + trailer


def _empty_blocks(count: int) -> bytes:
    """Stored deflate blocks that hold nothing, and no end."""
    return gzip.compress(header(), 1)[:10] + b"\x00\x00\x00\xff\xff" * count


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _put(data: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data()) and None


BOMBS: Final[dict[str, Callable[[Path], None]]] = {
    "a small image, then a gigabyte in its member.nii.gz": _put(lambda: zeros(1024 * MIB, image())),
    "a small image, then 1000 members of a MiB.nii.gz": _put(
        lambda: gzip.compress(image()) + member() * 1000
    ),
    "a small image, then 200000 members of nothing and one of a byte.nii.gz": _put(
        lambda: (
            gzip.compress(image())[:-8]
            + gzip.compress(image())[-8:]
            + gzip.compress(b"", 1) * 200_000
            + gzip.compress(bytes(2 * MIB), 1)
        )
    ),
    "gzip in gzip in gzip.nii.gz": _put(
        lambda: gzip.compress(gzip.compress(zeros(256 * MIB, image())))
    ),
    "32767 cubed in 352 bytes.nii": _put(lambda: header((32767, 32767, 32767))),
    "32767 cubed in 352 bytes.nii.gz": _put(lambda: gzip.compress(header((32767,) * 3))),
    "seven axes of 32767.nii.gz": _put(lambda: gzip.compress(header((32767,) * 7))),
    "1024 cubed of float64 in a MiB.nii.gz": _put(
        lambda: zeros(8 * MIB, header((1024, 1024, 1024), "f8"))
    ),
    "512 cubed of int16 in a MiB.nii.gz": _put(
        lambda: zeros(8 * MIB, header((512, 512, 512), "i2"), os.urandom(MIB))
    ),
    "1024 cubed of float64, and all of them there, as zeros.nii.gz": _put(
        lambda: zeros(1024 * MIB, header((1024, 1024, 1024), "f8"))
    ),
    "1024 cubed of float64, sparse.nii": lambda path: sparse(
        path, header((1024, 1024, 1024), "f8"), 352 + (8 << 30)
    ),
    "a small image and a sparse TiB.nii": lambda path: sparse(path, image(), 1 << 40),
    "a small image and a sparse TiB.nii.gz": lambda path: sparse(
        path, gzip.compress(image()), 1 << 40
    ),
    "an endless device.nii": _device,
    "sizes whose product is 0 in 64 bits.nii.gz": _put(
        lambda: gzip.compress(header((1 << 32, 1 << 32, 1 << 32), version=2) + bytes(4096))
    ),
    "sizes whose product is small in 64 bits.nii": _put(
        lambda: header(((1 << 62) + 2, 4, 2), version=2) + bytes(4096)
    ),
    "voxels behind 2 to the 60th bytes.nii.gz": _put(
        lambda: gzip.compress(header(offset=1 << 60, version=2) + bytes(4096))
    ),
    "an extension of 2 GiB in 16 bytes, and voxels cut.nii.gz": _put(
        lambda: gzip.compress(with_extensions([16], [(1 << 31) - 16])[:-1])
    ),
    "a name of 64 MiB without an end in the gzip header.nii.gz": _put(
        lambda: gzip.compress(b"")[:3] + b"\x08" + bytes(6) + b"A" * (64 * MIB)
    ),
    "sixteen MiB of deflate blocks that hold nothing.nii.gz": _put(
        lambda: _empty_blocks(16 * MIB // 5)
    ),
}
"""Each must be refused: what it takes to make it, by a name that ends as the file's."""

HEAVY: Final[dict[str, Callable[[Path], None]]] = {
    "200000 members of nothing behind the image.nii.gz": _put(
        lambda: gzip.compress(image()) + gzip.compress(b"", 1) * 200_000
    ),
    "half a million extensions of 16 bytes.nii.gz": _put(
        lambda: gzip.compress(with_extensions([16] * 500_000, [16] * 500_000), 1)
    ),
    "an extension that claims nothing.nii.gz": _put(
        lambda: gzip.compress(with_extensions([16, 16], [0, 0]))
    ),
    "an extension that goes backwards.nii.gz": _put(
        lambda: gzip.compress(with_extensions([16, 16], [16, -16]))
    ),
    "extra fields of 64 KiB in the gzip header.nii.gz": _put(
        lambda: gzip_fields(4, struct.pack("<H", 65535) + bytes(65535))
    ),
    "a name of 16 MiB in the gzip header.nii.gz": _put(
        lambda: gzip_fields(8, b"A" * (16 * MIB) + b"\0")
    ),
    "512 cubed of uint8, and all of them there.nii.gz": _put(
        lambda: zeros(128 * MIB, header((512, 512, 512), "u1"))
    ),
}
"""Heavy to read, but sound by the standards: refused or read, within the time and memory of any
file.
"""
