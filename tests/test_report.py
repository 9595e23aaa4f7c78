"""The page of a prediction: its figures against counting, its HTML against a parser."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime import DISCLAIMER
from runtime.backends import BackendInfo
from runtime.errors import InputError
from runtime.labels import MODALITIES, Label, LabelMap
from runtime.metrics import PROFILES, hd95
from runtime.model_card import ModelCard
from runtime.nifti import Grid, Volume
from runtime.output_plan import OutputOptions, plan_output
from runtime.overlay import LABEL_COLOURS
from runtime.phantom import Enhancement, phantom_case
from runtime.planes import PLANES, lps_spacing, to_lps
from runtime.prediction import save
from runtime.report import html_report
from runtime.segmented import Prediction, Timings
from runtime.windows import plan_windows
from tests.heads import stored_as, volume_of
from tests.pages import png_of, table_of, tree_of

HOSTILE = "<script>alert(1)</script> & \"Ü\" 'x' &lt; \udcff"


def predicted(volume: Volume, labels: LabelMap, **changes: Any) -> Prediction:
    made = Prediction(
        labels=labels,
        probabilities=None,
        volume=volume,
        card=ModelCard("a model"),
        backend=BackendInfo("openvino", "cpu", "fp32", "model.onnx", "ab" * 32, "pass", None),
        plan=plan_windows((40, 20, 8), (16, 16, 8), (8, 16, 6), "stride"),
        timings=Timings(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        warnings=(),
    )
    return replace(made, **changes)


Head = tuple[Prediction, dict[str, Any], LabelMap]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    """A small brain of unequal spacing: prediction, its sidecar, and a truth that differs."""
    phantom = phantom_case(4, 2, (60, 56, 40), Enhancement.RIM)
    grid = Grid.from_affine(phantom.grid.shape, phantom.grid.affine @ np.diag([3.5, 4.0, 5.0, 1]))
    prediction = predicted(
        volume_of(phantom.images, grid), np.roll(phantom.labels, (2, 1, 0), (0, 1, 2))
    )
    plan = plan_output(
        prediction.volume.case, OutputOptions(tmp_path_factory.mktemp("out") / "predictions")
    )
    sidecar = save(prediction, plan, load_seconds=1.0)
    sidecar["run"]["finished"] = "2026-01-02T03:04:05+00:00"
    return prediction, sidecar, phantom.labels


@pytest.mark.parametrize("with_truth", [False, True])
def test_the_page_stands_alone_and_is_well_formed(head: Head, with_truth: bool) -> None:
    prediction, sidecar, truth = head
    page = html_report(prediction, sidecar, truth if with_truth else None)
    assert page.startswith("<!doctype html>\n<html lang=")
    assert "brats-deploy" in page[:256]
    root = tree_of(page)
    for node in root.walk():
        assert node.tag not in {"script", "link", "iframe", "object", "base", "form", "video"}
        for name, value in node.attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "#"))
            assert "://" not in (value or "")
    (style,) = root.all("style")
    assert not re.search(r"url\(|@import|@font-face|expression|</", style.text)
    policies = root.all("meta", http_equiv="Content-Security-Policy")
    assert [node.attributes["content"] for node in policies] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]
    (html,) = root.all("html")
    assert html.attributes["lang"] == "en"
    (main,) = root.all("main")
    assert [node.tag for node in main.walk()].count("h1") == 1
    for node in root.all("img"):
        assert "alt" in node.attributes
    for node in root.all("th"):
        assert node.attributes["scope"] in ("row", "col")
    assert len(root.all("caption")) == len(root.all("table"))
    assert page.count(DISCLAIMER) == 2
    words = main.words()
    assert "\\n" not in words
    assert DISCLAIMER in words[:300]
    assert DISCLAIMER in words[-300:]


def test_nothing_of_a_hostile_name_is_markup(head: Head) -> None:
    prediction, sidecar, _ = head
    volume = prediction.volume
    images = {f"{HOSTILE}{name}": image for name, image in volume.images.items()}
    names = dict.fromkeys(
        ("name", "device", "precision", "fell_back_from"), HOSTILE
    )  # fmt: skip
    hostile = sidecar | {
        "case_id": HOSTILE,
        "warnings": [HOSTILE],
        "model": {"name": HOSTILE, "sha256": HOSTILE, "certificate": HOSTILE},
        "backend": names,
        "convention": HOSTILE,
        "inputs": {HOSTILE: {"sha256": HOSTILE}},
        "output": {"file": HOSTILE, "sha256": HOSTILE},
        "run": {"version": HOSTILE, "finished": HOSTILE},
    }
    card = ModelCard("m", training={HOSTILE: {HOSTILE: [HOSTILE, {HOSTILE: 0.5}]}})
    page = html_report(
        replace(prediction, volume=replace(volume, images=images), card=card), hostile
    )
    assert "<script" not in page.lower()
    assert len(page.encode()) > 0  # the lone surrogate is shown as an escape
    root = tree_of(page)
    shown = HOSTILE.replace("\udcff", r"\udcff")
    assert [node.words() for node in root.all("h1")] == [shown]
    assert root.all("title")[0].text == f"{shown}: brain tumour segmentation"
    (warnings,) = root.all("section", class_="warnings")
    assert [node.words() for node in warnings.all("li")] == [
        shown, f"no parity certificate vouches for the model file that ran ({shown})",
    ]  # fmt: skip
    facts = table_of(root, "Provenance")
    assert facts["Model"] == facts["Model SHA-256"] == facts["Label map"] == [shown]
    assert table_of(root, "Training") == {shown.capitalize(): [f"{shown} {shown}, {shown} 0.5"]}
    alternatives = [node.attributes["alt"] or "" for node in root.all("img")]
    assert any(f"{shown}FLAIR".upper() in told.upper() for told in alternatives)
    # The same tags stand in a page of harmless names.
    harmless = tree_of(html_report(replace(prediction, card=card), sidecar | {"warnings": ["w"]}))
    assert {node.tag for node in root.walk()} == {node.tag for node in harmless.walk()}


def test_volumes_are_those_of_counting(head: Head) -> None:
    prediction, sidecar, _ = head
    labels = prediction.labels
    rows = table_of(tree_of(html_report(prediction, sidecar)), "Volumes")
    brain = np.any([image.voxels != 0 for image in prediction.volume.images.values()], axis=0).sum()
    members = {"WT whole tumour": (1, 2, 3), "TC tumour core": (1, 3), "ET enhancing tumour": (3,),
               "NCR necrotic core": (1,), "ED edema": (2,)}  # fmt: skip
    assert list(rows) == list(members)
    for name, values in members.items():
        voxels = np.isin(labels, values).sum()
        assert rows[name][:3] == [
            f"{voxels * 0.07:.2f}",
            f"{100 * voxels / (labels > 0).sum():.1f}",
            f"{100 * voxels / brain:.2f}",
        ]


def test_truth_is_scored_region_by_region(head: Head) -> None:
    prediction, sidecar, truth = head
    rows = table_of(tree_of(html_report(prediction, sidecar, truth)), "Against the truth")
    members = {"WT whole tumour": (1, 2, 3), "TC tumour core": (1, 3), "ET enhancing tumour": (3,)}
    assert list(rows) == list(members)
    for name, values in members.items():
        p, t = np.isin(prediction.labels, values), np.isin(truth, values)
        dice, distance, mine, true, difference, percent = map(float, rows[name])
        assert dice == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()), abs=1e-4)
        expected = hd95(p, t, prediction.volume.grid.spacing, PROFILES["brats2020"])
        assert distance == pytest.approx(expected, abs=0.01)
        assert mine == pytest.approx(p.sum() * 0.07, abs=0.01)
        assert true == pytest.approx(t.sum() * 0.07, abs=0.01)
        assert difference == pytest.approx((p.sum() - int(t.sum())) * 0.07, abs=0.01)
        assert percent == pytest.approx(100 * (p.sum() / t.sum() - 1), abs=0.1)
    assert "Against the truth" not in html_report(prediction, sidecar)


@pytest.mark.parametrize("with_truth", [False, True])
def test_key_slices_are_those_with_most_tumour(head: Head, with_truth: bool) -> None:
    prediction, sidecar, truth = head
    root = tree_of(html_report(prediction, sidecar, truth if with_truth else None))
    lps = to_lps(truth if with_truth else prediction.labels, prediction.volume.grid.affine)
    mine = to_lps(prediction.labels, prediction.volume.grid.affine)
    parts = root.all("div", class_="plane")
    for plane, part, axis, pixel in zip(PLANES, parts, (2, 1, 0), (14.0, 17.5, 20.0), strict=True):
        others = tuple(other for other in range(3) if other != axis)
        areas = (lps > 0).sum(axis=others)
        key = int(areas.argmax())
        area = (mine > 0).sum(axis=others)[key] * pixel
        where = f"slice {key + 1} of {lps.shape[axis]}"
        assert part.children[0].words() == (
            f"{plane.capitalize()} {where}, predicted tumour {area:.0f} mm²"
        )
        bases = [node for node in part.all("img") if node.attributes["alt"]]
        layers = part.all("img", class_="over")
        names = [node.words() for node in part.all("figcaption")]
        assert sorted(names) == sorted(
            [
                *map(str.upper, MODALITIES),
                *(
                    f"{source} on {name}"
                    for source in (("Prediction", "Truth") if with_truth else ("Prediction",))
                    for name in ("T1CE", "FLAIR")
                ),
            ]
        )
        assert len(bases) == len(names)
        assert len(layers) == (4 if with_truth else 2)
        for node in bases:
            assert (node.attributes["alt"] or "").startswith(f"{plane} {where}, ")
        # A layer has a label's colour exactly where the slice has the label.
        drawn = [png_of(node) for node in layers]
        sources = ["Prediction", "Truth"] * 2 if with_truth else ["Prediction"] * 2
        for layer, source in zip(drawn, sources, strict=True):
            labels = np.take(mine if source == "Prediction" else lps, key, axis=axis)
            for label, colour in LABEL_COLOURS.items():
                seen = (layer[..., :3] == colour).all(axis=-1) & (layer[..., 3] > 0)
                assert seen.any() == (labels == label).any()
            shape = png_of(bases[0]).shape
            assert layer.shape[:2] == (2 * shape[0], 2 * shape[1])
        # With the true proportions of the voxels, within a pixel of either side.
        letters = "".join(node.text for node in part.all("div", class_="panel")[0].all("span"))
        sides = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}[plane]
        assert letters == f"{sides}50 mm"


def test_a_layer_lies_where_the_label_is(head: Head) -> None:
    """A tumour in the patient's right, front, top: left, and up, as each plane shows it."""
    prediction, sidecar, _ = head
    affine = prediction.volume.grid.affine
    lps = np.zeros_like(to_lps(prediction.labels, affine))
    brain = to_lps(prediction.volume.images["t1"].voxels, affine) > 0
    low, high = np.argwhere(brain).min(axis=0), np.argwhere(brain).max(axis=0)
    at = np.rint(low + (high - low) * (0.25, 0.3, 0.8)).astype(int)
    lps[tuple(slice(i - 1, i + 2) for i in at)] = Label.ET
    labels = np.zeros_like(prediction.labels)
    to_lps(labels, affine)[...] = lps  # a view: writes into the array of file order
    root = tree_of(html_report(replace(prediction, labels=labels), sidecar))
    for part, (row, column) in zip(
        root.all("div", class_="plane"), ((0.3, 0.25), (0.2, 0.25), (0.2, 0.3)), strict=True
    ):
        layer = png_of(part.all("img", class_="over")[0])
        middle = np.argwhere(layer[..., 3] > 0).mean(axis=0) / layer.shape[:2]
        # The margin around the brain moves it towards the middle by some percent.
        assert middle == pytest.approx((row, column), abs=0.08)


