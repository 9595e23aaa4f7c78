"""What brats-infer's flags ask a model to do: as the user says, by a certified mode, or in time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.backends import BackendOptions
from runtime.case import Case
from runtime.errors import InputError, UsageError
from runtime.model_dir import ModelDir
from runtime.modes import EXACT, Mode, mode_of, options_of, wanted_of
from runtime.segmenter import SegmentOptions

if TYPE_CHECKING:
    from runtime.cli.infer import InferArgs
    from runtime.cli.infer_log import InferLog
    from runtime.cli.infer_view import InferView


def check_mode_flags(options: "InferArgs") -> None:
    """Refuse flags that say otherwise than the mode that is asked for.

    Raises:
        UsageError: names them.
    """
    by_mode = options.quality != "exact" or options.budget is not None
    flag = "--budget" if options.budget is not None else f"--quality {options.quality}"
    if options.budget is not None and options.quality != "exact":
        raise UsageError(
            "--budget",
            found=f"--quality {options.quality} as well",
            expected="one of the two: a budget chooses the quality",
            remedy="drop one",
        )
    wrong = _own_terms(options)
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
) -> tuple[BackendOptions, SegmentOptions]:
    """The backend to open and how to segment with it.

    Raises:
        BratsError: the mode is not certified, none fits the budget, or no case can be read to find
            out.
    """
    wanted = BackendOptions(
        options.backend,
        options.device,
        options.precision,
        options.threads,
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
    if _own_terms(options):
        return wanted, segmenting
    mode = EXACT
    if options.budget is not None:
        mode = _in_time(options.budget, model, cases, wanted, segmenting, view)
    elif options.quality != "exact":
        mode = mode_of(model, options.quality)
    return wanted_of(mode, wanted), options_of(mode, segmenting)


def _in_time(
    seconds: float,
    model: ModelDir,
    cases: Sequence[Case],
    wanted: BackendOptions,
    segmenting: SegmentOptions,
    view: "InferLog | InferView",
) -> Mode:
    from runtime.budget import best_within

    unreadable: InputError | None = None
    for case in cases:
        try:
            mode, forecasts = best_within(seconds, model, case, wanted, segmenting)
        except InputError as error:
            # It is told when its turn comes.
            unreadable = unreadable or error
            continue
        for one in forecasts:
            view.note(
                f"{one.mode.quality} is forecast to take {one.seconds:.1f} s ({one.windows} "
                f"window{'s' if one.windows > 1 else ''} of {one.window_s:.2f} s)",
                case,
            )
        return mode
    raise unreadable or ValueError("no cases")
