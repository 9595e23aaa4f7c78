"""What runs on a machine of a Ray cluster: a segmenter, and the cases that it is given."""

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from runtime.backends import BackendInfo
from runtime.bounded import read_json
from runtime.cluster_folder import Shared
from runtime.cohort import Job, error_of, settings_of
from runtime.errors import BratsError
from runtime.nifti import load
from runtime.output_plan import is_complete
from runtime.prediction import save
from runtime.segmenter import Segmenter
from runtime.work import Work


@dataclass(frozen=True)
class Result:
    """What an actor has made of a case: `Outcome` without what its caller knows."""

    sidecar: dict[str, Any] | None = None
    error: BratsError | None = None
    kept: bool = False
    notes: tuple[str, ...] = ()
    spent: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Segmenting:
    """An actor. Its network runs one case at a time; others are read and written beside it."""

    def __init__(self, work: Work, folder: Shared) -> None:
        self._work = work
        self._folder = folder
        self._held = ExitStack()
        self._opened: Segmenter | None = None
        self._opening = threading.Lock()
        self._running = threading.Lock()

    def placed(self) -> None:
        """Answer: a machine has room for this actor."""

    def ready(self) -> BackendInfo | BratsError:
        """Open the backend; an error is given back, as Ray would wrap it."""
        try:
            self._folder.check()
            return self._segmenter().backend.info
        except BratsError as error:
            return error

    def segment(self, job: Job) -> Result:
        """Read, segment and save a case."""
        try:
            return self._segment(job)
        except Exception as error:  # that of a case must not end the others
            return Result(error=error_of(job.case, error).with_traceback(None))

    def _segment(self, job: Job) -> Result:
        segmenter, work = self._segmenter(), self._work
        info = segmenter.backend.info
        settings = settings_of(info.name, work.options)
        if work.resume and is_complete(job.plan, job.case, info.sha256, settings):
            return Result(read_json(job.plan.sidecar), kept=True)
        began = perf_counter()
        volume = load(job.case)
        loaded = perf_counter()
        ready = segmenter.ready(volume)
        read = perf_counter()
        with self._running:
            started = perf_counter()
            result = segmenter.run(ready)
            ran = perf_counter()
        prediction = segmenter.finish(result)
        notes: list[str] = []
        look = work.pages.look(lambda text, case: notes.append(text))
        sidecar = save(prediction, job.plan, settings, loaded - began, look, self._folder)
        spent = (read - began, ran - started, perf_counter() - ran)
        return Result(sidecar, notes=tuple(notes), spent=spent)

    def _segmenter(self) -> Segmenter:
        with self._opening:
            if self._opened is None:
                self._opened = self._held.enter_context(self._work.opened())
            return self._opened
