"""The tumour in three dimensions, inside a translucent brain, drawn by NiiVue in the browser."""

from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import streamlit as st
from scipy import ndimage

from runtime.app.desk import Result
from runtime.labels import Label
from runtime.measure import brain_of
from runtime.surface import Mask, bounding_box

# Of each label: the one of NiiVue's own colour maps that comes nearest to its colour in the slices,
# the value at which it does, and how opaque it is: what lies outside must not hide what is inside.
_COLOURS: Final = {
    Label.ED: ("green", 255, 0.12),
    Label.NCR: ("blue2cyan", 200, 1.0),
    Label.ET: ("warm", 140, 0.6),
}
# Of 255: the brain's surface shows, and what is inside shows through it.
_GHOST: Final = 160
_SHELL_VOXELS: Final = 2
_HEIGHT: Final = 560


def show_3d(result: Result, key: str) -> None:
    """Show the labels inside the brain's surface; it turns with the mouse."""
    try:
        from niivue_component import niivue_viewer
    except ImportError:
        st.info("The 3D view needs the package niivue-streamlit: install brats-deploy[app].")
        return
    prediction = result.prediction
    affine = prediction.volume.grid.affine
    present = brain_of(prediction.volume) | (prediction.labels != 0)
    box = bounding_box(present) if present.any() else (slice(0, None),) * 3
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [one.start for one in box]
    labels = prediction.labels[box]
    shown = {label: labels == label for label in _COLOURS}
    # Of the edema its outside: a ray that runs through all of it sees nothing else.
    shown[Label.ED] &= ~ndimage.binary_erosion(labels != 0, iterations=_SHELL_VOXELS)
    # NiiVue draws a square and leaves the rest of a wider place empty.
    _, middle, _ = st.columns([1, 4, 1])
    with middle:
        niivue_viewer(
            nifti_data=_file(_shell(present[box]), moved),
            filename="brain.nii",
            overlays=[
                {
                    "data": _file(np.where(shown[label], np.uint8(value), np.uint8(0)), moved),
                    "name": f"{label.name}.nii",
                    "colormap": colour,
                    "opacity": opacity,
                }
                for label, (colour, value, opacity) in _COLOURS.items()
                if shown[label].any()
            ],
            view_mode="3d",
            styled=False,
            settings={
                "crosshair": False,
                "radiological": True,
                "colorbar": False,
                "interpolation": True,
            },
            height=_HEIGHT,
            update_interval_ms=None,
            key=key,
        )
    st.caption(
        "Drag to turn, wheel to zoom. Enhancing tumour orange, necrosis blue, the outside of the "
        "edema green."
    )


def _shell(brain: Mask) -> npt.NDArray[np.uint8]:
    """The brain's surface, two voxels thick and faint: solid, it would hide what is inside."""
    solid = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=2))
    shell = solid & ~ndimage.binary_erosion(solid, iterations=_SHELL_VOXELS)
    smoothed: npt.NDArray[np.float32] = ndimage.gaussian_filter(shell.astype(np.float32), 0.8)
    return np.rint(_GHOST * smoothed).astype(np.uint8)


def _file(voxels: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64]) -> bytes:
    """A NIfTI file whose header says that 255 is white: else the brightest voxel would be."""
    image = nib.Nifti1Image(voxels, affine)
    image.header["cal_min"], image.header["cal_max"] = 0, 255
    data: bytes = image.to_bytes()
    return data
