"""We read what nibabel reads, nibabel reads what we write, and damage is noticed."""

import contextlib
import gzip
import hashlib
import os
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import nifti, nifti_bytes
from runtime.case import Case, Source
from runtime.errors import ComputeError, InputError, OutputError
from runtime.labels import MODALITIES
from runtime.nifti import INTENT_NAME, Grid, is_ours, load, load_label_map
from runtime.nifti_bytes import count_frames
from runtime.nifti_writer import write_image, write_label_map, write_probabilities

WriteCase = Callable[..., Path]

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-0.9, 1.1, 2.5])
OBLIQUE[:3, 3] = [90.5, -126.25, -72.125]
TILTED = np.eye(4)
TILTED[:3, :3] = nib.eulerangles.euler2mat(0.1, 0.05, -0.1) @ np.diag([-1.0, -1.0, 1.0])
TILTED[:3, 3] = [10.5, 230.25, -7.125]
LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def one(path: Path) -> Case:
    return Case("X", {"t1": Source(path)})


def read(path: Path) -> tuple[npt.NDArray[Any], Grid]:
    volume = load(one(path))
    return volume.images["t1"].voxels, volume.grid


def values(dtype: Any, rng: np.random.Generator) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (rng.normal(100, 40, (7, 6, 5))).astype(dtype)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, (7, 6, 5), endpoint=True).astype(dtype)


@pytest.mark.parametrize("name", ["X.nii", "X.nii.gz"])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
)
@pytest.mark.parametrize("kind", ["nifti1", "big", "nifti2", "big nifti2"])
def test_values_and_affine_are_nibabels(
    tmp_path: Path, name: str, dtype: str, kind: str, rng: np.random.Generator
) -> None:
    voxels = values(dtype, rng)
    path = tmp_path / name
    image_class = nib.Nifti2Image if "nifti2" in kind else nib.Nifti1Image
    header = image_class.header_class(endianness=">" if "big" in kind else "<")
    header.set_data_dtype(np.dtype(dtype).newbyteorder(">" if "big" in kind else "<"))
    nib.save(image_class(voxels, OBLIQUE, header), path)
    theirs = nib.load(path)
    assert theirs.header.endianness == (">" if "big" in kind else "<")
    found, grid = read(path)
    np.testing.assert_array_equal(found, np.asanyarray(theirs.dataobj))
    np.testing.assert_array_equal(found, voxels)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    assert found.flags.f_contiguous
    np.testing.assert_array_equal(grid.affine, theirs.affine)
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    assert grid.shape == voxels.shape
    np.testing.assert_allclose(grid.spacing, [0.9, 1.1, 2.5], rtol=1e-6)
    assert load(one(path)).images["t1"].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("slope", "intercept"), [(0.25, 0.0), (2.0, -7.5), (1.0, 3.0), (-1.5, 0)])
def test_a_scaled_header_is_applied(
    tmp_path: Path, slope: float, intercept: float, rng: np.random.Generator
) -> None:
    path = tmp_path / "X.nii.gz"
    raw = values("int16", rng)
    image = nib.Nifti1Image(raw, LPS)
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    # nibabel scales on writing as well: put the raw integers there ourselves.
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[352:] = raw.tobytes(order="F")
    path.write_bytes(gzip.compress(bytes(data)))
    theirs = nib.load(path)
    assert theirs.dataobj.slope == slope
    found, _ = read(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, theirs.get_fdata().astype(np.float32))
    np.testing.assert_allclose(found, raw * slope + intercept, rtol=1e-6)


@pytest.mark.parametrize("slope", [0.0, float("nan"), 1.0])
def test_a_slope_that_means_none_changes_nothing(
    tmp_path: Path, slope: float, rng: np.random.Generator
) -> None:
    path = tmp_path / "X.nii"
    raw = values("int16", rng)
    nib.save(nib.Nifti1Image(raw, LPS), path)
    data = bytearray(path.read_bytes())
    data[112:116] = np.float32(slope).tobytes()
    data[116:120] = np.float32(0).tobytes()
    path.write_bytes(data)
    found, _ = read(path)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, raw)


