"""Rows: files that are not what they should be, and headers that lie."""

import gzip
import os
import struct
import zlib
from typing import Any

import nibabel as nib
import numpy as np

from tests.catalogue.scene import (
    LPS,
    SHAPE,
    Row,
    Scene,
    accepted,
    corrected,
    denied,
    error,
    voxels_of,
)

T1 = "X_t1.nii.gz"


def replaced(data: bytes) -> Any:
    return lambda s: s.path().write_bytes(data)


def packed(change: Any) -> Any:
    """Change the compressed bytes of t1."""
    return lambda s: s.path().write_bytes(change(s.path().read_bytes()))


def plain(change: Any = lambda raw: raw) -> Any:
    """Store t1 uncompressed, with its bytes changed."""

    def spoil(s: Scene) -> None:
        raw = gzip.decompress(s.path().read_bytes())
        s.path().unlink()
        s.path(suffix=".nii").write_bytes(change(raw))

    return spoil


def flipped(data: bytes) -> bytes:
    middle = bytearray(data)
    middle[len(data) // 2] ^= 4
    return bytes(middle)


def wrong_crc(data: bytes) -> bytes:
    return data[:-8] + struct.pack("<I", zlib.crc32(b"other")) + data[-4:]


def members(data: bytes) -> bytes:
    raw = gzip.decompress(data)
    return b"".join(gzip.compress(raw[i : i + 5000], 1) for i in range(0, len(raw), 5000))


def in_place_of(make: Any) -> Any:
    def spoil(s: Scene) -> None:
        s.path().unlink()
        make(s.path())

    return spoil


def beside(s: Scene, name: str) -> None:
    """A second case, of other voxels, in a folder of both, which is what is given."""
    (s.root / "data" / name).mkdir()
    for path in s.case.iterdir():
        target = s.root / "data" / name / path.name.replace("X", name, 1)
        target.write_bytes(path.read_bytes())
    s.given = s.root / "data"


def named(prefix: str) -> Any:
    def spoil(s: Scene) -> None:
        for path in list(s.case.iterdir()):
            path.rename(path.with_name(prefix + path.name.removeprefix("X")))

    return spoil


def pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"


FILES: list[Row] = [
    error("Files", "an empty file", replaced(b""), T1, "an empty file"),
    error(
        "Files", "a gzip stream cut to half", packed(lambda d: d[: len(d) // 2]), T1, "truncated"
    ),
    error("Files", "a gzip stream without its last 4 bytes", packed(lambda d: d[:-4]), T1, "gzip"),
    error("Files", "a gzip stream whose CRC is wrong", packed(wrong_crc), T1, "gzip"),
    error("Files", "one flipped bit in a gzip stream", packed(flipped), T1, "gzip"),
    error("Files", "a gzip stream with garbage behind it", packed(lambda d: d + b"garbage"), T1),
    accepted("Files", "a gzip stream padded with zeros", packed(lambda d: d + bytes(512))),
    accepted("Files", "a gzip stream of many members", packed(members)),
    corrected("Files", "bytes after the voxels", plain(lambda r: r + b"x" * 100), "t1: 100 bytes"),
    corrected("Files", "a plain file named .nii.gz", packed(gzip.decompress), "not compressed"),
    corrected(
        "Files", "a compressed file named .nii", plain(lambda r: gzip.compress(r)), "compressed"
    ),
    accepted("Files", "an uncompressed .nii beside .nii.gz", plain()),
    error("Files", "a plain file one byte too short", plain(lambda r: r[:-1]), "header promises"),
    error(
        "Files", "more than 1 MiB after the voxels", plain(lambda r: r + bytes(2 << 20)), "X_t1.nii"
    ),
    error("Files", "a Git LFS pointer", replaced(pointer()), T1, "Git LFS", "git lfs pull"),
    error("Files", "a web page", replaced(b"<!DOCTYPE html><html>Not found</html>"), "a web page"),
    error("Files", "a DICOM file", replaced(bytes(128) + b"DICM" + bytes(300)), "dcm2niix"),
    error("Files", "a ZIP archive", replaced(b"PK\3\4" + bytes(900)), T1, "504b0304"),
    error("Files", "a directory in a file's place", in_place_of(lambda p: p.mkdir()), "no t1"),
    error("Files", "a named pipe", in_place_of(os.mkfifo), T1, "a pipe"),
    error(
        "Files", "a loop of symbolic links", in_place_of(lambda p: p.symlink_to(p)), T1, "symbolic"
    ),
    error("Files", "a link to nothing", in_place_of(lambda p: p.symlink_to("gone")), T1, "No such"),
    error("Files", "a file that may not be read", denied("open", T1), T1, "Permission denied"),
    error("Files", "a folder that may not be listed", denied("scandir", "X"), "Permission denied"),
    error(
        "Files",
        "a folder that may not be listed, one of many",
        lambda s: (beside(s, "Y"), denied("scandir", "X")(s)),
        "X: found Permission denied",
        "1 of 2 cases failed",
        code=6,
    ),
    error(
        "Files",
        "a stray file with a number beside others",
        lambda s: (beside(s, "Y"), (s.case / "scan_0001.nii.gz").write_bytes(b"?")),
        "numbered channels (scan)",
        "--channels",
        "1 of 3 cases failed",
        code=6,
    ),
    accepted("Files", "a name that is not ASCII", named("Größe 脳")),
    accepted("Files", "a name with spaces", named("a case of two words")),
    accepted("Files", "a name with a leading dash", named("-rf")),
    accepted("Files", "a name that is no text (bytes)", named(os.fsdecode(b"caf\xe9"))),
    accepted("Files", "line break and colour in a name", named("a\n\x1b[31mb")),
]


def forms(qform: Any, sform: Any) -> Any:
    def spoil(s: Scene) -> None:
        image = nib.Nifti1Image(voxels_of("t1"), LPS)
        image.set_qform(qform, 1)
        image.set_sform(sform, 1)
        s.write(bytes(image.to_bytes()))

    return spoil


def moved(x: float) -> Any:
    affine = LPS.copy()
    affine[0, 3] += x
    return affine


def sheared(s: Scene) -> None:
    affine = LPS.copy()
    affine[0, 1] = 0.3
    s.field("qform_code", "h", 0, every=True)
    s.field("srow", "f", *affine[:3].ravel(), every=True)


def in_units(code: int, scale: float) -> Any:
    def spoil(s: Scene) -> None:
        s.field("units", "B", code, every=True)
        s.field("pixdim", "f", scale, scale, scale, at=4, every=True)
        s.field("srow", "f", *(np.diag([scale] * 3 + [1]) @ LPS)[:3].ravel(), every=True)

    return spoil


def typed(dtype: Any) -> Any:
    return lambda s: s.put(np.zeros(SHAPE, dtype))


def stored_as(dtype: str) -> Any:
    return lambda s: s.put(voxels_of("t1").astype(dtype))


def big_endian(s: Scene) -> None:
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(voxels_of("t1"), LPS, header)
    image.set_qform(LPS, 1)
    s.write(bytes(image.to_bytes()))


def with_extension(size: int) -> Any:
    def change(raw: bytearray) -> bytes:
        raw[348] = 1
        struct.pack_into("<f", raw, 108, 352 + 32)
        chain = struct.pack("<ii", size, 6) + b"Jane Doe, born 1970".ljust(24, b"\0")
        return bytes(raw[:352]) + chain + bytes(raw[352:])

    return lambda s: s.edit(change)


def nothing_of_orientation(s: Scene) -> None:
    s.field("qform_code", "h", 0, 0, every=True)


HEADERS: list[Row] = [
    error("Headers", "a size of 0", lambda s: s.field("dim", "h", 0, at=2), T1, "0x32x20"),
    error("Headers", "a negative size", lambda s: s.field("dim", "h", -36, at=2), T1, "-36x32"),
    error(
        "Headers", "32767 voxels along each axis",
        lambda s: s.field("dim", "h", 32767, 32767, 32767, at=2), T1, "at most 536870912 voxels",
    ),
    error("Headers", "eight axes", lambda s: s.field("dim", "h", 8), T1, "8 axes"),
    corrected(
        "Headers", "a voxel offset of 0", lambda s: s.field("vox_offset", "f", 0), "t1: ", "352"
    ),
    error(
        "Headers", "a voxel offset of NaN", lambda s: s.field("vox_offset", "f", np.nan), T1, "nan"
    ),
    error(
        "Headers", "a voxel offset inside the header", lambda s: s.field("vox_offset", "f", 348),
        T1, "from byte 348",
    ),
    accepted("Headers", "a slope of 0 (not scaled)", lambda s: s.field("slope", "f", 0, 7)),
    error("Headers", "an infinite slope", lambda s: s.field("slope", "f", np.inf, 0), T1, "scale"),
    accepted("Headers", "a slope of 2", lambda s: s.field("slope", "f", 2, 0)),
    error(
        "Headers", "a singular affine",
        lambda s: (s.field("srow", "f", *[0] * 12), s.field("qform_code", "h", 0)), T1, "singular",
    ),
    error(
        "Headers", "an affine with NaN",
        lambda s: (s.field("srow", "f", np.nan), s.field("qform_code", "h", 0)), T1, "not finite",
    ),
    corrected(
        "Headers", "an sform with NaN beside a sound qform",
        lambda s: s.field("srow", "f", np.nan), "t1: ", "left aside for its qform",
    ),
    error("Headers", "a sheared affine", sheared, "shear", "without shear"),
    corrected(
        "Headers", "neither qform nor sform", nothing_of_orientation, "nothing of its orientation",
        same=False,
    ),
    corrected(
        "Headers", "qform and sform 3 mm apart", forms(moved(3), LPS), "t1: ", "disagree by up to 3"
    ),
    error(
        "Headers", "qform and sform that disagree on left and right",
        forms(np.diag([1.0, -1, 1, 1]), LPS), T1, "RPS", "LPS",
    ),
    corrected(
        "Headers", "a qform that is no rotation, beside an sform",
        lambda s: s.field("quatern", "f", 0.9, 0.9, 0.9), "t1: ", "qform is unusable",
    ),
    corrected("Headers", "units of metres", in_units(1, 1e-3), "in metres; converted"),
    corrected("Headers", "units of microns", in_units(3, 1e3), "in microns; converted"),
    corrected("Headers", "millimetres called metres", in_units(1, 1), "metres, which"),
    accepted("Headers", "a fourth axis of one", lambda s: s.put(voxels_of("t1")[..., None])),
    error(
        "Headers", "a fourth axis of four", lambda s: s.put(np.stack([voxels_of("t1")] * 4, -1)),
        T1, "4 frames", "--channels",
    ),
    error("Headers", "RGB voxels", typed([("R", "u1"), ("G", "u1"), ("B", "u1")]), T1, "RGB"),
    error("Headers", "complex voxels", typed("complex64"), T1, "complex"),
    corrected(
        "Headers", "a type and a width that contradict each other",
        lambda s: s.field("bitpix", "h", 8), "t1: ", "8 bits; read as int16",
    ),
    corrected(
        "Headers", "a form's code that the standard does not know",
        lambda s: s.field("sform_code", "h", 7), "t1: ", "unknown code 7",
    ),
    corrected(
        "Headers", "a negative voxel size, qform only",
        lambda s: (s.field("pixdim", "f", -1, at=4), s.field("sform_code", "h", 0)),
        "t1: ", "negative voxel sizes",
    ),
    corrected(
        "Headers", "a sheared sform beside a sound qform",
        lambda s: s.field("srow", "f", 0.3, at=4), "t1: ", "left aside for its qform",
    ),
    accepted("Headers", "a fourth axis of none", lambda s: s.field("dim", "h", 4, *SHAPE, 0)),
    accepted("Headers", "big-endian", big_endian),
    accepted("Headers", "NIfTI-2", lambda s: s.put(voxels_of("t1"), kind=nib.Nifti2Image)),
    accepted("Headers", "float64", stored_as("float64")),
    accepted("Headers", "int64", lambda s: s.put(voxels_of("t1").astype("<i8"), kind=_int64)),
    accepted("Headers", "uint16", stored_as("uint16")),
    error(
        "Headers", "the header of an .hdr/.img pair",
        lambda s: s.edit(lambda raw: raw.__setitem__(slice(344, 348), b"ni1\0")), T1, "pair",
    ),
    error(
        "Headers", "no magic (ANALYZE)",
        lambda s: s.edit(lambda raw: raw.__setitem__(slice(344, 348), bytes(4))), T1, "ANALYZE",
    ),
    accepted("Headers", "an extension with a patient's name", with_extension(32)),
    corrected("Headers", "an extension longer than its room", with_extension(64), "extensions"),
]  # fmt: skip


def _int64(voxels: Any, affine: Any) -> Any:
    return nib.Nifti1Image(voxels, affine, dtype="int64")
