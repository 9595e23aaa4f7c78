"""What the page shows of results and models, without a browser: that nothing of another case stays,
and that texts from files are no markup.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.manifest import manifest_of
from runtime.measure import Measurements, Structure

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")
from streamlit.testing.v1 import AppTest

from runtime.app.followup import changes

pytestmark = pytest.mark.usefixtures("main_module")


def chosen() -> None:
    import streamlit as st

    from runtime.app.results import choose

    titles = [f"case {number}" for number in range(st.session_state["count"])]
    st.text(str(choose(titles)))


def shown(page: AppTest) -> str:
    assert not page.exception
    return str(page.text[-1].value)


def test_a_new_result_is_shown_whatever_was_looked_at_before() -> None:
    page = AppTest.from_function(chosen)
    for count in (1, 2, 3):
        page.session_state["count"] = count
        assert shown(page.run()) == f"case {count - 1}"
        assert shown(page.run()) == f"case {count - 1}"
    assert shown(page.selectbox(key="result").select("case 0").run()) == "case 0"
    # It stays until there is a newer one.
    assert shown(page.run()) == "case 0"
    page.session_state["count"] = 4
    assert shown(page.run()) == "case 3"


def test_comparing_asks_for_two_and_begins_with_the_newest() -> None:
    page = AppTest.from_function(chosen)
    page.session_state["count"] = 3
    page.run()
    assert shown(page.toggle(key="compare").set_value(True).run()) == "None"
    assert not page.selectbox
    assert page.session_state["earlier"] == "case 1"
    assert page.session_state["later"] == "case 2"


def structure(name: str, volume: float, diameter: float) -> Structure:
    return Structure(name, 1, volume, None, None, 1, diameter, diameter)


def test_changes_are_those_of_the_later_visit() -> None:
    def visit(*figures: tuple[float, float]) -> Measurements:
        names = ("WT", "ET")
        found = {name: structure(name, *one) for name, one in zip(names, figures, strict=True)}
        return Measurements(found, 1000.0, {})

    table = changes(visit((40.0, 50.0), (0.0, 0.0)), visit((30.0, 45.0), (2.0, 10.0)))
    assert table["structure"].tolist() == ["WT", "ET"]
    assert table["change ml"].tolist() == [-10.0, 2.0]
    assert table["change %"].tolist()[0] == -25.0
    assert np.isnan(table["change %"].tolist()[1])
    assert table["later diameter mm"].tolist() == [45.0, 10.0]


def models(root: Path) -> AppTest:
    def page() -> None:
        import streamlit as st

        from runtime.app.choices import _found, choose_model
        from runtime.cli.app_options import AppOptions

        _found.clear()
        found = choose_model(AppOptions(root=st.session_state["root"]))
        st.text(found.title if found else "none")

    made = AppTest.from_function(page)
    made.session_state["root"] = str(root)
    return made


def renamed(model: Path, target: Path, name: str, training: dict[str, Any]) -> Path:
    """A model directory whose card says something else."""
    shutil.copytree(model, target)
    card = json.loads((target / "card.json").read_text())
    card |= {"name": name, "training": training}
    (target / "card.json").write_text(json.dumps(card))
    (target / "manifest.json").write_bytes(manifest_of(target))
    return target


def test_a_model_that_is_found_later_takes_no_others_place(
    tiny_model: Path, tmp_path: Path
) -> None:
    renamed(tiny_model, tmp_path / "models" / "a", "a", {})
    renamed(tiny_model, tmp_path / "models" / "b", "b", {})
    page = models(tmp_path)
    page.run()
    assert shown(page.selectbox(key="model").select("b (models/b)").run()) == "b (models/b)"
    # It stands before the others.
    renamed(tiny_model, tmp_path / "model", "new", {})
    assert shown(page.run()) == "b (models/b)"
    assert "new (model)" in page.selectbox(key="model").options


def test_a_cards_text_is_text(tiny_model: Path, tmp_path: Path) -> None:
    training = {
        "cases": "![x](https://example.org/a.png) <b>",
        "epochs": [1],
        "validation_dice": {"WT": "n/a", "TC": 0.5, "ET": None},
    }
    renamed(tiny_model, tmp_path / "model", "odd", training)
    page = models(tmp_path).run()
    assert shown(page) == "odd (model)"
    (told,) = (one.value for one in page.sidebar.caption if "trained on" in one.value)
    assert told.startswith(r"trained on \!\[x\]\(https")
    assert any(one.value == "Validation Dice: TC **0.50**" for one in page.sidebar.markdown)