def test_the_content_decides_what_is_compressed(tmp_path: Path, rng: np.random.Generator) -> None:
    """A gzip called .nii and a plain file called .nii.gz both happen."""
    raw = values("int16", rng)
    nib.save(nib.Nifti1Image(raw, LPS), tmp_path / "a.nii")
    plain = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii").write_bytes(gzip.compress(plain))
    (tmp_path / "c.nii.gz").write_bytes(plain)
    half = len(plain) // 2
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))
    for name in ("b.nii", "c.nii.gz", "d.nii.gz"):
        np.testing.assert_array_equal(read(tmp_path / name)[0], raw)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A compressed file whose voxels fill several deflate blocks."""
    path = tmp_path_factory.mktemp("packed") / "X.nii.gz"
    voxels = np.random.default_rng(3).integers(0, 900, (24, 20, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, LPS), path)
    return path.read_bytes()


@pytest.mark.parametrize("part", [0.0, 0.0005, 0.01, 0.3, 0.9])
def test_a_truncated_gzip_is_noticed(tmp_path: Path, packed: bytes, part: float) -> None:
    path = tmp_path / "X_t1.nii.gz"
    path.write_bytes(packed[: int(part * len(packed))])
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("lost", [1, 4, 5, 8, 9])
def test_a_gzip_without_its_last_bytes_is_noticed(tmp_path: Path, packed: bytes, lost: int) -> None:
    """All voxels are there; only the checksum and the length are not."""
    path = tmp_path / "X_t1.nii.gz"
    path.write_bytes(packed[:-lost])
    with pytest.raises(InputError) as caught:
        read(path)
    # Not in the whole sentence: the folder of this test has "gzip" in its name.
    assert "gzip stream" in caught.value.found


@pytest.mark.parametrize("position", [-1, -4, -5, -8])
def test_a_wrong_checksum_or_length_is_noticed(
    tmp_path: Path, packed: bytes, position: int
) -> None:
    path = tmp_path / "X_t1.nii.gz"
    damaged = bytearray(packed)
    damaged[position] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="gzip"):
        read(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0.01, 0.99), st.integers(0, 7))
def test_one_flipped_bit_is_noticed(tmp_path: Path, packed: bytes, place: float, bit: int) -> None:
    path = tmp_path / "X_t1.nii.gz"
    damaged = bytearray(packed)
    damaged[int(place * len(packed))] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(InputError):
        read(path)


def test_a_plain_file_cut_short_is_noticed(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / "X.nii"
    plain = gzip.decompress(packed)
    for length in (0, 3, 100, 348, 352, len(plain) - 1):
        path.write_bytes(plain[:length])
        with pytest.raises(InputError):
            read(path)
    path.write_bytes(plain)
    assert read(path)[0].shape == (24, 20, 16)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"not an image at all" * 40, b"\0" * 400])
def test_what_is_no_nifti_is_bad_input(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "X.nii.gz"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read(path)


def test_what_cannot_be_opened_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "gone.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(InputError, match="directory"):
        read(tmp_path / "folder.nii.gz")


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 543), st.binary(min_size=1, max_size=8)), max_size=4)
)
def test_no_header_makes_anything_but_a_volume_or_bad_input(
    tmp_path: Path, image_class: Any, changes: list[tuple[int, bytes]]
) -> None:
    path = tmp_path / "X.nii"
    nib.save(image_class(np.arange(60, dtype=np.int16).reshape(5, 4, 3), LPS), path)
    data = bytearray(path.read_bytes())
    for place, new in changes:
        end = min(place + len(new), 348 if image_class is nib.Nifti1Image else 540)
        data[place:end] = new[: max(0, end - place)]
    path.write_bytes(data)
    try:
        voxels, grid = read(path)
    except InputError:
        return
    assert voxels.shape == grid.shape
    assert np.isfinite(grid.affine).all()


@pytest.mark.parametrize("offset", [-1.0, float("nan"), float("inf"), 4.0, 1e30])
def test_an_impossible_offset_is_bad_input(tmp_path: Path, offset: float) -> None:
    path = tmp_path / "X.nii"
    nib.save(nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), LPS), path)
    data = bytearray(path.read_bytes())
    data[108:112] = np.float32(offset).tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError):
        read(path)


def test_dimensions_whose_product_wraps_around_are_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "X.nii"
    nib.save(nib.Nifti2Image(np.zeros((5, 4, 3), np.int16), LPS), path)
    data = bytearray(path.read_bytes())
    data[16:48] = np.array([3, 2**32, 2**32, 1], np.int64).tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError):
        read(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, bad: float, dtype: str) -> None:
    path = tmp_path / "X_t1.nii.gz"
    voxels = np.ones((6, 5, 4), dtype)
    voxels[1, 2, 3] = voxels[5, 4, 0] = bad
    nib.save(nib.Nifti1Image(voxels, LPS), path)
    with pytest.raises(InputError, match="2 voxels that are NaN or infinite"):
        read(path)
    voxels[...] = np.finfo(dtype).max if dtype == "float32" else 1e300
    nib.save(nib.Nifti1Image(voxels, LPS), path)
    np.testing.assert_array_equal(read(path)[0], voxels)


def test_a_scale_beyond_float32_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "X.nii"
    nib.save(nib.Nifti1Image(np.full((5, 4, 3), 1000, np.int16), LPS), path)
    data = bytearray(path.read_bytes())
    data[112:116] = np.float32(1e38).tobytes()
    data[116:120] = np.float32(0).tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match="60 voxels that are NaN or infinite"):
        read(path)


def test_more_than_three_dimensions(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "X.nii.gz"
    four = rng.integers(0, 900, (6, 5, 4, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(four, LPS), path)
    with pytest.raises(InputError, match="4D volume of 3 frames"):
        read(path)
    sources = {"t2": Source(path, 2), "flair": Source(path, 0)}
    volume = load(Case("X", sources))
    np.testing.assert_array_equal(volume.images["t2"].voxels, four[..., 2])
    np.testing.assert_array_equal(volume.images["flair"].voxels, four[..., 0])
    assert volume.grid.shape == (6, 5, 4)
    with pytest.raises(InputError, match="3 channels"):
        load(Case("X", {"t1": Source(path, 3)}))
    nib.save(nib.Nifti1Image(four[..., :1], LPS), path)  # a fourth axis of 1 is none
    np.testing.assert_array_equal(read(path)[0], four[..., 0])
    nib.save(nib.Nifti1Image(four[..., 0], LPS), path)
    with pytest.raises(InputError, match="4D one was declared"):
        load(Case("X", sources))
    nib.save(nib.Nifti1Image(four[..., None, :], LPS), path)
    with pytest.raises(InputError, match="6x5x4x1x3"):
        read(path)
    nib.save(nib.Nifti1Image(four[..., 0, 0], LPS), path)
    with pytest.raises(InputError, match="6x5"):
        read(path)


@pytest.mark.parametrize("dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_voxels_that_are_no_intensities_are_bad_input(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "X.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((5, 4, 3), dtype), LPS), path)
    with pytest.raises(InputError, match=r"voxels of type (32 \(complex|128 \(RGB)"):
        read(path)


def test_modalities_must_share_one_shape(tmp_path: Path, write_case: WriteCase) -> None:
    images = {name: np.full((6, 5, 4), i, np.int16) for i, name in enumerate(MODALITIES)}
    images["t1ce"] = np.ones((6, 4, 5), np.int16)
    with pytest.raises(InputError) as caught:
        load(Case.from_dir(write_case(tmp_path, images)))
    assert caught.value.where.endswith("X_t1ce.nii.gz")
    assert caught.value.found == "shape 6x4x5"
    assert caught.value.expected == "6x5x4 as in X_flair.nii.gz"


def noise(rng: np.random.Generator) -> dict[str, npt.NDArray[np.int16]]:
    return {name: rng.integers(1, 900, (20, 18, 16)).astype(np.int16) for name in MODALITIES}


@pytest.mark.parametrize("how", ["packed anew", "as float", "beside its qform", "scaled"])
def test_one_image_under_two_modalities_is_refused_however_it_is_stored(
    tmp_path: Path, write_case: WriteCase, rng: np.random.Generator, how: str
) -> None:
    """Only its bytes differ; no network notices."""
    images = noise(rng)
    images["t1"] *= 2
    folder = write_case(tmp_path, images, LPS)
    image = nib.Nifti1Image(images["t1"], LPS)
    if how == "as float":
        image = nib.Nifti1Image(images["t1"].astype(np.float32), LPS)
    elif how == "beside its qform":
        image.set_qform(LPS, 1)
    elif how == "scaled":
        image = nib.Nifti1Image(images["t1"] // 2, LPS)
    data = bytearray(image.to_bytes())
    if how == "scaled":
        data[112:116] = np.float32(2).tobytes()  # the slope
    (folder / "X_t2.nii.gz").write_bytes(gzip.compress(data, 1))
    with pytest.raises(InputError, match="the same voxels as X_t1") as caught:
        load(Case.from_dir(folder))
    assert caught.value.where == str(folder / "X_t2.nii.gz")
    assert "t2 and t1 to be different images" in str(caught.value)


def test_one_frame_twice_in_a_4d_file_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    images = list(noise(rng).values())
    path = tmp_path / "X.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([*images[:3], images[1]], -1), LPS), path)
    with pytest.raises(InputError, match="the same voxels as"):
        load(Case.from_dir(path, MODALITIES))


@pytest.mark.parametrize("place", [(0, 0, 0), (8, 8, 8), (19, 17, 15), (3, 5, 7)])
def test_images_that_differ_in_one_voxel_are_two(
    tmp_path: Path, write_case: WriteCase, rng: np.random.Generator, place: tuple[int, int, int]
) -> None:
    images = noise(rng)
    images["t2"] = images["t1"].copy()
    images["t2"][place] += 1
    assert list(load(Case.from_dir(write_case(tmp_path, images))).images) == list(MODALITIES)


@pytest.mark.parametrize("step", ["inflate", "voxels", "finite"])
def test_too_little_memory_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As of every computation that did not fit: it says nothing against the image."""
    path = tmp_path / "X.nii.gz"
    image = nib.Nifti1Image(np.ones((5, 4, 3), np.float32), LPS)
    path.write_bytes(gzip.compress(image.to_bytes()))

    def none_left(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    place = {
        "inflate": (nifti_bytes.np, "empty"),
        "voxels": (nifti, "_scaled"),
        "finite": (nifti, "_check_finite"),
    }[step]
    monkeypatch.setattr(*place, none_left)
    for attempt in (partial(read, path), partial(load_label_map, path)):
        with pytest.raises(ComputeError, match="memory") as caught:
            attempt()
        assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("shift", "scale", "good"),
    [(0.0, 1.0, True), (0.04, 1.0, True), (0.06, 1.0, False), (0, 1.0005, True), (0, 1.02, False)],
)
def test_modalities_must_share_one_affine(
    tmp_path: Path, write_case: WriteCase, shift: float, scale: float, good: bool
) -> None:
    """A twentieth of a voxel, at the corner that moves most."""
    images = {name: np.full((41, 31, 21), i, np.int16) for i, name in enumerate(MODALITIES)}
    folder = write_case(tmp_path, images, LPS)
    moved = LPS.copy()
    moved[1, 3] += shift
    moved[:3, :3] *= scale
    nib.save(nib.Nifti1Image(images["t2"], moved), folder / "X_t2.nii.gz")
    if good:
        assert list(load(Case.from_dir(folder)).images) == list(MODALITIES)
        return
    with pytest.raises(InputError, match="moves a corner") as caught:
        load(Case.from_dir(folder))
    assert caught.value.where.endswith("X_t2.nii.gz")


