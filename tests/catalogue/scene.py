"""A healthy case, a model and an output folder, for a row of the catalogue to spoil."""

import contextlib
import errno
import gzip
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from runtime.labels import MODALITIES
from runtime.manifest import MANIFEST, manifest_of

SHAPE = (36, 32, 20)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Where numbers lie in a NIfTI-1 header: nifti1.h.
OFFSETS = {
    "dim": 40, "datatype": 70, "bitpix": 72, "pixdim": 76, "vox_offset": 108, "slope": 112,
    "inter": 116, "units": 123, "qform_code": 252, "sform_code": 254, "quatern": 256,
    "qoffset": 268, "srow": 280, "magic": 344, "extension": 348,
}  # fmt: skip

Outcome = Literal["error", "corrected", "accepted"]
Area = Literal["Files", "Headers", "Cases", "Labels", "Models", "Runs"]


def brain() -> npt.NDArray[np.bool_]:
    """An ellipsoid that leaves a margin of background."""
    place = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    radius = np.array(SHAPE)[:, None, None, None] * 0.4
    inside: npt.NDArray[np.bool_] = ((place / radius) ** 2).sum(axis=0) < 1
    return inside


def voxels_of(modality: str) -> npt.NDArray[np.int16]:
    """Intensities of one modality: noise about 500 in the brain, 0 outside."""
    rng = np.random.default_rng(MODALITIES.index(modality))
    noise = rng.normal(500, 120, SHAPE).clip(20, 1500)
    return (noise * brain()).astype(np.int16)


def truth() -> npt.NDArray[np.uint8]:
    """Labels 1, 2 and 4 of BraTS 2020 in nested boxes."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:26, 10:22, 5:15] = 2
    labels[14:22, 12:20, 7:13] = 4
    labels[16:20, 14:18, 8:12] = 1
    return labels


def nifti(voxels: npt.NDArray[Any], affine: npt.NDArray[Any] = LPS, kind: Any = None) -> bytes:
    """A plain file as nibabel writes it."""
    image = (kind or nib.Nifti1Image)(voxels, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return bytes(image.to_bytes())


@dataclass
class Scene:
    """What a row works with.

    Attributes:
        root: folder of everything.
        case: folder of the healthy case X, four modalities and its truth.
        model: a copy of a model directory.
        out: where predictions go; not there yet.
        given: what the command is asked to segment.
        flags: added to the command.
        around: entered while the command runs.
        turn: brings the label map (X, Y, Z) that comes out to the healthy case's order; None leaves
            it.
    """

    root: Path
    case: Path
    model: Path
    out: Path
    given: Path
    flags: list[str] = field(default_factory=list)
    around: list[Any] = field(default_factory=list)
    turn: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None

    def path(self, modality: str = "t1", suffix: str = ".nii.gz") -> Path:
        return self.case / f"X_{modality}{suffix}"

    def write(self, plain: bytes, modality: str = "t1") -> None:
        """Put a file in a modality's place, compressed."""
        self.path(modality).write_bytes(gzip.compress(plain, 1))

    def put(self, voxels: npt.NDArray[Any], modality: str = "t1", **how: Any) -> None:
        self.write(nifti(voxels, **how), modality)

    def edit(self, change: Callable[[bytearray], Any], *modalities: str) -> None:
        """Change the uncompressed bytes of some modalities; of t1 unless told."""
        for modality in modalities or ("t1",):
            raw = bytearray(gzip.decompress(self.path(modality).read_bytes()))
            self.write(bytes(change(raw) or raw), modality)

    def field(self, name: str, form: str, *values: float, at: int = 0, every: bool = False) -> None:
        """Overwrite numbers in the header of t1, or of all modalities."""

        def change(raw: bytearray) -> None:
            struct.pack_into(f"<{len(values)}{form}", raw, OFFSETS[name] + at, *values)

        self.edit(change, *(MODALITIES if every else ()))

    def affine(self, affine: npt.NDArray[Any], modality: str = "t1") -> None:
        self.put(voxels_of(modality), modality, affine=affine)

    def manifest(self) -> None:
        """Vouch for the model directory as it is now."""
        (self.model / MANIFEST).write_bytes(manifest_of(self.model))


def scene(root: Path, model: Path) -> Scene:
    """A fresh one, in which nothing is wrong."""
    case = root / "data" / "X"
    case.mkdir(parents=True)
    copied = Path(shutil.copytree(model, root / "model"))
    made = Scene(root, case, copied, root / "out", case)
    for modality in MODALITIES:
        made.put(voxels_of(modality), modality)
    made.write(nifti(truth()), "seg")
    return made


def patched(target: Any, name: str, value: Any) -> Callable[[Scene], None]:
    """While the command runs, something of the system is another."""

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, name, value)
            yield

    return lambda s: s.around.append(around())


def denied(call: str, name: str) -> Callable[[Scene], None]:
    """A call of the system that is refused for one name, as to a user without rights; root has all
    of them, so that permissions alone would not do.
    """
    real = getattr(os, call)

    def refuse(path: Any = ".", *args: Any, **how: Any) -> Any:
        if isinstance(path, str | Path) and Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **how)

    return patched(os, call, refuse)


@dataclass(frozen=True)
class Row:
    """One kind of bad input.

    Attributes:
        area: the part of the table it stands in.
        name: what is wrong, for people.
        spoil: brings it about.
        outcome: what becomes of it.
        code: exit code of the command.
        told: each must be in the error, or in a warning of the sidecar.
        same: whether the label map must be the healthy case's, voxel by voxel.
        command: which command meets it; "read" is the reader alone.
    """

    area: Area
    name: str
    spoil: Callable[[Scene], Any]
    outcome: Outcome = "error"
    code: int = 3
    told: tuple[str, ...] = ()
    same: bool = True
    command: Literal["infer", "eval", "read"] = "infer"


def error(area: Area, name: str, spoil: Callable[[Scene], Any], *told: str, **more: Any) -> Row:
    return Row(area, name, spoil, "error", told=told, **more)


def corrected(area: Area, name: str, spoil: Callable[[Scene], Any], *told: str, **more: Any) -> Row:
    return Row(area, name, spoil, "corrected", code=0, told=told, **more)


def accepted(area: Area, name: str, spoil: Callable[[Scene], Any], **more: Any) -> Row:
    return Row(area, name, spoil, "accepted", code=0, **more)
