"""Which model serves where none is named, and what may become the built-in one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.reference_model import ScoreFiles, make
from benchmarks.reference_page import certified_cases, licence, mean_dice, modes, page, table
from export.half_weights import halve_weights, is_halved
from export.trace import set_card
from runtime.errors import InputError
from runtime.manifest import manifest_of
from runtime.model_card import ModelCard
from runtime.model_dir import ModelDir, find_model, sha256_of


@pytest.fixture
def built_in(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built-in model for as long as the test runs, and an empty working folder."""
    made = Path(shutil.copytree(tiny_model, tmp_path / "package" / "reference"))
    monkeypatch.setattr("runtime.model_dir.BUILT_IN", made)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return made


def test_whatever_is_called_model_stands_above_the_built_in_one(
    built_in: Path, tiny_model: Path
) -> None:
    assert find_model(None).path == built_in
    assert find_model(tiny_model).path == tiny_model
    shutil.copytree(tiny_model, "model")
    assert find_model(None).path == Path("model")
    Path("model", "card.json").write_text("{}")
    with pytest.raises(InputError, match=r"card\.json"):
        find_model(None)


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize("kind", ["a dangling link", "an empty folder", "a file"])
def test_a_broken_model_is_an_error_and_not_replaced(tmp_path: Path, kind: str) -> None:
    path = Path("model")
    if kind == "a dangling link":
        path.symlink_to(tmp_path / "gone")
    elif kind == "a file":
        path.write_text("")
    else:
        path.mkdir()
    with pytest.raises(InputError, match="model"):
        find_model(None)


def test_without_any_the_remedy_is_to_export_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.model_dir.BUILT_IN", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"model: found no such directory.*brats-export"):
        find_model(None)


# How it is made


