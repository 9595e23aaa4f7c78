"""What brats-infer shows: a bar over windows while it works, a table of volumes and times after."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runtime import DISCLAIMER
from runtime.case import Case
from runtime.cohort import Outcome
from runtime.errors import BratsError
from runtime.labels import REGIONS
from runtime.printable import printable
from runtime.segmenter import Segmenter

_STAGES = ("load", "prepare", "network")


class InferView:
    """A live view on a terminal, plain lines elsewhere, nothing where the console is quiet."""

    def __init__(self, console: Console, cases: int) -> None:
        self._console = console
        self._cases = cases
        self._count = 0
        self._table = Table(title="Predictions", title_justify="left")
        self._table.add_column("case", overflow="fold")
        for name in (*(f"{region} ml" for region in REGIONS), *_STAGES, "rest", "total"):
            self._table.add_column(name, justify="right")
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("windows"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("loading", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._table.row_count:
            self._console.print(self._table)
            self._console.print(f"seconds per stage; {DISCLAIMER}", style="dim")

    def started(self, segmenter: Segmenter) -> None:
        """Before the first case."""
        info = segmenter.backend.info
        name = printable(segmenter.backend.card.name)
        self._console.print(
            f"model {name}, backend {info.name} on {info.device} in "
            f"{info.precision}, certificate: {info.certificate}, "
            f"{_windows(segmenter)}",
            markup=False,
        )
        if info.fell_back_from:
            self.note(f"not used: {info.fell_back_from}")

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
            refresh=True,
        )

    def problem(self, error: BratsError) -> None:
        """A case that could not be put together from its files."""
        self._tell_error(str(error))

    def done(self, outcome: Outcome) -> None:
        """After each case."""
        self._count += 1
        name = printable(outcome.case.case_id)
        head = f"[{self._count}/{self._cases}] {name}"
        if outcome.error is not None:
            self._tell_error(f"{head}: {outcome.error}")
        elif outcome.sidecar is None:
            self._console.print(f"{head}: already done", markup=False)
        else:
            for warning in outcome.warnings:
                self._console.print(
                    f"{head}: {printable(warning)}", style="yellow", markup=False, soft_wrap=True
                )
            labels = printable(str(outcome.plan.labels))
            self._console.print(f"{head}: {labels}", markup=False, soft_wrap=True)
            self._table.add_row(Text(name), *_figures(outcome.sidecar))

    def _tell_error(self, text: str) -> None:
        """Errors are told even where everything else is quiet."""
        if self._cases == 1:
            return  # The command ends with that very error.
        loud = Console(stderr=True) if self._console.quiet else self._console
        loud.print(text, style="red", markup=False, soft_wrap=True)


def _figures(sidecar: dict[str, Any]) -> list[str]:
    seconds = sidecar["timings_s"]
    rest = sum(value for stage, value in seconds.items() if stage not in _STAGES)
    return [
        *(f"{sidecar['volumes_ml']['regions'][name]:.1f}" for name in REGIONS),
        *(f"{seconds[stage]:.2f}" for stage in _STAGES),
        f"{rest:.2f}",
        f"{sum(seconds.values()):.2f}",
    ]


def _windows(segmenter: Segmenter) -> str:
    if segmenter.patch == "box":
        shown = "one window over the brain"
    else:
        shown = f"patch {'x'.join(map(str, segmenter.patch))}, overlap {_shown(segmenter.overlap)}"
    quality = segmenter.options.quality
    return f"quality {quality}: {shown}" if quality else shown


def _shown(overlap: object) -> str:
    return ",".join(map(str, overlap)) + " (stride)" if isinstance(overlap, tuple) else str(overlap)
