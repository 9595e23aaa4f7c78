"""Headers are read as nibabel reads them; what contradicts itself is refused or told."""

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.case import Source
from runtime.errors import InputError
from runtime.nifti import read_image
from runtime.nifti_bytes import read_stored
from runtime.nifti_header import Header, parse_header

LPS = np.array([[-1.0, 0, 0, 30], [0, -1, 0, 239], [0, 0, 1, -7], [0, 0, 0, 1]])
NAME = Path("X.nii")
KINDS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
# Where the fields are: nifti1.h, nifti2.h.
OFFSETS = {
    348: {"dim": 40, "datatype": 70, "bitpix": 72, "pixdim": 76, "vox_offset": 108, "slope": 112,
          "inter": 116, "units": 123, "qform_code": 252, "sform_code": 254, "quatern": 256,
          "srow": 280, "magic": 344},
    540: {"dim": 16, "datatype": 12, "bitpix": 14, "pixdim": 104, "vox_offset": 168, "slope": 176,
          "inter": 184, "units": 500, "qform_code": 344, "sform_code": 348, "quatern": 352,
          "srow": 400, "magic": 4},
}  # fmt: skip


def made(
    size: int = 348,
    order: str = "<",
    *,
    shape: tuple[int, ...] = (5, 4, 3),
    dtype: Any = np.int16,
    qform: npt.NDArray[np.float64] | None = LPS,
    sform: npt.NDArray[np.float64] | None = LPS,
    units: str = "mm",
) -> bytearray:
    """A header as nibabel writes it into a file of its own."""
    header = KINDS[size](endianness=order)
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header["magic"] = b"n+1" if size == 348 else b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = size + 4
    header.set_qform(qform, 1 if qform is not None else 0)
    header.set_sform(sform, 2 if sform is not None else 0)
    header.set_xyzt_units(units)
    return bytearray(header.binaryblock + bytes(4))


def put(raw: bytearray, field: str, form: str, *values: float, at: int = 0) -> bytearray:
    """Overwrite numbers of a little-endian header."""
    place = OFFSETS[348 if len(raw) == 352 else 540][field] + at
    struct.pack_into(f"<{len(values)}{form}", raw, place, *values)
    return raw


def parse(raw: bytes | bytearray) -> Header:
    return parse_header(NAME, bytes(raw))


def in_file(folder: Path, raw: bytes | bytearray, voxels: int = 60) -> Path:
    path = folder / "X.nii"
    path.write_bytes(bytes(raw) + np.arange(voxels, dtype=np.int16).tobytes())
    return path


def turned(angles: tuple[float, ...], sizes: tuple[float, ...], flip: bool) -> npt.NDArray[Any]:
    affine = np.eye(4)
    signed = np.array(sizes) * [1, 1, -1 if flip else 1]
    affine[:3, :3] = nib.eulerangles.euler2mat(*angles) @ np.diag(signed)
    affine[:3, 3] = [12.5, -80, 33.25]
    return affine


ANGLES = st.tuples(*[st.floats(-3.2, 3.2)] * 3)
SIZES = st.tuples(*[st.floats(0.3, 6)] * 3)


@settings(max_examples=200, deadline=None)
@given(
    size=st.sampled_from([348, 540]),
    order=st.sampled_from("<>"),
    angles=ANGLES,
    sizes=SIZES,
    flip=st.booleans(),
    forms=st.sampled_from(["q", "s", "qs"]),
    shape=st.sampled_from([(5, 4, 3), (5, 4, 3, 1), (5, 4, 3, 2), (5, 4, 3, 1, 1)]),
    dtype=st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"]),
)
def test_every_field_is_nibabels(
    size: int,
    order: str,
    angles: tuple[float, ...],
    sizes: tuple[float, ...],
    flip: bool,
    forms: str,
    shape: tuple[int, ...],
    dtype: str,
) -> None:
    affine = turned(angles, sizes, flip)
    raw = made(
        size,
        order,
        shape=shape,
        dtype=dtype,
        qform=affine if "q" in forms else None,
        sform=affine if "s" in forms else None,
    )
    header = parse(raw)
    theirs = KINDS[size](bytes(raw[:size]), endianness=order)
    assert header.shape == (shape if shape[3:] == (2,) else (5, 4, 3))
    assert header.dtype == theirs.get_data_dtype()
    assert header.offset == size + 4
    b, c, d = (float(theirs[f"quatern_{part}"]) for part in "bcd")
    # Near half a turn the fourth part of a quaternion is what rounding leaves of the other three,
    # and nibabel draws its line elsewhere than nifti1_io.c.
    exact = "s" in forms or b * b + c * c + d * d < 1 - 1e-6
    close = {"rtol": 2e-5, "atol": (2e-5 if exact else 2e-3) * max(sizes)}
    np.testing.assert_allclose(header.grid.affine, theirs.get_best_affine(), **close)
    np.testing.assert_allclose(header.grid.spacing, sizes, rtol=2e-5)
    for ours, form in (
        (header.grid.qform, theirs.get_qform(coded=True)[0]),
        (header.grid.sform, theirs.get_sform(coded=True)[0]),
    ):
        assert (ours is None) == (form is None)
        if ours is not None:
            np.testing.assert_allclose(ours, form, rtol=2e-5, atol=2e-3 * max(sizes))
    assert (header.grid.qform_code, header.grid.sform_code) == ("q" in forms, 2 * ("s" in forms))
    assert header.warnings == ()