@pytest.fixture
def parts(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    """An export whose certificate passes, a run, and scores."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "export"))
    run = tmp_path / "run"
    run.mkdir()
    split = {
        "train": ["A", "B", "BraTS-GLI-00008-000"],
        "validation": ["C"],
        "excluded": ["D"],
        "sha256": "0",
    }
    (run / "split.json").write_text(json.dumps(split))
    environment = {
        "arguments": ["--resume", "-o=/somewhere/runs"],
        "earlier": [{"arguments": ["--data", "/somewhere/data", "--train.lr", "3e-3"]}],
        **{"packages": {}, "revision": "r", "cores": 2, "device": "x"},
    }
    (run / "environment.json").write_text(json.dumps(environment))
    return {"model": model, "run": run, "out": tmp_path / "out"}


def scores(path: Path, dice: float, case: str = "D") -> ScoreFiles:
    """The same figures by both profiles, in two files."""
    region = {"dice": dice, "hd95": 1.0}
    one = {"mean": dice, "interval": [dice, dice]}
    summary = {"dice": one, "lesion_dice": one, "hd95": {"mean": 1.0}}
    names = ("WT", "TC", "ET")
    found = {
        "cases": {case: dict.fromkeys(names, region)},
        "summary": dict.fromkeys(names, summary),
    }
    lesions = path.with_suffix(".2023.json")
    path.write_text(json.dumps(found | {"profile": "brats2020"}))
    lesions.write_text(json.dumps(found | {"profile": "brats2023"}))
    return ScoreFiles(path, lesions, path)


@pytest.mark.parametrize(
    ("dice", "case", "found"),
    [
        (0.719, "D", "mean Dice 0.7190, expected 0.72"),
        (0.9, "A", "scored on patients that it was trained with: A"),
        (0.9, "C", "scored on patients that it was trained with: C"),
        (0.9, "BraTS-GLI-00008-001", "trained with: BraTS-GLI-00008-001"),
        (0.9, "D", "the certificate does not pass"),
    ],
)
def test_what_does_not_deserve_it_is_not_built_in(
    parts: dict[str, Path], tmp_path: Path, dice: float, case: str, found: str
) -> None:
    files = scores(tmp_path / "scores.json", dice, case)
    with pytest.raises(SystemExit, match=found):
        make(parts["model"], parts["run"], files, parts["out"])
    assert not parts["out"].exists()


def test_scores_of_another_profile_or_of_other_cases_are_refused(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    passing(parts["model"])
    sound = scores(tmp_path / "scores.json", 0.8)
    others = scores(tmp_path / "others.json", 0.8, "E")
    for files, found in (
        (replace(sound, whole=sound.lesions), "scores by brats2023, expected brats2020"),
        (replace(sound, lesions=sound.whole), "scores by brats2020, expected brats2023"),
        (replace(sound, lesions=others.lesions), "different cases"),
    ):
        with pytest.raises(SystemExit, match=found):
            make(parts["model"], parts["run"], files, parts["out"])
    assert not parts["out"].exists()


def test_weights_in_fp32_are_refused(
    parts: dict[str, Path], tmp_path: Path, tiny_model: Path
) -> None:
    passing(parts["model"], half=False)
    assert not is_halved((parts["model"] / "model.onnx").read_bytes())
    with pytest.raises(SystemExit, match="expected brats-export --half-weights"):
        make(parts["model"], parts["run"], scores(tmp_path / "s.json", 0.8), parts["out"])


def passing(model: Path, half: bool = True) -> None:
    """Halve the weights, let the certificate pass, and the card say how they were trained."""
    path = model / "model.onnx"
    card = json.loads((model / "card.json").read_text())
    card["training"] = {"cases": 2, "epochs": 3, "patches": 4000, "precision": "bf16"}
    (model / "card.json").write_text(json.dumps(card))
    graph = onnx.load(path)
    if half:
        graph = halve_weights(graph)
    set_card(graph, ModelCard.from_json(json.dumps(card), "card.json"))
    path.write_bytes(graph.SerializeToString())
    certificate = json.loads((model / "parity.json").read_text())
    for entry in certificate["artefacts"]:
        entry["verdict"] = "pass"
        entry["sha256"] = sha256_of((model / entry["file"]).read_bytes())
    (model / "parity.json").write_text(json.dumps(certificate))
    (model / "manifest.json").write_bytes(manifest_of(model))


def test_what_deserves_it_is_built_in_with_terms_figures_and_card(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    passing(parts["model"])
    files = scores(tmp_path / "scores.json", 0.8)
    out = parts["out"]
    assert make(parts["model"], parts["run"], files, out) == pytest.approx(0.8)
    made = ModelDir.open(out)
    assert set(made.hashes) == {
        *("model.onnx", "card.json", "parity.json"),
        *("figures.json", "README.md", "LICENSE-WEIGHTS"),
    }
    found = json.loads((out / "figures.json").read_text())
    assert mean_dice(found["scores"]["brats2020"]) == pytest.approx(0.8)
    assert found["training"]["commands"] == [
        ["--data", "data", "--train.lr", "3e-3"],
        ["--resume", "-o", "runs"],
    ]
    assert table(found["scores"]["brats2020"]) in (out / "README.md").read_text()
    terms = (out / "LICENSE-WEIGHTS").read_text()
    assert terms == licence(found, certified_cases(made))
    assert (out / "README.md").read_text() == page(
        found, json.loads((out / "card.json").read_text())
    )
    assert [line.strip() for line in terms.splitlines() if len(line.strip()) == 1] == [*"ABCD"]
    assert "  BraTS-GLI-00008-000" in terms
    said = " ".join((out / "README.md").read_text().split())
    assert "2 cases of one site trained it for 3 epochs (4,000 patches" in said
    assert "They were scored once." in said


def test_the_page_says_how_often_the_scored_cases_were_looked_at(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    passing(parts["model"])
    before = tuple(scores(tmp_path / f"{dice}.json", dice).whole for dice in (0.5, 0.7))
    files = scores(tmp_path / "scores.json", 0.8)
    make(parts["model"], parts["run"], replace(files, earlier=before), parts["out"])
    said = (parts["out"] / "README.md").read_text()
    assert "scored on them before (mean Dice 0.500, 0.700)" in " ".join(said.split())
    assert "once" not in said
    found = json.loads((parts["out"] / "figures.json").read_text())
    assert found["earlier_mean_dice"] == pytest.approx([0.5, 0.7])
    other = scores(tmp_path / "other.json", 0.5, case="E").whole
    with pytest.raises(SystemExit, match="different cases"):
        make(parts["model"], parts["run"], replace(files, earlier=(other,)), tmp_path / "new")
    with pytest.raises(SystemExit, match="different cases"):
        make(parts["model"], parts["run"], replace(files, without_rule=other), tmp_path / "new")


@pytest.mark.parametrize("dice", [0.8, 0.79])
def test_one_that_is_no_better_does_not_replace_it(
    parts: dict[str, Path], tmp_path: Path, dice: float
) -> None:
    passing(parts["model"])
    first = scores(tmp_path / "first.json", 0.8)
    make(parts["model"], parts["run"], first, parts["out"])
    before = ModelDir.open(parts["out"]).hashes
    files = scores(tmp_path / "scores.json", dice)
    with pytest.raises(SystemExit, match="expected more than the"):
        make(parts["model"], parts["run"], files, parts["out"])
    assert ModelDir.open(parts["out"]).hashes == before


def test_the_page_says_where_a_faster_mode_fails_on_the_scored_cases() -> None:
    def entry(quality: str, backend: str, to_exact: dict[str, float]) -> dict[str, Any]:
        dice = dict.fromkeys(("WT", "TC", "ET"), 0.5)
        return {
            "quality": quality,
            "backend": backend,
            "times_faster": 4.26,
            "cases": len(to_exact),
            "dice": {"exact": dice, "mode": {**dice, "ET": 0.4}},
            "to_exact": {
                name: {"WT": 1.0, "TC": value, "ET": 1.0} for name, value in to_exact.items()
            },
        }

    own = [entry("balanced", name, {"A": 0.97, "B": 0.96}) for name in ("openvino", "ort")]
    assert modes([], []) == ""
    said = modes(own, [])
    assert "Certified with OpenVINO and ONNX Runtime on 2 cases" in said
    assert said.count("| `balanced` | 0.5000 / 0.5000 / 0.4000 | 0.960 | 4.3 |") == 1
    scored = [
        entry("balanced", "openvino", {"C": 0.95, "D": 0.9}),
        entry("fast", "openvino", {"C": 0.89, "D": 0.98}),
        entry("fast", "ort", {"C": 0.1, "D": 0.1}),
    ]
    both = modes(own, scored)
    assert both.startswith(said)
    assert "On the 2 scored cases, which had no part in that" in both
    assert "`balanced`: Dice to `exact` is 0.900 or more in each region." in both
    assert (
        "`fast` would not have passed here: it segments C otherwise than `exact` does. In the "
        "other cases Dice to `exact` is 0.980 or more in each region." in both
    )
