"""The benchmarks refuse what they could not measure as it was asked for, before anything runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import conftest
from benchmarks.bench_memory import WAYS
from benchmarks.options import given_model, random_card
from benchmarks.scale import STANDARD
from export.modes import PROPOSED
from runtime.model_card import ModelCard
from runtime.modes import EXACT

DEFAULTS = {"--quick": True, "--parity-cases": 1, "--export": False}


def config_of(**options: Any) -> Any:
    given = DEFAULTS | {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return SimpleNamespace(getoption=given.get, stash=pytest.Stash(), args=["benchmarks"])


def refused(**options: Any) -> str:
    with pytest.raises(pytest.UsageError) as caught:
        conftest.pytest_configure(config_of(**options))
    return str(caught.value)


@pytest.mark.parametrize("name", ["rounds", "parity_cases"])
@pytest.mark.parametrize("count", [0, -1])
def test_no_times_at_all_is_refused(name: str, count: int) -> None:
    flag = f"--{name.replace('_', '-')}"
    assert refused(**{name: count}) == (
        f"{flag}: found {count}, expected 1 or more; drop {flag} for the default."
    )
    conftest.pytest_configure(config_of(**{name: 1}))


def test_data_without_cases_is_refused(tmp_path: Path) -> None:
    assert "absent" in refused(data=tmp_path / "absent")
    assert str(tmp_path) in refused(data=tmp_path)


def test_a_case_that_is_not_in_the_data_is_refused(phantom_root: Path) -> None:
    conftest.pytest_configure(config_of(data=phantom_root, case="BraTSPhantom_0002"))
    text = refused(data=phantom_root, case="other")
    assert "found other, which is not in" in text
    assert "such as BraTSPhantom_0001" in text
    assert "found no --data" in refused(case="other")


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "best.pt" in refused(checkpoint=tmp_path / "best.pt")


def test_a_model_that_is_none_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """It was exported afresh without a word."""
    assert "found no such directory" in refused(model=tmp_path / "nope", checkpoint=tiny_checkpoint)
    assert "manifest.json" in refused(model=tmp_path, checkpoint=tiny_checkpoint)


def test_a_model_of_another_network_is_refused(tiny_model: Path, tiny_checkpoint: Path) -> None:
    config = config_of(model=tiny_model, checkpoint=tiny_checkpoint)
    conftest.pytest_configure(config)
    text = refused(model=tiny_model)
    assert f"--model {tiny_model}: found a card with another " in text
    assert "(random weights); name its own checkpoint with --checkpoint" in text
    text = refused(model=tiny_model, checkpoint=tiny_checkpoint, export=True)
    assert text == "--export: found --model as well, expected one of the two; drop one."


def test_the_default_model_is_taken_where_it_is_the_networks_and_unless_told(
    tiny_model: Path, tiny_card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert given_model(config_of(), tiny_card) is None
    (tmp_path / "model").symlink_to(tiny_model)
    found = given_model(config_of(), tiny_card)
    assert found is not None
    assert found.card == tiny_card
    assert given_model(config_of(export=True), tiny_card) is None
    assert given_model(config_of(), random_card(STANDARD)) is None


def test_memory_is_measured_of_the_certified_modes() -> None:
    asked = {str(way): way.flags for way in WAYS}
    assert asked["openvino"] == ["--precision", "auto"]
    assert asked["openvino, balanced"] == ["--patch", "box", "--precision", "auto"]
    assert asked["openvino, fast"] == ["--patch", "box", "--precision", "int8"]
    modes = {way.mode for way in WAYS if str(way.where) == "ort"}
    assert modes == {EXACT, *PROPOSED}
