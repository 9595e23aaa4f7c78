"""The scores beside other people's, on one pair of label maps: MONAI, medpy, panoptica, by hand.

Each peer is asked for its own definition, and ours is put beside it in the same definition: MONAI's
HD95 is the larger of the two directed percentiles, medpy's pools them, as the profiles do. What a
peer leaves undefined (an empty mask, mostly) is not compared; the profiles' own values for that are
held by the tests.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from runtime.labels import REGIONS, Label, LabelMap
from runtime.metrics import LESION_METRICS, PROFILES, SCORED, Scores, score_case
from runtime.surface import surface_distances
from tests.scores_by_hand import components, dilated, distances_by_hand, lesions_by_hand

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
REACH = 15
TOLERANCE_MM = PROFILES["brats2020"].nsd_tolerance_mm
PEERS = ("monai", "medpy", "panoptica", "by hand")
MODULES = {"monai": "monai", "medpy": "medpy", "panoptica": "panoptica"}
"""What each peer but the last needs to be installed."""
ROUNDING = {"monai": 1e-6}
"""Relative above 1, absolute below: MONAI computes in float32, the others in float64."""
DIRECTED = "hd95, the larger direction"
ROUNDING_DIRECTED = 1e-3
"""MONAI's percentile rounds the rank among thousands of distances to float32 too."""


@dataclass(frozen=True)
class Compared:
    """One figure of one region or label, ours and a peer's."""

    peer: str
    metric: str
    scored: str
    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        """Absolute."""
        return abs(float(self.ours) - float(self.theirs))

    @property
    def agrees(self) -> bool:
        """But for rounding."""
        rounding = ROUNDING.get(self.peer, 1e-9)
        if self.metric == DIRECTED:
            rounding = ROUNDING_DIRECTED
        return self.difference <= rounding * max(1.0, abs(float(self.theirs)))


def perturbations(labels: LabelMap, seed: int) -> dict[str, LabelMap]:
    """Predictions as bad as they come, made of the truth itself.

    Args:
        labels: uint8 (X, Y, Z), network labels.
        seed: of what is strewn.

    Returns:
        By name: shifted by (3, -2, 1) voxels; eroded by 2 voxels from outside; empty; fragmented
        into cubes of 5 voxels with gaps of 3; strewn with 12 false foci of 1 to 123 voxels in and
        around the tumour's box; and half, the tumour below its middle slice gone.
    """
    shifted = np.zeros_like(labels)
    shifted[3:, :-2, 1:] = labels[:-3, 2:, :-1]
    inside = ndimage.binary_erosion(labels > 0, iterations=2)
    in_cube = [np.arange(size) % 8 < 5 for size in labels.shape]
    cubes = in_cube[0][:, None, None] & in_cube[1][None, :, None] & in_cube[2][None, None, :]
    strewn = labels.copy()
    generator = np.random.default_rng(seed)
    distance = np.indices((7, 7, 7)) - 3
    room = [
        (max(0, part.start - REACH), min(size - 7, part.stop + REACH - 7))
        for part, size in zip(_box(labels > 0), labels.shape, strict=True)
    ]
    for radius in (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3):
        place = [generator.integers(low, high + 1) for low, high in room]
        ball = (distance**2).sum(axis=0) <= radius**2
        around = strewn[tuple(slice(start, start + 7) for start in place)]
        around[ball & (around == 0)] = generator.integers(1, 4)
    half = labels.copy()
    slices = np.flatnonzero((labels > 0).any(axis=(0, 1)))
    if slices.size:
        half[:, :, : int(np.median(slices))] = Label.BACKGROUND
    return {
        "shifted": shifted,
        "eroded": np.where(inside, labels, np.uint8(0)),
        "empty": np.zeros_like(labels),
        "fragmented": np.where(cubes, labels, np.uint8(0)),
        "strewn": strewn,
        "half": half,
    }