@pytest.mark.parametrize("code", ["RAS", "PIR", "SLA", "IPL"])
def test_the_orientation_of_the_file_changes_no_byte(head: Head, code: str) -> None:
    prediction, sidecar, truth = head
    expected = html_report(prediction, sidecar, truth)
    volume, labels = stored_as(code, prediction.volume, prediction.labels)
    _, turned = stored_as(code, prediction.volume, truth)
    made = html_report(replace(prediction, volume=volume, labels=labels), sidecar, turned)
    assert made == expected


def test_the_same_again_but_for_the_time(head: Head) -> None:
    prediction, sidecar, truth = head
    first = html_report(prediction, sidecar, truth)
    assert html_report(prediction, sidecar, truth) == first
    later = sidecar | {"run": sidecar["run"] | {"finished": "2027-01-01T00:00:00+00:00"}}
    assert html_report(prediction, later, truth) == first.replace(
        "2026-01-02T03:04:05+00:00", "2027-01-01T00:00:00+00:00"
    )


def test_where_it_comes_from(head: Head) -> None:
    prediction, sidecar, _ = head
    sidecar = sidecar | {"backend": sidecar["backend"] | {"fell_back_from": "trt (no engine)"}}
    training = {"epochs": 3, "validation_dice": {"WT": 0.8213}, "by": {"t1": {"WT": 0.5}}}
    card = ModelCard("a model", training=training)
    root = tree_of(html_report(replace(prediction, card=card), sidecar))
    facts = table_of(root, "Provenance")
    assert facts["Model"] == ["a model"]
    assert facts["Model SHA-256"] == ["ab" * 32]
    assert facts["Parity certificate"] == ["pass"]
    assert facts["Backend"] == ["openvino on cpu, fp32"]
    assert facts["Not used"] == ["trt (no engine)"]
    assert facts["Windows"] == [
        "8 of 16×16×8 voxels, overlap 0.5, 0, 0.25, placement stride"  # noqa: RUF001
    ]
    assert facts["Label convention"] == [sidecar["convention"]]
    assert facts["Label map SHA-256"] == [sidecar["output"]["sha256"]]
    assert facts["Seconds"] == [f"{sum(sidecar['timings_s'].values()):.1f}"]
    assert facts["Finished"] == ["2026-01-02T03:04:05+00:00"]
    for name in MODALITIES:
        assert facts[f"{name.upper()} SHA-256"] == [f"hash of {name}"]
    assert table_of(root, "Training") == {
        "Epochs": ["3"], "Validation dice": ["WT 0.8213"], "By": ["t1 (WT 0.5)"],
    }  # fmt: skip


