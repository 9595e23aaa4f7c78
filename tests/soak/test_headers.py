"""Bar: a hostile header or a bomb is refused, or read as a valid volume, in little time and memory.

100,000 mutated headers: one of our errors or a valid volume, at most 1 s and 512 MB each. Twenty
bombs: refused within 0.1 s. What is heavy but sound by the standards is held to the headers'
limits.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.soak.bar import LINUX, bar, times, worker
from tests.soak.bombs import BOMBS
from tests.soak.hostile_headers import BASES, mutated

pytestmark = pytest.mark.skipif(not LINUX, reason="memory is measured by what Linux offers")

BATCH = 5000


def test_mutated_headers_are_refused_or_read() -> None:
    count = times(1200, 100_000)
    batches = [(seed, min(BATCH, count - seed * BATCH)) for seed in range(-(-count // BATCH))]
    with bar("headers") as figures:
        with ThreadPoolExecutor(2) as pool:
            found = list(
                pool.map(
                    lambda batch: worker("tests.soak.reading", "headers", *batch, 1.0, 512), batches
                )
            )
        figures["files"] = count
        kinds = sorted({kind for one in found for kind in one["results"]})
        figures["results"] = {
            kind: sum(one["results"].get(kind, 0) for one in found) for kind in kinds
        }
        figures["slowest_s"] = max(one["slowest_s"] for one in found)
        figures["peak_mib"] = max(one["peak_mib"] for one in found)
        figures["faults"] = [fault for one in found for fault in one["faults"]]
        figures["other_than_nibabel"] = [
            name for one in found for name in one["other_than_nibabel"]
        ]
        assert figures["faults"] == []
        assert figures["other_than_nibabel"] == [], "what nibabel reads is not what we read"
        assert set(figures["results"]) == {"read", "refused"}
        # Neither answer is the reader's only one.
        assert min(figures["results"].values()) > count / 50


def test_bombs_are_refused() -> None:
    assert len(BOMBS) == 20
    with bar("bombs") as figures:
        figures |= worker("tests.soak.reading", "bombs", 0.1, 512)
        assert figures["bombs"]["faults"] == []
        assert figures["accepted"] == []
        assert figures["bombs"]["results"] == {"refused": len(BOMBS)}
        assert figures["heavy"]["faults"] == []


def test_the_headers_are_what_they_are_meant_to_be() -> None:
    """The same for the same seed; both versions and byte orders; mostly unlike the sound ones."""
    one, two = ([mutated(np.random.default_rng((3, n))) for n in range(300)] for _ in range(2))
    assert one == two
    assert {ending for ending, _ in one} == {".nii", ".nii.gz"}
    assert len({raw[:4] for raw, _ in BASES}) == 4
    plain = {raw for raw, _ in BASES}
    assert sum(data in plain for _, data in one) < 15