@pytest.mark.parametrize(
    ("apart", "blamed", "reference"),
    [
        (("flair",), "flair", "t1"),
        (("t1ce",), "t1ce", "flair"),
        (("flair", "t1"), "t1ce", "flair"),  # two and two: the first counts
        (("flair", "t1", "t1ce"), "t2", "flair"),
    ],
)
@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 7, 8)])
def test_the_image_that_lies_apart_is_named(
    tmp_path: Path,
    write_case: WriteCase,
    apart: tuple[str, ...],
    blamed: str,
    reference: str,
    shape: tuple[int, ...],
) -> None:
    images = {name: np.full((9, 8, 7), i, np.int16) for i, name in enumerate(MODALITIES)}
    folder = write_case(tmp_path, images, LPS)
    moved = LPS.copy()
    moved[0, 3] += 50
    for index, name in enumerate(apart):
        image = nib.Nifti1Image(np.full(shape, index + 1, np.int16), moved)
        nib.save(image, folder / f"X_{name}.nii.gz")
    with pytest.raises(InputError) as caught:
        load(Case.from_dir(folder))
    assert caught.value.where.endswith(f"X_{blamed}.nii.gz")
    assert caught.value.expected.endswith(f"X_{reference}.nii.gz")


def test_a_singular_affine_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "X.nii"
    for bad in (0.0, float("nan")):
        nib.save(nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), LPS), path)
        data = bytearray(path.read_bytes())
        data[280:296] = np.full(4, bad, np.float32).tobytes()
        path.write_bytes(data)
        with pytest.raises(InputError, match="singular"):
            read(path)


