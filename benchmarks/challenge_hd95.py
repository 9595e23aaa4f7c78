"""How far our HD95 lies from that of the BraTS 2023 challenge's own code.

    python -m benchmarks.challenge_hd95 CASES

That code measures with DeepMind's surface-distance: surface elements between voxel centres, weighed
by their area, and the larger of the two directions. Both of ours are put beside it, the pooled one,
which the profiles use, and the larger direction, on every region of every perturbation.
"""

import statistics
import sys
from pathlib import Path

import numpy as np
from surface_distance import compute_robust_hausdorff, compute_surface_distances

from benchmarks.score_peers import perturbations
from runtime.case import find_cases
from runtime.labels import regions_from_labels
from runtime.surface import bounding_box, surface_distances
from runtime.truth import load_truth

SPACING = (1.0, 1.0, 1.0)


def main(root: Path) -> None:
    """Print the median and the largest difference of each."""
    pooled, larger = [], []
    for seed, case in enumerate(find_cases(root)):
        truth = load_truth(case)
        for prediction in perturbations(truth, seed).values():
            called, true = regions_from_labels(prediction), regions_from_labels(truth)
            for name in true:
                if not called[name].any() or not true[name].any():
                    continue
                box = bounding_box(called[name] | true[name])
                a, b = called[name][box], true[name][box]
                theirs = compute_robust_hausdorff(compute_surface_distances(b, a, SPACING), 95)
                ours = surface_distances(a, b, SPACING)
                directed = max(np.percentile(way, 95) for way in (ours.forth, ours.back))
                pooled.append(abs(ours.percentile(95) - theirs))
                larger.append(abs(float(directed) - theirs))
        print(f"{case.case_id}: {len(pooled)} figures so far", flush=True)
    for title, found in (("pooled", pooled), ("the larger direction", larger)):
        middle = statistics.median(found)
        print(f"{title}: median difference {middle:.2f} mm, largest {max(found):.1f} mm")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
