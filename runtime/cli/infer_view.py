"""What brats-infer shows: of one case a bar over its windows and then its volumes and times; of a
cohort how far it is, how fast it goes and what it waits for, and then what it came to.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runtime import DISCLAIMER
from runtime.backends import BackendInfo
from runtime.case import Case
from runtime.cli.infer_pace import Pace, duration
from runtime.cohort import Outcome
from runtime.errors import BratsError
from runtime.labels import REGIONS
from runtime.model_card import ModelCard
from runtime.printable import printable
from runtime.segmenter import SegmentOptions

_STAGES = ("load", "prepare", "network")
_IN_FULL = 25
"""Cases up to which the table at the end has a row for each."""
_MEANINGS = {
    "read": "reading ahead",
    "run": "network",
    "write": "writing behind",
}


class InferView:
    """A live view on a terminal, plain lines elsewhere, nothing where the console is quiet."""

    def __init__(self, console: Console, pace: Pace, several: bool) -> None:
        self._console = console
        self._pace = pace
        self._cases = pace.total
        self._several = several
        self._count = 0
        self._table = Table(title="Predictions", title_justify="left")
        self._table.add_column("case", overflow="fold")
        for name in (*(f"{region} ml" for region in REGIONS), *_STAGES, "rest", "total"):
            self._table.add_column(name, justify="right")
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
        )
        self._overall = None
        if self._cases > 1:
            self._overall = self._progress.add_task("cohort", total=self._cases, unit="cases")
        self._task = self._progress.add_task("loading", total=None, unit="windows")
        self._live = Live(
            get_renderable=self._render, console=console, transient=True, refresh_per_second=4
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()
        if self._table.row_count and self._cases <= _IN_FULL:
            self._console.print(self._table)
            self._console.print(f"seconds per stage; {DISCLAIMER}", style="dim")

    def _render(self) -> Group:
        return Group(self._progress, *([_state(self._pace)] if self._cases > 1 else []))

    def started(self, card: ModelCard, info: BackendInfo, options: SegmentOptions) -> None:
        """Before the first case."""
        self._console.print(
            f"model {printable(card.name)}, backend {info.name} on {self._where(info)} in "
            f"{info.precision}, certificate: {info.certificate}, {_windows(card, options)}",
            markup=False,
        )
        if info.fell_back_from:
            self.note(f"not used: {info.fell_back_from}")

    def _where(self, info: BackendInfo) -> str:
        count = self._pace.processes
        return info.device if count == 1 else f"{info.device} and others, {count} processes"

    def note(self, text: str, case: Case | None = None) -> None:
        """Something worth knowing that is no error."""
        head = f"{case.case_id}: " if case else ""
        self._console.print(printable(head + text), style="yellow", markup=False, soft_wrap=True)

    def stopping(self) -> None:
        """After the first Ctrl-C."""
        self.note(
            "stopping: cases in hand are finished and no further one is begun; Ctrl-C once more "
            "ends it at once"
        )

    def progress(self, case: Case, done: int, total: int) -> None:
        """After each step of windows."""
        self._progress.update(
            self._task,
            description=printable(case.case_id),
            completed=done,
            total=total,
        )

    def problem(self, error: BratsError) -> None:
        """A case that could not be put together from its files."""
        self._count += 1
        self._advance()
        self._tell_error(str(error))

    def _advance(self) -> None:
        if self._overall is not None:
            self._progress.update(self._overall, completed=self._count)

    def done(self, outcome: Outcome) -> None:
        """After each case."""
        self._count += 1
        self._advance()
        name = printable(outcome.case.case_id)
        head = f"[{self._count}/{self._cases}] {name}"
        if outcome.error is not None:
            self._tell_error(f"{head}: {outcome.error}")
        elif outcome.kept or outcome.sidecar is None:
            self._console.print(f"{head}: already done", markup=False)
        else:
            for warning in outcome.warnings:
                self._console.print(
                    f"{head}: {printable(warning)}", style="yellow", markup=False, soft_wrap=True
                )
            labels = printable(str(outcome.plan.labels))
            # Where nothing moves on the screen, the lines say how it goes.
            pace = "" if self._console.is_terminal or self._cases == 1 else self._pace.words()
            told = f"{head}: {labels}" + (f"  ({pace})" if pace else "")
            self._console.print(told, markup=False, soft_wrap=True)
            if self._cases <= _IN_FULL:
                self._table.add_row(Text(name), *_figures(outcome.sidecar))

    def finished(self, table: Path, page: Path) -> None:
        """At the end of a cohort, however it ended, when its own files are written."""
        pace = self._pace
        told = [f"{pace.done} done", f"{pace.kept} kept", f"{pace.failed} failed"]
        left = [f"{pace.left} not begun"] if pace.left else []
        rate = [] if pace.per_minute is None else [f"{pace.per_minute:.1f} cases/min"]
        self._console.print(
            f"{', '.join([*told, *left])} in {duration(pace.wall_s)}"
            + "".join(f", {one}" for one in rate),
            markup=False,
        )
        self._console.print(printable(f"{table}, {page}"), markup=False, soft_wrap=True)

    def _tell_error(self, text: str) -> None:
        """Errors are told even where everything else is quiet."""
        if not self._several:
            return  # The command ends with that very error.
        loud = Console(stderr=True) if self._console.quiet else self._console
        loud.print(text, style="red", markup=False, soft_wrap=True)


def _state(pace: Pace) -> Table:
    """Counts, speed, and how busy each stage is: the one near 100% is what the others wait for."""
    state = Table.grid(padding=(0, 2))
    rate, left = pace.per_minute, pace.seconds_left
    state.add_row(
        f"done {pace.done}",
        f"kept {pace.kept}",
        Text(f"failed {pace.failed}", style="red" if pace.failed else ""),
        "" if rate is None else f"{rate:.1f} cases/min",
        "" if left is None else f"{duration(left)} left",
    )
    state.add_row(
        *(f"{_MEANINGS[name]} {100 * part:.0f}%" for name, part in pace.busy().items()),
        style="dim",
    )
    return state


def _figures(sidecar: dict[str, Any]) -> list[str]:
    seconds = sidecar["timings_s"]
    rest = sum(value for stage, value in seconds.items() if stage not in _STAGES)
    return [
        *(f"{sidecar['volumes_ml']['regions'][name]:.1f}" for name in REGIONS),
        *(f"{seconds[stage]:.2f}" for stage in _STAGES),
        f"{rest:.2f}",
        f"{sum(seconds.values()):.2f}",
    ]


def _windows(card: ModelCard, options: SegmentOptions) -> str:
    patch, overlap = options.patch or card.patch, options.overlap
    if patch == "box":
        shown = "one window over the brain"
    else:
        blended = _shown(card.inference.overlap if overlap is None else overlap)
        shown = f"patch {'x'.join(map(str, patch))}, overlap {blended}"
    return f"quality {options.quality}: {shown}" if options.quality else shown


def _shown(overlap: object) -> str:
    return ",".join(map(str, overlap)) + " (stride)" if isinstance(overlap, tuple) else str(overlap)