@settings(max_examples=300, deadline=None)
@given(
    size=st.sampled_from([348, 540]),
    quatern=st.tuples(*[st.floats(-0.75, 0.75, width=32)] * 3),
    qfac=st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_a_quaternion_is_nibabels_or_refused(
    size: int, quatern: tuple[float, ...], qfac: float
) -> None:
    raw = made(size, sform=None)
    form = "f" if size == 348 else "d"
    put(raw, "quatern", form, *quatern)
    put(raw, "pixdim", form, qfac)
    length = sum(part * part for part in quatern)
    if length > 1 + 1e-4:
        with pytest.raises(InputError, match="singular or not finite"):
            parse(raw)
        return
    ours = parse(raw).grid.affine
    put(raw, "pixdim", form, qfac or 1.0)
    if length < 1 - 1e-6:
        np.testing.assert_allclose(ours, KINDS[size](bytes(raw[:size])).get_qform(), atol=1e-6)
    np.testing.assert_allclose(abs(np.linalg.det(ours[:3, :3])), 1, atol=1e-6)


def test_neither_form_is_taken_as_nibabel_does_and_told() -> None:
    raw = made(qform=None, sform=None)
    put(raw, "pixdim", "f", 0.9, 1.1, 2.5, at=4)
    header = parse(raw)
    theirs = nib.Nifti1Header(bytes(raw[:348])).get_best_affine()
    np.testing.assert_allclose(header.grid.affine, theirs, atol=1e-6)
    assert "nothing of its orientation" in header.warnings[0]


@pytest.mark.parametrize("form", ["qform", "sform"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e30])
def test_an_affine_of_no_use_is_refused_where_it_is_the_only_one(form: str, value: float) -> None:
    raw = made(**{"sform" if form == "qform" else "qform": None})  # type: ignore[arg-type]
    for axis in range(3):
        put(raw, "pixdim" if form == "qform" else "srow", "f", value, at=4 * (5 * axis + 1) % 44)
    put(raw, "srow", "f", *[value] * 12)
    put(raw, "pixdim", "f", value, value, value, at=4)
    with pytest.raises(InputError, match="singular or not finite"):
        parse(raw)


@pytest.mark.parametrize("quatern", [(0.9, 0.9, 0.9), (float("nan"), 0, 0)])
def test_a_qform_of_no_use_beside_an_sform_is_left_aside(quatern: tuple[float, ...]) -> None:
    header = parse(put(made(), "quatern", "f", *quatern))
    np.testing.assert_array_equal(header.grid.affine, LPS)
    assert (header.grid.qform, header.grid.qform_code) == (None, 0)
    assert "qform is unusable" in header.warnings[0]


@pytest.mark.parametrize(("moved", "told"), [(0.4, False), (0.6, True), (40, True)])
def test_forms_that_disagree_on_the_place_are_told(moved: float, told: bool) -> None:
    other = LPS.copy()
    other[1, 3] += moved
    header = parse(made(qform=other))
    np.testing.assert_array_equal(header.grid.affine, LPS)
    assert header.warnings == (
        (
            f"its qform and sform disagree by up to {moved:.3g} mm; the sform was taken, "
            "as other readers do",
        )
        if told
        else ()
    )


@pytest.mark.parametrize(
    ("change", "axes"),
    [
        (np.diag([-1.0, 1, 1, 1]), "RPS"),
        (np.diag([1.0, -1, 1, 1]), "LAS"),
        (np.diag([-1.0, -1, 1, 1]), "RAS"),
    ],
)
def test_forms_that_disagree_on_left_and_right_are_refused(
    change: npt.NDArray[np.float64], axes: str
) -> None:
    with pytest.raises(InputError, match=rf"a qform \({axes}\) and an sform \(LPS\)"):
        parse(made(qform=change @ LPS))


def test_shear_is_refused_where_rounding_cannot_explain_it() -> None:
    for share, refused in ((0.005, False), (0.05, True), (0.5, True)):
        sheared = LPS.copy()
        sheared[0, 1] = share
        raw = made(qform=None, sform=sheared)
        if refused:
            with pytest.raises(InputError, match="shear"):
                parse(raw)
        else:
            np.testing.assert_allclose(parse(raw).grid.affine, sheared, rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "scale", "spacing", "told"),
    [
        ("meter", 1e-3, 1.0, "is in metres; converted"),
        ("micron", 1e3, 1.0, "is in microns; converted"),
        ("meter", 1.0, 1.0, "says metres, which its voxel sizes are not"),
        ("micron", 1.0, 1.0, "says microns, which its voxel sizes are not"),
        ("mm", 1.0, 1.0, ""),
        ("unknown", 1.0, 1.0, ""),
    ],
)
@pytest.mark.parametrize("size", [348, 540])
@pytest.mark.parametrize("smaller", [1.0, 0.5])
def test_units_become_millimetres(
    size: int, units: str, scale: float, spacing: float, told: str, smaller: float
) -> None:
    placed = LPS @ np.diag([smaller, smaller, smaller, 1])
    stored = np.diag([scale, scale, scale, 1]) @ placed
    header = parse(made(size, qform=stored, sform=stored, units=units))
    np.testing.assert_allclose(header.grid.affine, placed, rtol=1e-5)
    np.testing.assert_allclose(header.grid.spacing, spacing * smaller, rtol=1e-5)
    for form in (header.grid.qform, header.grid.sform):
        assert form is not None
        np.testing.assert_allclose(form, placed, rtol=1e-5, atol=1e-5)
    assert len(header.warnings) == bool(told)
    assert not told or told in header.warnings[0]


