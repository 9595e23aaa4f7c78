"""An evaluation as pictures; needs Matplotlib, which the extra ``plots`` brings."""

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from runtime.atomic import write_bytes
from runtime.errors import UsageError
from runtime.evaluate import Evaluation
from runtime.labels import REGIONS
from runtime.metrics import SCORED, Profile
from runtime.nifti import INTENT_NAME
from runtime.score_table import TITLES, counted
from runtime.summary import BOOTSTRAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: Final[Mapping[str, str]] = {
    "WT": "tab:green",
    "TC": "tab:red",
    "ET": "tab:blue",
    "NCR": "tab:purple",
    "ED": "tab:olive",
}
_HALF_WIDTH: Final = 0.32
_OF_LESIONS: Final = ("lesion_dice", "lesion_hd95")
_Values = npt.NDArray[np.float64]


def check_plots() -> None:
    """Say at once, before any case is scored, that nothing can be drawn.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError(
            "--plots",
            found="no Matplotlib",
            expected="it for drawing",
            remedy="install brats-deploy[plots], or leave --plots out",
        )


def plot_names(profile: Profile) -> tuple[str, ...]:
    """The files that `draw_plots` writes."""
    lesions = () if profile.lesions is None else _OF_LESIONS
    return ("dice.png", "hd95.png", "volumes.png", *(f"{metric}.png" for metric in lesions))


def draw_plots(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write ``dice.png``, ``hd95.png``, ``volumes.png``, and ``lesion_dice.png`` and
    ``lesion_hd95.png`` where the profile scores lesions.

    Args:
        folder: where they go; made if it is not there.
        evaluation: with at least one case.

    Returns:
        The files, in order.

    Raises:
        UsageError: Matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    check_plots()
    made = [
        _write(folder / "dice.png", _distribution(evaluation, "dice", SCORED)),
        _write(folder / "hd95.png", _distribution(evaluation, "hd95", SCORED)),
        _write(folder / "volumes.png", _volumes(evaluation)),
    ]
    if evaluation.profile.lesions is not None:
        made += [
            _write(folder / f"{metric}.png", _distribution(evaluation, metric, tuple(REGIONS)))
            for metric in _OF_LESIONS
        ]
    return made


def _distribution(evaluation: Evaluation, metric: str, names: Sequence[str]) -> "Figure":
    """Every case as a dot in the column of its region; the mean with its interval, the median."""
    figure, (axes,) = _canvas(1, (1.5 * len(names) + 1.2, 4.8))
    in_mm = metric.endswith("hd95")
    if in_mm:
        # Linear near 0, so that a distance of 0 has a place, and logarithmic up to the penalty.
        axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    summary, top = evaluation.summary, 0.0
    missing = _missing(evaluation)
    for place, name in enumerate(names):
        values = _values(evaluation, name, metric)
        heights = np.log1p(values) / np.log1p(1000) if in_mm else values
        x = place + _spread(heights)
        colour = _COLOURS[name]
        axes.scatter(x[~missing], values[~missing], s=22, color=colour, alpha=0.55, linewidth=0)
        axes.scatter(x[missing], values[missing], s=22, color=colour, marker="x")
        top = max(top, float(values.max()))
        found = summary[name][metric]
        low, high = found["interval"] or (found["mean"], found["mean"])
        axes.vlines(place + 0.42, low, high, color="black", linewidth=1.5)
        axes.scatter(place + 0.42, found["mean"], color="black", s=30, zorder=3)
        axes.scatter(place + 0.42, found["median"], color="black", s=80, marker="_", zorder=3)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.3)
    if in_mm:
        penalty = evaluation.profile.hd95_one_empty
        axes.set_ylim(-0.2, 1.4 * max(penalty, top))
        axes.axhline(penalty, color="grey", linewidth=0.8, linestyle=":")
        ticks = (0, 1, 2, 5, 10, 20, 50, 100, 200, penalty)
        axes.set_yticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.minorticks_off()
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks(np.linspace(0, 1, 11))
    axes.set_ylabel(TITLES[metric][0])
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(_title(evaluation, TITLES[metric][0].removesuffix(" mm")), fontsize=10)
    legend = _legend(evaluation) + ("; dotted: the penalty" if in_mm else "")
    figure.supxlabel(legend, fontsize=8, color="dimgrey")
    return figure


def _volumes(evaluation: Evaluation) -> "Figure":
    """Predicted against true volume of each region, with the line on which they are equal."""
    figure, panels = _canvas(len(REGIONS), (4.1 * len(REGIONS), 4.6))
    missing = _missing(evaluation)
    for axes, name in zip(panels, REGIONS, strict=True):
        true, called = (
            _values(evaluation, name, metric)
            for metric in ("volume_ml_truth", "volume_ml_predicted")
        )
        top = 1.5 * max(float(true.max()), float(called.max()), 1.0)
        axes.set_xscale("symlog", linthresh=0.1, linscale=0.45)
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.45)
        line = np.geomspace(0.01, top, 50)
        axes.fill_between(line, line / 1.25, line * 1.25, color="grey", alpha=0.15, linewidth=0)
        axes.plot((0, top), (0, top), color="grey", linewidth=1)
        style: dict[str, Any] = {"color": _COLOURS[name], "clip_on": False, "zorder": 3}
        axes.scatter(true[~missing], called[~missing], s=24, alpha=0.6, linewidth=0, **style)
        axes.scatter(true[missing], called[missing], s=24, marker="x", **style)
        axes.set(xlim=(-0.03, top), ylim=(-0.03, top), xlabel="true ml", ylabel="predicted ml")
        ticks = [tick for tick in (0, 0.1, 1, 10, 100, 1000) if tick < top]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        difference = float(np.mean(called - true))
        axes.set_title(f"{name}: {difference:+.1f} ml on average", fontsize=10)
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
    figure.suptitle(_title(evaluation, "Volume"), fontsize=10)
    legend = "a dot a case; line: equal; band: within a quarter"
    legend += "; cross: no prediction" if evaluation.missing else ""
    figure.supxlabel(legend, fontsize=8, color="dimgrey")
    return figure


def _canvas(panels: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    # Imported here: only who draws needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The object-oriented interface keeps no figure alive and needs no display.
    figure = Figure(figsize=size, layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])


def _write(path: Path, figure: "Figure") -> Path:
    stream = io.BytesIO()
    # By this mark a plot is known as ours, and may be replaced.
    figure.savefig(stream, format="png", metadata={"Software": INTENT_NAME})
    write_bytes(path, stream.getvalue())
    return path


def _values(evaluation: Evaluation, name: str, metric: str) -> _Values:
    return np.array([scores[name].figures()[metric] for scores in evaluation.cases.values()], float)


def _missing(evaluation: Evaluation) -> npt.NDArray[np.bool_]:
    return np.array([case_id in evaluation.missing for case_id in evaluation.cases])


def _spread(heights: _Values) -> _Values:
    """Offsets that put dots of nearly one height side by side, the same in every run.

    Args:
        heights: (dots,) of 0 to about 1.

    Returns:
        (dots,) within `_HALF_WIDTH` of 0.
    """
    offsets = np.zeros(len(heights))
    rows = np.round(heights * 40)
    for row in np.unique(rows):
        members = np.flatnonzero(rows == row)
        step = min(0.08, 2 * _HALF_WIDTH / len(members))
        offsets[members] = (np.arange(len(members)) - (len(members) - 1) / 2) * step
    return offsets


def _title(evaluation: Evaluation, what: str) -> str:
    return f"{what}, {counted(len(evaluation.cases))}, profile {evaluation.profile.name}"


def _legend(evaluation: Evaluation) -> str:
    mean = "black dot: mean"
    if len(evaluation.cases) > 1:
        mean += f", line: its {100 * BOOTSTRAP.level:g}% interval"
    text = f"a dot a case; {mean}, dash: median"
    return text + ("; cross: no prediction" if evaluation.missing else "")
