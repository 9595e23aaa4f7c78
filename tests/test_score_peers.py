"""Scores against MONAI, medpy, panoptica and a second way of writing them.

The peers are in the extra ``crosscheck``; a test skips where its peer is not installed.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.score_agreement import agreement
from benchmarks.score_peers import DIRECTED, MODULES, PEERS, Compared, compare, perturbations
from runtime.case import Case
from runtime.labels import Label, LabelMap
from runtime.truth import load_truth

LESION_WISE = {"lesion dice", "lesion hd95", "lesion tp", "lesion fn", "lesion fp"}
FIGURES = {
    "monai": {"dice", DIRECTED, "nsd"},
    "medpy": {"dice", "hd95", "sensitivity", "specificity", "volume difference"},
    "panoptica": LESION_WISE,
    "by hand": {"surface distance", "hd95", "nsd", "lesion count", *LESION_WISE},
}
ISO = (1.0, 1.0, 1.0)
QUICK = "Brats18_CBICA_ARZ_1"  # small, and its tumour has two foci


def installed(peer: str) -> None:
    if peer in MODULES and find_spec(MODULES[peer]) is None:
        pytest.skip(f"{peer} is not installed; it is in the extra crosscheck")


def foci(seed: int) -> LabelMap:
    """Three ellipsoids of edema with a core, of which the second touches nothing."""
    generator = np.random.default_rng(seed)
    made = np.zeros((40, 44, 38), np.uint8)
    grid = np.indices(made.shape)
    for centre in ((12, 12, 12), (29, 31, 27), (20, 15, 18)):
        axes = generator.uniform(3, 6, 3)
        squares = sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True))
        for share, label in ((1.6, Label.ED), (1.0, Label.ET), (0.3, Label.NCR)):
            made[squares < share] = label
    return made


def disagreeing(found: list[Compared]) -> list[Compared]:
    return [one for one in found if not one.agrees]


@pytest.mark.parametrize("spacing", [ISO, (1.0, 0.7, 1.9)])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_agree_on_perturbed_foci(peer: str, spacing: tuple[float, float, float]) -> None:
    installed(peer)
    truth = foci(1)
    found = [
        one
        for prediction in perturbations(truth, 1).values()
        for one in compare(prediction, truth, spacing, (peer,))
    ]
    assert {one.metric for one in found} == FIGURES[peer]
    assert disagreeing(found) == []


def real(root: Path, case_id: str) -> LabelMap:
    return load_truth(Case.from_dir(root / case_id))


@pytest.mark.real
@pytest.mark.parametrize("peer", PEERS)
def test_peers_agree_on_a_real_label_map(real_cases: Path, peer: str) -> None:
    installed(peer)
    truth = real(real_cases, QUICK)
    made = perturbations(truth, 0)
    found = [
        one
        for name in ("shifted", "eroded", "empty", "fragmented")
        for one in compare(made[name], truth, ISO, (peer,))
    ]
    assert {one.metric for one in found} == FIGURES[peer]
    assert disagreeing(found) == []


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_peers_agree_on_all_real_label_maps(real_cases: Path, peer: str) -> None:
    installed(peer)
    folders = sorted(path for path in real_cases.iterdir() if path.is_dir())
    assert len(folders) == 25
    for seed, folder in enumerate(folders):
        truth = real(real_cases, folder.name)
        for name, prediction in perturbations(truth, seed).items():
            found = list(compare(prediction, truth, ISO, (peer,)))
            assert disagreeing(found) == [], f"{folder.name} {name}"


def test_perturbations_are_what_they_say() -> None:
    truth = foci(2)
    made = perturbations(truth, 3)
    assert not made["empty"].any()
    assert np.count_nonzero(made["shifted"]) == np.count_nonzero(truth)
    assert made["shifted"][23, 13, 19] == truth[20, 15, 18] != 0
    for name in ("eroded", "fragmented", "half"):
        assert 0 < np.count_nonzero(made[name]) < np.count_nonzero(truth)
        assert (made[name][made[name] > 0] == truth[made[name] > 0]).all()
    strewn = made["strewn"]
    assert (strewn[truth > 0] == truth[truth > 0]).all()
    assert np.count_nonzero(strewn) > np.count_nonzero(truth)


def test_the_table_holds_the_largest_difference() -> None:
    found = [
        Compared("medpy", "dice", "WT", 0.5, 0.5),
        Compared("medpy", "dice", "TC", 0.5, 0.25),
        Compared("monai", "nsd", "WT", 1.0, 1.0),
    ]
    lines = agreement(found).splitlines()
    assert lines[2:] == ["| medpy | dice | 2 | 2.5e-01 |", "| monai | nsd | 1 | 0.0e+00 |"]
    assert [one.agrees for one in found] == [True, False, True]
