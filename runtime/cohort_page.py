"""A cohort as one page of HTML: how many, how fast, how large, and which cases to look at first."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from runtime.cohort_record import Entry, Record, to_look_at
from runtime.histogram import histogram
from runtime.labels import REGIONS
from runtime.markup import Markup, element, joined, table
from runtime.page import card, heading, html_page, notice

_SHOWN: Final = 50
_REGIONS: Final[Mapping[str, str]] = {
    "WT": "whole tumour",
    "TC": "tumour core",
    "ET": "enhancing tumour",
}


def cohort_page(record: Record, told: Mapping[str, Any]) -> str:
    """The page.

    Args:
        record: the cases.
        told: what the cohort's JSON file says; see `runtime.cohort_files`.

    Returns:
        HTML, to be stored as UTF-8. Whatever comes from files is escaped.
    """
    results = record.of("done", "kept")
    sections = [
        _head(told),
        notice(),
        _tiles(told["cases"]),
        _first(results),
        _failures(record.of("failed")),
        _volumes(results, told),
        _times(told),
        notice(),
    ]
    return html_page(f"{told['cases']['all']} cases: brain tumour segmentation", sections)


def _head(told: Mapping[str, Any]) -> Markup:
    rate = told["cases_per_min"]
    facts = [
        *([f"model {told['model']['name']}"] if told["model"] else []),
        *([f"{rate:.1f} cases a minute"] if rate else []),
        told["finished"],
    ]
    return heading("Brain tumour segmentation", f"{told['cases']['all']} cases", facts)


def _tiles(cases: Mapping[str, int]) -> Markup:
    titles = {
        "done": ("Done", "segmented by this run"),
        "kept": ("Kept", "done before, and unchanged"),
        "failed": ("Failed", "no result"),
        "not_begun": ("Left", "not begun when the run was ended"),
    }
    tiles = []
    for name, (title, meaning) in titles.items():
        if name == "not_begun" and not cases[name]:
            continue
        value = element("p", str(cases[name]), class_="value")
        title_line = element("p", element("strong", title))
        note = element("p", meaning, class_="dim small")
        tiles.append(element("div", title_line, value, note, class_="tile"))
    return element("div", *tiles, class_="tiles")


def _first(results: Sequence[Entry]) -> Markup:
    reasons = to_look_at(results)
    if not reasons:
        told = (
            "Nothing stands out: every case has a tumour of a usual size, and none was warned of."
        )
        return card("Look at these first", element("p", told)) if results else Markup()
    rows = [
        (
            _link(reason.case),
            *(f"{reason.case.volume(name):.1f}" for name in REGIONS),
            element("span", reason.text, class_="why"),
        )
        for reason in reasons[:_SHOWN]
    ]
    head = ["Case", *(f"{name}, ml" for name in REGIONS), "Why"]
    caption = "The most pressing first"
    if len(reasons) > _SHOWN:
        caption += f"; {_SHOWN} of {len(reasons)}, the others are in the JSON file"
    note = (
        "A volume is unusual if the logarithm of it lies more than 3.5 robust deviations from the "
        "median of this cohort (modified z-score), which is said of 8 cases and more. That a case "
        "is not listed does not mean that it is right."
    )
    return card(
        "Look at these first",
        table(head, rows, caption, "reasons"),
        element("p", note, class_="dim small"),
    )


def _link(entry: Entry) -> Markup:
    """The case's name, leading to its page or picture where it has one."""
    if not entry.shown:
        return joined([entry.case_id])
    return element("a", entry.case_id, href=quote(os.fsencode(entry.shown)))


def _failures(failed: Sequence[Entry]) -> Markup:
    if not failed:
        return Markup()
    rows = [
        (entry.case_id or "-", element("span", str(entry.error or ""), class_="why"))
        for entry in failed[:_SHOWN]
    ]
    caption = "Mend them and run again with --resume"
    if len(failed) > _SHOWN:
        caption += f"; {_SHOWN} of {len(failed)}, all are in the table of failures"
    return card("Failed", table(["Case", "Why"], rows, caption, "reasons"))


def _volumes(results: Sequence[Entry], told: Mapping[str, Any]) -> Markup:
    if not results:
        return Markup()
    charts = [
        element(
            "figure",
            histogram([entry.volume(name) for entry in results], "ml", f"{name} {meaning}"),
            element("figcaption", f"{name} {meaning}"),
        )
        for name, meaning in _REGIONS.items()
    ]
    head = ["Structure", "Least, ml", "Lower quartile", "Median", "Upper quartile", "Most", "Mean"]
    rows = [
        (name, *(f"{value:.1f}" for value in found.values()))
        for name, found in told["volumes_ml"].items()
    ]
    return card(
        "Volumes",
        element("div", *charts, class_="charts"),
        table(head, rows, f"Over {len(results)} cases"),
    )


def _times(told: Mapping[str, Any]) -> Markup:
    if not told["seconds"]:
        return Markup()
    head = ["Stage", "Least, s", "Lower quartile", "Median", "Upper quartile", "Most", "Mean"]
    rows = [
        (stage, *(f"{value:.3f}" for value in found.values()))
        for stage, found in told["seconds"].items()
    ]
    busy = ", ".join(f"{name} {100 * part:.0f}%" for name, part in told["busy"].items())
    note = f"{told['wall_s']:.0f} s in all, {told['cases']['done']} cases. At work: {busy}."
    return card(
        "Time",
        table(head, rows, "Seconds a case, those of this run"),
        element("p", note, class_="dim small"),
    )
