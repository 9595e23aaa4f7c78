"""The part of the page that shows a segmented case: slices, three dimensions, figures, files."""

import json
from dataclasses import asdict
from typing import Any, Final

import altair
import pandas
import streamlit as st

from runtime.app import viewer
from runtime.app.desk import Result, written_as
from runtime.app.packet import pack
from runtime.app.session import Session
from runtime.app.text import escaped
from runtime.app.volume3d import show_3d
from runtime.labels import REGIONS, Convention
from runtime.lesions import LesionRule
from runtime.measure import Measurements, measure
from runtime.metrics import PROFILES, score_case
from runtime.overlay import REGION_COLOURS
from runtime.planes import PLANES
from runtime.report import html_report

_VIEWS: Final = ("Slices", "3D", "Figures", "Files", "Details")


def choose(titles: list[str]) -> str | None:
    """Ask which result to look at; a new one is shown at once.

    Args:
        titles: of the results, oldest first; at least one.

    Returns:
        Its title, or None where two are to be compared.
    """
    newest = titles[-1]
    if st.session_state.get("newest") != newest:
        # What was chosen before belongs to another case, and would stay chosen.
        st.session_state["newest"] = st.session_state["result"] = newest
        st.session_state["later"] = newest
        st.session_state["earlier"] = titles[-2:][0]
    if len(titles) == 1:
        return newest
    place, switch = st.columns([3, 1], vertical_alignment="bottom")
    if switch.toggle("compare two visits", key="compare"):
        return None
    chosen: str = place.selectbox("Result", titles, key="result")
    return chosen


def show_result(session: Session, title: str) -> None:
    """Show one result; what is looked at is made when it is first asked for."""
    result = session.results[title]
    for warning in result.sidecar["warnings"]:
        st.warning(escaped(warning))
    _headline(session, title)
    view = st.segmented_control(
        "View", _VIEWS, default="Slices", required=True, label_visibility="collapsed", key="view"
    )
    if view == "Slices":
        viewer.show(packet_of(session, title), key=f"viewer {title}")
        st.caption(
            "Wheel, arrow keys, a sideways swipe or the sliders change the slice; a click moves "
            "the other planes. The patient's right is on the left."
        )
    elif view == "3D":
        show_3d(result, key=f"3d {title}")
    elif view == "Figures":
        _figures(session, title)
    elif view == "Files":
        _files(session, title)
    else:
        _details(result)


def packet_of(session: Session, title: str) -> bytes:
    """The result as the viewer takes it, packed once."""
    if title not in session.packets:
        result = session.results[title]
        prediction = result.prediction
        session.packets[title] = pack(
            prediction.volume, prediction.labels, result.truth, prediction.probabilities
        )
    return session.packets[title]


def measured(session: Session, title: str) -> Measurements:
    """The result's figures, measured once."""
    if title not in session.measurements:
        prediction = session.results[title].prediction
        session.measurements[title] = measure(prediction.labels, prediction.volume)
    return session.measurements[title]


def _headline(session: Session, title: str) -> None:
    """The regions' volumes, large, and Dice under them where there is truth."""
    found = measured(session, title)
    result = session.results[title]
    scores = _scores(session, title)
    names = {"WT": "Whole tumour", "TC": "Tumour core", "ET": "Enhancing tumour"}
    columns = st.columns(4)
    for column, (region, words) in zip(columns, names.items(), strict=False):
        structure = found.structures[region]
        dice = f"Dice {scores[region]['dice']:.3f}" if scores else None
        column.metric(
            words, f"{structure.volume_ml:.1f} ml", dice, delta_color="off", delta_arrow="off"
        )
    seconds = sum(result.sidecar["timings_s"].values())
    columns[3].metric(
        "Time",
        f"{seconds:.1f} s",
        result.sidecar["backend"]["name"],
        delta_color="off",
        delta_arrow="off",
    )


def _scores(session: Session, title: str) -> dict[str, dict[str, float | None]]:
    result = session.results[title]
    if result.truth is None:
        return {}
    if title not in session.scores:
        scored = score_case(
            result.prediction.labels,
            result.truth,
            result.prediction.volume.grid.spacing,
            PROFILES["brats2020"],
        )
        session.scores[title] = {name: one.figures() for name, one in scored.items()}
    return session.scores[title]


