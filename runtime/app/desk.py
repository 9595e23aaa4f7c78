"""One case at a time on a device: a queue that everybody sees their place in, and the thread that
owns the backend.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from runtime.app.ceiling import available, ceiling
from runtime.app.uploads import Store
from runtime.backends import Backend, BackendOptions, open_backend, open_spare
from runtime.case import Case
from runtime.errors import BratsError
from runtime.labels import Convention, LabelMap
from runtime.model_dir import ModelDir
from runtime.nifti import load
from runtime.output_plan import OutputOptions, OutputPlan, plan_output
from runtime.prediction import save
from runtime.segmented import Prediction
from runtime.segmenter import Segmenter, SegmentOptions
from runtime.truth import load_truth

_LOG = logging.getLogger("brats-app")


class CancelledError(Exception):
    """The user does not want the result any more."""


@dataclass(frozen=True)
class Order:
    """What is to be segmented, and how.

    Attributes:
        case: files in the session's own folder, or in a folder of the server.
        model: what to segment with.
        backend: which backend is wanted.
        options: see `SegmentOptions`.
        store: of the session; results are written into a folder of it.
        truth_labels: numbering of the truth's labels; None takes what its name implies.
    """

    case: Case
    model: ModelDir
    backend: BackendOptions
    options: SegmentOptions
    store: Store
    truth_labels: Convention | None = None


@dataclass(frozen=True)
class Result:
    """A segmented case.

    Attributes:
        prediction: label map, probabilities, volume.
        truth: uint8 (X, Y, Z), network labels, or None.
        sidecar: as brats-infer writes it.
        plan: files of the session's folder: label map, probabilities, sidecar.
    """

    prediction: Prediction
    truth: LabelMap | None
    sidecar: dict[str, Any]
    plan: OutputPlan


class Task(ABC):
    """Something to be done at the desk and what has become of it; read by the page, written by the
    desk's thread.

    Attributes:
        stage: what is being done, in words.
        error: one sentence, where it failed.
    """

    def __init__(self) -> None:
        self.stage = "waiting"
        self.error = ""
        self._cancelled = threading.Event()
        self._finished = threading.Event()

    @abstractmethod
    def perform(self, bench: "Bench") -> None:
        """Do it, in the desk's thread.

        Raises:
            CancelledError: it was cancelled meanwhile.
            BratsError: it failed.
        """

    def plain(self, text: str) -> str:
        """A message as the user may read it."""
        return text

    @property
    def finished(self) -> bool:
        """Whether it is over: done, failed or cancelled."""
        return self._finished.is_set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask it to stop; `Desk.cancel` also takes it out of the queue."""
        self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has finished within ``seconds``."""
        return self._finished.wait(seconds)

    def finish(self) -> None:
        self._finished.set()


class Bench:
    """The backend that stays open for the next order of the same kind; of the desk's thread."""

    def __init__(self) -> None:
        self._open: tuple[tuple[str, BackendOptions], Backend] | None = None

    def backend(self, model: ModelDir, options: BackendOptions) -> Backend:
        """The one that is open, or a new one in its place.

        Raises:
            BratsError: it cannot be opened.
        """
        key = (str(model.hashes), options)
        if self._open is not None and self._open[0] == key:
            return self._open[1]
        self.clear()
        backend = open_backend(model, options)
        self._open = (key, backend)
        return backend

    def clear(self) -> None:
        """Close what is open, for somebody who needs the device's memory."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


class Job(Task):
    """A case to be segmented; cancelled, it takes no further window and drops what it has.

    Attributes:
        order: what was asked for.
        done, total: windows.
        result: where it did not fail.
    """

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order = order
        self.done = 0
        self.total = 0
        self.result: Result | None = None

    def perform(self, bench: Bench) -> None:
        order = self.order
        self._begin("reading the files")
        start = perf_counter()
        volume = load(order.case)
        load_seconds = perf_counter() - start
        truth = None
        if order.case.labels is not None:
            truth = load_truth(
                order.case,
                volume,
                order.truth_labels,
                "'numbering of a truth' under how it is run:",
            )
        self._begin("opening the model")
        backend = bench.backend(order.model, order.backend)
        segmenter = Segmenter(
            backend,
            order.options,
            spare=lambda: open_spare(order.model, order.backend, backend.info),
        )
        self._begin("preparing")
        # A GPU has memory of its own, and its driver maps more than it uses.
        free = available() if backend.info.device == "cpu" else None
        with ceiling(free):
            prediction = segmenter.segment(volume, self._progress)
        self._begin("saving")
        plan = plan_output(order.case, OutputOptions(order.store.new_folder()))
        sidecar = save(prediction, plan, None, load_seconds)
        self.result = Result(prediction, truth, sidecar, plan)

    def plain(self, text: str) -> str:
        return self.order.store.plain(text)

    def _begin(self, stage: str) -> None:
        # Nobody waits for the result of a visit that is over.
        if self.cancelled or self.order.store.closed:
            raise CancelledError
        self.stage = stage

    def _progress(self, done: int, total: int) -> None:
        self._begin("windows")
        self.done, self.total = done, total


class Desk:
    """Takes tasks and works on one at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._waiting: deque[Task] = deque()
        self._current: Task | None = None
        self._changed = threading.Condition()
        self._bench = Bench()
        self._thread = threading.Thread(target=self._work, name="brats-app-desk", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> Job:
        """Queue a case."""
        job = Job(order)
        self.queue(job)
        return job

    def queue(self, task: Task) -> None:
        with self._changed:
            self._waiting.append(task)
            self._changed.notify_all()

    def cancel(self, task: Task) -> None:
        """Drop a task at once if it waits, else as soon as it can be stopped."""
        task.cancel()
        with self._changed:
            if task not in self._waiting:
                return
            self._waiting.remove(task)
        task.stage = "cancelled"
        task.finish()

    def place(self, task: Task) -> int:
        """How many tasks are before this one: 0 means that it is being worked on, or is done."""
        with self._changed:
            if task is self._current or task not in self._waiting:
                return 0
            return self._waiting.index(task) + (self._current is not None)

    def _work(self) -> None:
        while True:
            self._work_on_next()

    def _work_on_next(self) -> None:
        # A function of its own, so that while the desk waits nothing of the last patient is left.
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            task = self._waiting.popleft()
            self._current = task
        try:
            task.perform(self._bench)
        except CancelledError:
            task.stage = "cancelled"
        except BratsError as error:
            task.error = task.plain(str(error))
        except MemoryError:
            task.error = (
                "memory: found too little, expected room for the case; choose a smaller patch."
            )
        except Exception:
            # The page shows a sentence; whoever runs the server finds the rest in its log.
            _LOG.exception("a case could not be segmented")
            task.error = (
                "the server: found an unexpected error, expected a label map; "
                "its log has the details."
            )
        finally:
            with self._changed:
                self._current = None
            task.finish()


def written_as(result: Result, convention: Convention, store: Store) -> bytes:
    """The label map's file in another numbering of the labels, as brats-infer would write it."""
    case = result.prediction.volume.case
    plan = plan_output(case, OutputOptions(store.new_folder(), convention=convention))
    save(replace(result.prediction, probabilities=None), plan)
    return plan.labels.read_bytes()