def test_no_tumour_one_modality_and_no_warning(head: Head) -> None:
    prediction, sidecar, _ = head
    volume = replace(prediction.volume, images={"t2": prediction.volume.images["t2"]})
    nothing = replace(prediction, labels=np.zeros_like(prediction.labels), volume=volume)
    assert sidecar["warnings"] == []
    root = tree_of(html_report(nothing, sidecar, nothing.labels))
    words = root.words()
    assert "No voxel was called tumour" in words
    assert not root.all("section", class_="warnings")
    assert table_of(root, "Volumes")["WT whole tumour"] == [
        "0.00", "–", "0.00", "0", "0.0", "0.0",  # noqa: RUF001
    ]  # fmt: skip
    captions = [node.words() for node in root.all("figcaption")]
    assert captions == 3 * ["T2", "Prediction on T2", "Truth on T2"]


def test_labels_outside_of_the_brain_are_shown(head: Head) -> None:
    prediction, sidecar, _ = head
    labels = np.zeros_like(prediction.labels)
    labels[0, 0, 0] = Label.NCR
    root = tree_of(html_report(replace(prediction, labels=labels), sidecar))
    for node in root.all("img", class_="over"):
        assert (png_of(node)[..., 3] > 0).any()


def test_another_shape_is_refused(head: Head) -> None:
    prediction, sidecar, _ = head
    with pytest.raises(InputError, match="the truth: found shape 2x2x2, expected 60x56x40"):
        html_report(prediction, sidecar, np.zeros((2, 2, 2), np.uint8))


def test_a_page_of_a_whole_case_stays_under_three_megabytes(head: Head) -> None:
    rng = np.random.default_rng(0)
    shape = (240, 240, 155)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij", sparse=True)
    inside = sum((axis / part) ** 2 for axis, part in zip(axes, (0.6, 0.75, 0.95), strict=True)) < 1
    # Noise all over: no image is harder to compress.
    images = {
        name: np.where(inside, rng.integers(1, 1000, shape, np.int16), np.int16(0))
        for name in MODALITIES
    }
    labels = np.zeros(shape, np.uint8)
    labels[90:140, 60:120, 60:100] = rng.integers(0, 4, (50, 60, 40), np.uint8)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    prediction = predicted(volume_of(images, Grid.from_affine(shape, affine)), labels)
    page = html_report(prediction, head[1], labels[::-1])
    assert len(page.encode()) < 3_000_000


def test_spacing_of_the_head_is_what_the_figures_above_take_for_granted(head: Head) -> None:
    assert lps_spacing(head[0].volume.grid) == pytest.approx((3.5, 4.0, 5.0))