@pytest.mark.parametrize(
    ("field", "form", "values", "found"),
    [
        ("dim", "h", (3, 0, 4, 3), "a volume of shape 0x4x3"),
        ("dim", "h", (3, -5, 4, 3), "a volume of shape -5x4x3"),
        ("dim", "h", (3, 32767, 32767, 32767), "a volume of shape 32767x32767x32767"),
        ("dim", "h", (0, 5, 4, 3), "a header of 0 axes"),
        ("dim", "h", (8, 5, 4, 3), "a header of 8 axes"),
        ("dim", "h", (-1, 5, 4, 3), "a header of -1 axes"),
        ("dim", "h", (2, 5, 4, 3), "a volume of shape 5x4"),
        ("datatype", "h", (128,), r"type 128 \(RGB\)"),
        ("datatype", "h", (32,), r"type 32 \(complex numbers\)"),
        ("datatype", "h", (0,), r"type 0 \(no NIfTI type\)"),
        ("vox_offset", "f", (351.0,), "voxels from byte 351 on"),
        ("vox_offset", "f", (352.5,), "voxels from byte 352.5 on"),
        ("vox_offset", "f", (float("nan"),), "voxels from byte nan on"),
        ("vox_offset", "f", (float("inf"),), "voxels from byte inf on"),
        ("vox_offset", "f", (-352.0,), "voxels from byte -352 on"),
        ("vox_offset", "f", (1e9,), "voxels from byte 1000000000 on"),
        ("slope", "f", (float("inf"),), "a scale of inf and 0"),
        ("inter", "f", (float("nan"),), "a scale of 2 and nan"),
        ("magic", "4s", (b"ni1",), "the header of a pair"),
        ("magic", "4s", (b"",), "an ANALYZE file"),
    ],
)
def test_a_field_that_cannot_be(field: str, form: str, values: Any, found: str) -> None:
    raw = put(made(), "slope", "f", 2.0, 0.0)
    if form == "4s":
        raw[344:348] = values[0].ljust(4, b"\0")
    else:
        put(raw, field, form, *values)
    with pytest.raises(InputError, match=found):
        parse(raw)


