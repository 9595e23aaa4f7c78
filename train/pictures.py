"""Pictures of a run, on disk."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image

from runtime.atomic import write_bytes
from runtime.labels import REGIONS
from train.run_dir import Row


def draw_curves(path: Path, history: Sequence[Row]) -> None:
    """Write loss, learning rate and Dice by epoch as a PNG.

    Raises:
        OutputError: it cannot be written.
    """
    # The object-oriented interface keeps no figure alive and needs no display.
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    loss = [float("nan") if row["loss"] is None else row["loss"] for row in history]
    left.plot(epochs, loss, marker=".", color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss", title="Loss")
    rate = left.twinx()
    rate.plot(epochs, [row["lr"] for row in history], color="tab:grey", alpha=0.6)
    rate.set_ylabel("learning rate")
    scored = [row for row in history if row.get("dice_mean") is not None]
    for name in (*REGIONS, "mean"):
        right.plot(
            [row["epoch"] for row in scored],
            [row[f"dice_{name}"] for row in scored],
            marker=".",
            label=name,
        )
    right.set(xlabel="epoch", ylabel="Dice", title="Validation, whole cases", ylim=(0, 1))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_bytes(path, stream.getvalue())


def write_picture(path: Path, picture: Image) -> None:
    """Write a PNG.

    Raises:
        OutputError: it cannot be written.
    """
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    write_bytes(path, stream.getvalue())
