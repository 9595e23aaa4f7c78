"""What many cases come to: closed forms, and SciPy's bootstrap."""

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import bootstrap as scipy_bootstrap

from runtime.labels import Label
from runtime.metrics import METRICS, PROFILES, SCORED, Scores, score_case
from runtime.summary import BOOTSTRAP, Bootstrap, bootstrap_interval, summarise, to_json

BRATS = PROFILES["brats2020"]
ISO = (1.0, 1.0, 1.0)


def cases(*planes: int) -> dict[str, dict[str, Scores]]:
    """Cases of ten true planes of ET, of which so many are predicted."""
    truth = np.zeros((20, 4, 4), np.uint8)
    truth[:10] = Label.ET
    made = {}
    for index, count in enumerate(planes):
        prediction = np.zeros_like(truth)
        prediction[:count] = Label.ET
        made[f"case{index}"] = score_case(prediction, truth, ISO, BRATS)
    return made


def test_mean_median_and_population_deviation() -> None:
    values = [1.0, 2 * 5 / 15, 0.0]
    summary = summarise(cases(10, 5, 0))["ET"]["dice"]
    assert summary["mean"] == pytest.approx(sum(values) / 3)
    assert summary["median"] == pytest.approx(2 / 3)
    assert summary["std"] == pytest.approx(
        math.sqrt(sum((v - sum(values) / 3) ** 2 for v in values) / 3)
    )
    assert summary["cases"] == 3
    assert summarise({}) == {}


def test_a_single_case_has_no_interval() -> None:
    summary = summarise(cases(5))
    assert all(one["interval"] is None for found in summary.values() for one in found.values())
    assert summary["ET"]["dice"]["mean"] == pytest.approx(2 / 3)


def test_a_figure_counts_only_the_cases_that_have_it() -> None:
    truth = np.zeros((8, 8, 8), np.uint8)
    called = truth.copy()
    called[2:4, 2:4, 2:4] = Label.NCR
    twice = called.copy()
    twice[4:6, 2:4, 2:4] = Label.NCR
    two = {"a": score_case(called, truth, ISO, BRATS), "b": score_case(twice, called, ISO, BRATS)}
    percent = summarise(two)["NCR"]["volume_difference_percent"]
    assert (percent["mean"], percent["cases"], percent["interval"]) == (100, 1, None)
    assert summarise(two)["NCR"]["dice"]["cases"] == 2
    only = summarise({"a": two["a"]})["NCR"]
    assert "volume_difference_percent" not in only
    assert only["volume_difference_ml"]["mean"] == pytest.approx(0.008)


def test_the_interval_of_two_cases_is_worked_out_by_hand() -> None:
    # Means of two draws are 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4.
    values = np.array([[0.0], [1.0]])
    assert bootstrap_interval(values, Bootstrap(level=0.95)).ravel().tolist() == [0, 1]
    assert bootstrap_interval(values, Bootstrap(level=0.4)).ravel().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_the_interval_agrees_with_scipys(level: float) -> None:
    values = np.random.default_rng(3).beta(5, 2, 40)
    ours = bootstrap_interval(values[:, None], Bootstrap(20_000, level)).ravel()
    theirs = scipy_bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    # Both are draws: their ends lie a few percent of the interval's width apart.
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.04 * (theirs.high - theirs.low))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    samples = generator.normal(size=(50, 300))
    low, high = bootstrap_interval(samples, Bootstrap(1500, 0.9))
    covered = np.mean((low <= 0) & (high >= 0))
    assert 0.82 < covered < 0.96


@settings(deadline=None, max_examples=20)
@given(hnp.arrays(np.float64, (7, 2), elements=st.floats(-5, 5)))
def test_intervals_lie_within_the_values_and_follow_them(values: npt.NDArray[np.float64]) -> None:
    options = Bootstrap(1200)
    low, high = bootstrap_interval(values, options)
    assert (values.min(0) - 1e-9 <= low).all()
    assert (low <= high).all()
    assert (high <= values.max(0) + 1e-9).all()
    moved = bootstrap_interval(2 * values + 3, options)
    np.testing.assert_allclose(moved, 2 * np.stack((low, high)) + 3, atol=1e-9)


def test_one_seed_gives_one_interval_and_another_another() -> None:
    values = np.random.default_rng(0).random((15, 1))
    first, again, other = (
        bootstrap_interval(values, Bootstrap(500, seed=seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_json_form() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1] = Label.NCR
    more = np.where(labels == 0, np.uint8(Label.ED), labels)
    scores = {name: score_case(one, labels, ISO, BRATS) for name, one in
              (("X", labels), ("Y", more))}  # fmt: skip
    value = json.loads(json.dumps(to_json(BRATS, scores), allow_nan=False))
    assert list(value) == ["profile", "cases", "summary", "bootstrap"]
    assert value["profile"] == "brats2020"
    assert tuple(value["cases"]["X"]) == SCORED
    assert tuple(value["cases"]["X"]["WT"]) == METRICS
    assert value["cases"]["X"]["NCR"]["volume_ml_truth"] == pytest.approx(0.016)
    assert value["cases"]["Y"]["ED"]["volume_difference_percent"] is None
    dice = value["summary"]["TC"]["dice"]
    assert dice == {"mean": 1.0, "median": 1.0, "std": 0.0, "interval": [1.0, 1.0], "cases": 2}
    assert value["bootstrap"] == {"resamples": 10_000, "level": 0.95, "seed": 0}
    assert BOOTSTRAP.resamples == 10_000


def test_lesions_stand_beside_whole_volumes_in_json() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:6, 1:6, 1:6] = Label.ET
    profile = PROFILES["brats2023"]
    value = to_json(profile, {"X": score_case(labels, labels, ISO, profile)})
    found = value["cases"]["X"]["WT"]
    assert (found["lesion_dice"], found["lesion_count"], found["lesion_fp"]) == (1, 1, 0)
    assert "lesion_dice" not in value["cases"]["X"]["NCR"]
    assert value["summary"]["ET"]["lesion_tp"]["mean"] == 1
    assert "lesion_dice" not in value["summary"]["ED"]
