"""Where a NIfTI header puts its voxels: sform, qform or neither, in millimetres.

After nifti1_io.c, the reference code of the standard (https://nifti.nimh.nih.gov).
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes

from runtime.errors import InputError
from runtime.grid import Grid, corner_distance

_Affine = npt.NDArray[np.float64]

# What rounding to float32 can bend: cosine of the angle between two axes.
_MAX_SHEAR: Final = 0.01
_LAST_CODE: Final = 5  # "template other"
# In voxels. A quaternion near half a turn keeps but half of the digits of float32.
_MAX_DISAGREEMENT: Final = 0.5
_METRE, _MILLIMETRE, _MICRON = 1, 2, 3
_TO_MM: Final = {_METRE: 1e3, _MICRON: 1e-3}
# Voxels of a head are about a millimetre; what is told in other units must come out near it.
_PLAUSIBLE_MM: Final = (0.05, 20.0)


def read_grid(path: Path, fields: Any, shape: tuple[int, int, int], warnings: list[str]) -> Grid:
    """Where a header puts its voxels.

    The sform where it has one, else the qform, else the voxel sizes alone, as nibabel does; but a
    form of no use is passed over where the other is sound.

    Args:
        path: of the file, for the error.
        fields: of the header, by name: pixdim, units, qform_code, quatern, qoffset, sform_code and
            srow are read.
        shape: (X, Y, Z) in voxels.
        warnings: takes what had to be corrected.

    Returns:
        The grid in mm; `qform` and `sform` are those that can be used.

    Raises:
        InputError: no affine of use, no other than one with shear, or two that disagree on the
            axes.
    """
    q_code = _code("qform", int(fields["qform_code"]), warnings)
    s_code = _code("sform", int(fields["sform_code"]), warnings)
    qform = _qform(fields) if q_code > 0 else None
    sform = _sform(fields) if s_code > 0 else None
    if (q_code > 0 or s_code <= 0) and min(float(size) for size in fields["pixdim"][1:4]) < 0:
        warnings.append("its header has negative voxel sizes; their sign was left aside")
    # Of two forms one may be of no use: then it is as if it were not there.
    if sform is not None and q_code > 0 and (qform is None or not _is_sound(qform)):
        warnings.append("its qform is unusable and was left aside for its sform")
        qform, q_code = None, 0
    if sform is not None and qform is not None and not _is_square(sform) and _is_square(qform):
        warnings.append("its sform is sheared or singular and was left aside for its qform")
        sform, s_code = None, 0
    affine = sform if sform is not None else qform
    if q_code <= 0 and s_code <= 0:
        warnings.append(
            "its header says nothing of its orientation; taken as radiological (left is high), "
            "as other readers do"
        )
        affine = _plain(fields, shape)
    if affine is None or not _is_sound(affine):
        raise InputError(
            path,
            found="an affine that is singular or not finite",
            expected="an undamaged NIfTI file (.nii or .nii.gz)",
            remedy="fetch or convert the file again",
        )
    shear = _shear(affine)
    if shear >= _MAX_SHEAR:
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


def _code(form: str, code: int, warnings: list[str]) -> int:
    """Of a form; what the standard does not know says at least that there is one."""
    if code <= _LAST_CODE:
        return max(code, 0)
    warnings.append(f"its {form} has the unknown code {code}; taken as 2, aligned")
    return 2


def _is_sound(affine: _Affine) -> bool:
    """Finite, and no two axes in one direction; in whatever unit."""
    with np.errstate(all="ignore"):
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        volume = abs(np.linalg.det(affine[:3, :3])) / sizes.prod()
        largest = np.abs(affine).max()
    return bool(sizes.min() > 1e-9 and volume > 1e-3 and largest < 1e9)


def _is_square(affine: _Affine) -> bool:
    return _is_sound(affine) and _shear(affine) < _MAX_SHEAR


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
    # As nibabel and ITK have it: a size has no sign. qfac, pixdim[0], is where a flip belongs.
    spacing = np.abs(np.array(fields["pixdim"][1:4], np.float64))
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
    spacing = np.abs(np.array(fields["pixdim"][1:4], np.float64)) * (-1, 1, 1)
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