GEOMETRIES = [
    ("both", LPS, 1, LPS, 1),
    ("both oblique", OBLIQUE, 1, OBLIQUE, 2),
    ("sform only", None, 0, OBLIQUE, 4),
    ("qform only", OBLIQUE, 1, None, 0),
    ("they differ", TILTED, 1, LPS, 2),
    ("neither", None, 0, None, 0),
    ("barely sheared", None, 0, OBLIQUE + np.eye(4, k=1) * [0, 0.005, 0.005, 0], 1),
]


@pytest.mark.parametrize("name", ["Y_seg.nii.gz", "Y_seg.nii"])
@pytest.mark.parametrize(
    ("qform", "qcode", "sform", "scode"),
    [g[1:] for g in GEOMETRIES],
    ids=[g[0] for g in GEOMETRIES],
)
def test_label_maps_lie_where_the_input_lies(
    tmp_path: Path,
    name: str,
    qform: Any,
    qcode: int,
    sform: Any,
    scode: int,
    rng: np.random.Generator,
) -> None:
    source = nib.Nifti1Image(values("int16", rng), None)
    source.header.set_zooms((0.9, 1.1, 2.5))
    source.set_qform(qform, qcode)
    source.set_sform(sform, scode)
    source.header["descrip"] = b"patient name"
    source.header["aux_file"] = b"secret"
    source.header["db_name"] = b"db"
    source.header["cal_max"] = 77
    source.header["toffset"] = 5
    source.header["intent_name"] = b"theirs"
    source.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment about the patient"))
    nib.save(source, tmp_path / "X.nii.gz")
    source = nib.load(tmp_path / "X.nii.gz")
    grid = read(tmp_path / "X.nii.gz")[1]
    labels = rng.integers(0, 5, source.shape).astype(np.uint8)
    path = tmp_path / name
    digest = write_label_map(path, labels, grid)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    written = nib.load(path)
    header = written.header
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(
        written.affine, source.affine, atol=2e-6 * np.abs(source.affine).max()
    )
    assert int(header["qform_code"]) == qcode
    assert int(header["sform_code"]) == scode
    for ours, theirs in (
        (written.get_qform(coded=True)[0], source.get_qform(coded=True)[0]),
        (written.get_sform(coded=True)[0], source.get_sform(coded=True)[0]),
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, atol=2e-4)
    np.testing.assert_allclose(
        header.get_zooms(),
        # The zooms belong to the qform, as everywhere in NIfTI.
        nib.affines.voxel_sizes(source.affine if qform is None else qform),
        rtol=1e-5,
    )
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert header["intent_name"].item() == INTENT_NAME.encode()
    assert header.get_xyzt_units()[0] == "mm"
    for field in ("descrip", "aux_file", "db_name"):
        assert header[field].item() == b""
    for field in ("cal_max", "cal_min", "toffset", "intent_code"):
        assert header[field] == 0
    assert len(header.extensions) == 0
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if name.endswith(".gz") else raw
    assert len(raw) == 352 + labels.size
    again, grid_again = load_label_map(path)
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_allclose(grid_again.affine, grid.affine, atol=2e-4)


