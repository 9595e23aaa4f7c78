"""The options of the benchmarks: what they are, and what is refused before anything runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import QUICK, STANDARD, Scale
from runtime.case import Case, find_cases
from runtime.errors import BratsError, InputError, UsageError
from runtime.manifest import MANIFEST
from runtime.model_card import ModelCard
from runtime.model_dir import ModelDir
from train.checkpoint import load_model, newest_run

RANDOM = "random weights"
_MODEL = Path("model")


def add_options(parser: pytest.Parser) -> None:
    """For `pytest_addoption`."""
    group = parser.getgroup("brats-deploy")
    group.addoption("--quick", action="store_true", help="under 3 minutes; no results")
    group.addoption("--data", type=Path, help="folder of cases; a phantom by default")
    group.addoption("--checkpoint", type=Path, help="network; the newest run's by default")
    group.addoption(
        "--model", type=Path, help="its model directory; model/ by default, else exported afresh"
    )
    group.addoption(
        "--export", action="store_true", help="export the network in fp32 even if there is model/"
    )
    group.addoption("--case", help="the case to time; the first of --data by default")
    group.addoption("--rounds", type=int, help="times a figure is taken; 2 or more by default")
    group.addoption("--parity-cases", type=int, default=1, help="cases to compare on")
    group.addoption("--cohort-cases", type=int, help="cases of a cohort; a few by default")
    group.addoption(
        "--compare", type=Path, metavar="FILE", help="fail where this run is worse than that one"
    )


def check_options(config: pytest.Config) -> None:
    """Refuse what could not be measured as it was asked for.

    Raises:
        pytest.UsageError: says what was found, what was expected and the remedy.
    """
    try:
        for name in ("--rounds", "--parity-cases", "--cohort-cases"):
            _check_count(name, config.getoption(name))
        if config.getoption("--data") is not None:
            cases_of(config)
        elif config.getoption("--case") is not None:
            raise UsageError(
                "--case",
                found="no --data",
                expected="a folder that holds the case",
                remedy="name it with --data, or drop --case",
            )
        if config.getoption("--checkpoint") is not None or config.getoption("--model") is not None:
            given_model(config, _card(config))
    except BratsError as error:
        raise pytest.UsageError(str(error)) from error


def _check_count(name: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise UsageError(
            name, found=str(count), expected="1 or more", remedy=f"drop {name} for the default"
        )


def scale_of(config: pytest.Config) -> Scale:
    """How much is measured."""
    return QUICK if config.getoption("--quick") else STANDARD


def cases_of(config: pytest.Config) -> list[Case]:
    """The case of --data that is timed first; after it those that parity is compared on, as many
    as --parity-cases.

    Raises:
        InputError: there are none in --data, or they cannot be read.
        UsageError: --case is none of them.
    """
    wanted, data = config.getoption("--case"), config.getoption("--data")
    found = find_cases(data)
    timed = [case for case in found if wanted in (None, case.case_id)][:1]
    if not timed:
        raise UsageError(
            "--case",
            found=f"{wanted}, which is not in {data}",
            expected="one of its cases",
            remedy=f"name one, such as {found[0].case_id}, or drop --case",
        )
    others = [case for case in found if case not in timed and case.labels is not None]
    return timed + others[: config.getoption("--parity-cases") - 1]


def checkpoint_of(config: pytest.Config) -> Path | None:
    """--checkpoint, else the newest run's best; None means random weights."""
    given: Path | None = config.getoption("--checkpoint")
    if given is not None or scale_of(config) is QUICK:
        return given
    try:
        return newest_run(Path("runs")) / "checkpoints" / "best.pt"
    except InputError:
        return None


def random_card(scale: Scale) -> ModelCard:
    """Of the network with random weights."""
    return ModelCard(name="random", patch=scale.patch)


def _card(config: pytest.Config) -> ModelCard:
    path = checkpoint_of(config)
    return random_card(scale_of(config)) if path is None else load_model(path)[1]


def given_model(config: pytest.Config, card: ModelCard) -> ModelDir | None:
    """The model directory of --model, else model/ where it is that network's; None means that the
    network is to be exported.

    Raises:
        InputError: --model is no model directory.
        UsageError: it is another network's, or is given with --export.
    """
    given, export = config.getoption("--model"), config.getoption("--export")
    if given is None:
        if export or not (_MODEL / MANIFEST).is_file():
            return None
        found = ModelDir.open(_MODEL)
        return found if not _differing(found.card, card) else None
    if export:
        raise UsageError(
            "--export", found="--model as well", expected="one of the two", remedy="drop one"
        )
    found = ModelDir.open(given)
    differing = _differing(found.card, card)
    if differing:
        path = checkpoint_of(config)
        raise UsageError(
            f"--model {given}",
            found=f"a card with another {', '.join(differing)}",
            expected=f"the card of the network that is measured beside it ({path or RANDOM})",
            remedy="name its own checkpoint with --checkpoint, or --export instead of --model",
        )
    return found


def _differing(one: ModelCard, other: ModelCard) -> Sequence[str]:
    cards: list[dict[str, Any]] = [json.loads(card.to_json()) for card in (one, other)]
    names = sorted({*cards[0], *cards[1]})
    return [name for name in names if cards[0].get(name) != cards[1].get(name)]
