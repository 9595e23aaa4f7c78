"""What brats-infer's flags ask a model to do: as the user says, by a certified mode, or in time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.backends import Backend, BackendOptions
from runtime.case import Case
from runtime.cores import core_limit
from runtime.errors import InputError, UsageError
from runtime.model_dir import ModelDir
from runtime.modes import (
    QUALITIES,
    Mode,
    certified,
    mode_of,
    options_of,
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
        BratsError: the mode is not certified, none fits the budget, or no case can be read to find
            out.
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
        return work, None
    if options.budget is None or not cases:
        return _in_mode(work, mode_of(model, options.quality or "exact")), None
    choice = _in_time(options.budget, model, cases, wanted, segmenting, view)
    # What is done in a better mode than the budget has chosen need not be done again.
    better = QUALITIES[: QUALITIES.index(choice.mode.quality)]
    plain = replace(segmenting, patch=None, overlap=None, quality="")
    as_good = [
        (model.hashes[mode.artefact], options_of(mode, plain))
        for mode in certified(model)
        if mode.quality in better
    ]
    return replace(_in_mode(work, choice.mode), as_good=as_good), choice.backend


def _in_mode(work: Work, mode: Mode) -> Work:
    return replace(
        work,
        backend=wanted_of(mode, work.backend),
        options=options_of(mode, work.options),
        mode=mode,
    )


def _in_time(
    seconds: float,
    model: ModelDir,
    cases: Sequence[Case],
    wanted: BackendOptions,
    segmenting: SegmentOptions,
    view: "InferLog | InferView",
) -> "Choice":
    from runtime.budget import best_within

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
        return choice
    raise unreadable or ValueError("no cases")
