"""One of the processes that share a cohort: it segments what it is told of."""

import os
import queue
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from runtime.cohort import How, Job, segment_cases
from runtime.errors import BackendUnavailableError, BratsError
from runtime.lock import Held
from runtime.pipeline import Clock
from runtime.work import Work

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""A person's wish to stop, which is the first process's to hear."""


def serve(
    connection: Connection, work: Work, folder: Path, identity: tuple[int, int] | None
) -> None:
    """A worker's life: open, segment what it is told of, say what became of it.

    Args:
        connection: to the first process.
        work: what is done with each case.
        folder: the output folder, which the first process holds.
        identity: of it, as of `Held`.
    """
    # A person's Ctrl-C reaches every process of the terminal; the first one says what is done.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    from runtime.cli.console import rest_idle_threads

    rest_idle_threads()
    inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    stop = threading.Event()

    def listen() -> None:
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # nobody is left to tell
            if message == "stop":
                stop.set()
                message = None
            inbox.put(message)

    lock = threading.Lock()

    def say(*message: Any) -> None:
        with lock, suppress(OSError):
            connection.send(message)

    clock = Clock()
    try:
        held = Held.again(folder, identity)
        with work.opened() as segmenter:
            say("ready", segmenter.backend.info)
            threading.Thread(target=listen, daemon=True).start()
            how = How(
                resume=work.resume,
                as_good=work.as_good,
                look=work.pages.look(lambda text, case: say("note", text, case)),
                held=held,
                room=work.room(lambda text: say("note", text, None)),
                stopping=stop.is_set,
                ready=lambda: not inbox.empty(),
            )
            for outcome in segment_cases(iter(inbox.get, None), segmenter, how, clock):
                spent = (clock.read, clock.run, clock.write)
                key = outcome.plan.sidecar
                say("ended", key, outcome.sidecar, outcome.error, outcome.kept, spent)
        say("finished")
    except BratsError as error:
        say("failed", error)
    except Exception as error:
        say("failed", BackendUnavailableError(
            work.backend.device,
            found=f"{type(error).__name__}: {error}",
            expected="a process that runs",
            remedy="run without several devices to see where it comes from",
        ))  # fmt: skip
