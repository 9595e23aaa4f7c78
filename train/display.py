"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.labels import REGIONS

_LINE_EVERY: Final = 30.0
"""Seconds between two plain lines within an epoch."""


class Display:
    """Reports progress; a context manager, so that the bar ends with the block."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", text="", visible=False)
        self._lines = not quiet and not console.is_terminal
        self._name, self._total, self._next_line = "", 0, 0.0

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, name: str, total: int) -> None:
        """A new bar of ``total`` parts."""
        self._name, self._total = name, total
        self._next_line = monotonic() + _LINE_EVERY
        self._bar.reset(self._task, description=name, total=total, text="", visible=True)

    def update(self, done: int, text: str = "") -> None:
        """``done`` of the bar's parts are behind us."""
        self._bar.update(self._task, completed=done, text=text)
        if self._lines and monotonic() >= self._next_line and done < self._total:
            self.say(f"{self._name}: {done}/{self._total}  {text}".rstrip())
            self._next_line = monotonic() + _LINE_EVERY


def epoch_line(row: Mapping[str, Any], epochs: int, best: bool, left: float | None = None) -> str:
    """One line about an epoch, from its row of the history.

    Args:
        row: see `train.run_dir.COLUMNS`.
        epochs: of the run.
        best: whether it is the best so far.
        left: seconds that the run will still take; None where nobody knows.
    """
    loss = "none" if row["loss"] is None else f"{row['loss']:.4f}"
    rate = row["patches"] / row["seconds"] if row["seconds"] else 0.0
    text = f"epoch {row['epoch']}/{epochs}  loss {loss}  lr {row['lr']:.2g}  {rate:.2f} patches/s"
    if row["skipped"]:
        text += f"  {row['skipped']} steps skipped"
    if row.get("dice_mean") is not None:
        regions = "  ".join(f"{name} {row[f'dice_{name}']:.3f}" for name in REGIONS)
        text += f"  Dice {row['dice_mean']:.3f} ({regions})" + (" best" if best else "")
    if left:
        text += f"  {duration(left)} left"
    return text


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
