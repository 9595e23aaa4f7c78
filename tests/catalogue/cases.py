"""Rows: cases whose files do not belong together or hold no brain, and label maps that are none."""

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from runtime.labels import MODALITIES
from tests.catalogue.scene import (
    LPS,
    SHAPE,
    Row,
    Scene,
    accepted,
    corrected,
    error,
    nifti,
    truth,
    voxels_of,
)

T1 = "X_t1.nii.gz"


def with_voxels(change: Any, dtype: str = "float32", every: bool = False) -> Any:
    """Change the voxels of t1, or of all modalities, in place."""

    def spoil(s: Scene) -> None:
        for modality in MODALITIES if every else ("t1",):
            voxels = voxels_of(modality).astype(dtype)
            changed = change(voxels)
            s.put(voxels if changed is None else changed, modality)

    return spoil


def setting(value: float, share: float = 0.0) -> Any:
    def change(voxels: npt.NDArray[Any]) -> None:
        flat = voxels.reshape(-1)
        flat[:: int(1 / share)] = value
        if not share:
            raise ValueError("a share of voxels")

    def one(voxels: npt.NDArray[Any]) -> None:
        voxels[18, 16, 10] = value

    return with_voxels(change if share else one)


def setting_64(s: Scene, value: float) -> None:
    voxels = voxels_of("t1").astype(np.float64)
    voxels[18, 16, 10] = value
    s.put(voxels)


def zscored(voxels: npt.NDArray[Any]) -> None:
    inside = voxels[voxels != 0]
    voxels[voxels != 0] = (inside - inside.mean()) / inside.std()


def on_the_skull(voxels: npt.NDArray[Any]) -> None:
    voxels[...] += np.random.default_rng(9).integers(1, 400, voxels.shape)


def moved(by: float) -> Any:
    affine = LPS.copy()
    affine[:3, 3] += by
    return lambda s: s.affine(affine)


def ras(s: Scene) -> None:
    """The same brain, stored from left to right and from back to front."""
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = [-(SHAPE[0] - 1), -(SHAPE[1] - 1), 0]
    for modality in MODALITIES:
        s.put(voxels_of(modality)[::-1, ::-1], modality, affine=affine)
    s.turn = lambda labels: labels[::-1, ::-1]


def anisotropic(*flags: str) -> Any:
    def spoil(s: Scene) -> None:
        for modality in MODALITIES:
            s.affine(np.diag([-1.0, -1, 5, 1]), modality)
        s.flags += flags

    return spoil


def other_patients(s: Scene) -> None:
    for name, modality in zip("ABCD", MODALITIES, strict=True):
        s.path(modality).rename(s.case / f"{name}_{modality}.nii.gz")


