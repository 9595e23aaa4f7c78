"""Runs of brats-infer as forks of a warm process: imported once, killed as often as needed."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

WARM: Final = (
    "runtime.backends", "runtime.backends.ort", "runtime.cli.infer", "runtime.cli.infer_view",
    "runtime.cohort", "runtime.preview", "runtime.report", "runtime.truth", "onnxruntime",
)  # fmt: skip


def warm() -> None:
    """Import what a run needs. Nothing here may start a thread: a fork has one."""
    for name in WARM:
        import_module(name)


def fork_infer(
    arguments: Sequence[object], errors: Path, before: Callable[[], None] | None = None
) -> int:
    """Begin ``brats-infer ARGUMENTS`` in a fork; its process id.

    Args:
        arguments: of the command line.
        errors: the file that its standard error goes to, after what is there.
        before: called in the fork first.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        target = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, 2)
        os.close(target)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), errors="backslashreplace")
        if before is not None:
            before()
        code = run_main(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_main(arguments: Sequence[object], command: str = "infer") -> int:
    """The exit code of brats-infer, or of another of the runtime's commands, in this process."""
    main: Callable[[Sequence[str]], int] = import_module(f"runtime.cli.{command}").main
    try:
        return main([os.fsdecode(one) if isinstance(one, bytes) else str(one) for one in arguments])
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1


def end_of(child: int) -> int:
    """Wait for a fork; its exit code, or the signal that killed it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
