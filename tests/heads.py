"""Heads that never were on a disk, in every orientation that a file can have."""

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from runtime.case import Case, Source
from runtime.labels import LabelMap
from runtime.nifti import Grid, Image, Volume

ORIENTATIONS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for signs in product((0, 1), repeat=3)
]


def volume_of(
    images: dict[str, npt.NDArray[np.int16]], grid: Grid, case_id: str = "Case_1"
) -> Volume:
    case = Case(case_id, {name: Source(Path(f"{name}.nii.gz")) for name in images})
    stored = {name: Image(voxels, f"hash of {name}", Path(name)) for name, voxels in images.items()}
    return Volume(case, stored, grid)


def stored_as(code: str, volume: Volume, labels: LabelMap) -> tuple[Volume, LabelMap]:
    """The same head in another file order, by nibabel's own reorientation of whole images."""

    def turn(voxels: npt.NDArray[np.generic]) -> nib.Nifti1Image:
        image = nib.Nifti1Image(voxels, volume.grid.affine)
        target = nib.orientations.axcodes2ornt(tuple(code))
        current = nib.io_orientation(image.affine)
        return image.as_reoriented(nib.orientations.ornt_transform(current, target))

    turned = {name: turn(image.voxels) for name, image in volume.images.items()}
    first = next(iter(turned.values()))
    assert "".join(nib.aff2axcodes(first.affine)) == code
    images = {name: np.asarray(image.dataobj) for name, image in turned.items()}
    shape = (first.shape[0], first.shape[1], first.shape[2])
    new = volume_of(images, Grid.from_affine(shape, first.affine), volume.case.case_id)
    return new, np.asarray(turn(labels).dataobj)
