"""One case at a time on a device: a queue that everybody sees their place in, and the thread that
owns the backend.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from runtime.app.uploads import Store
from runtime.backends import Backend, BackendOptions, open_backend, open_spare
from runtime.case import Case
from runtime.errors import BratsError
from runtime.labels import Convention, LabelMap
from runtime.model_dir import ModelDir
from runtime.nifti import load
from runtime.prediction import OutputOptions, OutputPlan, plan_output, save
from runtime.segmenter import Prediction, Segmenter, SegmentOptions
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


@dataclass
class Job:
    """An order and what has become of it; read by the page, written by the desk's thread.

    Attributes:
        order: what was asked for.
        stage: what is being done, in words.
        done, total: windows.
        error: one sentence, where it failed.
        result: where it did not.
    """

    order: Order
    stage: str = "waiting"
    done: int = 0
    total: int = 0
    error: str = ""
    result: Result | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _finished: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        """Whether it is over: with a result, an error, or neither where it was cancelled."""
        return self._finished.is_set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Take no further window; what was computed so far is dropped."""
        self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has finished within ``seconds``."""
        return self._finished.wait(seconds)

    def finish(self) -> None:
        self._finished.set()


class Desk:
    """Takes orders and works on one at a time.

    Its thread owns the backend, which stays open for the next order of the same kind.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._changed = threading.Condition()
        self._backend: tuple[tuple[str, BackendOptions], Backend] | None = None
        self._thread = threading.Thread(target=self._work, name="brats-app-desk", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> Job:
        """Queue an order."""
        job = Job(order)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Drop an order at once if it waits, else before its next window."""
        job.cancel()
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        job.stage = "cancelled"
        job.finish()

    def place(self, job: Job) -> int:
        """How many orders are before this one: 0 means that it is being worked on, or is done."""
        with self._changed:
            if job is self._current or job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._current is not None)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                job = self._waiting.popleft()
                self._current = job
            try:
                job.result = self._segment(job)
            except CancelledError:
                job.stage = "cancelled"
            except BratsError as error:
                job.error = job.order.store.plain(str(error))
            except MemoryError:
                job.error = (
                    "memory: found too little, expected room for the case; choose a smaller patch."
                )
            except Exception:
                # The page shows a sentence; whoever runs the server finds the rest in its log.
                _LOG.exception("a case could not be segmented")
                job.error = (
                    "the server: found an unexpected error, expected a label map; "
                    "its log has the details."
                )
            finally:
                with self._changed:
                    self._current = None
                job.finish()

    def _segment(self, job: Job) -> Result:
        order = job.order

        def stage(name: str) -> None:
            # Nobody waits for the result of a visit that is over.
            if job.cancelled or order.store.closed:
                raise CancelledError
            job.stage = name

        stage("reading the files")
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
        stage("opening the model")
        backend = self._open(order)
        segmenter = Segmenter(
            backend,
            order.options,
            spare=lambda: open_spare(order.model, order.backend, backend.info),
        )
        stage("preparing")

        def progress(done: int, total: int) -> None:
            stage("windows")
            job.done, job.total = done, total

        prediction = segmenter.segment(volume, progress)
        stage("saving")
        plan = plan_output(order.case, OutputOptions(order.store.new_folder()))
        sidecar = save(prediction, plan, None, load_seconds)
        return Result(prediction, truth, sidecar, plan)

    def _open(self, order: Order) -> Backend:
        key = (str(order.model.hashes), order.backend)
        if self._backend is not None and self._backend[0] == key:
            return self._backend[1]
        if self._backend is not None:
            self._backend[1].close()
            self._backend = None
        backend = open_backend(order.model, order.backend)
        self._backend = (key, backend)
        return backend


def written_as(result: Result, convention: Convention, store: Store) -> bytes:
    """The label map's file in another numbering of the labels, as brats-infer would write it."""
    case = result.prediction.volume.case
    plan = plan_output(case, OutputOptions(store.new_folder(), convention=convention))
    save(replace(result.prediction, probabilities=None), plan)
    return plan.labels.read_bytes()