def huge(s: Scene) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 512))
    header.set_data_dtype(np.uint8)
    header.set_sform(LPS, 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    s.given = s.root / "X_t1.nii"
    with s.given.open("wb") as file:
        file.write(header.binaryblock)
        file.truncate(352 + 512**3)


def small(s: Scene) -> None:
    for modality in MODALITIES:
        s.put(voxels_of(modality)[3:33, 2:30, 2:18], modality)


CASES: list[Row] = [
    error("Cases", "a missing modality", lambda s: s.path("t2").unlink(), "no t2 image"),
    error(
        "Cases", "a modality twice (.nii beside .nii.gz)",
        lambda s: s.path(suffix=".nii").write_bytes(nifti(voxels_of("t1"))), "modality t1 twice",
    ),
    error(
        "Cases", "the same bytes under two modalities",
        lambda s: shutil.copy(s.path("t1"), s.path("t1ce")), "X_t1ce.nii.gz", "same bytes",
    ),
    error(
        "Cases", "the same image under two modalities, packed anew",
        lambda s: s.path("t1ce").write_bytes(
            gzip.compress(gzip.decompress(s.path("t1").read_bytes()), 9)
        ),
        "X_t1ce.nii.gz", "same voxels",
    ),
    error("Cases", "one modality each of four patients", other_patients, str(Path("data", "X"))),
    error(
        "Cases", "another shape", lambda s: s.put(voxels_of("t1")[:-1]), T1, "shape 35x32x20",
        "co-register",
    ),
    accepted("Cases", "affines that differ by 1e-6 mm", moved(1e-6)),
    error("Cases", "affines that differ by 0.5 mm", moved(0.5), T1, "0.866 mm", "co-register"),
    error("Cases", "affines that differ by 50 mm", moved(50), T1, "86.6 mm", "co-register"),
    error("Cases", "NaN in one voxel", setting(np.nan), T1, "1 voxels that are NaN"),
    error("Cases", "NaN in 10% of the voxels", setting(np.nan, 0.1), T1, "2304 voxels"),
    error("Cases", "an infinite voxel", setting(-np.inf), T1, "1 voxels that are NaN or infinite"),
    error("Cases", "a voxel of 1e300", lambda s: setting_64(s, 1e300), T1, "too large"),
    error(
        "Cases", "voxels of about 1e154",
        with_voxels(lambda v: v * 1e152, "float64", every=True), "X_flair.nii.gz", "too large",
    ),
    error("Cases", "a modality of zeros", with_voxels(np.zeros_like), T1, "an image of zeros"),
    error(
        "Cases", "a case of zeros", with_voxels(lambda v: np.zeros_like(v), every=True),
        "same bytes",
    ),
    error(
        "Cases", "a constant modality", with_voxels(lambda v: np.where(v != 0, 700, v)), T1,
        "constant",
    ),
    accepted(
        "Cases", "some negative voxels", with_voxels(lambda v: np.where(v > 900, -5, v)), same=False
    ),
    corrected(
        "Cases", "a skull that was not stripped", with_voxels(on_the_skull, every=True),
        "is the skull on?", same=False,
    ),
    corrected(
        "Cases", "intensities z-scored already", with_voxels(zscored, every=True),
        "normalised already?",
    ),
    error("Cases", "a single slice", with_voxels(lambda v: v[:, :, 10:11], every=True),
          "a single slice"),
    accepted("Cases", "512 voxels along each axis", huge, command="read"),
    accepted("Cases", "a volume smaller than the patch", small, same=False),
    accepted("Cases", "RAS where the model has LPS", ras),
    error("Cases", "slices 5 mm apart", anisotropic(), "1x1x5 mm", "--force-spacing"),
    corrected(
        "Cases", "slices 5 mm apart, with --force-spacing", anisotropic("--force-spacing"),
        "is not the model's",
    ),
    error(
        "Cases", "a folder without images", lambda s: [p.unlink() for p in s.case.iterdir()],
        "no MR images",
    ),
    error(
        "Cases", "one case in two folders",
        lambda s: (shutil.copytree(s.case, s.root / "data" / "again"), _give(s, "data")),
        "case X once more", code=6,
    ),
]  # fmt: skip


def _give(s: Scene, name: str) -> None:
    s.given = s.root / name


def labelled(labels: npt.NDArray[Any], **how: Any) -> Any:
    return lambda s: s.put(labels, "seg", **how)


def interpolated() -> npt.NDArray[np.float32]:
    labels = truth().astype(np.float32)
    labels[9] = 0.7 * labels[9] + 0.3 * labels[10]
    return labels


def three_and_four() -> npt.NDArray[np.uint8]:
    labels = truth()
    labels[labels == 1] = 3
    return labels


SEG = "X_seg.nii.gz"
LABELS: list[Row] = [
    accepted("Labels", "whole numbers stored as float", labelled(truth().astype("f4")),
             command="eval"),
    corrected("Labels", "a qform that strays from its sform",
              lambda s: s.edit(lambda raw: struct.pack_into("<f", raw, 268, 8.0), "seg"),
              "X_seg.nii.gz: ", "disagree by up to 8 mm", command="eval"),
    error("Labels", "interpolated labels", labelled(interpolated()), SEG, command="eval"),
    error("Labels", "3 and 4 together", labelled(three_and_four()), SEG, command="eval"),
    error("Labels", "a value of 7", labelled(truth() * 7), SEG, "7", command="eval"),
    error("Labels", "another shape", labelled(truth()[:-1]), SEG, command="eval"),
    error("Labels", "the affine of another case", labelled(truth(), affine=np.diag([-1.0, -1, 1, 1])
          + np.eye(4, k=3) * 9), SEG, command="eval"),
    error("Labels", "a damaged file", lambda s: s.path("seg").write_bytes(b"none"), SEG,
          command="eval"),
]  # fmt: skip
