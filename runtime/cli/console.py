"""What all commands share: arguments from a dataclass, errors as one sentence, exit codes."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from itertools import groupby
from typing import Annotated, Any, TextIO, TypeVar

import tyro
from rich.console import Console

from runtime import DISCLAIMER, __version__
from runtime.cli.events import log_error, tell_interrupted
from runtime.errors import (
    EXIT_INTERRUPTED,
    BratsError,
    UsageError,
    as_ours,
    interrupted,
)
from runtime.labels import Convention
from runtime.threads import no_thread

Args = TypeVar("Args")


def optional(metavar: str) -> Any:
    """An option whose absence means something that its help says; shown without "None"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


ConventionFlag = Annotated[Convention | None, optional("CONVENTION")]
"""A label convention, by its value: brats2020."""


def rest_idle_threads() -> None:
    """Let OpenMP threads sleep while they wait; to be called before PyTorch is imported.

    By default they spin. Where another load shares the cores, spinning threads keep the one they
    wait for from running, and training was measured several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def parse(kind: type[Args], program: str, description: str, args: Sequence[str] | None) -> Args:
    """Read the command line into ``kind``, a frozen dataclass; usage errors leave with exit code 2.

    ``--version`` prints the version and leaves with 0.
    """
    given = list(sys.argv[1:] if args is None else args)
    with reader_may_leave():
        if "--version" in given:
            print(f"{program} {__version__}")
            raise SystemExit(0)
        as_json = any(one.replace("_", "-").startswith("--log-json") for one in given)
        with _refusal_as_event() if as_json else nullcontext():
            return tyro.cli(
                kind,
                prog=program,
                description=f"{description}\n\n{DISCLAIMER}",
                args=given,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.EnumChoicesFromValues),
            )


@contextmanager
def _refusal_as_event() -> Iterator[None]:
    """Tell as one event what tyro draws a box around."""
    with redirect_stderr(io.StringIO()) as drawn:
        try:
            yield
            return
        except SystemExit as left:
            code = left.code
    if code:
        # Drawn in ASCII where the terminal has no more: then a rule stands below the title too.
        lines = [line.strip("│╭╮╰╯ ") for line in drawn.getvalue().splitlines()[1:]]
        parts = [
            " ".join(filter(None, part))
            for is_rule, part in groupby(lines, lambda line: bool(line) and set(line) <= {"─", "-"})
            if not is_rule
        ]
        # What follows the first part is help.
        log_error(
            UsageError(
                "command line",
                found=next(iter(parts), "arguments that do not fit"),
                expected="arguments that fit",
                remedy="see --help",
            )
        )
    raise SystemExit(code)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Leave quietly where nobody reads what is printed any more, as `head` does that has enough.

    Raises:
        SystemExit: with the code the block would have left with, or 0.
    """
    code: Any = 0
    try:
        try:
            yield
        except SystemExit as left:
            code = left.code
            raise
        finally:
            # Not when Python ends: that would be told as an ignored exception, and exit 120.
            _flush_stdout()
    except BrokenPipeError:
        _forget_stdout()
        raise SystemExit(code) from None


def _flush_stdout() -> None:
    if sys.stdout:  # None where a program is started without one
        sys.stdout.flush()


def _forget_stdout() -> None:
    """Send stdout nowhere: what it still holds would be refused once more when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def run(body: Callable[[Console], int], *, quiet: bool, as_json: bool = False) -> int:
    """Run a command's body; turn the project's errors into one line on stderr and their exit code.

    Args:
        body: does the work, talks through the console it is given, and returns the exit code.
        quiet: nothing but errors and results.
        as_json: errors are one JSON object per line.
    """
    _keep_standard_descriptors()
    with redirect_stderr(_Told(sys.stderr)):
        return _run(body, quiet, as_json)


def _keep_standard_descriptors() -> None:
    """Where a command is started without stdin, stdout or stderr, the next file to be opened would
    get its number, and whatever a library says there would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class _Told:
    """A stream of messages that nobody need read: what it does not take is not said.

    A cohort of hours does not end because its log has gone: the reader of a pipe, the disk, or the
    stream itself, which Python sets to None where a command is started without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _run(body: Callable[[Console], int], quiet: bool, as_json: bool) -> int:
    console = Console(stderr=True, quiet=quiet)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    code = 0
    try:
        code = body(console)
        _flush_stdout()
        return code
    except BrokenPipeError:
        # The reader of stdout has gone, who has what he wanted.
        _forget_stdout()
        return code
    except BaseException as error:
        if interrupted(error):
            tell_interrupted(as_json)
            return EXIT_INTERRUPTED
        if not (isinstance(error, BratsError | MemoryError | OSError) or no_thread(error)):
            raise
        told = as_ours(error)
        if as_json:
            log_error(told)
        else:
            errors.print("error:", style="bold red", end=" ")
            errors.print(str(told), markup=False)
        return told.exit_code
