"""What brats-export shows while TensorRT builds an engine."""

import threading
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

_LINES_TO_DEPTH: Final = 1


class EngineView:
    """A bar per open phase on a terminal, indented as the phases are nested; elsewhere a line per
    phase of the outer two levels; nothing where the console is quiet.

    It is a `export.engine.BuildProgress`, and may be told of phases from several threads.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._open: dict[str, tuple[TaskID, int]] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

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

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            if phase in self._open:
                self._progress.remove_task(self._open.pop(phase)[0])
            depth = 0
            if parent is not None and parent in self._open:
                depth = self._open[parent][1] + 1
            task = self._progress.add_task("  " * depth + phase, total=steps)
            self._open[phase] = (task, depth)
            if depth <= _LINES_TO_DEPTH and not self._console.is_terminal:
                self._console.print(f"engine: {'  ' * depth}{phase}", markup=False)

    def stepped(self, phase: str, step: int) -> None:
        """A step is complete."""
        with self._lock:
            if phase in self._open:
                self._progress.update(self._open[phase][0], completed=step + 1)

    def finished(self, phase: str) -> None:
        """A phase ends; its bar goes."""
        with self._lock:
            if phase in self._open:
                self._progress.remove_task(self._open.pop(phase)[0])
