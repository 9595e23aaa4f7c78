"""NIfTI files whose headers were mutated: bytes, bits, and fields at the ends of their range."""

import gzip
from collections.abc import Callable
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import header_dtype as nifti1_dtype
from nibabel.nifti2 import header_dtype as nifti2_dtype

SHAPE: Final = (6, 5, 4)
DTYPES: Final = ("u1", "i2", "f4", "f8")
# Fields that decide what is allocated, read and where it lies, more often than the others.
DECISIVE: Final = (
    "sizeof_hdr", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter",
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
    "srow_x", "srow_y", "srow_z", "magic",
)  # fmt: skip
CODES: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
FLOATS: Final = (
    0.0, -0.0, 1.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 1e-45, 1e-30, 1e30, 3e38, -3e38, 352.0,
    351.0, 352.5, 544.0, 1e300, 2.0**31, 2.0**63, 67108864.0,
)  # fmt: skip

Generator = np.random.Generator
Base = tuple[bytes, np.dtype[Any]]


def _bases() -> list[Base]:
    """Sound files of both versions, both byte orders and some dtypes, each with its header's
    layout.
    """
    rng = np.random.default_rng(0)
    made = []
    for kind, layout in ((nib.Nifti1Header, nifti1_dtype), (nib.Nifti2Header, nifti2_dtype)):
        for order in "<>":
            for name in DTYPES:
                header = kind(endianness=order)
                dtype = np.dtype(name).newbyteorder(order)
                header.set_data_dtype(dtype)
                header.set_data_shape(SHAPE)
                header.set_sform(np.diag([-1.0, -1, 1, 1]), 1)
                header.set_qform(np.diag([-1.0, -1, 1, 1]), 1)
                header.set_xyzt_units("mm")
                header.set_slope_inter(1.0, 0.0)
                header["magic"] = b"n+1" if kind is nib.Nifti1Header else b"n+2"
                header["vox_offset"] = header.single_vox_offset
                voxels = rng.integers(0, 100, SHAPE).astype(dtype)
                raw = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
                made.append((raw, layout.newbyteorder(order)))
    return made


BASES: Final = _bases()


def mutated(rng: Generator) -> tuple[str, bytes]:
    """One file: the name's ending, and its bytes. The same for the same state of ``rng``."""
    raw, layout = BASES[rng.integers(len(BASES))]
    data = bytearray(raw)
    # Two mutations in five files: what one would be refused for can hide the other's fault.
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        MUTATIONS[rng.integers(len(MUTATIONS))](rng, data, layout)
    return _packed(rng, bytes(data))


def _packed(rng: Generator, data: bytes) -> tuple[str, bytes]:
    ending = ".nii.gz" if rng.random() < 0.5 else ".nii"
    compressed = (ending == ".nii.gz") != (rng.random() < 0.02)
    if not compressed:
        return ending, data
    if rng.random() < 0.05:
        half = len(data) // 2
        return ending, b"".join(
            gzip.compress(part, 1, mtime=0) for part in (data[:half], data[half:])
        )
    return ending, gzip.compress(data, 1, mtime=0)


def _bytes(rng: Generator, data: bytearray, layout: np.dtype[Any]) -> None:
    if not data:
        return  # cut before
    for _ in range(rng.integers(1, 20)):
        data[rng.integers(min(len(data), layout.itemsize + 4))] = rng.integers(256)


def _bits(rng: Generator, data: bytearray, layout: np.dtype[Any]) -> None:
    if not data:
        return
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(min(len(data), layout.itemsize + 4))] ^= 1 << rng.integers(8)


def _fields(rng: Generator, data: bytearray, layout: np.dtype[Any]) -> None:
    if len(data) < layout.itemsize:
        return
    header = np.frombuffer(data, layout, 1)
    for _ in range(rng.integers(1, 4)):
        names = DECISIVE if rng.random() < 0.9 else layout.names
        values = header[names[rng.integers(len(names))]].reshape(-1)
        values[rng.integers(len(values))] = _extreme(rng, values)


def _extreme(rng: Generator, values: npt.NDArray[Any]) -> Any:
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(FLOATS[rng.integers(len(FLOATS))]).astype(values.dtype)
    if values.dtype.kind == "S":
        return rng.bytes(values.dtype.itemsize)
    info = np.iinfo(values.dtype)
    choices = (0, 1, -1, 2, 3, 4, 7, 8, info.max, info.min, info.max - 1, 348, 540, 1 << 14)
    power = 1 << int(rng.integers(info.bits))
    wanted = int((*choices, *CODES, power)[rng.integers(len(choices) + len(CODES) + 1)])
    return min(max(wanted, int(info.min)), int(info.max))


def _dims(rng: Generator, data: bytearray, layout: np.dtype[Any]) -> None:
    """All of the dimensions at once."""
    if len(data) < layout.itemsize:
        return
    dims = np.frombuffer(data, layout, 1)["dim"].reshape(-1)
    dims[0] = rng.integers(-1, 9)
    largest = int(np.iinfo(dims.dtype).max)
    sizes = (0, 1, 2, 5, 64, 512, 1024, 32767, -1, min(1 << 32, largest), largest)
    for axis in range(1, 8):
        dims[axis] = sizes[rng.integers(len(sizes))]


def _extensions(rng: Generator, data: bytearray, layout: np.dtype[Any]) -> None:
    """Extensions of any claimed size, between the header and the voxels."""
    size = layout.itemsize
    if len(data) < size + 4:
        return
    order = "little" if layout["sizeof_hdr"].str[0] == "<" else "big"
    claims = (0, 8, 15, 16, 32, 48, 1 << 20, (1 << 31) - 16, -16, 7)
    room = 16 * int(rng.integers(1, 8))
    block = bytearray(rng.bytes(room))
    block[:4] = int(claims[rng.integers(len(claims))]).to_bytes(4, order, signed=True)
    data[size] = rng.integers(1, 4)
    data[size + 4 : size + 4] = block
    if rng.random() < 0.8:
        np.frombuffer(data, layout, 1)["vox_offset"][0] = size + 4 + room


def _length(rng: Generator, data: bytearray, layout: np.dtype[Any]) -> None:
    """Shorter or longer than promised."""
    if rng.random() < 0.6:
        del data[rng.integers(len(data) + 1) :]
    else:
        data += rng.bytes(int(rng.choice((1, 4, 100, 5000))))


def _noise(rng: Generator, data: bytearray, layout: np.dtype[Any]) -> None:
    """All of the header, but for the size that tells what it is, and mostly the magic."""
    size = layout.itemsize
    keep = bytes(data)
    data[4:size] = rng.bytes(max(0, min(size, len(data)) - 4))
    if rng.random() < 0.7:
        place = layout.fields["magic"][1]  # type: ignore[index]
        data[place : place + 4] = keep[place : place + 4]


MUTATIONS: Final[tuple[Callable[[Generator, bytearray, np.dtype[Any]], None], ...]] = (
    _bytes, _bits, _fields, _fields, _fields, _dims, _extensions, _length, _noise,
)  # fmt: skip
