"""What brats-infer's flags ask a model to do: as the user says, by a certified mode, or in time."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from runtime.backends import Backend, BackendOptions
from runtime.backends.driver import cuda_devices
from runtime.case import Case
from runtime.cores import core_limit
from runtime.errors import InputError, ParityError, UsageError
from runtime.model_dir import ModelDir
from runtime.modes import (
    QUALITIES,
    Mode,
    box_mode,
    certified,
    mode_of,
    options_of,
    placed,
    wanted_of,
)
from runtime.pages import PageOptions
from runtime.segmenter import SegmentOptions
from runtime.work import Work

if TYPE_CHECKING:
    from runtime.budget import Choice
    from runtime.cli.infer import InferArgs
    from runtime.cli.infer_log import InferLog
    from runtime.cli.infer_view import InferView


def check_mode_flags(options: "InferArgs") -> None:
    """Refuse flags that say otherwise than the mode that is asked for.

    Raises:
        UsageError: names them.
    """
    by_mode = options.quality is not None or options.budget is not None
    flag = "--budget" if options.budget is not None else f"--quality {options.quality}"
    if options.budget is not None and options.quality is not None:
        raise UsageError(
            "--budget",
            found=f"--quality {options.quality} as well",
            expected="one of the two: a budget chooses the quality",
            remedy="drop one",
        )
    windows = ("--overlap", "--stride", "--placement")
    wrong = _own_terms(options)
    blended = [name for name in wrong if name in windows]
    if options.patch == "box" and blended:
        raise UsageError(
            "--patch box",
            found=f"{' and '.join(blended)} as well",
            expected="one of the two: a single window has nothing to overlap with",
            remedy=f"drop --patch or {' '.join(blended)}",
        )
    if by_mode and wrong:
        raise UsageError(
            " ".join(wrong),
            found=f"{flag} as well",
            expected="one of the two: a mode is certified with a precision and windows of its own",
            remedy=f"drop {flag} or {' '.join(wrong)}",
        )


def _own_terms(options: "InferArgs") -> list[str]:
    """The flags by which a user says himself what a mode would say."""
    given = {
        "--overlap": options.overlap is not None,
        "--stride": options.stride is not None,
        "--patch": options.patch is not None,
        "--placement": options.placement != "fitted",
        "--precision": options.precision != "auto",
    }
    return [flag for flag, is_given in given.items() if is_given]


def how_to_run(
    options: "InferArgs",
    model: ModelDir,
    cases: Sequence[Case],
    view: "InferLog | InferView",
) -> tuple[Work, Backend | None]:
    """What to open and how to segment with it, on the first device that is named.

    Returns:
        The work, and the backend where a budget has opened one to measure it; whoever gets it
        closes it.

    Raises:
        BratsError: the mode, or one window over the brain box, is not certified, none fits the
            budget, or no case can be read to find out.
    """
    wanted = BackendOptions(
        options.backend,
        options.devices[0],
        options.precision,
        options.threads or core_limit(),
        options.uncertified,
        options.patch,
    )
    segmenting = SegmentOptions(
        overlap=options.overlap if options.stride is None else options.stride,
        placement=options.placement,
        patch=options.patch,
        batch=options.batch,
        probabilities=options.probabilities,
        force_spacing=options.force_spacing,
        postprocess=not options.no_postprocess,
    )
    work = Work(
        model.path,
        wanted,
        segmenting,
        pages=PageOptions(options.preview, options.report, options.truth_labels),
        resume=options.resume,
        memory=options.memory,
    )
    if _own_terms(options):
        return (_over_the_box(work, model, view) if options.patch == "box" else work), None
    if options.budget is None or not cases:
        return _in_mode(work, model, mode_of(model, options.quality or "exact"), view), None
    if options.preview or options.report:
        view.note("the budget is for label maps; pictures and pages come on top of it")
    choice = _in_time(options.budget, model, cases, wanted, segmenting, view)
    # What is done in a better mode than the budget has chosen need not be done again.
    better = QUALITIES[: QUALITIES.index(choice.mode.quality)]
    plain = replace(segmenting, patch=None, overlap=None, quality="")
    as_good = [
        (model.hashes[mode.artefact], options_of(mode, plain))
        for mode in certified(model)
        if mode.quality in better
    ]
    return replace(_in_mode(work, model, choice.mode, view), as_good=as_good), choice.backend


def _in_mode(work: Work, model: ModelDir, mode: Mode, view: "InferLog | InferView") -> Work:
    backend = placed(model, mode, wanted_of(mode, work.backend))
    asked = work.backend
    free = asked.device == "auto" and asked.backend in ("auto", "ort")
    if free and backend.device == "cpu" and cuda_devices():
        view.note(
            f"quality {mode.quality} is certified on the CPU alone: that runs it, not the GPU"
        )
    return replace(work, backend=backend, options=options_of(mode, work.options), mode=mode)


def _over_the_box(work: Work, model: ModelDir, view: "InferLog | InferView") -> Work:
    """One window over the brain box that a user asks for by hand: what a named mode would do is
    checked as it is, and has no name.

    Raises:
        ParityError: no certificate speaks for it, and the user does not want to go without.
    """
    try:
        named = _in_mode(work, model, box_mode(model, work.backend.precision), view)
    except ParityError as error:
        if work.backend.uncertified:
            told = f"uncertified: one window over the brain box: {error.found}"
            return replace(work, warnings=(*work.warnings, told))
        raise ParityError(
            "--patch box",
            found=error.found,
            expected=error.expected,
            remedy=f"certify it with brats-export {model.path} --modes --data CASES, drop "
            "--patch, or run it all the same with --uncertified",
        ) from error
    return replace(named, options=replace(named.options, quality=""))


def _in_time(
    seconds: float,
    model: ModelDir,
    cases: Sequence[Case],
    wanted: BackendOptions,
    segmenting: SegmentOptions,
    view: "InferLog | InferView",
) -> "Choice":
    from runtime.budget import best_within

    start = perf_counter()
    unreadable: InputError | None = None
    for case in cases:
        try:
            choice = best_within(seconds, model, case, wanted, segmenting)
        except InputError as error:
            # It is told when its turn comes.
            unreadable = unreadable or error
            continue
        for text in choice.passed_over:
            view.note(text)
        for one in choice.forecasts:
            view.note(
                f"{one.mode.quality} is forecast to take {one.seconds:.1f} s ({one.windows} "
                f"window{'s' if one.windows > 1 else ''} of {one.window_s:.2f} s)",
                case,
            )
        view.note(
            f"planning took {perf_counter() - start:.1f} s; the budget of {seconds:g} s is for "
            "each case from here on"
        )
        return choice
    raise unreadable or ValueError("no cases")
