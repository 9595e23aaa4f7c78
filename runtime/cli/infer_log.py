"""What brats-infer tells a machine: one JSON object per line, with --log-json."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from runtime import DISCLAIMER, __version__
from runtime.backends import BackendInfo
from runtime.case import Case
from runtime.cli.events import log_event, parts_of
from runtime.cli.infer_pace import Pace
from runtime.cohort import Outcome
from runtime.errors import BratsError
from runtime.model_card import ModelCard
from runtime.segmenter import SegmentOptions


class InferLog:
    """Takes the place of `InferView`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def started(self, card: ModelCard, info: BackendInfo, options: SegmentOptions) -> None:
        """Before the first case."""
        patch, overlap = options.patch or card.patch, options.overlap
        log_event(
            "info",
            "started",
            version=__version__,
            cases=self._pace.total,
            model={"name": card.name, "sha256": info.sha256},
            backend={"name": info.name, "device": info.device, "precision": info.precision},
            processes=self._pace.processes,
            certificate=info.certificate,
            fell_back_from=info.fell_back_from,
            patch=patch if patch == "box" else list(patch),
            overlap=card.inference.overlap if overlap is None else overlap,
            quality=options.quality or None,
            research_use=DISCLAIMER,
        )

    def note(self, text: str, case: Case | None = None) -> None:
        """Something worth knowing that is no error."""
        log_event("warning", "note", case_id=case.case_id if case else None, text=text)

    def stopping(self) -> None:
        """After the first Ctrl-C."""
        log_event("warning", "stopping")

    def progress(self, case: Case, done: int, total: int) -> None:
        """Windows are not told."""

    def problem(self, error: BratsError) -> None:
        """A case that could not be put together from its files."""
        log_event("error", "case-failed", case_id=None, **parts_of(error))

    def done(self, outcome: Outcome) -> None:
        """After each case."""
        case_id, cohort = outcome.case.case_id, self._state()
        if outcome.error is not None:
            log_event("error", "case-failed", case_id=case_id, **parts_of(outcome.error), **cohort)
        elif outcome.kept or outcome.sidecar is None:
            labels = str(outcome.plan.labels)
            log_event("info", "case-kept", case_id=case_id, labels=labels, **cohort)
        else:
            for text in outcome.warnings:
                log_event("warning", "note", case_id=case_id, text=text)
            log_event(
                "info",
                "case-done",
                case_id=case_id,
                labels=str(outcome.plan.labels),
                sha256=outcome.sidecar["output"]["sha256"],
                volumes_ml=outcome.sidecar["volumes_ml"],
                timings_s=outcome.sidecar["timings_s"],
                **cohort,
            )

    def finished(self, table: Path, page: Path) -> None:
        """At the end of a cohort, however it ended, when its own files are written."""
        log_event("info", "finished", table=str(table), page=str(page), **self._state())

    def _state(self) -> dict[str, Any]:
        """How far a cohort is; nothing of a single case."""
        return {"cohort": self._pace.to_json()} if self._pace.total > 1 else {}
