"""NIfTI files with fresh headers: of an input's header only its geometry is carried over."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.nifti1 import Nifti1Header

from runtime.atomic import write_bytes
from runtime.grid import Grid
from runtime.labels import LabelMap
from runtime.nifti import INTENT_NAME

GZIP_LEVEL: Final = 1
Write = Callable[[Path, bytes], None]


def write_label_map(path: Path, labels: LabelMap, grid: Grid, write: Write = write_bytes) -> str:
    """Write a uint8 label map with a fresh header on ``grid``; atomic; ``.nii`` or ``.nii.gz`` by
    name.

    Args:
        path: final name.
        labels: uint8 (X, Y, Z) in file order, values as they shall stand on disk.
        grid: geometry to write; nothing else of an input header is carried over.
        write: takes the path and the file's bytes.

    Returns:
        SHA-256 of the file's bytes.

    Raises:
        OutputError: it cannot be written.
    """
    return _write(path, labels, grid, write)


def write_probabilities(
    path: Path, probabilities: npt.NDArray[np.float32], grid: Grid, write: Write = write_bytes
) -> str:
    """Write float32 class probabilities (X, Y, Z, classes); otherwise as `write_label_map`."""
    return _write(path, probabilities, grid, write)


def write_image(path: Path, voxels: npt.NDArray[Any], grid: Grid, mark: str = "") -> str:
    """Write one modality (X, Y, Z), any NIfTI dtype, with a mark of up to 15 letters instead of
    ours; otherwise as `write_label_map`.
    """
    return _write(path, voxels, grid, write_bytes, mark)


def _write(
    path: Path, voxels: npt.NDArray[Any], grid: Grid, write: Write, mark: str = INTENT_NAME
) -> str:
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    header = Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_zooms(grid.spacing + (1.0,) * (voxels.ndim - 3))
    header.set_qform(grid.qform if grid.qform is not None else grid.affine, grid.qform_code)
    header.set_sform(grid.sform if grid.sform is not None else grid.affine, grid.sform_code)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1.0, 0.0)
    if mark:
        header.set_intent("none", (), name=mark)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    # Voxels that lie in file order already are copied once.
    raw = b"".join((header.binaryblock, b"\0\0\0\0", np.ascontiguousarray(voxels.T).data))
    data = (
        igzip.compress(raw, compresslevel=GZIP_LEVEL, mtime=0) if path.name.endswith(".gz") else raw
    )
    write(path, data)
    return hashlib.sha256(data).hexdigest()