def test_the_same_label_map_gives_the_same_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    labels = rng.integers(0, 4, (9, 8, 7)).astype(np.uint8)
    grid = Grid.from_affine((9, 8, 7), OBLIQUE)
    one = write_label_map(tmp_path / "one_seg.nii.gz", labels, grid)
    other = write_label_map(tmp_path / "other.nii.gz", np.asfortranarray(labels), grid)
    assert one == other
    data = (tmp_path / "one_seg.nii.gz").read_bytes()
    assert data == (tmp_path / "other.nii.gz").read_bytes()
    assert data[4:8] == b"\0\0\0\0"  # no time stamp
    assert data[3] == 0  # no file name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one_seg.nii.gz", "other.nii.gz"]


def test_probabilities_keep_their_four_channels(tmp_path: Path, rng: np.random.Generator) -> None:
    probabilities = rng.random((6, 5, 4, 4)).astype(np.float32)
    path = tmp_path / "X_prob.nii.gz"
    write_probabilities(path, probabilities, Grid.from_affine((6, 5, 4), OBLIQUE))
    written = nib.load(path)
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), probabilities)
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-5)
    assert is_ours(path)


@pytest.mark.parametrize("dtype", ["int16", ">i2", "float64", "uint8", ">f4"])
def test_images_are_written_in_any_dtype_without_our_mark(
    tmp_path: Path, dtype: str, rng: np.random.Generator
) -> None:
    voxels = rng.integers(0, 250, (6, 5, 4)).astype(dtype)
    path = tmp_path / "X_t1.nii.gz"
    write_image(path, voxels, Grid.from_affine((6, 5, 4), LPS))
    np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), voxels)
    assert not is_ours(path)


