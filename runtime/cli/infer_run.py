"""brats-infer once its flags are known to make sense: one case, or a cohort."""

from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from runtime.backends import BackendInfo
from runtime.case import Case
from runtime.cli.infer_cohort import Running, segmented
from runtime.cli.infer_log import InferLog
from runtime.cli.infer_mode import how_to_run
from runtime.cli.infer_pace import Pace
from runtime.cli.infer_view import InferView
from runtime.cli.stopping import finishing
from runtime.cohort import claim, settings_of
from runtime.cohort_files import Facts, Names, write_cohort
from runtime.cohort_places import Replacing, check_places
from runtime.cohort_record import Record
from runtime.errors import CohortError, InputError, OutputError, UsageError, interrupted
from runtime.model_dir import BUILT_IN, find_model
from runtime.output_plan import OutputOptions
from runtime.processes import Told

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
    view = InferLog(pace) if options.log_json else InferView(console, pace, several)
    model = find_model(options.model)
    if options.model is None and model.path == BUILT_IN:
        view.note(
            f"no model/ here: the built-in reference model, trained on "
            f"{model.card.training['cases']} cases, takes its place ({BUILT_IN / 'README.md'})"
        )
    # Other machines do not know in which folder this command was begun.
    directory = options.output if options.ray is None else options.output.absolute()
    output = OutputOptions(
        directory,
        options.submission,
        options.labels,
        options.overwrite,
        options.resume,
        options.preview,
        options.report,
        options.truth_labels,
    )
    part = options.part
    names = Names(directory, part.suffix if part else "")
    with ExitStack() as held:
        jobs, folder = held.enter_context(
            claim(cases, output, (part.index, part.count) if part else None)
        )
        replacing, own = Replacing(options.overwrite, options.resume), {c.case_id for c in cases}
        if several:
            if gone := check_places(names, own, replacing):
                view.note(
                    f"the tables no longer tell of {len(gone)} cases of an earlier run, such as "
                    f"{gone[0]}, which this one does not take; their results stay"
                )
            for job in jobs:
                if clash := {*names.all()} & {*job.plan.files()}:
                    raise _named_like_the_cohort(job.case, clash.pop().name)
        work, given = how_to_run(options, model, cases, view)
        jobs = [
            replace(
                job,
                plan=replace(
                    job.plan,
                    warnings=(*job.plan.warnings, *work.warnings),
                    budget_s=options.budget,
                ),
            )
            for job in jobs
        ]
        record = Record(count)
        stopping = held.enter_context(finishing(view.stopping)) if several else _never
        ran: list[BackendInfo] = []

        def ready(info: BackendInfo, processes: int) -> None:
            ran.append(info)
            pace.processes = processes
            pace.restart()
            view.started(model.card, info, work.options)
            for problem in problems:
                pace.problem()
                record.problem(problem)
                view.problem(problem)

        told = Told(pace.clock, view.note, ready)

        def tell_of_all() -> None:
            facts = Facts(
                model={"name": model.card.name, "sha256": ran[0].sha256 or ""},
                settings=settings_of(ran[0].name, work.options),
                wall_s=round(pace.wall_s, 3),
                busy={name: round(part, 4) for name, part in pace.busy().items()},
                cpu_s=round(pace.cpu_s, 3) if options.ray is None else None,
            )
            folder.check()
            check_places(names, own, replacing)
            write_cohort(names, record, facts)
            view.finished(names.table, names.page)

        outcomes = segmented(options, Running(work, given, folder, told, stopping), jobs, view)
        try:
            with view, closing(outcomes):
                for outcome in outcomes:
                    pace.ended(outcome)
                    record.add(outcome)
                    view.done(outcome)
        except OutputError:
            raise  # the tables could not be written either
        except Exception as error:
            # Hours of cases are not to be without a table for what all of them needed in the end.
            if several and len(record.entries) > len(problems) and not interrupted(error):
                with suppress(Exception):  # the user is to hear of the first one
                    tell_of_all()
            raise
        if several and options.budget is not None:
            late = [one for one in record.of("done") if one.total_s > options.budget]
            if late:
                slowest = max(late, key=lambda one: one.total_s)
                view.note(
                    f"{len(late)} of {record.count('done')} cases took longer than the budget of "
                    f"{options.budget:g} s, {slowest.case_id} {slowest.total_s:.1f} s"
                )
        if several and ran:
            tell_of_all()
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
