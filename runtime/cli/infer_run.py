"""brats-infer once its flags are known to make sense: one case, or a cohort."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from rich.console import Console

from runtime.backends import open_spare
from runtime.case import Case
from runtime.cli.infer_log import InferLog
from runtime.cli.infer_mode import as_good, how_to_run
from runtime.cli.infer_pace import Pace
from runtime.cli.infer_view import InferView
from runtime.cli.stopping import finishing
from runtime.cohort import How, claim, segment_cases, settings_of
from runtime.cohort_files import Facts, Names, check_places, write_cohort
from runtime.cohort_record import Record
from runtime.errors import CohortError, InputError, UsageError
from runtime.memory import Room
from runtime.model_dir import BUILT_IN, find_model
from runtime.output_plan import OutputOptions
from runtime.pipeline import Clock
from runtime.prediction import Look, Pages
from runtime.segmenter import Prediction, Segmenter

if TYPE_CHECKING:
    from runtime.cli.infer import InferArgs


def segment(
    options: "InferArgs",
    cases: Sequence[Case],
    problems: Sequence[InputError],
    console: Console,
) -> int:
    """Segment the cases and say what became of them; returns the exit code.

    Args:
        options: the command line.
        cases: to segment.
        problems: of cases that could not be put together from their files.
        console: tells people.

    Raises:
        CohortError: some of several cases failed.
        KeyboardInterrupt: a wish to stop left cases out.
        BratsError: of a single case, or of what all of them need.
    """
    if options.part is not None:
        cases = options.part.of(cases)
        problems = problems if options.part.index == 1 else []
    count = len(cases) + len(problems)
    several = count > 1 or options.part is not None
    pace = Pace(count)
    view = InferLog(pace) if options.log_json else InferView(console, pace)
    model = find_model(options.model)
    if options.model is None and model.path == BUILT_IN:
        view.note(
            f"no model/ here: the built-in reference model, trained on "
            f"{model.card.training['cases']} cases, takes its place ({BUILT_IN / 'README.md'})"
        )
    output = OutputOptions(
        options.output,
        options.submission,
        options.labels,
        options.overwrite,
        options.resume,
        options.preview,
        options.report,
        options.truth_labels,
    )
    part = options.part
    names = Names(options.output, part.suffix if part else "")
    with ExitStack() as held:
        jobs, folder = held.enter_context(
            claim(cases, output, (part.index, part.count) if part else None)
        )
        if several:
            check_places(names)
            for job in jobs:
                if clash := {*names.all()} & {*job.plan.files()}:
                    raise _named_like_the_cohort(job.case, clash.pop().name)
        chosen = how_to_run(options, model, cases, view)
        backend = held.enter_context(closing(chosen.open(model)))
        segmenter = Segmenter(
            backend,
            chosen.segmenting,
            spare=lambda: open_spare(model, chosen.wanted, backend.info),
        )
        view.started(segmenter)
        record = Record(count)
        how = How(
            resume=options.resume,
            as_good=as_good(chosen, model),
            progress=view.progress,
            look=_look(options, view),
            held=folder,
            room=None if options.memory is None else Room(options.memory),
            stopping=held.enter_context(finishing(view.stopping)) if several else _never,
        )
        pace.clock, pace.limits = Clock(), how.limits
        with view:
            for problem in problems:
                pace.problem()
                record.problem(problem)
                view.problem(problem)
            for outcome in segment_cases(jobs, segmenter, how, pace.clock):
                pace.ended(outcome)
                record.add(outcome)
                view.done(outcome)
        if several:
            info = backend.info
            facts = Facts(
                model={"name": backend.card.name, "sha256": info.sha256},
                settings=settings_of(segmenter),
                wall_s=round(pace.wall_s, 3),
                busy={name: round(part, 4) for name, part in pace.busy().items()},
            )
            write_cohort(names, record, facts)
            view.finished(names.table, names.page)
    if len(record.entries) < count:  # nothing but a wish to stop leaves cases out
        raise KeyboardInterrupt
    failed = record.of("failed")
    if failed and not several and failed[0].error is not None:
        raise failed[0].error
    if failed:
        raise CohortError(
            options.output,
            found=f"{len(failed)} of {count} cases failed",
            expected="all of them done",
            remedy=f"mend the cases that {names.failures.name} names and run again with --resume",
        )
    return 0


def _never() -> bool:
    return False


def _named_like_the_cohort(case: Case, name: str) -> UsageError:
    return UsageError(
        case.folder,
        found=f"a case {case.case_id}, whose results would be called {name}",
        expected="that name free for the file of the whole cohort",
        remedy="rename the case, or run it by itself",
    )


def _look(options: "InferArgs", view: InferLog | InferView) -> Look | None:
    """What makes pictures and pages; None where none are asked for."""
    if not (options.preview or options.report):
        return None

    def look(prediction: Prediction, sidecar: dict[str, Any]) -> Pages:
        from runtime.preview import marked_png, preview
        from runtime.report import html_report
        from runtime.truth import load_truth

        volume, truth = prediction.volume, None
        if volume.case.labels is not None:
            try:
                truth = load_truth(volume.case, volume, options.truth_labels, "--truth-labels")
            except InputError as error:
                view.note(f"shown without truth: {error}", volume.case)
        return Pages(
            marked_png(preview(volume, prediction.labels, truth)) if options.preview else None,
            html_report(prediction, sidecar, truth).encode() if options.report else None,
        )

    return look