def _figures(session: Session, title: str) -> None:
    found = measured(session, title)
    table = pandas.DataFrame([asdict(one) for one in found.structures.values()])
    table.columns = [
        "structure",
        "voxels",
        "volume ml",
        "% of tumour",
        "% of brain",
        "lesions",
        "diameter mm",
        "axial diameter mm",
    ]
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="%.2f" if name == "% of brain" else "%.1f")
            for name in table.columns[2:]
            if name != "lesions"
        },
    )
    rule = LesionRule()
    st.caption(
        f"Brain: {found.brain_ml:.0f} ml, all voxels that are not 0 in any modality. Lesions "
        f"closer than {2 * rule.dilations} voxels count as one, those up to {rule.dropped_mm3:g} "
        "mm³ not at all, as in BraTS 2023. Diameters: the largest distance between two points of "
        "the surface."
    )
    scores = _scores(session, title)
    if scores:
        rows = [{"structure": name, **figures} for name, figures in scores.items()]
        shown = pandas.DataFrame(rows)[
            [
                "structure",
                "dice",
                "hd95",
                "nsd",
                "sensitivity",
                "specificity",
                "volume_difference_ml",
            ]
        ]
        shown.columns = [
            "structure",
            "Dice",
            "HD95 mm",
            "NSD 1 mm",
            "sensitivity",
            "specificity",
            "volume difference ml",
        ]
        st.dataframe(
            shown,
            hide_index=True,
            column_config={
                name: st.column_config.NumberColumn(format="%.3f") for name in shown.columns[1:]
            },
        )
        st.caption("Against the truth, by the rules of BraTS 2020.")
    plane = st.segmented_control(
        "Plane", PLANES, default="axial", required=True, key="profile plane", format_func=str.title
    )
    areas = found.profiles[plane]
    rows = [
        {"slice": index + 1, "region": name, "area": float(area) / 100}
        for name in REGIONS
        for index, area in enumerate(areas[name])
    ]
    chart = (
        altair.Chart(pandas.DataFrame(rows))
        .mark_line()
        .encode(
            x=altair.X("slice:Q", title=f"{plane} slice"),
            y=altair.Y("area:Q", title="area, cm²"),
            color=altair.Color(
                "region:N",
                sort=list(REGIONS),
                scale=altair.Scale(
                    domain=list(REGIONS),
                    range=["#{:02x}{:02x}{:02x}".format(*REGION_COLOURS[name]) for name in REGIONS],
                ),
            ),
            tooltip=["region:N", "slice:Q", altair.Tooltip("area:Q", format=".2f")],
        )
    )
    st.altair_chart(chart, width="stretch")
    with st.expander("Per slice"):
        per_slice = pandas.DataFrame({name: areas[name] for name in areas})
        per_slice.insert(0, "slice", range(1, len(per_slice) + 1))
        st.dataframe(per_slice[per_slice["WT"] > 0], hide_index=True)
        st.caption("Area in mm² of each structure in the slices that hold tumour.")


def _files(session: Session, title: str) -> None:
    result = session.results[title]
    case_id = result.prediction.volume.case.case_id
    convention = st.selectbox(
        "Numbering of the labels",
        list(Convention),
        index=list(Convention).index(result.plan.convention),
        key=f"convention {title}",
        help="brats2020: 1, 2, 4; brats2023: 1, 2, 3. By default that of the files that came in.",
    )
    found = measured(session, title)
    labels = _labels_file(session, title, convention or result.plan.convention)
    columns = st.columns(2)
    _offer(columns[0], "Label map (.nii.gz)", labels, f"{case_id}_seg.nii.gz", "application/gzip")
    if result.plan.probabilities.is_file():
        data = _cached(session, title, "probabilities", result.plan.probabilities.read_bytes)
        _offer(
            columns[0],
            "Probabilities (.nii.gz)",
            data,
            f"{case_id}_prob.nii.gz",
            "application/gzip",
        )
    _offer(
        columns[0],
        "Sidecar (.json)",
        result.plan.sidecar.read_bytes(),
        f"{case_id}.json",
        "application/json",
    )
    _offer(columns[1], "Figures (.csv)", found.to_csv(), f"{case_id}_figures.csv", "text/csv")
    _offer(
        columns[1],
        "Figures per slice (.csv)",
        found.profiles_to_csv(),
        f"{case_id}_slices.csv",
        "text/csv",
    )
    _offer(
        columns[1],
        "Figures (.json)",
        found.to_json(),
        f"{case_id}_figures.json",
        "application/json",
    )
    _offer(columns[1], "Figures (.txt)", found.to_text(), f"{case_id}_figures.txt", "text/plain")
    page = _cached(session, title, "report", lambda: _report(result))
    _offer(columns[1], "Report (.html)", page, f"{case_id}_report.html", "text/html")


def _report(result: Result) -> bytes:
    return html_report(result.prediction, result.sidecar, result.truth).encode()


def _labels_file(session: Session, title: str, convention: Convention) -> bytes:
    result = session.results[title]
    if convention == result.plan.convention:
        return result.plan.labels.read_bytes()
    return _cached(
        session, title, convention, lambda: written_as(result, convention, session.store)
    )


def _cached(session: Session, title: str, what: str, make: Any) -> bytes:
    key = (title, what)
    if key not in session.made:
        session.made[key] = make()
    data: bytes = session.made[key]
    return data


def _offer(place: Any, label: str, data: bytes | str, name: str, kind: str) -> None:
    place.download_button(
        label, data, name, kind, on_click="ignore", width="stretch", key=f"download {name}"
    )


def _details(result: Result) -> None:
    sidecar = result.sidecar
    left, right = st.columns(2)
    left.markdown("**Model and machine**")
    left.json({name: sidecar[name] for name in ("model", "backend", "windows", "convention")})
    right.markdown("**Seconds per stage**")
    right.dataframe(
        pandas.DataFrame(sidecar["timings_s"].items(), columns=["stage", "seconds"]),
        hide_index=True,
    )
    with st.expander("The whole sidecar"):
        st.code(json.dumps(sidecar, indent=2), language="json")
