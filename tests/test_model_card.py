"""The card: what was written comes back, and nothing else is taken for a card."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.model_card import ModelCard

CARD = ModelCard("a model", training={"cases": 3, "parts": [{"x": None}]})
WHOLE: dict[str, Any] = json.loads(CARD.to_json())


def test_a_card_comes_back() -> None:
    assert ModelCard.from_json(CARD.to_json(), "card.json") == CARD


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


WRONG: list[tuple[str, Any]] = [
    ("name", 3),
    ("name", "a\x1b[31mb"),
    ("name", "a\nb"),
    ("modalities", "flair"),
    ("modalities", []),
    ("modalities", ["flair", "flair"]),
    ("modalities", ["flair", ["t1"]]),
    ("modalities", ["pet"]),
    ("labels", "NCR "),
    ("labels", ["background", "tumour"]),
    ("labels", ["a", "b", "c", "d", "e"]),
    ("regions", []),
    ("regions", {"WT": 1}),
    ("regions", {"WT": [4]}),
    ("regions", {"WT": [-1]}),
    ("regions", {"WT": ["1"]}),
    ("orientation", "LLS"),
    ("orientation", None),
    ("spacing_mm", [1, 1]),
    ("spacing_mm", [1, 1, 0]),
    ("spacing_mm", [1, 1, 1e999]),
    ("spacing_mm", [1, 1, True]),
    ("spacing_mm", 1),
    ("normalisation", []),
    ("normalisation", "none"),
    ("patch", [128, 128]),
    ("patch", [128, 128, 1e999]),
    ("patch", [128, 128, 64.0]),
    ("patch", [128, 128, 16 * 10**400]),
    ("patch", [128, 128, 0]),
    ("patch", [1 << 20, 1 << 20, 1 << 20]),
    ("patch", [512, 512, 528]),
    ("divisor", 0),
    ("divisor", "16"),
    ("divisor", 3),
    ("inference", {"overlap": 1.0, "batch": 1}),
    ("inference", {"overlap": 0.5, "batch": 0}),
    ("inference", {"overlap": 0.5}),
    ("inference", {"overlap": "0.5", "batch": 1}),
    ("inference", 5),
    ("tolerates_missing", ["pet"]),
    ("postprocess", {"min_component_mm3": -1, "min_et_mm3": 0}),
    ("postprocess", {"min_component_mm3": "many", "min_et_mm3": 0}),
    ("postprocess", {}),
    ("training", nested(900)),
    ("training", []),
    ("research_use", 1),
    ("schema", 2),
    ("schema", "1"),
    ("schema", True),
    ("more", 1),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{k}={str(v)[:20]!a}" for k, v in WRONG])
def test_a_card_of_something_else_is_bad_input(key: str, value: Any) -> None:
    text = json.dumps({**WHOLE, key: value})
    with pytest.raises(InputError, match=r"card\.json") as caught:
        ModelCard.from_json(text, "card.json")
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{" * 100_000, '{"a":' * 100_000, "NaN", '{"schema": ' + "9" * 5000 + "}", "\0"],
)
def test_text_that_is_no_card_is_bad_input(text: str) -> None:
    with pytest.raises(InputError):
        ModelCard.from_json(text, "card.json")
    with pytest.raises(InputError):
        ModelCard.from_json(CARD.to_json().replace("0.5", text or "x"), "card.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(WHOLE)), VALUES)
@settings(max_examples=150, deadline=None)
def test_any_value_is_bad_input_or_a_card_that_can_be_written(key: str, value: Any) -> None:
    try:
        card = ModelCard.from_json(json.dumps({**WHOLE, key: value}), "card.json")
    except InputError:
        return
    assert ModelCard.from_json(card.to_json(), "card.json") == card
