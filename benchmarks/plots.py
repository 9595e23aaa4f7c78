"""The pictures of RESULTS.md, each from the JSON of a run; PNG."""

import io
from collections.abc import Mapping
from statistics import median, mode
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.results_page import of_question, rows_of

INK: Final = "#24292f"
FAINT: Final = "#8b949e"
BOX: Final = "#2f6db3"
VOLUME: Final = "#d9822b"
REGION: Final[Mapping[str, str]] = {"WT": "#2a8c5a", "TC": "#c4453c", "ET": "#2f6db3"}
STAGE: Final[Mapping[str, str]] = {
    "open": "#5c6470",
    "decode": "#2f6db3",
    "gate": "#8fb7e3",
    "box": "#2a8c5a",
    "normalise": "#8ccba8",
    "bind": "#a0a7b0",
    "gather": "#e0b13c",
    "infer": "#c4453c",
    "stitch": "#d9822b",
    "argmax": "#8e5ea2",
    "save": "#4f3b78",
    "other": "#d0d4d9",
}


def stages(run: dict[str, Any]) -> bytes:
    """Seconds by stage as stacked bars, cold and warm; below them what is not the network."""
    found = of_question(run, "stages")[::-1]
    figure = Figure(figsize=(9, 1.7 + 1.3 * len(found)), layout="constrained", dpi=130)
    whole, around = figure.subplots(2, 1)
    for axes, left_out, factor, unit in (
        (whole, (), 1, "s"),
        (around, ("open", "bind", "infer"), 1000, "ms"),
    ):
        _plain(axes)
        tops = []
        for row, one in enumerate(found):
            left = 0.0
            for name, colour in STAGE.items():
                width = factor * max(0.0, one["p50_s"].get(name, 0.0))
                if name in left_out or not width:
                    continue
                axes.barh(row, width, left=left, color=colour, height=0.62, edgecolor="white")
                left += width
            tops.append(left)
            text = f"{left:.2f} s" if unit == "s" else f"{left:.0f} ms"
            axes.annotate(
                text, (left, row), (5, 0), textcoords="offset points", va="center", color=INK
            )
        axes.set_yticks(range(len(found)), [one["state"] for one in found])
        axes.set_xlim(0, 1.12 * max(tops))
        axes.set_xlabel(unit)
    whole.set_title(f"One patient, disk to disk, {found[0]['backend']}", loc="left", color=INK)
    around.set_title("Without opening, compiling and the network", loc="left", color=INK)
    used = [name for name in STAGE if any(one["p50_s"].get(name, 0) > 0 for one in found)]
    handles = [whole.barh(0, 0, color=STAGE[name], label=name) for name in used]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
    return _png(figure)


def _ours(one: dict[str, Any], usual: str) -> str:
    """What of ours is unlike most."""
    told = [one["backend"]] if one["backend"] != usual else []
    told += [one["quality"]] if one["quality"] != "exact" else []
    return f" (ours: {', '.join(told)})" if told else ""


def peers(run: dict[str, Any]) -> bytes:
    """How many times as long each peer takes, with the range over the rounds."""
    found = rows_of(run, "peers")
    found.sort(key=lambda one: (one["input"] == "box", one["ratio_median"]))
    usual = mode(one["backend"] for one in found)
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(found)), layout="constrained", dpi=130)
    axes = figure.subplots()
    _plain(axes)
    top = max(one["ratio_max"] for one in found)
    for row, one in enumerate(found):
        low, centre, high = (one[f"ratio_{which}"] for which in ("min", "median", "max"))
        colour = BOX if one["input"] == "box" else VOLUME
        axes.barh(row, centre, color=colour, height=0.66)
        if one["rounds"] > 1:
            ends = [[centre - low], [high - centre]]
            axes.errorbar(centre, row, xerr=ends, color=INK, capsize=3, linewidth=1.2)
        axes.annotate(
            f"{centre:.1f}x",
            (high, row),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    names = [one["peer"] + _ours(one, usual) for one in found]
    axes.set_yticks(range(len(found)), names)
    axes.set_xlim(0, 1.1 * top)
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    axes.set_xlabel("times as long as ours (dotted: equal); line: range over the rounds")
    axes.set_title(
        f"Peers over ours ({usual}), same weights, threads and case", loc="left", color=INK
    )
    handles = [
        axes.barh(0, 0, color=colour, label=text)
        for colour, text in ((BOX, "on our brain box"), (VOLUME, "on the full volume"))
    ]
    figure.legend(handles=handles, frameon=False, loc="outside lower right", ncols=2)
    return _png(figure)


def modes(run: dict[str, Any]) -> bytes:
    """Dice of each region against seconds, a point a mode; to the reference mode where there is no
    truth.
    """
    (found,) = of_question(run, "scaling: modes")
    truth = all(row["dice_to_truth"] for row in found["rows"])
    key = "dice_to_truth" if truth else "dice_to_reference"
    rows = sorted(found["rows"], key=lambda row: median(row["seconds"]))
    figure = Figure(figsize=(9, 5), layout="constrained", dpi=130)
    axes = figure.subplots()
    _plain(axes)
    axes.grid(axis="y", color=FAINT, alpha=0.25)
    times = [median(row["seconds"]) for row in rows]
    for name, colour in REGION.items():
        values = [row[key][name] for row in rows]
        for row, x, y in zip(rows, times, values, strict=True):
            low, high = min(row["seconds"]), max(row["seconds"])
            axes.plot((low, high), (y, y), color=colour, linewidth=1, alpha=0.6)
            axes.scatter(x, y, color=colour, s=46, zorder=3)
        axes.plot(times, values, color=colour, linewidth=1, alpha=0.35)
        axes.annotate(
            name,
            (max(rows[-1]["seconds"]), values[-1]),
            (9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold",
        )
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.05 * (high - low), high + 0.12 * (high - low))
    # The cost of overlap grows by factors.
    axes.set_xscale("log")
    axes.set_xlim(0.8 * min(map(min, _seconds(rows))), 1.25 * max(map(max, _seconds(rows))))
    axes.set_xticks(times, [f"{x:.2g}" if x < 10 else f"{x:.0f}" for x in times])
    axes.minorticks_off()
    for place, (row, x) in enumerate(zip(rows, times, strict=True)):
        axes.axvline(x, color=FAINT, linewidth=0.6, linestyle=":")
        axes.annotate(
            row["mode"],
            (x, 1),
            (0, -12 - 11 * (place % 3)),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_xlabel("s a case, from voxels to labels (log); line: range over the rounds")
    axes.set_ylabel("Dice to truth" if truth else f"Dice to {found['reference']}")
    cases = len(found["scored_cases"])
    axes.set_title(
        f"Dice against latency, {cases} case{'s' if cases > 1 else ''}, {found['backend']}",
        loc="left",
        color=INK,
    )
    return _png(figure)


def _seconds(rows: list[dict[str, Any]]) -> list[list[float]]:
    return [row["seconds"] for row in rows]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=3)
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return stream.getvalue()
