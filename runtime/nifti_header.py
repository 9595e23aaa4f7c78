"""The header of a NIfTI-1 or NIfTI-2 file, taken apart byte by byte before any library sees it.

Field by field after the standards' own C headers, nifti1.h and nifti2.h (https://nifti.nimh.nih.gov).
What is damaged or contradicts itself is refused; what has one sound reading is taken so, and told.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes

from runtime.errors import InputError
from runtime.grid import Grid, corner_distance

Data = bytes | bytearray
_Affine = npt.NDArray[np.float64]

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
# Between header and voxels lie extensions.
_MAX_OFFSET: Final = 64 << 20
# What rounding to float32 can bend: cosine of the angle between two axes.
_MAX_SHEAR: Final = 0.01
# In voxels. A quaternion near half a turn keeps but half of the digits of float32.
_MAX_DISAGREEMENT: Final = 0.5
_METRE, _MILLIMETRE, _MICRON = 1, 2, 3
_TO_MM: Final = {_METRE: 1e3, _MICRON: 1e-3}
# Voxels of a head are about a millimetre; what is told in other units must come out near it.
_PLAUSIBLE_MM: Final = (0.05, 20.0)


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
    dtype = _dtype(path, fields).newbyteorder(_ORDERS[order])
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise _too_large(path, shape, dtype)
    offset = _offset(path, fields, size + 4, warnings)
    slope, intercept = _scale(path, fields)
    grid = _grid(path, fields, (shape[0], shape[1], shape[2]), warnings)
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
    start = raw[:512].lstrip().lower()
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
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    told = "x".join(map(str, shape))
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise damaged(path, f"a volume of shape {told}")
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            path,
            found=f"a volume of shape {told}",
            expected=f"at most {MAX_VOXELS} voxels",
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


def _dtype(path: Path, fields: Any) -> np.dtype[Any]:
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
    # Some writers leave the width at 0; another one means that one of the two fields is damaged.
    if bits not in (0, 8 * dtype.itemsize):
        raise damaged(path, f"voxels of type {dtype.name} in {bits} bits")
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


def _grid(path: Path, fields: Any, shape: tuple[int, int, int], warnings: list[str]) -> Grid:
    q_code, s_code = int(fields["qform_code"]), int(fields["sform_code"])
    qform = _qform(fields) if q_code > 0 else None
    sform = _sform(fields) if s_code > 0 else None
    # What is not taken for the affine may be unusable: then it is as if it were not there.
    if sform is not None and q_code > 0 and (qform is None or not _is_sound(qform)):
        warnings.append("its qform is unusable and was left aside for its sform")
        qform, q_code = None, 0
    affine = sform if sform is not None else qform
    if q_code <= 0 and s_code <= 0:
        warnings.append(
            "its header says nothing of its orientation; taken as radiological (left is high), "
            "as other readers do"
        )
        affine = _plain(fields, shape)
    if affine is None or not _is_sound(affine):
        raise damaged(path, "an affine that is singular or not finite")
    shear = _shear(affine)
    if shear > _MAX_SHEAR:
        raise InputError(
            path,
            found=f"an affine with shear (axes at {math.degrees(math.acos(shear)):.1f} degrees)",
            expected="voxel axes at right angles",
            remedy="resample the image to a grid without shear",
        )
    grid = _of(shape, affine, qform, sform, max(q_code, 0), max(s_code, 0))
    grid = _in_millimetres(grid, int(fields["units"]) & 7, warnings)
    if grid.qform is not None and grid.sform is not None:
        _check_agreement(path, grid, grid.qform, grid.sform, warnings)
    return grid


def _of(
    shape: tuple[int, int, int],
    affine: _Affine,
    qform: _Affine | None,
    sform: _Affine | None,
    q_code: int,
    s_code: int,
) -> Grid:
    x, y, z = (float(size) for size in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return Grid(shape, affine, qform, sform, q_code, s_code, (x, y, z))


def _is_sound(affine: _Affine) -> bool:
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3]))
        largest = np.abs(affine).max()
    return bool(1e-9 <= volume < np.inf and largest < 1e9)


def _shear(affine: _Affine) -> float:
    """The largest cosine between two axes."""
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def _sform(fields: Any) -> _Affine:
    affine = np.eye(4)
    affine[:3] = fields["srow"]
    return affine


def _qform(fields: Any) -> _Affine | None:
    """nifti_quatern_to_mat44 of nifti1_io.c; None where it is no rotation."""
    b, c, d = (float(part) for part in fields["quatern"])
    spacing = np.array(fields["pixdim"][1:4], np.float64)
    rest = 1.0 - (b * b + c * c + d * d)
    if not (math.isfinite(rest) and rest > -1e-4 and np.isfinite(spacing).all()):
        return None
    if rest < 1e-7:
        # Half a turn: rounding of the other three must not make it more.
        norm = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / norm, c / norm, d / norm
    else:
        a = math.sqrt(rest)
    if float(fields["pixdim"][0]) < 0:
        spacing[2] = -spacing[2]
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = fields["qoffset"]
    return affine


def _plain(fields: Any, shape: tuple[int, int, int]) -> _Affine:
    """The voxel sizes alone, centred and with x to the left: what nibabel makes of them."""
    spacing = np.array(fields["pixdim"][1:4], np.float64) * (-1, 1, 1)
    affine = np.diag([*spacing, 1.0])
    with np.errstate(all="ignore"):
        affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return affine


def _in_millimetres(grid: Grid, unit: int, warnings: list[str]) -> Grid:
    factor = _TO_MM.get(unit)
    if factor is None:
        return grid
    low, high = _PLAUSIBLE_MM
    name = "metres" if unit == _METRE else "microns"
    if not all(low <= size * factor <= high for size in grid.spacing):
        warnings.append(f"its header says {name}, which its voxel sizes are not; taken as mm")
        return grid
    warnings.append(f"its header is in {name}; converted to mm")

    def scaled(affine: _Affine) -> _Affine:
        return np.diag([factor, factor, factor, 1.0]) @ affine

    return replace(
        _of(grid.shape, scaled(grid.affine), None, None, grid.qform_code, grid.sform_code),
        qform=None if grid.qform is None else scaled(grid.qform),
        sform=None if grid.sform is None else scaled(grid.sform),
    )


def _check_agreement(
    path: Path, grid: Grid, qform: _Affine, sform: _Affine, warnings: list[str]
) -> None:
    """Two answers to where the voxels lie must be one; which side is left must never be guessed."""
    moved = corner_distance(grid, replace(grid, affine=qform))
    if moved <= _MAX_DISAGREEMENT * min(grid.spacing):
        return
    axes = ["".join(str(code) for code in aff2axcodes(form)) for form in (qform, sform)]
    if axes[0] != axes[1]:
        raise InputError(
            path,
            found=f"a qform ({axes[0]}) and an sform ({axes[1]}) that disagree on the axes",
            expected="one orientation",
            remedy="find out which is right, and set both to it",
        )
    warnings.append(
        f"its qform and sform disagree by up to {moved:.3g} mm; the sform was taken, "
        "as other readers do"
    )
