"""What does it cost to verify an image, over a reader that only inflates it?"""

import io
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import igzip

from runtime.case import Case, Source
from runtime.nifti import read_image
from runtime.nifti_header import HEADER_BYTES, parse_header

PAIRS = 25
ROOM = 96 << 20  # bytes, enough for a case of BraTS in any type


def fastest(path: Path) -> npt.NDArray[Any]:
    """Inflate with the same library into room that is taken at once, which is faster than letting
    it grow, and look at the voxels: no hash is made, and nothing is checked.
    """
    with igzip.open(io.BytesIO(path.read_bytes())) as stream:
        raw = stream.read(ROOM)
    header = parse_header(path, raw[:HEADER_BYTES])
    return np.frombuffer(raw, header.dtype, -1, header.offset)


def bench_read(benchmark: Any, case: Case) -> None:
    """The four images one after the other, each way in turn; the ratio is within each turn."""
    paths = [source.path for source in case.images.values()]
    ratios, plain, verified = [], [], []
    for _ in range(PAIRS):
        start = perf_counter()
        for path in paths:
            fastest(path)
        middle = perf_counter()
        for path in paths:
            read_image(Source(path))
        end = perf_counter()
        plain.append(middle - start)
        verified.append(end - middle)
        ratios.append((end - middle) / (middle - start))
    benchmark.pedantic(lambda: [read_image(Source(path)) for path in paths], rounds=3, iterations=1)
    ratios.sort()
    benchmark.extra_info |= {
        "question": "read",
        "case": case.case_id,
        "ratio_to_inflating_alone": median(ratios),
        "ratio_quartiles": [ratios[PAIRS // 4], ratios[-PAIRS // 4]],
        "inflating_alone_s": median(plain),
        "verified_s": median(verified),
    }