def test_only_our_own_files_are_ours(tmp_path: Path, packed: bytes) -> None:
    grid = Grid.from_affine((9, 8, 7), LPS)
    labels = np.zeros((9, 8, 7), np.uint8)
    for name in ("a_seg.nii", "a_seg.nii.gz"):
        write_label_map(tmp_path / name, labels, grid)
        assert is_ours(tmp_path / name)
    foreign = nib.Nifti1Image(labels, LPS)
    for mark in ("", "brats", "brats-deployed", "nnU-Net"):
        foreign.header["intent_name"] = mark.encode()
        nib.save(foreign, tmp_path / "b.nii.gz")
        assert not is_ours(tmp_path / "b.nii.gz"), mark
    for index, content in enumerate((b"", b"\x1f\x8b", packed[:30], b"text" * 200)):
        (tmp_path / f"{index}.nii.gz").write_bytes(content)
        assert not is_ours(tmp_path / f"{index}.nii.gz")
    assert not is_ours(tmp_path / "gone.nii.gz")
    assert not is_ours(tmp_path)


def test_a_label_map_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_label_map(
            tmp_path / "file" / "X.nii.gz",
            np.zeros((2, 2, 2), np.uint8),
            Grid.from_affine((2, 2, 2), LPS),
        )


def traced_peak(action: Callable[[], Any]) -> int:
    """Most bytes that Python objects took while ``action`` ran."""
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def plain_bytes(shape: tuple[int, ...] = (5, 4, 3), kind: Any = nib.Nifti1Image) -> bytes:
    data: bytes = kind(np.ones(shape, np.int16), LPS).to_bytes()
    return data


def header_of(shape: tuple[int, ...], dtype: Any = np.uint8) -> bytes:
    """A header that is not followed by any voxel."""
    header = nib.Nifti2Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(LPS, 1)
    return bytes(header.binaryblock) + b"\0\0\0\0"


