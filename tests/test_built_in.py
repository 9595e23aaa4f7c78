"""The built-in reference model: whole, licensed, scored, and taken where there is no other."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest

from benchmarks.reference_model import FIGURES
from benchmarks.reference_page import BAR, certified_cases, licence, mean_dice, page, table
from export.half_weights import is_halved
from runtime.case import Case
from runtime.cli.infer import main
from runtime.labels import MODALITIES, Convention
from runtime.metrics import PROFILES, score_case
from runtime.model_dir import BUILT_IN, ModelDir, foreign_files
from runtime.modes import certified
from runtime.truth import load_truth, read_labels

pytestmark = pytest.mark.skipif(
    not BUILT_IN.exists(),
    reason=f"no model is built in: none has reached a mean Dice of {BAR} on the held cases yet",
)
WriteCase = Callable[..., Path]
REAL = Path(__file__).parents[2] / "shared" / "data" / "brats18"
HELD = ("2013_3_1", "CBICA_AOZ_1", "CBICA_ATB_1", "TCIA01_378_1", "TCIA10_628_1")


@pytest.fixture(scope="module")
def figures() -> Any:
    return json.loads((BUILT_IN / FIGURES).read_text())


def test_it_is_whole_and_holds_nothing_else() -> None:
    model = ModelDir.open(BUILT_IN)
    assert set(model.hashes) == {
        *("model.onnx", "model.int8.onnx", "card.json", "parity.json"),
        *(FIGURES, "README.md", "LICENSE-WEIGHTS"),
    }
    for name in model.hashes:
        assert model.read(name)
    assert foreign_files(BUILT_IN) == []


def test_it_is_the_reference_network_in_half_the_bytes() -> None:
    data = ModelDir.open(BUILT_IN).read("model.onnx")
    assert 13e6 < len(data) < 16e6
    assert is_halved(data)
    # 16-32-64-128-256 channels, counted over what the decoder's composed convolutions make of them.
    graph = onnx.load_model_from_string(data).graph
    outputs = {
        item.dims[0] for item in graph.initializer if len(item.dims) == 5 and item.dims[2] == 3
    }
    assert {16, 32, 64, 128, 256} <= outputs


def test_it_is_certified_on_real_cases() -> None:
    model = ModelDir.open(BUILT_IN)
    assert model.certificate["verdict"] == "pass"
    assert model.verdict("model.onnx") == "pass"
    assert model.certificate["source"] == "data"
    assert model.verdict("model.int8.onnx") == "pass"
    assert {
        one["arithmetic"] for one in model.certificate["artefacts"] if one["file"] == "model.onnx"
    } == {"fp32, weights stored in fp16"}
    ids = {case["case_id"] for case in model.certificate["cases"]}
    assert ids <= set(json.loads(model.read(FIGURES))["split"]["validation"])


def test_its_faster_modes_are_certified_on_cases_that_changed_no_weight(figures: Any) -> None:
    model = ModelDir.open(BUILT_IN)
    assert [mode.quality for mode in certified(model)] == ["exact", "balanced", "fast"]
    for entry in model.certificate["modes"]:
        ids = {case["case_id"] for case in entry["cases"]}
        assert len(ids) >= 3
        assert ids <= set(figures["split"]["validation"])
    (int8,) = {
        json.dumps(one["calibration"])
        for one in model.certificate["artefacts"]
        if one["file"] == "model.int8.onnx"
    }
    calibrated = {case["case_id"] for case in json.loads(int8)["cases"]}
    assert calibrated <= set(figures["split"]["train"])


def test_it_was_scored_on_cases_that_took_no_part(figures: Any) -> None:
    assert set(figures["scores"]["brats2020"]["cases"]) == {f"Brats18_{name}" for name in HELD}
    split = figures["split"]
    assert len(split["train"]) == 16
    assert len(split["validation"]) == 4
    assert not (set(split["train"]) | set(split["validation"])) & set(
        figures["scores"]["brats2020"]["cases"]
    )
    cases = figures["scores"]["brats2020"]["cases"].values()
    mean = np.mean([case[region]["dice"] for case in cases for region in ("WT", "TC", "ET")])
    assert mean == pytest.approx(mean_dice(figures["scores"]["brats2020"]))
    assert mean >= BAR


def test_its_card_for_people_shows_the_figures_that_were_measured(figures: Any) -> None:
    said = (BUILT_IN / "README.md").read_text()
    model = ModelDir.open(BUILT_IN)
    card = json.loads(model.read("card.json"))
    assert said == page(figures, card)
    assert table(figures["scores"]["brats2020"]) in said
    for limit in ("nineteen of one site", "not for diagnosis or treatment", "LICENSE-WEIGHTS"):
        assert limit in said
    assert max(map(len, said.splitlines())) <= 120
    assert figures["training"].items() >= card["training"].items()
    assert figures["model_sha256"] == model.hashes["model.onnx"]
    assert figures["training"]["commands"][0][:2] != []
    scores = figures["scores"]
    assert scores["brats2023"]["cases"].keys() == scores["brats2020"]["cases"].keys()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real cases beside the checkout")
@pytest.mark.parametrize("name", HELD)
def test_the_scores_are_those_of_these_weights(figures: Any, tmp_path: Path, name: str) -> None:
    case = f"Brats18_{name}"
    assert main([str(REAL / case), "--model", str(BUILT_IN), "-o", str(tmp_path)]) == 0
    found = score_case(
        read_labels(tmp_path / f"{case}_seg.nii.gz", Convention.BRATS2020)[0],
        load_truth(Case.from_dir(REAL / case)),
        (1.0, 1.0, 1.0),
        PROFILES["brats2020"],
    )
    for region in ("WT", "TC", "ET"):
        stored = figures["scores"]["brats2020"]["cases"][case][region]["dice"]
        assert found[region].figures()["dice"] == pytest.approx(stored, abs=1e-3)


def test_its_terms_name_cases_papers_and_limits(figures: Any) -> None:
    said = (BUILT_IN / "LICENSE-WEIGHTS").read_text()
    split, scored = figures["split"], figures["scores"]["brats2020"]["cases"]
    assert said == licence(figures, certified_cases(ModelDir.open(BUILT_IN)))
    for case in (*split["train"], *split["validation"], *scored):
        assert len(re.findall(rf"^  {case}$", said, re.M)) == 1
    flat = " ".join(said.split())
    for words in (
        "doi:10.1109/TMI.2014.2377694",
        "doi:10.1038/sdata.2017.117",
        "RSNA-ASNR-MICCAI-BraTS-2021",
        "CC BY 4.0: doi:10.7937/jc8x-9874",
        "public copies of the 2018 release",
        "No image data",
        "Only the rights that the authors of brats-deploy hold are granted",
        "research and education",
        "not a medical device, and not for diagnosis or treatment",
        "neither reviewed nor endorsed",
    ):
        assert words in flat


def test_no_path_of_a_machine_is_in_it() -> None:
    for name in ModelDir.open(BUILT_IN).hashes:
        if not name.endswith(".onnx"):
            assert not re.search(r"/(work|home|root|tmp)\b", (BUILT_IN / name).read_text())


@pytest.fixture
def case_dir(tmp_path: Path, write_case: WriteCase) -> Path:
    rng = np.random.default_rng(3)
    images = {name: rng.integers(1, 900, (40, 36, 30)).astype(np.int16) for name in MODALITIES}
    return write_case(tmp_path / "case", images)


def test_a_newcomer_segments_a_case_with_one_command(
    case_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    assert main([str(case_dir)]) == 0
    said = capsys.readouterr().err
    assert "no model/ here: the built-in reference model, trained on 16 cases" in said
    sidecar = json.loads((place / "predictions" / "X.json").read_text())
    built_in = ModelDir.open(BUILT_IN)
    assert sidecar["model"] == {
        "name": built_in.card.name,
        "sha256": built_in.hashes["model.onnx"],
        "certificate": "pass",
    }
    assert nib.load(place / "predictions" / "X_seg.nii.gz").shape == (40, 36, 30)
