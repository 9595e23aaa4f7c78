"""An evaluation as tables for a terminal, as CSV, as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from runtime.atomic import write_json as write_json_file
from runtime.atomic import write_text
from runtime.evaluate import Evaluation
from runtime.labels import REGIONS
from runtime.metrics import SCORED, Missing, Profile
from runtime.printable import cell, csv_text, printable
from runtime.summary import BOOTSTRAP

TITLES: Final[Mapping[str, tuple[str, int]]] = {
    "dice": ("Dice", 4),
    "hd95": ("HD95 mm", 2),
    "nsd": ("NSD", 4),
    "sensitivity": ("sensitivity", 4),
    "specificity": ("specificity", 5),
    "volume_ml_predicted": ("volume ml", 2),
    "volume_ml_truth": ("true volume ml", 2),
    "volume_difference_ml": ("difference ml", 2),
    "volume_difference_percent": ("difference %", 1),
    "lesion_dice": ("lesion Dice", 4),
    "lesion_hd95": ("lesion HD95 mm", 2),
    "lesion_count": ("lesions", 2),
    "lesion_tp": ("found", 2),
    "lesion_fn": ("missed", 2),
    "lesion_fp": ("false positives", 2),
}
"""How a figure is called where people read it, and its decimals."""

_INTERVAL: Final = f"{100 * BOOTSTRAP.level:g}% interval"


def headline(profile: Profile) -> tuple[str, str]:
    """The two figures by which the profile's challenge ranks."""
    return ("dice", "hd95") if profile.lesions is None else ("lesion_dice", "lesion_hd95")


def render_table(evaluation: Evaluation) -> Table:
    """The headline figures of the regions: a row per case, then what they come to."""
    shown = [(metric, region) for metric in headline(evaluation.profile) for region in REGIONS]
    table = Table(title=_title(evaluation))
    table.add_column("case", overflow="fold", min_width=20)
    for metric, region in shown:
        table.add_column(f"{TITLES[metric][0]} {region}", justify="right")
    for case_id, scores in evaluation.cases.items():
        name = f"{case_id} (no prediction)" if case_id in evaluation.missing else case_id
        figures = {region: scores[region].figures() for region in REGIONS}
        cells = [_cell(metric, figures[region][metric]) for metric, region in shown]
        # A case id may hold what Rich takes for markup.
        table.add_row(escape(printable(name)), *cells)
    table.add_section()
    summary = evaluation.summary
    for statistic in ("mean", "interval", "median", "std"):
        cells = [_cell(metric, summary[region][metric][statistic]) for metric, region in shown]
        title = _INTERVAL if statistic == "interval" else statistic
        table.add_row(title, *cells, style="bold")
    return table


def render_summary(evaluation: Evaluation) -> Table:
    """Every figure of every region and label over the cases: mean with its interval, median."""
    table = Table(title=f"Mean over cases with its {_INTERVAL}, and median")
    table.add_column("", overflow="fold", min_width=11)
    for name in SCORED:
        table.add_column(name, justify="right")
    summary = evaluation.summary
    for metric in evaluation.profile.metrics:
        if all(metric not in summary[name] for name in SCORED):
            continue
        title = TITLES[metric][0]
        if metric == "nsd":
            title += f" at {evaluation.profile.nsd_tolerance_mm:g} mm"
        found = [summary[name].get(metric) for name in SCORED]
        table.add_row(title, *(_cells(metric, one, "mean", "interval") for one in found))
        table.add_row("  median", *(_cells(metric, one, "median") for one in found), style="dim")
    if len(evaluation.cases) == 1:
        table.caption = "A single case: no interval can be given."
    return table


def write_csv(path: Path, evaluation: Evaluation) -> None:
    """Write a row per case and region or label: ``case,region,predicted,dice,hd95,...``.

    What a region or label has no figure for is left empty. A case's name that a spreadsheet would
    take for a formula has an apostrophe before it.

    Raises:
        OutputError: it cannot be written.
    """
    metrics = evaluation.profile.metrics
    rows = []
    for case_id, scores in evaluation.cases.items():
        predicted = "no" if case_id in evaluation.missing else "yes"
        for name in SCORED:
            figures = scores[name].figures()
            cells = (figures.get(metric) for metric in metrics)
            row = ("" if figure is None else f"{figure:.6g}" for figure in cells)
            rows.append((cell(case_id), name, predicted, *row))
    write_text(path, csv_text(("case", "region", "predicted", *metrics), rows))


def write_json(path: Path, evaluation: Evaluation) -> None:
    """Write `Evaluation.to_json`.

    Raises:
        OutputError: it cannot be written.
    """
    write_json_file(path, evaluation.to_json())


def counted(cases: int) -> str:
    """1 case, 2 cases."""
    return f"{cases} case{'' if cases == 1 else 's'}"


def _title(evaluation: Evaluation) -> str:
    title = f"{counted(len(evaluation.cases))}, profile {evaluation.profile.name}"
    if evaluation.missing:
        what = {Missing.EMPTY: "counted as empty", Missing.LEAVE_OUT: "left out"}
        title += f"; {len(evaluation.missing)} without prediction, "
        title += what[evaluation.profile.missing]
    return title


def _cell(metric: str, figure: float | Sequence[float] | None) -> str:
    if figure is None:
        return "-"
    decimals = TITLES[metric][1]
    if isinstance(figure, Sequence):
        return "[" + ", ".join(f"{end:.{decimals}f}" for end in figure) + "]"
    return f"{figure:.{decimals}f}"


def _cells(metric: str, found: Mapping[str, Any] | None, *statistics: str) -> str:
    if found is None:
        return "-"
    return " ".join(_cell(metric, found[name]) for name in statistics if found[name] is not None)
