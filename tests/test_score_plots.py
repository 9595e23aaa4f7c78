"""Plots are PNGs with a dot for every case; without Matplotlib one sentence says so."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import score_plots
from runtime.errors import OutputError, UsageError
from runtime.evaluate import Evaluation
from runtime.labels import Label
from runtime.metrics import PROFILES, SCORED, score_case
from runtime.score_plots import check_plots, draw_plots

ISO = (1.0, 1.0, 1.0)


def evaluation(profile: str, count: int, missing: tuple[str, ...] = ()) -> Evaluation:
    truth = np.zeros((20, 8, 8), np.uint8)
    truth[4:10] = Label.ET
    truth[10:14] = Label.ED
    scores = {}
    for index in range(count):
        prediction = np.roll(truth, index, 0) if index else np.zeros_like(truth)
        scores[f"case{index}"] = score_case(prediction, truth, ISO, PROFILES[profile])
    return Evaluation(PROFILES[profile], scores, missing)


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_plot_is_a_picture(tmp_path: Path, profile: str, count: int) -> None:
    made = draw_plots(tmp_path / "plots", evaluation(profile, count, ("case0",)))
    names = ["dice.png", "hd95.png", "volumes.png"]
    if profile == "brats2023":
        names += ["lesion_dice.png", "lesion_hd95.png"]
    assert [path.name for path in made] == names
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(names)
    for path in made:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width >= 500
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_there_is_a_dot_for_every_case_and_a_cross_for_what_is_missing() -> None:
    made = evaluation("brats2020", 9, ("case0",))
    for metric in ("dice", "hd95"):
        figure = score_plots._distribution(made, metric, SCORED)
        drawn = [
            one.get_offsets() for one in figure.axes[0].collections if hasattr(one, "get_sizes")
        ]
        values = sorted(
            one.figures()[metric] for scores in made.cases.values() for one in scores.values()
        )
        # Dots, crosses, mean and median of each column.
        assert len(drawn) == 4 * len(SCORED)
        dots = np.concatenate([drawn[i] for i in range(len(drawn)) if i % 4 < 2])
        assert sorted(dots[:, 1].tolist()) == pytest.approx(values)
        assert [len(drawn[i]) for i in range(1, len(drawn), 4)] == [1] * len(SCORED)


def test_dots_of_one_height_do_not_hide_each_other() -> None:
    for count in (1, 2, 9, 200):
        offsets = score_plots._spread(np.full(count, 0.5))
        assert len(set(offsets.tolist())) == count
        assert abs(offsets).max() <= score_plots._HALF_WIDTH
        assert offsets.mean() == pytest.approx(0, abs=1e-12)
    assert score_plots._spread(np.array([0.1, 0.9])).tolist() == [0, 0]


def test_without_matplotlib_one_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def blind(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "matplotlib" else found(name, package)

    monkeypatch.setattr(score_plots, "find_spec", blind)
    with pytest.raises(UsageError, match=r"brats-deploy\[plots\]"):
        check_plots()
    with pytest.raises(UsageError, match="no Matplotlib"):
        draw_plots(tmp_path / "plots", evaluation("brats2020", 2))
    assert not (tmp_path / "plots").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        draw_plots(tmp_path / "file" / "plots", evaluation("brats2020", 2))
