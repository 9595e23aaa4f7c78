"""Checkpoints that were not exported yet: a button for each, and the desk's work on it."""

import atexit
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

import streamlit as st

from runtime.app.desk import Bench, CancelledError, Desk, Task
from runtime.app.models import FoundCheckpoint
from runtime.app.text import escaped

Command = Callable[[FoundCheckpoint], Sequence[str]]
_PERIOD_S: Final = 0.5
_POLL_S: Final = 0.1
# What an exporter that is told to stop may take to put its unfinished files away.
_LEAVING_S: Final = 10.0


def brats_export(one: FoundCheckpoint) -> tuple[str, ...]:
    """The command, of this very installation."""
    code = "import sys; from export.cli import main; sys.exit(main())"
    return (sys.executable, "-c", code, *one.arguments)


class Export(Task):
    """A checkpoint to be exported, in a process of its own; cancelled, that is ended.

    Attributes:
        checkpoint: what to export.
    """

    def __init__(
        self, checkpoint: FoundCheckpoint, folder: Path, command: Command = brats_export
    ) -> None:
        """
        Args:
            checkpoint: what to export.
            folder: to run the command in.
            command: what exports it.
        """
        super().__init__()
        self.checkpoint = checkpoint
        self._folder = folder
        self._command = command

    def perform(self, bench: Bench) -> None:
        # The exporter measures on the same device, whose memory it needs.
        bench.clear()
        if self.cancelled:
            raise CancelledError
        self.stage = "exporting and certifying"
        # A pipe that nobody reads would stop it.
        with tempfile.TemporaryFile() as said:
            code = self._run(said)
            if code:
                said.seek(0)
                self.error = f"{self.checkpoint.run}: {_last_line(said.read())}"

    def _run(self, said: IO[bytes]) -> int:
        """Exit code of the command.

        Raises:
            CancelledError: it was ended.
        """
        with subprocess.Popen(
            self._command(self.checkpoint),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        ) as process:
            # The desk's thread just ends with the server: nobody else would end the process.
            atexit.register(process.terminate)
            try:
                while True:
                    try:
                        return process.wait(_POLL_S)
                    except subprocess.TimeoutExpired:
                        if self.cancelled:
                            _end(process)
                            raise CancelledError from None
            finally:
                atexit.unregister(process.terminate)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_LEAVING_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "the export failed and said nothing"


class Exports:
    """Exports of everybody who uses the server: one of each checkpoint."""

    def __init__(self, desk: Desk, command: Command = brats_export) -> None:
        self._desk = desk
        self._command = command
        self._by_path: dict[Path, Export] = {}
        self._lock = threading.Lock()

    def submit(self, one: FoundCheckpoint, root: Path) -> Export:
        """Queue an export, or find the one that is going on.

        Args:
            one: what to export.
            root: folder that the page searches.
        """
        with self._lock:
            earlier = self._by_path.get(one.path)
            if earlier is not None and not earlier.finished:
                return earlier
            going = [export for export in self._by_path.values() if not export.finished]
            if one.target in (export.checkpoint.target for export in going):
                one = replace(one, target=root / "models" / one.run)
            export = Export(one, root, self._command)
            self._by_path[one.path] = export
        self._desk.queue(export)
        return export

    def cancel(self, export: Export) -> None:
        self._desk.cancel(export)

    def place(self, export: Export) -> int:
        return self._desk.place(export)

    def all(self) -> tuple[Export, ...]:
        """The last one of each checkpoint, finished or not, in the order they were asked for."""
        with self._lock:
            return tuple(self._by_path.values())

    @property
    def ended(self) -> int:
        """How many of them have finished: when it changes there may be a new model."""
        return sum(export.finished for export in self.all())


def offer(found: Sequence[FoundCheckpoint], root: Path, exports: Exports) -> None:
    """Buttons to export checkpoints, and what becomes of those that were pressed.

    Args:
        found: not exported yet.
        root: folder that the page searches.
        exports: of the server.
    """
    if found:
        with st.expander(f"{len(found)} checkpoints not exported yet"):
            for one in found[:5]:
                st.markdown(f"**{escaped(one.run)}**")
                st.code(one.command, language="bash")
                if st.button("Export", key=f"export {one.run}"):
                    exports.submit(one, root)
    for export in exports.all():
        if not export.finished:
            _progress(export, exports)
        elif export.error and export.checkpoint.path in (one.path for one in found):
            st.error(escaped(export.error))


@st.fragment(run_every=_PERIOD_S)
def _progress(export: Export, exports: Exports) -> None:
    if export.finished:
        st.rerun()
    before = exports.place(export)
    text = f"waiting: {before} before this one" if before else export.stage
    if export.cancelled:
        text = "cancelling"
    st.caption(f"**{escaped(export.checkpoint.run)}**: {text}")
    st.button(
        "Cancel the export",
        key=f"cancel {export.checkpoint.run}",
        on_click=exports.cancel,
        args=(export,),
        disabled=export.cancelled,
    )
