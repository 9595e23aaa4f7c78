"""How far, how fast, how busy: against a clock that a test moves."""

import pytest

from runtime.case import Case
from runtime.cli.infer_pace import Pace, duration
from runtime.cohort import Outcome
from runtime.errors import InputError
from runtime.pipeline import Clock, Limits

ERROR = InputError("x", found="a", expected="b", remedy="c")


def outcome(**what: object) -> Outcome:
    return Outcome(Case("x", {}), None, **what)  # type: ignore[arg-type]


def test_the_pace_counts_only_what_was_segmented() -> None:
    now = [100.0]
    pace = Pace(10, now=lambda: now[0])
    assert (pace.per_minute, pace.seconds_left, pace.words()) == (None, None, "")
    now[0] += 30
    for _ in range(3):
        pace.ended(outcome(sidecar={}))
    for _ in range(2):
        pace.ended(outcome(sidecar={}, kept=True))
    pace.ended(outcome(error=ERROR))
    pace.problem()
    assert (pace.done, pace.kept, pace.failed, pace.left) == (3, 2, 2, 3)
    assert pace.per_minute == pytest.approx(6)
    assert pace.seconds_left == pytest.approx(30)
    assert pace.words() == "6.0 cases/min, 30 s left"
    told = pace.to_json()
    assert (told["of"], told["done"], told["kept"], told["failed"]) == (10, 3, 2, 2)
    assert (told["cases_per_min"], told["eta_s"]) == (6, 30)


def test_stages_are_busy_per_thread_and_process() -> None:
    clock = Clock(read=30.0, run=9.0, write=2.0)
    clock._begun -= 10
    pace = Pace(1, clock, Limits(readers=4, writers=1))
    assert pace.busy() == pytest.approx({"read": 0.75, "run": 0.9, "write": 0.2}, abs=0.01)
    pace.processes = 2
    assert pace.busy()["run"] == pytest.approx(0.45, abs=0.01)


def test_loading_a_model_is_no_part_of_the_pace() -> None:
    now = [0.0]
    pace = Pace(2, now=lambda: now[0])
    now[0] = 50.0
    pace.restart()
    now[0] = 60.0
    pace.ended(outcome(sidecar={}))
    assert pace.per_minute == pytest.approx(6)


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.4, "3 s"), (89, "89 s"), (400, "7 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words