def test_what_text_mode_transfer_breaks_in_nifti_2_is_noticed() -> None:
    raw = made(540)
    raw[4:12] = b"n+2\0\n\n\x1a\n"
    with pytest.raises(InputError, match="magic"):
        parse(raw)


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 5.0), (float("nan"), float("nan"))])
def test_no_scale(slope: float, inter: float) -> None:
    header = parse(put(made(), "slope", "f", slope, inter))
    assert (header.slope, header.intercept) == (1.0, 0.0)


def test_an_offset_of_zero_is_taken_for_the_least_and_told(tmp_path: Path) -> None:
    path = in_file(tmp_path, put(made(), "vox_offset", "f", 0.0))
    image = read_image(Source(path))[0]
    np.testing.assert_array_equal(image.voxels.ravel("F"), np.arange(60))
    assert image.warnings == ("its header gives no voxel offset; taken as 352",)


def extended(*sizes: int, room: int, order: str = "<") -> bytearray:
    """A header followed by extensions that claim to be of these sizes, in so much room."""
    size = 348
    raw = made(size, order)[:size]
    struct.pack_into(f"{order}f", raw, 108, 352 + room)
    chain = b"".join(
        struct.pack(f"{order}ii", claimed, 6).ljust(max(16, claimed), b"x")[:room]
        for claimed in sizes
    )
    return raw + b"\1\0\0\0" + chain.ljust(room, b"\0")[:room]


@pytest.mark.parametrize(
    ("raw", "fits"),
    [
        (extended(32, room=32), True),
        (extended(16, 32, room=48), True),
        (extended(16, room=64), True),
        (extended(16, room=16, order=">"), True),
        (extended(64, room=32), False),
        (extended(-16, room=32), False),
        (extended(24, room=32), False),
        (extended(8, room=32), False),
    ],
)
def test_extensions_are_walked(tmp_path: Path, raw: bytearray, fits: bool) -> None:
    image, _ = read_image(Source(in_file(tmp_path, raw)))
    assert image.warnings == (
        () if fits else ("its header extensions are unreadable and were left aside",)
    )
    assert image.voxels.shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("start", "found", "remedy"),
    [
        (b"", "an empty file", "fetch"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS", "git lfs"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page", "download"),
        (bytes(128) + b"DICM\2\0\0\0", "a DICOM file", "dcm2niix"),
        (b"PK\3\4 zip", "starts with 504b0304", "fetch"),
    ],
)
def test_other_files_are_called_by_their_name(
    tmp_path: Path, start: bytes, found: str, remedy: str
) -> None:
    path = tmp_path / "X.nii.gz"
    path.write_bytes(start.ljust(900 if start else 0))
    with pytest.raises(InputError) as caught:
        read_stored(path)
    assert found in caught.value.found
    assert remedy in caught.value.remedy


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "X.nii")
    with pytest.raises(InputError, match="a pipe"):
        read_stored(tmp_path / "X.nii")
    (tmp_path / "Y.nii").mkdir()
    with pytest.raises(InputError, match="directory"):
        read_stored(tmp_path / "Y.nii")
    (tmp_path / "Z.nii").symlink_to("Z.nii")
    with pytest.raises(InputError, match=r"Z\.nii: found Too many levels"):
        read_stored(tmp_path / "Z.nii")


def test_a_file_far_longer_than_its_promise_is_not_read(tmp_path: Path) -> None:
    path = in_file(tmp_path, made())
    with path.open("r+b") as file:
        file.truncate(40 << 30)  # sparse
    with pytest.raises(InputError, match="a file of 42949672960 bytes"):
        read_stored(path)


@pytest.mark.parametrize(("name", "packed"), [("X.nii", True), ("X.nii.gz", False)])
def test_a_name_that_lies_about_compression_is_told(
    tmp_path: Path, name: str, packed: bool
) -> None:
    plain = in_file(tmp_path, made()).read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain) if packed else plain)
    told = read_stored(path).warnings
    assert told == (f"it is {'' if packed else 'not '}compressed, unlike its name",)
