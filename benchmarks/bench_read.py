"""What does it cost to verify an image, over readers that only load it?

The four images of a case one after the other, each way in turn within each round, as stored and as
float32, where every voxel must be found finite.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from isal import igzip

from benchmarks.conftest import Report
from benchmarks.figures import figure, ratios
from benchmarks.scale import Scale
from benchmarks.stage_clock import inflated_alone
from runtime.case import Case, Source
from runtime.nifti import read_image

ROOM = 96 << 20  # bytes, enough for a case of BraTS in any type


def with_zlib(path: Path) -> object:
    return zlib.decompress(path.read_bytes(), wbits=31)


def with_nibabel(path: Path) -> object:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def in_one_call(path: Path) -> object:
    """igzip, into room that grows."""
    return igzip.decompress(path.read_bytes())


def into_room(path: Path) -> object:
    """igzip, into room that is taken at once: the fastest way that is at hand."""
    with igzip.open(io.BytesIO(path.read_bytes())) as stream:
        return stream.read(ROOM)


def verified(path: Path) -> object:
    return read_image(Source(path))


PEERS: tuple[Callable[[Path], object], ...] = (
    with_nibabel,
    with_zlib,
    in_one_call,
    into_room,
    inflated_alone,
)


@pytest.mark.parametrize("stored", ["as stored", "float32"])
def bench_read(
    benchmark: Any,
    report: Report,
    case: Case,
    tmp_path: Path,
    stored: str,
    scale: Scale,
    case_facts: dict[str, Any],
) -> None:
    paths = [source.path for source in case.images.values()]
    if stored == "float32":
        paths = [_as_float32(path, tmp_path / path.name) for path in paths]
    seconds: dict[str, list[float]] = {}

    def in_turn() -> None:
        for way in (*PEERS, verified):
            start = perf_counter()
            for path in paths:
                way(path)
            seconds.setdefault(way.__name__, []).append(perf_counter() - start)

    benchmark.pedantic(in_turn, rounds=scale.read_rounds, iterations=1, warmup_rounds=1)
    # The first round was to warm up.
    timed = {way: times[1:] for way, times in seconds.items()}
    peers = [way for way in timed if way != "verified"]
    report(
        "read",
        {
            "verified": figure(timed["verified"], "s"),
            **{way: figure(ratios(timed[way], timed["verified"]), "ratio") for way in peers},
        },
        stored=stored,
        seconds={way: median(times) for way, times in timed.items()},
        ours_over={
            way: np.quantile(np.divide(timed["verified"], timed[way]), [0.25, 0.5, 0.75]).tolist()
            for way in peers
        },
        **case_facts,
    )


def _as_float32(path: Path, copy: Path) -> Path:
    image: Any = nib.load(path)  # type: ignore[attr-defined]
    voxels = np.asarray(image.dataobj).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, image.affine), copy)  # type: ignore[attr-defined]
    return copy
