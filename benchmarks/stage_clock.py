"""Seconds of each stage of a case, from decoding to the file, on any backend."""

from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from runtime import nifti_bytes
from runtime.case import Case
from runtime.nifti import load
from runtime.nifti_header import HEADER_BYTES, parse_header
from runtime.ops import ArrayOps, Mark
from runtime.output_plan import OutputPlan
from runtime.prediction import save
from runtime.segmenter import Segmenter

STAGES: Final = (
    "decode",
    "gate",
    "box",
    "normalise",
    "bind",
    "gather",
    "infer",
    "stitch",
    "argmax",
    "save",
    "other",
)
"""In the order of the work. `gate` is all that `nifti.load` does beyond inflating the files;
`other` is what no stage claims: allocation, checks, post-processing.
"""
_LOADS: Final = 5
_STAGE_OF: Final[Mapping[str, str]] = {
    "extent": "box",
    "statistics": "normalise",
    "normalise": "normalise",
    "gather": "gather",
    "accumulate": "stitch",
    "argmax": "argmax",
}


class TimedOps:
    """Array operations that note how long each call takes; otherwise those they wrap."""

    def __init__(self, ops: ArrayOps) -> None:
        self._ops = ops
        self._calls: list[tuple[str, Mark, Mark]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ops, name)
        stage = _STAGE_OF.get(name)
        if stage is None:
            return found

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._ops.mark()
            try:
                return found(*args, **kwargs)
            finally:
                self._calls.append((stage, began, self._ops.mark()))

        return timed

    def taken(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        seconds: dict[str, float] = defaultdict(float)
        for stage, first, last in self._calls:
            seconds[stage] += self._ops.seconds(first, last)
        self._calls.clear()
        return dict(seconds)


def decode(case: Case) -> float:
    """Seconds to inflate the files of a case on four threads, as `nifti.load` does, and to look at
    nothing.
    """
    paths = list(dict.fromkeys(source.path for source in case.images.values()))
    start = perf_counter()
    with ThreadPoolExecutor(max(1, min(4, len(paths)))) as pool:
        list(pool.map(inflated_alone, paths))
    return perf_counter() - start


def inflated_alone(path: Path) -> object:
    """Our own way to inflate, with no look at the file and no hash."""
    stored = path.read_bytes()
    header = parse_header(path, nifti_bytes._inflate(path, stored, HEADER_BYTES))
    return nifti_bytes._inflate(path, stored, header.end + 1)


def stages_of(
    segmenter: Segmenter, clock: TimedOps, case: Case, plan: OutputPlan
) -> dict[str, float]:
    """Segment one case from disk to disk.

    Args:
        segmenter: whose backend's ops are ``clock``.
        clock: empty.
        case: to read.
        plan: where it goes.

    Returns:
        Seconds by the names of `STAGES`.
    """
    decoded, loads = [], []
    # A difference of two short times: in turn, and the median of each.
    for _ in range(_LOADS):
        decoded.append(decode(case))
        start = perf_counter()
        volume = load(case)
        loads.append(perf_counter() - start)
    loaded = perf_counter()
    prediction = segmenter.segment(volume)
    segmented = perf_counter()
    save(prediction, plan)
    saved = perf_counter()
    seconds = dict.fromkeys(STAGES, 0.0) | clock.taken()
    seconds |= {
        "decode": median(decoded),
        "gate": max(0.0, median(loads) - median(decoded)),
        "bind": prediction.timings.bind,
        "infer": prediction.timings.network,
        "save": saved - segmented,
    }
    inside = ("box", "normalise", "bind", "gather", "infer", "stitch", "argmax")
    seconds["other"] = segmented - loaded - sum(seconds[stage] for stage in inside)
    return seconds
