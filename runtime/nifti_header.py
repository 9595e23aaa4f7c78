"""The header of a NIfTI-1 or NIfTI-2 file, taken apart byte by byte before any library sees it.

Field by field after the standards' own C headers, nifti1.h and nifti2.h (https://nifti.nimh.nih.gov).
What is damaged or contradicts itself is refused; what has one sound reading is taken so, and told.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from runtime.errors import InputError
from runtime.grid import Grid
from runtime.nifti_affine import read_grid

Data = bytes | bytearray | memoryview

HEADER_BYTES: Final = 544
"""Bytes that hold either header and the four after it, which say whether extensions follow."""
_NIFTI1: Final = np.dtype(
    {
        "names": [
            "dim", "datatype", "bitpix", "pixdim", "vox_offset", "slope", "inter", "units",
            "qform_code", "sform_code", "quatern", "qoffset", "srow", "magic",
        ],
        "formats": [
            "8i2", "i2", "i2", "8f4", "f4", "f4", "f4", "u1",
            "i2", "i2", "3f4", "3f4", "(3,4)f4", "S4",
        ],
        "offsets": [40, 70, 72, 76, 108, 112, 116, 123, 252, 254, 256, 268, 280, 344],
        "itemsize": 348,
    }
)  # fmt: skip
_NIFTI2: Final = np.dtype(
    {
        "names": list(_NIFTI1.names or ()),
        "formats": [
            "8i8", "i2", "i2", "8f8", "i8", "f8", "f8", "i4",
            "i4", "i4", "3f8", "3f8", "(3,4)f8", "S8",
        ],
        "offsets": [16, 12, 14, 104, 168, 176, 184, 500, 344, 348, 352, 376, 400, 4],
        "itemsize": 540,
    }
)  # fmt: skip
_MAGICS: Final = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
_ORDERS: Final[dict[Literal["little", "big"], Literal["<", ">"]]] = {"little": "<", "big": ">"}
_TYPES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
_OTHER_TYPES: Final = {
    1: "bits", 32: "complex numbers", 128: "RGB", 1536: "128-bit numbers", 1792: "complex numbers",
    2048: "complex numbers", 2304: "RGBA",
}  # fmt: skip
# The largest volume: 512 voxels along each axis at up to 4 bytes; four of BraTS's fit many times.
MAX_VOXELS: Final = 1 << 29
MAX_BYTES: Final = 1 << 29
_MAX_AXIS: Final = 32767  # what is written is NIfTI-1
# Between header and voxels lie extensions.
_MAX_OFFSET: Final = 64 << 20


@dataclass(frozen=True)
class Header:
    """What a header says of the voxels that follow it.

    Attributes:
        shape: (X, Y, Z), or (X, Y, Z, T) with T > 1.
        dtype: of the voxels as stored, with its byte order.
        offset: of the first voxel, in bytes from the beginning of the file.
        slope, intercept: factor and addend of the voxels; 1 and 0 where the header scales nothing.
        grid: where the voxels of one frame lie.
        size: bytes of the header itself, 348 or 540.
        order: of its bytes, "little" or "big".
        warnings: what had to be corrected to read it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    grid: Grid
    size: int
    order: Literal["little", "big"]
    warnings: tuple[str, ...]

    @property
    def end(self) -> int:
        """Bytes up to the last voxel's end."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def parse_header(path: Path, raw: Data) -> Header:
    """Read the header that ``raw`` begins with.

    Args:
        path: of the file, for the error.
        raw: its first bytes, uncompressed; `HEADER_BYTES` of them are enough.

    Returns:
        The header, each of its fields checked.

    Raises:
        InputError: no NIfTI header, a damaged one, one without voxels behind it, or one of what is
            no single 3D or 4D image of numbers.
    """
    size, order = _size_and_order(path, raw)
    kind = _NIFTI1 if size == 348 else _NIFTI2
    if len(raw) < size:
        raise damaged(path, f"a header of {len(raw)} bytes")
    fields = np.frombuffer(raw, kind.newbyteorder(_ORDERS[order]), 1)[0]
    # NumPy drops the zeros at the end of a text.
    if fields["magic"] != _MAGICS[size].rstrip(b"\0"):
        raise _other_magic(path, bytes(fields["magic"]))
    warnings: list[str] = []
    shape = _shape(path, fields)
    dtype = _dtype(path, fields, warnings).newbyteorder(_ORDERS[order])
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise _too_large(path, shape, dtype)
    offset = _offset(path, fields, size + 4, warnings)
    slope, intercept = _scale(path, fields)
    # A signalling NaN makes NumPy speak where it is converted; what is not finite is told below.
    with np.errstate(over="ignore", invalid="ignore"):
        grid = read_grid(path, fields, (shape[0], shape[1], shape[2]), warnings)
    return Header(shape, dtype, offset, slope, intercept, grid, size, order, tuple(warnings))


def damaged(path: Path, found: str, remedy: str = "fetch or convert the file again") -> InputError:
    """The error of a file that is no sound NIfTI."""
    return InputError(
        path, found=found, expected="an undamaged NIfTI file (.nii or .nii.gz)", remedy=remedy
    )


def _size_and_order(path: Path, raw: Data) -> tuple[int, Literal["little", "big"]]:
    """348 or 540, which tells the byte order too."""
    for order in _ORDERS:
        size = int.from_bytes(raw[:4], order)
        if size in _MAGICS:
            return size, order
    raise _no_nifti(path, raw)


def _no_nifti(path: Path, raw: Data) -> InputError:
    """What a file is that is none, where its first bytes tell."""
    start = bytes(raw[:512]).lstrip().lower()
    if not raw:
        return damaged(path, "an empty file")
    if start.startswith(b"version https://git-lfs"):
        return damaged(path, "a Git LFS pointer in place of the image", "run git lfs pull")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        remedy = "download the image itself: this is what a server answered in its place"
        return damaged(path, "a web page", remedy)
    if raw[128:132] == b"DICM":
        return damaged(path, "a DICOM file", "convert the series, for example with dcm2niix")
    return damaged(path, f"a file that starts with {raw[:4].hex()}")


def _other_magic(path: Path, magic: bytes) -> InputError:
    if magic in (b"ni1", b"ni2\0\r\n\x1a\n"):
        found = "the header of a pair (.hdr and .img)"
        return damaged(path, found, "convert the pair to one .nii.gz file")
    return damaged(path, f"a header whose magic is {magic!r} (an ANALYZE file, or damaged)")


def _shape(path: Path, fields: Any) -> tuple[int, ...]:
    """Three axes, or four where the last has more than one frame."""
    count = int(fields["dim"][0])
    if not 1 <= count <= 7:
        raise damaged(path, f"a header of {count} axes")
    shape = tuple(int(size) for size in fields["dim"][1 : count + 1])
    # Some writers count axes that they leave at 0.
    while len(shape) > 3 and shape[-1] in (0, 1):
        shape = shape[:-1]
    told = "x".join(map(str, shape))
    if len(shape) > 4 and min(shape) > 0:
        raise InputError(
            path,
            found=f"an image of {len(shape)} axes ({told})",
            expected="one number per voxel",
            remedy="store its channels as one 3D file each",
        )
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise damaged(path, f"a volume of shape {told}")
    if math.prod(shape) > MAX_VOXELS or max(shape[:3]) > _MAX_AXIS:
        raise InputError(
            path,
            found=f"a volume of shape {told}",
            expected=f"at most {MAX_VOXELS} voxels, {_MAX_AXIS} along an axis",
            remedy="fetch the file again if that is not its shape, or crop it",
        )
    return shape


def _too_large(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> InputError:
    size = math.prod(shape) * dtype.itemsize
    return InputError(
        path,
        found=f"{size} bytes of voxels ({'x'.join(map(str, shape))} of {dtype.name})",
        expected=f"at most {MAX_BYTES}",
        remedy="crop it, store it as int16 or float32, or one file per modality",
    )


def _dtype(path: Path, fields: Any, warnings: list[str]) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _TYPES:
        told = _OTHER_TYPES.get(code, "no NIfTI type")
        raise InputError(
            path,
            found=f"voxels of type {code} ({told})",
            expected="one number per voxel: integers, float32 or float64",
            remedy="convert the image to intensities, one file per modality",
        )
    dtype = np.dtype(_TYPES[code])
    # Readers go by the type, and the file's length shows whether they are right.
    if bits not in (0, 8 * dtype.itemsize):
        warnings.append(f"its header gives {dtype.name} voxels {bits} bits; read as {dtype.name}")
    return dtype


def _offset(path: Path, fields: Any, least: int, warnings: list[str]) -> int:
    offset = float(fields["vox_offset"])
    if offset == 0:
        warnings.append(f"its header gives no voxel offset; taken as {least}")
        return least
    if not (least <= offset <= _MAX_OFFSET and offset.is_integer()):
        raise damaged(path, f"voxels from byte {offset:.10g} on")
    return int(offset)


def _scale(path: Path, fields: Any) -> tuple[float, float]:
    slope, intercept = float(fields["slope"]), float(fields["inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0  # by the standard, and as nibabel writes it: not scaled
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise damaged(path, f"a scale of {slope:g} and {intercept:g}")
    return slope, intercept
