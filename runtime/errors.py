"""Every error a user can meet: one sentence that names the file, what was found, what was expected
and the remedy.
"""

import errno
import os
import traceback
from os import PathLike, fspath
from pathlib import Path
from typing import Any, ClassVar

from runtime.printable import printable


class BratsError(Exception):
    """Base of all errors of this project.

    Args:
        where: the file, folder, flag or thing at fault.
        found: what was found there.
        expected: what should have been there.
        remedy: what the user can do about it.

    The class attribute ``exit_code`` is what the command line returns for it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, where: str | PathLike[str], *, found: str, expected: str, remedy: str
    ) -> None:
        self.where = fspath(where)
        self.found = found
        self.expected = expected
        self.remedy = remedy
        self.expected = expected
        self.remedy = remedy
        # A file's name may be in each of them.
        told = f"{self.where}: found {found}, expected {expected}; {remedy}."
        super().__init__(printable(told))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes."""
        return (_again, (type(self), self.where, *self.parts()), vars(self))

    def parts(self) -> tuple[str, str, str]:
        """What was found, what was expected, and the remedy."""
        return (self.found, self.expected, self.remedy)


def _again(
    kind: type[BratsError], where: str, found: str, expected: str, remedy: str
) -> BratsError:
    return kind(where, found=found, expected=expected, remedy=remedy)


class UsageError(BratsError):
    """The command line asks for something that cannot be done (exit 2)."""

    exit_code = 2


class InputError(BratsError):
    """A case, a model directory or a configuration is not usable (exit 3)."""

    exit_code = 3


class BackendUnavailableError(BratsError):
    """The backend, its library or its device is not here (exit 4)."""

    exit_code = 4


class ParityError(BratsError):
    """The parity gate failed or could not decide (exit 5)."""

    exit_code = 5


class CohortError(BratsError):
    """Some cases of a cohort failed; the others are done (exit 6)."""

    exit_code = 6


class OutputError(BratsError):
    """An output cannot be written (exit 7)."""

    exit_code = 7


class ComputeError(BratsError):
    """The computation failed: non-finite values, out of memory at batch 1, divergence (exit 8)."""

    exit_code = 8


class DeviceLostError(ComputeError):
    """A device does nothing more for this process, whatever the case."""


class NonFiniteError(ComputeError):
    """The network returned NaN or infinity; ``count`` says in how many values."""

    count: int = 0

    @classmethod
    def counted(cls, count: int, where: str, precision: str) -> "NonFiniteError":
        """The error of ``count`` values of a case that was run in ``precision``."""
        error = cls(
            where,
            found="probabilities that are NaN or infinite",
            expected="finite ones",
            remedy=f"run another precision than {precision} with --precision",
        )
        error.count = count
        return error


class ProgramError(BratsError):
    """What nobody thought of: a fault of ours (exit 1)."""

    @classmethod
    def of(cls, where: str, error: Exception) -> "ProgramError":
        """With the last places of ours that it came through."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [one for one in frames if "site-packages" not in one.filename] or frames
        places = ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in ours[-3:])
        text = " ".join(str(error).split())
        return cls(
            where,
            found=f"an error of this program ({type(error).__name__}: {text}"
            + (f"; {places})" if places else ")"),
            expected="a label map",
            remedy="report it with this line",
        )


def as_ours(error: BratsError | MemoryError | OSError | RuntimeError) -> BratsError:
    """What the system refused, as one of our errors, where nobody nearer to it had said so.

    Args:
        error: of RuntimeErrors only that of which `threads.no_thread` is true.
    """
    if isinstance(error, BratsError):
        return error
    if isinstance(error, RuntimeError):
        return ComputeError(
            "threads",
            found="none that can be started",
            expected="a few beside the first",
            remedy="raise the limits on processes and memory (ulimit), or close other programs",
        )
    if isinstance(error, MemoryError):
        return ComputeError(
            "memory",
            found="too little" + (f" ({error})" if str(error) else ""),
            expected="room for a whole case and a batch of windows",
            remedy="choose a smaller patch or batch, or close other programs",
        )
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a path"
    found = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        expected = "a place that can be written"
        return OutputError(
            where, found=found, expected=expected, remedy="free space, or choose another output"
        )
    expected = "a file or folder that can be used"
    return InputError(
        where, found=found, expected=expected, remedy="check the path and its permissions"
    )


EXIT_INTERRUPTED = 130


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is what ended the work, of which ``error`` may be no more than a consequence.

    A C++ library that is interrupted while it is imported says that it could not be initialised.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, KeyboardInterrupt):
            return True
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            waiting += [one.__cause__, one.__context__]
    return False


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