def compare(
    prediction: LabelMap, truth: LabelMap, spacing: Spacing, peers: tuple[str, ...] = PEERS
) -> Iterator[Compared]:
    """Every figure that the peers have too, of every region and label.

    Args:
        prediction, truth: uint8 (X, Y, Z), network labels.
        spacing: mm.
        peers: of `PEERS`; each must be installed.
    """
    whole = score_case(prediction, truth, spacing, PROFILES["brats2020"])
    lesions = score_case(prediction, truth, spacing, PROFILES["brats2023"])
    # Peers look at the tumours' box and a margin only: outside nothing changes but specificity.
    box = _box((prediction > 0) | (truth > 0))
    outside = truth.size - truth[box].size
    for name in SCORED:
        members = REGIONS.get(name) or (Label[name],)
        p, t = (np.isin(labels[box], members) for labels in (prediction, truth))
        if "medpy" in peers:
            yield from _medpy(name, p, t, spacing, whole[name], outside)
        if p.any() and t.any():
            if "monai" in peers:
                yield from _monai(name, p, t, spacing, whole[name])
            if "by hand" in peers:
                yield from _surfaces_by_hand(name, p, t, spacing, whole[name])
        if name in REGIONS:
            if "by hand" in peers:
                yield from _lesions_by_hand(name, p, t, spacing, lesions[name])
            if "panoptica" in peers:
                yield from _panoptica(name, p, t, spacing)


def _box(mask: Mask) -> tuple[slice, ...]:
    if not mask.any():
        return (slice(0, 8),) * 3
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, part.start - 5), part.stop + 5) for part in found)


def _medpy(
    name: str, p: Mask, t: Mask, spacing: Spacing, ours: Scores, outside: int
) -> Iterator[Compared]:
    from medpy.metric import binary

    def one(metric: str, own: float, theirs: float) -> Compared:
        return Compared("medpy", metric, name, own, float(theirs))

    if p.any() or t.any():
        yield one("dice", ours.dice, binary.dc(p, t))
    if t.any():
        assert ours.volume_difference_percent is not None
        yield one("sensitivity", ours.sensitivity, binary.recall(p, t))
        # medpy's share is of the box; its true negatives are counted with those outside.
        negatives = int(np.count_nonzero(~t))
        hit = binary.specificity(p, t) * negatives
        yield one("specificity", ours.specificity, (hit + outside) / (negatives + outside))
        yield one("volume difference", ours.volume_difference_percent / 100, binary.ravd(p, t))
    if p.any() and t.any():
        yield one("hd95", ours.hd95, binary.hd95(p, t, voxelspacing=spacing))


def _monai(name: str, p: Mask, t: Mask, spacing: Spacing, ours: Scores) -> Iterator[Compared]:
    metrics, torch = _monai_modules()
    y_pred, y = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (p, t))
    given: dict[str, Any] = {"include_background": True}
    with warnings.catch_warnings():
        # MONAI calls itself by an argument that it has deprecated.
        warnings.filterwarnings(
            "ignore", message=".*always_return_as_numpy", category=FutureWarning
        )
        dice = metrics.compute_dice(y_pred, y, **given)
        hd = metrics.compute_hausdorff_distance(y_pred, y, percentile=95, spacing=spacing, **given)
        nsd = metrics.compute_surface_dice(
            y_pred, y, class_thresholds=[TOLERANCE_MM], spacing=spacing, **given
        )
    distances = surface_distances(p, t, spacing)
    larger = max(float(np.percentile(way, 95)) for way in (distances.forth, distances.back))
    yield Compared("monai", "dice", name, ours.dice, float(dice))
    yield Compared("monai", DIRECTED, name, larger, float(hd))
    yield Compared("monai", "nsd", name, ours.nsd, float(nsd))


@cache
def _monai_modules() -> tuple[Any, Any]:
    # What MONAI imports may warn of its own deprecations, which are not ours to mend.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.metrics
    import torch

    return monai.metrics, torch


def _surfaces_by_hand(
    name: str, p: Mask, t: Mask, spacing: Spacing, ours: Scores
) -> Iterator[Compared]:
    forth, back = distances_by_hand(p, t, spacing)
    found = surface_distances(p, t, spacing)
    for way, theirs in ((found.forth, forth), (found.back, back)):
        worst = int(np.abs(way - theirs).argmax())
        yield Compared("by hand", "surface distance", name, way[worst], theirs[worst])
    pooled = np.concatenate((forth, back))
    yield Compared("by hand", "hd95", name, ours.hd95, float(np.percentile(pooled, 95)))
    yield Compared("by hand", "nsd", name, ours.nsd, float(np.mean(pooled <= TOLERANCE_MM + 1e-9)))


