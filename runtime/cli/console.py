"""What all commands share: arguments from a dataclass, errors as one sentence, exit codes."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

from runtime import DISCLAIMER, __version__
from runtime.errors import EXIT_INTERRUPTED, BratsError, ComputeError, InputError, OutputError
from runtime.labels import Convention
from runtime.model_card import Shape3

Args = TypeVar("Args")


def _shape_from(text: list[str]) -> Shape3:
    x, y, z = (int(part) for part in text[0].split(","))
    return (x, y, z)


CommaShape = Annotated[
    Shape3,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="X,Y,Z",
        instance_from_str=_shape_from,
        is_instance=lambda value: isinstance(value, tuple) and len(value) == 3,
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]
"""Three numbers as one argument: 128,128,64."""


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
    if "--version" in given:
        print(f"{program} {__version__}")
        raise SystemExit(0)
    return tyro.cli(
        kind,
        prog=program,
        description=f"{description}\n\n{DISCLAIMER}",
        args=given,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.EnumChoicesFromValues),
    )


def run(body: Callable[[Console], int], *, quiet: bool) -> int:
    """Run a command's body; turn the project's errors into one line on stderr and their exit code.

    Args:
        body: does the work, talks through the console it is given, and returns the exit code.
        quiet: nothing but errors and results.
    """
    console = Console(stderr=True, quiet=quiet)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return body(console)
    except BratsError as error:
        errors.print("error:", style="bold red", end=" ")
        errors.print(str(error), markup=False)
        return error.exit_code
    except MemoryError as error:
        errors.print("error:", style="bold red", end=" ")
        errors.print(f"memory: found too little ({error}); choose a smaller patch.", markup=False)
        return ComputeError.exit_code
    except BrokenPipeError:
        # The reader of a pipe has gone; writing to what is left of it would only raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        errors.print("error:", style="bold red", end=" ")
        named = error.filename or "a path"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            errors.print(f"{named}: found {error.strerror}; free space.", markup=False)
            return OutputError.exit_code
        errors.print(f"{named}: found {error.strerror}; check the path.", markup=False)
        return InputError.exit_code
    except KeyboardInterrupt:
        errors.print("interrupted")
        return EXIT_INTERRUPTED
