"""How many voxels change their label with the number of threads and the batch?

python -m benchmarks.determinism MODEL CASE [--json FILE]

Each CPU backend segments the case with 1, 2 and 4 threads and batches of 1, 2 and 4; the label maps
are held against the first.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.atomic import write_json
from runtime.backends import BackendName, BackendOptions, open_backend
from runtime.case import Case
from runtime.model_dir import ModelDir
from runtime.nifti import Volume, load
from runtime.segmenter import Segmenter, SegmentOptions

COUNTS = (1, 2, 4)
BACKENDS: tuple[BackendName, ...] = ("ort", "openvino")


def segmented(
    model: ModelDir, volume: Volume, backend: BackendName, threads: int, batch: int
) -> npt.NDArray[np.uint8]:
    opened = open_backend(model, BackendOptions(backend, threads=threads, uncertified=True))
    try:
        return Segmenter(opened, SegmentOptions(batch=batch)).segment(volume).labels
    finally:
        opened.close()


def compared(model: ModelDir, volume: Volume, backend: BackendName) -> dict[str, Any]:
    first: npt.NDArray[np.uint8] | None = None
    changed = {}
    for threads, batch in itertools.product(COUNTS, COUNTS):
        labels = segmented(model, volume, backend, threads, batch)
        if first is None:
            first = labels
        name, count = f"{threads} threads, batch {batch}", int(np.count_nonzero(labels != first))
        changed[name] = count
        print(f"{backend}, {name}: {count} changed", flush=True)
    assert first is not None
    return {
        "voxels": first.size,
        "tumour_voxels": int(np.count_nonzero(first)),
        "changed": changed,
        "most_per_million": 1e6 * max(changed.values()) / first.size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("case", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, case = ModelDir.open(options.model), Case.from_dir(options.case)
    volume = load(case)
    found = {backend: compared(model, volume, backend) for backend in BACKENDS}
    for backend, figures in found.items():
        print(
            f"{backend}: at most {figures['most_per_million']:.2f} voxels in a million of "
            f"{figures['voxels']} ({figures['tumour_voxels']} tumour)"
        )
    if options.json:
        write_json(options.json, {"case": case.case_id, "model": model.card.name, **found})


if __name__ == "__main__":
    main()
