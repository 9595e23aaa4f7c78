"""What brats-infer's flags ask a model to do: as the user says, by a certified mode, or in time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.backends import Backend, BackendOptions
from runtime.case import Case
from runtime.cores import core_limit
from runtime.errors import InputError, ParityError, UsageError
from runtime.model_dir import ModelDir
from runtime.modes import (
    QUALITIES,
    Mode,
    certified,
    check_covers,
    mode_of,
    options_of,
    wanted_of,
)
from runtime.segmenter import SegmentOptions

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


@dataclass(frozen=True)
class Run:
    """How a model is to be run.

    Attributes:
        mode: that it is run in; None where the user says himself how.
        wanted: what to open.
        segmenting: how to segment.
        backend: opened already, where a budget has measured it; whoever gets it closes it.
    """

    mode: Mode | None
    wanted: BackendOptions
    segmenting: SegmentOptions
    backend: Backend | None = None

    def open(self, model: ModelDir) -> Backend:
        """The backend, on which the mode is certified.

        Raises:
            ParityError: it is not.
            BratsError: as for `open_backend`.
        """
        from runtime.backends import open_backend

        if self.backend is not None:
            return self.backend
        if self.mode is not None:
            check_covers(model, self.mode, self.wanted.backend, self.wanted.device)
        backend = open_backend(model, self.wanted)
        try:
            if self.mode is not None:
                check_covers(model, self.mode, backend.info.name, backend.info.device)
        except ParityError:
            backend.close()
            raise
        return backend


def how_to_run(
    options: "InferArgs",
    model: ModelDir,
    cases: Sequence[Case],
    view: "InferLog | InferView",
) -> Run:
    """What to open and how to segment with it.

    Raises:
        BratsError: the mode is not certified, none fits the budget, or no case can be read to find
            out.
    """
    wanted = BackendOptions(
        options.backend,
        options.device,
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
    if _own_terms(options):
        return Run(None, wanted, segmenting)
    if options.budget is None:
        mode, backend = mode_of(model, options.quality or "exact"), None
    else:
        choice = _in_time(options.budget, model, cases, wanted, segmenting, view)
        mode, backend = choice.mode, choice.backend
    return Run(mode, wanted_of(mode, wanted), options_of(mode, segmenting), backend)


def as_good(run: Run, model: ModelDir) -> list[tuple[str, SegmentOptions]]:
    """The graphs, by their hashes, and the options of the modes that are better than the one a
    budget has chosen: what is done in one of them need not be done again.
    """
    if run.backend is None or run.mode is None:
        return []
    better = QUALITIES[: QUALITIES.index(run.mode.quality)]
    plain = replace(run.segmenting, patch=None, overlap=None, quality="")
    return [
        (model.hashes[mode.artefact], options_of(mode, plain))
        for mode in certified(model)
        if mode.quality in better
    ]


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
