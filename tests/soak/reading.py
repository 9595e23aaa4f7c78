"""Reads hostile files in a process of its own, and measures each: what came of it, time and memory.

python -m tests.soak.reading headers SEED COUNT SECONDS MEGABYTES
python -m tests.soak.reading bombs SECONDS MEGABYTES

Prints figures as JSON.
"""

import json
import os
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from types import FrameType
from typing import Any

import nibabel as nib
import numpy as np

from runtime.case import Case, Source
from runtime.errors import BratsError
from runtime.grid import Grid, corner_distance
from runtime.nifti import Volume, load, load_label_map
from runtime.nifti_writer import write_label_map
from tests.soak.bar import memory_limit, status_bytes
from tests.soak.bombs import BOMBS, HEAVY, SMALL, image
from tests.soak.hostile_headers import mutated

HANGS = 20  # seconds after which a file is given up
SLACK = 256 << 20  # mapped, not used: stacks and arenas of threads


class HangError(Exception):
    """Neither read nor refused."""


@dataclass
class Measured:
    """Of one file after another.

    Attributes:
        results: how often each thing came of it.
        faults: what must not have come of it, the first twenty.
        seconds, peak: of the slowest and of the largest, with its name.
    """

    limit_s: float
    limit_bytes: int
    results: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: tuple[float, str] = (0.0, "")
    peak: tuple[int, str] = (0, "")

    def read(self, name: str, body: Callable[[], str]) -> str:
        """Once; and, where another load may have made it slow, twice more, of which the best
        counts.
        """
        result, seconds, peak = _once(body)
        for _ in range(2):
            if seconds <= self.limit_s or result.startswith("fault"):
                break
            seconds = min(seconds, _once(body)[1])
        self.seconds = max(self.seconds, (seconds, name))
        self.peak = max(self.peak, (peak, name))
        if seconds > self.limit_s:
            result = f"fault: {seconds:.2f} s"
        elif peak > self.limit_bytes and not result.startswith("fault"):
            result = f"fault: {peak >> 20} MiB"
        self.results[result.partition(":")[0]] += 1
        if result.startswith("fault") and len(self.faults) < 20:
            self.faults.append(f"{name}: {result}")
        return result

    def figures(self) -> dict[str, Any]:
        return {
            "results": dict(sorted(self.results.items())),
            "faults": self.faults,
            "slowest_s": round(self.seconds[0], 4),
            "slowest": self.seconds[1],
            "peak_mib": round(self.peak[0] / 2**20, 1),
            "largest": self.peak[1],
        }


def _once(body: Callable[[], str]) -> tuple[str, float, int]:
    # Sets the peak back to what is in use now.
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    signal.alarm(HANGS)
    start, busy = perf_counter(), process_time()
    try:
        result = body()
    except BratsError:
        result = "refused"
    except BaseException as error:
        result = f"fault: {type(error).__name__}: {str(error)[:200]}"
    seconds, busy = perf_counter() - start, process_time() - busy
    signal.alarm(0)
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        # Others hold the cores: what was waited for them is not the reader's.
        seconds = min(seconds, busy)
    return result, seconds, max(0, status_bytes("VmHWM") - before)


def fault_of(volume: Volume) -> str | None:
    """What makes a volume that was read no valid one."""
    grid = volume.grid
    if not (np.isfinite(grid.affine).all() and abs(np.linalg.det(grid.affine[:3, :3])) > 0):
        return "an affine that is singular or not finite"
    if not (np.isfinite(grid.spacing).all() and min(grid.spacing) > 0):
        return f"a spacing of {grid.spacing}"
    for one in volume.images.values():
        voxels = one.voxels
        if voxels.ndim != 3 or voxels.shape != grid.shape or min(voxels.shape) < 1:
            return f"voxels of shape {voxels.shape} on a grid of {grid.shape}"
        if voxels.dtype.kind not in "iuf" or not voxels.dtype.isnative:
            return f"voxels of type {voxels.dtype.str}"
        if not np.isfinite(voxels).all():
            return "voxels that are not finite"
    return None


def same_as_nibabel(path: Path, volume: Volume) -> bool:
    """Whether nibabel, where it reads the file at all, reads the same values at the same places.

    What was corrected to be read, and told, nibabel takes in its own way or as it stands.
    """
    if getattr(volume, "warnings", ()):
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nib.load(path)
            theirs = np.asarray(image.dataobj)
            placed = Grid.from_affine(volume.grid.shape, np.asarray(image.affine, np.float64))
    except Exception:
        return True
    ours = volume.images["t1"].voxels
    if not corner_distance(volume.grid, placed) <= 0.05 * min(volume.grid.spacing):
        return False
    with np.errstate(all="ignore"):
        return theirs.size == ours.size and bool(
            np.allclose(theirs.reshape(ours.shape, order="F"), ours, rtol=1e-5, atol=1e-37)
        )


def read_one(path: Path, way: int) -> tuple[str, Volume | None]:
    """By one of the doors: a modality, a frame of a 4D file, a label map."""
    if way == 0:
        load_label_map(path)
        return "read", None
    volume = load(Case("X", {"t1": Source(path, 0 if way == 1 else None)}))
    fault = fault_of(volume)
    if way == 2 and not fault:
        # What can be read can be written where it lies.
        written = path.with_name("Y_seg.nii.gz")
        write_label_map(written, np.zeros(volume.grid.shape, np.uint8, order="F"), volume.grid)
        written.unlink()
    return f"fault: {fault}" if fault else "read", volume


def headers(folder: Path, measured: Measured, seed: int, count: int) -> dict[str, Any]:
    """Files of the seed, by their number; each seed and number give the same file again."""
    others: list[str] = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        ending, data = mutated(rng)
        path = folder / f"X{ending}"
        path.write_bytes(data)
        way = int(rng.integers(12))
        found: list[Volume] = []

        def body(path: Path = path, way: int = way, found: list[Volume] = found) -> str:
            found.clear()
            result, volume = read_one(path, way)
            found.extend([volume] if volume else [])
            return result

        name = f"seed {seed}, number {number}"
        if measured.read(name, body) == "read" and found and not same_as_nibabel(path, found[0]):
            others.append(name)
        path.unlink()
    return {**measured.figures(), "other_than_nibabel": others}


def bombs(folder: Path, measured: Measured, heavy: Measured) -> dict[str, Any]:
    """The bombs, each of which must be refused, then what is heavy but may be read."""
    accepted = []
    for kind, files in ((measured, BOMBS), (heavy, HEAVY)):
        for name, build in files.items():
            path = folder / name
            build(path)
            result = kind.read(name, lambda path=path: read_one(path, 2)[0])  # type: ignore[misc]
            if result == "read" and kind is measured:
                accepted.append(name)
            path.unlink()
    return {"bombs": measured.figures(), "accepted": accepted, "heavy": heavy.figures()}


def _hangs(number: int, frame: FrameType | None) -> None:
    raise HangError


def main(arguments: list[str]) -> None:
    kind, *numbers = arguments
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What is imported and mapped by the first file is no file's own.
        (folder / "X.nii").write_bytes(image())
        assert load(Case("X", {"t1": Source(folder / "X.nii")})).grid.shape == SMALL
        limit_s, limit_bytes = float(numbers[-2]), int(numbers[-1]) << 20
        measured = Measured(limit_s, limit_bytes)
        with memory_limit(limit_bytes + SLACK):
            if kind == "headers":
                seed, count = map(int, numbers[:2])
                figures = headers(folder, measured, seed, count)
            else:
                figures = bombs(folder, measured, Measured(1.0, limit_bytes))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
