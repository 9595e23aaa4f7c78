"""What does it cost to verify an image, over a reader that only inflates it?"""

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import igzip

from runtime.case import Case
from runtime.nifti_bytes import read_stored
from runtime.nifti_header import HEADER_BYTES, parse_header

PAIRS = 25


def fastest(path: Path) -> npt.NDArray[Any]:
    """Inflate with the same library and look at the voxels; nothing is checked that the header says
    or the file promises, and no hash is made.
    """
    raw = igzip.decompress(path.read_bytes())
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
            read_stored(path)
        end = perf_counter()
        plain.append(middle - start)
        verified.append(end - middle)
        ratios.append((end - middle) / (middle - start))
    benchmark.pedantic(lambda: [read_stored(path) for path in paths], rounds=3, iterations=1)
    ratios.sort()
    benchmark.extra_info |= {
        "question": "read",
        "case": case.case_id,
        "ratio_to_inflating_alone": median(ratios),
        "ratio_quartiles": [ratios[PAIRS // 4], ratios[-PAIRS // 4]],
        "inflating_alone_s": median(plain),
        "verified_s": median(verified),
    }
