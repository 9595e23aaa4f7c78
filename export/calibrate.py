"""How far the activations of a network reach, over windows of whole cases: the limits that int8 is
to tell apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch

from export.emulate import EmulatedGraph
from export.int8 import read_by_convolutions
from export.parity import ParityCase
from runtime.model_card import ModelCard, Shape3
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import prepare
from runtime.windows import plan_windows

WINDOWS: Final = 8
"""Most windows of a case."""

Window = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CalibrationCases:
    """Cases whose activations set the limits.

    Attributes:
        volumes: read one after another.
        source: where they come from, for the record.
        shared: whether the gate has no other cases than these, so that it judges int8 on what it
            was made for.
    """

    volumes: Iterable[Volume]
    source: str
    shared: bool = False


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        limits: the largest |value| of each tensor of `int8.read_by_convolutions`.
        cases: hashes of the images of each case, by modality.
        record: for parity.json.
    """

    limits: dict[str, float]
    cases: tuple[dict[str, str], ...]
    record: dict[str, Any]


def calibrate(
    model: onnx.ModelProto,
    card: ModelCard,
    cases: CalibrationCases,
    told: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Run a network over windows of cases and note the largest |value| of what it convolves.

    Nothing is clipped at the limits that this gives. Limits of the least squared error clip the
    largest 0.1% and did worse on whole cases: what is rare in an activation is tumour.

    Args:
        model: fp32, as `export.fuse` leaves it.
        card: says how cases are prepared and how large a window is.
        cases: at least one.
        told: called with a line for each case, which may take a minute.

    Raises:
        InputError: a case cannot be used.
        ValueError: no case, or an activation that is not finite.
    """
    graph = EmulatedGraph(model)
    limits = dict.fromkeys(read_by_convolutions(model), 0.0)

    def see(name: str, tensor: torch.Tensor) -> None:
        if name in limits:
            largest = float(tensor.abs().max())
            if not np.isfinite(largest):
                raise ValueError(f"tensor {name} is not finite")
            limits[name] = max(limits[name], largest)

    used: list[dict[str, Any]] = []
    for volume in cases.volumes:
        told(f"calibration on {volume.case.case_id}")
        count = 0
        for window in windows_of(volume, card):
            graph(window, see)
            count += 1
        used.append(
            {
                "case_id": volume.case.case_id,
                "inputs": {name: image.sha256 for name, image in volume.images.items()},
                "windows": count,
            }
        )
    if not used:
        raise ValueError("no case to calibrate on")
    # A layer that never fires is 0 whatever its scale.
    limits = {name: limit or 1.0 for name, limit in limits.items()}
    record = {
        "source": cases.source,
        "apart_from_gate": not cases.shared,
        "limits": "largest |value|",
        "cases": used,
    }
    return Calibration(limits, tuple(dict(case["inputs"]) for case in used), record)


def apart_from(
    cases: Iterable[ParityCase], used: Iterable[Mapping[str, str]]
) -> Iterator[ParityCase]:
    """The cases that nothing was calibrated on.

    Args:
        cases: read one at a time.
        used: hashes of the images of each case that was, by modality.
    """
    known = [set(case.values()) for case in used]
    for case in cases:
        if {image.sha256 for image in case.volume.images.values()} not in known:
            yield case


def windows_of(volume: Volume, card: ModelCard, most: int = WINDOWS) -> Iterator[Window]:
    """Windows that lie side by side over a case's brain box, at most ``most`` of them, evenly
    spread: float32 (1, C, X, Y, Z), prepared as for inference.

    Raises:
        InputError: as `runtime.preprocess.prepare`.
    """
    voxels = prepare(volume, card, NumpyOps(), card.patch).voxels
    x, y, z = voxels.shape[1:]
    shape: Shape3 = (x, y, z)
    starts = plan_windows(shape, card.patch, 0.0).starts
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int))
    for start in starts[chosen]:
        box = tuple(
            slice(int(low), int(low) + size) for low, size in zip(start, card.patch, strict=True)
        )
        yield np.ascontiguousarray(voxels[(slice(None), *box)])[None]
