"""A prediction as one page of HTML: pictures, figures and where they come from."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.labels import REGIONS, LabelMap
from runtime.lesions import LesionRule
from runtime.markup import Markup, element, joined, table
from runtime.measure import Measurements, Structure, check_shape, measure
from runtime.metrics import PROFILES, score_case
from runtime.nifti import INTENT_NAME
from runtime.overlay import LABEL_NAMES
from runtime.page import card, heading, html_page, notice
from runtime.planes import PLANES
from runtime.report_chart import area_chart, chart_legend
from runtime.report_slices import KeySlices, key_slices
from runtime.segmented import Prediction

_MEANINGS: Final[Mapping[str, str]] = {
    "WT": "whole tumour",
    "TC": "tumour core",
    "ET": "enhancing tumour",
    "NCR": "necrotic core",
    "ED": "edema",
}
_SCORED_BY: Final = PROFILES["brats2020"]


def html_report(
    prediction: Prediction, sidecar: Mapping[str, Any], truth: LabelMap | None = None
) -> str:
    """The page.

    Args:
        prediction: what was segmented, with its volume.
        sidecar: as `runtime.prediction.save` returns it; the page's time is the one in it.
        truth: uint8 (X, Y, Z) in file order, network labels; scored and drawn beside the
            prediction.

    Returns:
        HTML, to be stored as UTF-8. Whatever comes from files is escaped.

    Raises:
        InputError: a label map's shape is not the volume's.
    """
    volume, labels = prediction.volume, prediction.labels
    if truth is not None:
        check_shape("the truth", truth, volume)
    measured = measure(labels, volume)
    shown = key_slices(volume, labels, truth)
    sections = [
        _head(sidecar),
        notice(),
        _warnings(sidecar),
        _tiles(measured),
        _volumes(measured),
        _truth(labels, truth, prediction) if truth is not None else Markup(),
        _pictures(shown, measured),
        _profiles(shown, measured),
        _provenance(sidecar),
        _training(prediction.card.training),
        notice(),
    ]
    return html_page(f"{sidecar['case_id']}: brain tumour segmentation", sections)


def _head(sidecar: Mapping[str, Any]) -> Markup:
    backend = sidecar["backend"]
    told = [
        f"model {sidecar['model']['name']}",
        f"{backend['name']} on {backend['device']} in {backend['precision']}",
        sidecar["run"]["finished"],
    ]
    return heading("Brain tumour segmentation", sidecar["case_id"], told)


def _warnings(sidecar: Mapping[str, Any]) -> Markup:
    told = list(sidecar["warnings"])
    certificate = sidecar["model"]["certificate"]
    if certificate != "pass":
        told.append(f"no parity certificate vouches for the model file that ran ({certificate})")
    if not told:
        return Markup()
    items = element("ul", *(element("li", warning) for warning in told))
    return element("section", element("h2", "Warnings"), items, class_="warnings")


def _tiles(measured: Measurements) -> Markup:
    tiles = []
    for name in REGIONS:
        one = measured.structures[name]
        value = element("p", f"{one.volume_ml:.1f} ", element("span", "ml", class_="unit"),
                        class_="value")  # fmt: skip
        lesions = f"{one.lesions} lesion{'' if one.lesions == 1 else 's'}"
        extent = f"{lesions}, {one.diameter_mm:.0f} mm across" if one.voxels else "absent"
        title = element("p", element("strong", name), f" {_MEANINGS[name]}")
        note = element("p", extent, class_="dim small")
        tiles.append(element("div", title, value, note, class_="tile"))
    return element("div", *tiles, class_="tiles")


def _named(name: str) -> Markup:
    swatch = element("span", class_=f"swatch {name}")
    return joined([swatch, name, " ", element("span", _MEANINGS[name], class_="meaning")])


def _volumes(measured: Measurements) -> Markup:
    def cells(one: Structure) -> list[str]:
        return [
            _named(one.name),
            f"{one.volume_ml:.2f}",
            _percent(one.percent_of_tumour, 1),
            _percent(one.percent_of_brain, 2),
            str(one.lesions),
            f"{one.diameter_mm:.1f}",
            f"{one.axial_diameter_mm:.1f}",
        ]

    head = [
        "Structure", "Volume, ml", "% of tumour", "% of brain", "Lesions", "Diameter, mm",
        "Axial diameter, mm",
    ]  # fmt: skip
    rule = LesionRule()
    note = (
        f"Brain: {measured.brain_ml:.0f} ml, all that is not 0 in any modality. Diameters are the "
        "largest distance between two points of the surface, in any direction and within one axial "
        f"slice. Lesions closer than {2 * rule.dilations} voxels count as one, those up to "
        f"{rule.dropped_mm3:g} mm³ not at all, as in BraTS 2023. ET is a region and a label."
    )
    figures = table(head, map(cells, measured.structures.values()), "Regions WT, TC, ET; labels "
                    "NCR, ED, ET")  # fmt: skip
    return card("Volumes", figures, element("p", note, class_="dim small"))


def _percent(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001


def _truth(labels: LabelMap, truth: LabelMap, prediction: Prediction) -> Markup:
    scores = score_case(labels, truth, prediction.volume.grid.spacing, _SCORED_BY)
    rows = []
    for name in REGIONS:
        one = scores[name]
        percent = one.volume_difference_percent
        rows.append(
            [
                _named(name),
                f"{one.dice:.4f}",
                f"{one.hd95:.2f}",
                f"{one.volume_ml_predicted:.2f}",
                f"{one.volume_ml_truth:.2f}",
                f"{one.volume_difference_ml:+.2f}",
                "–" if percent is None else f"{percent:+.1f}",  # noqa: RUF001
            ]
        )
    head = [
        "Region", "Dice", "HD95, mm", "Predicted, ml", "Truth, ml", "Difference, ml",
        "Difference, %",
    ]  # fmt: skip
    caption = f"Overlap and surfaces by the rules of profile {_SCORED_BY.name}"
    return card("Against the truth", table(head, rows, caption))


def _pictures(shown: KeySlices, measured: Measurements) -> Markup:
    key = element(
        "ul",
        *(
            element("li", element("span", class_=f"swatch {label.name}"), f"{label.name} {name}")
            for label, name in LABEL_NAMES.items()
        ),
        class_="key",
    )
    planes = []
    for plane in PLANES:
        number, count = shown.numbers[plane], shown.counts[plane]
        area = float(measured.profiles[plane]["WT"][number])
        where = element(
            "span", f"slice {number + 1} of {count}, predicted tumour {area:.0f} mm²"
        )  # fmt: skip
        title = element("h3", f"{plane.capitalize()} ", where)
        planes.append(element("div", title, shown.pictures[plane], class_="plane"))
    return card("Slices with most tumour", key, *planes)


def _profiles(shown: KeySlices, measured: Measurements) -> Markup:
    if not measured.structures["WT"].voxels:
        return card("Area over slices", element("p", "No voxel was called tumour."))
    charts = [
        element("div", area_chart(plane, measured.profiles[plane], shown.numbers[plane]))
        for plane in PLANES
    ]
    return card("Area over slices", element("div", *charts, chart_legend(), class_="charts"))


def _provenance(sidecar: Mapping[str, Any]) -> Markup:
    model, backend, windows = sidecar["model"], sidecar["backend"], sidecar["windows"]
    output = sidecar["output"]
    facts = [
        ("Model", model["name"]),
        ("Model SHA-256", _code(model["sha256"]) if model["sha256"] else "none: a live network"),
        ("Parity certificate", model["certificate"]),
        ("Backend", f"{backend['name']} on {backend['device']}, {backend['precision']}"),
        ("Not used", backend["fell_back_from"]),
        ("Quality", sidecar["settings"].get("quality") or None),
        (
            "Windows",
            f"{windows['count']} of {'×'.join(map(str, windows['patch']))} voxels, overlap "  # noqa: RUF001
            f"{_told(windows['overlap'])}, placement {windows['placement']}",
        ),
        ("Label convention", sidecar["convention"]),
        *(
            (f"{name.upper()} SHA-256", _code(one["sha256"]))
            for name, one in sidecar["inputs"].items()
        ),
        ("Label map", output["file"]),
        ("Label map SHA-256", _code(output["sha256"])),
        ("Seconds", f"{sum(sidecar['timings_s'].values()):.1f}"),
        ("Software", f"{INTENT_NAME} {sidecar['run']['version']}"),
        ("Finished", sidecar["run"]["finished"]),
    ]
    caption = "What made this label map, and of what"
    return card(
        "Provenance", table([], [fact for fact in facts if fact[1] is not None], caption, "facts")
    )


def _code(text: str) -> Markup:
    return element("code", text)


def _training(training: Mapping[str, Any]) -> Markup:
    if not training:
        return Markup()
    rows = [(key.replace("_", " ").capitalize(), _told(value)) for key, value in training.items()]
    return card("Training", table([], rows, "What the model's card says", "facts"))


def _told(value: Any) -> str:
    """A JSON value in words."""
    if isinstance(value, Mapping):
        parts = [
            f"{key} ({_told(one)})" if isinstance(one, Mapping) else f"{key} {_told(one)}"
            for key, one in value.items()
        ]
        return ", ".join(parts)
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