def inflated_to(path: Path, start: bytes, zeros: int) -> Path:
    """A small file: what is highly compressible follows ``start``."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(zeros >> 20):
            file.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("zeros", [2 << 20, 24 << 20])
def test_a_stream_is_inflated_no_further_than_its_header_promises(
    tmp_path: Path, zeros: int
) -> None:
    path = inflated_to(tmp_path / "X.nii.gz", plain_bytes(), zeros)
    for check in (partial(read, path), partial(count_frames, path, path.read_bytes())):
        with pytest.raises(InputError, match="more than 4568 bytes"):
            check()
        assert traced_peak(check) < 3 << 20


def test_padding_after_the_voxels_does_no_harm(tmp_path: Path) -> None:
    for name, data in (
        ("a.nii", plain_bytes() + bytes(4096)),
        ("a.nii.gz", gzip.compress(plain_bytes() + bytes(4096))),
        ("b.nii.gz", gzip.compress(plain_bytes()) + gzip.compress(bytes(4096))),
    ):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name)[0].shape == (5, 4, 3)
        assert count_frames(tmp_path / name, data) == 1


@pytest.mark.parametrize("name", ["X.nii", "X.nii.gz"])
@pytest.mark.parametrize(
    ("shape", "most"),
    [((20, 20, 20), 4096), ((100, 100, 100), 20_000)],
)
def test_no_more_than_padding_may_follow_the_voxels(
    tmp_path: Path, name: str, shape: tuple[int, ...], most: int
) -> None:
    """A hundredth of the voxels, 4 KiB at least and 1 MiB at most."""
    path, plain = tmp_path / name, plain_bytes(shape)
    packed = partial(gzip.compress, compresslevel=1) if path.suffix == ".gz" else bytes
    path.write_bytes(packed(plain + bytes(most)))
    assert read(path)[0].shape == shape
    path.write_bytes(packed(plain + bytes(most + 1)))
    with pytest.raises(InputError, match=r"where (the|its) header"):
        read(path)


def test_nobody_pads_a_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "X.nii"
    header = header_of((480, 480, 480))
    path.write_bytes(header)
    end = 544 + 480**3
    os.truncate(path, end + (1 << 20))  # sparse
    assert read(path)[0].shape == (480, 480, 480)
    os.truncate(path, end + (1 << 20) + 1)
    with pytest.raises(InputError, match="where its header accounts for"):
        read(path)


@pytest.mark.parametrize("name", ["X.nii", "X.nii.gz"])
def test_a_header_that_promises_a_part_of_the_voxels_is_damaged(tmp_path: Path, name: str) -> None:
    """Of a small image too: its other half is no padding."""
    for place, value in ((70, 256), (46, 12)):  # int8, and half the slices
        data = bytearray(plain_bytes((24, 24, 24)))
        data[place : place + 2] = value.to_bytes(2, "little")
        if place == 70:
            data[72:74] = (8).to_bytes(2, "little")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        with pytest.raises(InputError, match=r"where (the|its) header"):
            read(tmp_path / name)


def test_a_member_of_a_stream_may_end_within_the_header(tmp_path: Path) -> None:
    plain = plain_bytes()
    data = gzip.compress(plain[:100]) + gzip.compress(plain[100:])
    (tmp_path / "X.nii.gz").write_bytes(data)
    assert read(tmp_path / "X.nii.gz")[0].shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("shape", "dtype", "found"),
    [
        ((4096, 4096, 4096), np.uint8, "a volume of shape 4096x4096x4096"),
        ((1024, 1024, 1024), np.float64, "a volume of shape 1024x1024x1024"),
        ((512, 512, 512), np.float64, "1073741824 bytes of voxels"),
        ((512, 512, 512), np.float32, "bytes.* that the header promises|where the header promises"),
        ((1, 1, 1, 3_000_000), np.uint8, "(cannot hold the|where the header promises) 3000544"),
    ],
)
def test_a_promise_that_nothing_keeps_takes_no_memory(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, found: str
) -> None:
    for name, data in (
        ("X.nii", header_of(shape, dtype)),
        ("X.nii.gz", gzip.compress(header_of(shape, dtype))),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        for check in (partial(read, path), partial(count_frames, path, data)):
            with pytest.raises(InputError, match=found):
                check()
            assert traced_peak(check) < 3 << 20


def test_voxels_that_begin_out_of_reach_are_not_looked_for(tmp_path: Path) -> None:
    data = bytearray(plain_bytes())
    data[108:112] = np.float32(96 << 20).tobytes()
    path = tmp_path / "X.nii.gz"
    path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(InputError, match="from byte 100663296 on"):
        read(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("shape", "frames"),
    [((5, 4, 3), 1), ((5, 4, 3, 1), 1), ((5, 4, 3, 4), 4), ((5, 4, 3, 2, 1), 2)],
)
def test_frames_are_counted_where_they_are_all_there(
    suffix: str, shape: tuple[int, ...], frames: int
) -> None:
    plain = plain_bytes(shape)
    packed = gzip.compress if suffix == ".nii.gz" else bytes
    path = Path(f"X{suffix}")
    assert count_frames(path, packed(plain)) == frames
    with pytest.raises(InputError, match=f"{len(plain) - 1} bytes where the header promises"):
        count_frames(path, packed(plain[:-1]))


def test_frames_of_a_damaged_stream_are_not_counted(packed: bytes) -> None:
    damaged = bytearray(packed)
    damaged[-6] ^= 1
    for data in (packed[:-1], packed[: len(packed) // 2], bytes(damaged)):
        with pytest.raises(InputError, match=r"X\.nii\.gz: found a damaged or truncated gzip"):
            count_frames(Path("X.nii.gz"), data)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"\x1f\x8bnot gzip at all", b"no image" * 99]
)
def test_frames_of_what_is_no_image_are_not_counted(content: bytes) -> None:
    with pytest.raises(InputError, match=r"X\.nii\.gz: found .*fetch or convert"):
        count_frames(Path("X.nii.gz"), content)
