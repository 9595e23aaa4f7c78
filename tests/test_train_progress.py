"""Which epoch is the best: only scores of the same validation are compared."""

import json

import pytest

from train.progress import Progress

BOTH = ("a", "b", "overlap 0.25")


def _run(progress: Progress, *scores: float | None) -> list[bool]:
    start = progress.epoch
    return [
        progress.record({"epoch": start + number}, score, chooses=True)
        for number, score in enumerate(scores, 1)
    ]


def test_the_highest_score_is_the_best_and_the_others_are_counted() -> None:
    progress = Progress()
    assert not progress.watch(BOTH)
    assert _run(progress, 0.5, None, 0.4, 0.6, 0.6) == [True, False, False, True, False]
    assert (progress.best, progress.best_epoch, progress.since_best) == (0.6, 4, 1)


def test_without_a_validation_to_choose_the_newest_is_the_best() -> None:
    progress = Progress()
    assert progress.record({"epoch": 1}, None, chooses=False)
    assert progress.record({"epoch": 2}, None, chooses=False)
    assert (progress.best, progress.best_epoch) == (None, 2)


@pytest.mark.parametrize("now", [("a", "overlap 0.25"), ("a", "b", "overlap 0.5")])
def test_an_easier_validation_of_before_does_not_freeze_the_best(now: tuple[str, ...]) -> None:
    progress = Progress()
    progress.watch(BOTH)
    _run(progress, 0.9, 0.8)
    kept = Progress.from_json(2, json.loads(json.dumps(progress.to_json())))
    assert kept == progress
    assert not kept.watch(BOTH)
    assert _run(kept, 0.85) == [False]
    assert kept.since_best == 2
    assert kept.watch(now)
    assert _run(kept, 0.6, 0.7, 0.65) == [True, True, False]
    assert (kept.best, kept.best_epoch, kept.since_best) == (0.7, 5, 1)


def test_a_checkpoint_that_does_not_say_what_was_watched_is_of_another_validation() -> None:
    value = {"history": [], "best": 0.9, "best_epoch": 1, "since_best": 3, "clock": None}
    progress = Progress.from_json(4, value)
    assert progress.watch(BOTH)
    assert (progress.best, progress.since_best) == (None, 0)