def _lesions_by_hand(
    name: str, p: Mask, t: Mask, spacing: Spacing, ours: Scores
) -> Iterator[Compared]:
    found = ours.figures()
    theirs = vars(lesions_by_hand(p, t, spacing))
    for metric, value in zip(LESION_METRICS, theirs.values(), strict=True):
        figure = found[metric]
        assert figure is not None
        yield Compared("by hand", metric.replace("_", " "), name, figure, float(value))


def _panoptica(name: str, p: Mask, t: Mask, spacing: Spacing) -> Iterator[Compared]:
    """Instances matched by panoptica on the dilated truth, and scored by it on the truth itself.

    Its matching gives each predicted instance to one lesion; where one touches two, which counts
    for both by the rules of 2023, it has no such figure. It knows no smallest volume either, so
    that ours is asked for every lesion.
    """
    rules = PROFILES["brats2023"]
    assert rules.lesions is not None
    every = replace(rules, lesions=replace(rules.lesions, dropped_mm3=0))
    as_et = [np.where(mask, np.uint8(Label.ET), np.uint8(0)) for mask in (p, t)]
    ours = score_case(as_et[0], as_et[1], spacing, every)["ET"].lesions
    assert ours is not None
    if not p.any() or not t.any():
        return
    areas, foci = components(dilated(t, rules.lesions.dilations)), components(p)
    touched = np.unique(np.stack((foci[p & (areas > 0)], areas[p & (areas > 0)])), axis=1)
    if len(np.unique(touched[0])) < touched.shape[1]:
        return
    matching, scoring, kinds = _panoptica_evaluators()
    matched = matching.evaluate(p.astype(np.uint8), (areas > 0).astype(np.uint8))["ungrouped"]
    counts = {"lesion tp": (ours.found, matched.tp), "lesion fn": (ours.missed, matched.fn),
              "lesion fp": (ours.false_positives, matched.fp)}  # fmt: skip
    for metric, (own, theirs) in counts.items():
        yield Compared("panoptica", metric, name, own, float(theirs))
    steps = matched.intermediate_steps_data
    numbers = steps.prediction_arr(kinds.MATCHED_INSTANCE)
    lesions = np.where(t, steps.reference_arr(kinds.MATCHED_INSTANCE), 0)
    result = scoring.evaluate(numbers, lesions.astype(numbers.dtype), voxelspacing=spacing)
    dices, distances = _lists(result["ungrouped"])
    scored = matched.tp + matched.fp + matched.fn
    penalty = rules.lesions.penalty_mm * (matched.fp + matched.fn)
    yield Compared("panoptica", "lesion dice", name, ours.dice, sum(dices) / scored)
    yield Compared("panoptica", "lesion hd95", name, ours.hd95, (sum(distances) + penalty) / scored)


def _lists(result: Any) -> tuple[list[float], list[float]]:
    from panoptica.metrics import Metric, MetricMode

    return tuple(result.get_list_metric(one, MetricMode.ALL) for one in (Metric.DSC, Metric.HD95))


@cache
def _panoptica_evaluators() -> tuple[Any, Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from panoptica import (
            ConnectedComponentsInstanceApproximator,
            InputType,
            NaiveThresholdMatching,
            Panoptica_Evaluator,
        )
        from panoptica.metrics import Metric
        from panoptica.utils.citation_reminder import disable_citation_reminder
        from panoptica.utils.speed_toggles import PanopticaSpeedToggles
    disable_citation_reminder()  # the reminder goes to stdout; what it asks for is in RESULTS.md
    matcher = NaiveThresholdMatching(
        matching_metric=Metric.IOU,
        matching_threshold=0.0,
        strict_threshold=True,
        allow_many_to_one=True,
    )
    matching = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=matcher,
        instance_metrics=[Metric.DSC],
        global_metrics=[],
        log_intermediate_steps=True,
        speed_toggles=PanopticaSpeedToggles(crop_at_start=False),
    )
    scoring = Panoptica_Evaluator(
        expected_input=InputType.MATCHED_INSTANCE,
        instance_metrics=[Metric.DSC, Metric.HD95],
        global_metrics=[],
    )
    return matching, scoring, InputType
