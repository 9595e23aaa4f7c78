"""Surface distances and lesion-wise scores written down a second time, as plainly as possible.

Nothing of `runtime` is used, and none of SciPy's image functions: neighbours are shifted arrays,
components come from a graph, distances from every surface voxel to every other.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

Mask = npt.NDArray[np.bool_]
STEPS = tuple(itertools.product((-1, 0, 1), repeat=3))
PAIRS_AT_ONCE = 2_000_000


def shifted(array: npt.NDArray[np.generic], step: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """``array`` moved by -1, 0 or 1 voxels along each axis; noughts come in."""
    padded = np.pad(array, 1)
    return padded[tuple(slice(1 - s, 1 - s + n) for s, n in zip(step, array.shape, strict=True))]


def surface_voxels(mask: Mask) -> npt.NDArray[np.int64]:
    """(voxels, 3): voxels of the mask with a background voxel across one of their six faces."""
    inside = mask.copy()
    for step in STEPS:
        if sum(map(abs, step)) == 1:
            inside &= shifted(mask, step)
    return np.argwhere(mask & ~inside)


def distances_by_hand(
    a: Mask, b: Mask, spacing: tuple[float, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """mm from each surface voxel of a to the nearest one of b, and back."""
    one, other = (surface_voxels(mask) * np.asarray(spacing) for mask in (a, b))
    forth = np.empty(len(one))
    back = np.full(len(other), np.inf)
    rows = max(1, PAIRS_AT_ONCE // len(other))
    for first in range(0, len(one), rows):
        table = cdist(one[first : first + rows], other, "sqeuclidean")
        forth[first : first + rows] = table.min(axis=1)
        back = np.minimum(back, table.min(axis=0))
    return np.sqrt(forth), np.sqrt(back)


def dilated(mask: Mask, times: int) -> Mask:
    """``mask`` and its neighbours across faces and edges, ``times`` over."""
    for _ in range(times):
        grown = mask.copy()
        for step in STEPS:
            if sum(map(abs, step)) <= 2:
                grown |= shifted(mask, step).astype(bool)
        mask = grown
    return mask


def components(mask: Mask) -> npt.NDArray[np.int64]:
    """Numbers from 1 for what is connected across faces, edges and corners; 0 elsewhere."""
    places = np.cumsum(mask.ravel()).reshape(mask.shape) * mask
    count = int(mask.sum())
    starts, ends = [], []
    for step in STEPS[:13]:  # the other half leads back
        there = shifted(places, step)
        both = mask & (there > 0)
        starts.append(places[both] - 1)
        ends.append(there[both] - 1)
    edges = np.concatenate(starts), np.concatenate(ends)
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(count, count))
    numbers = np.zeros(mask.shape, np.int64)
    if count:
        numbers[mask] = connected_components(graph, directed=False)[1] + 1
    return numbers


@dataclass(frozen=True)
class ByHand:
    dice: float
    hd95: float
    lesions: int
    found: int
    missed: int
    false_positives: int


def lesions_by_hand(
    prediction: Mask,
    truth: Mask,
    spacing: tuple[float, ...],
    dilations: int = 3,
    dropped_mm3: float = 50,
    penalty_mm: float = 374,
) -> ByHand:
    """BraTS 2023: lesion after lesion, each dilated again on its own."""
    areas = components(dilated(truth, dilations))
    foci = components(prediction)
    dices, distances, found, matched = [], [], 0, set()
    for number in range(1, areas.max(initial=0) + 1):
        lesion = truth & (areas == number)
        touching = set(np.unique(foci[dilated(lesion, dilations)]).tolist()) - {0}
        matched |= touching
        if lesion.sum() * np.prod(spacing) <= dropped_mm3:
            continue
        if not touching:
            dices.append(0.0)
            distances.append(penalty_mm)
            continue
        found += 1
        united = np.isin(foci, list(touching))
        dices.append(2 * (united & lesion).sum() / (united.sum() + lesion.sum()))
        both_ways = np.concatenate(distances_by_hand(united, lesion, spacing))
        distances.append(float(np.percentile(both_ways, 95)))
    lesions = len(dices)
    false_positives = foci.max(initial=0) - len(matched)
    dices += [0.0] * false_positives
    distances += [penalty_mm] * false_positives
    return ByHand(
        dice=float(np.mean(dices)) if dices else 1.0,
        hd95=float(np.mean(distances)) if distances else 0.0,
        lesions=lesions,
        found=found,
        missed=lesions - found,
        false_positives=false_positives,
    )
