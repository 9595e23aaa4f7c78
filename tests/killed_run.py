"""Runs brats-train and kills it, with SIGKILL, at a step or at a write; then lets it be resumed.

python killed_run.py step:N ARGUMENTS...
    One run, killed before its step N, from 0.

python killed_run.py each OUT LIVES ARGUMENTS...
    LIVES are lines. A life is kills in a row, such as "step:2 before:4": a run in OUT/<number of
    the line> is begun and killed at the first, resumed and killed at the second, and resumed to its
    end. "before:N" kills when half of the N-th file, from 0, is written; "after:N" when it has its
    name: whatever else a run may be doing, on the disk it is between two writes.
"""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from train.cli import main
from train.step import Stepper

NAME = "run"
FONTS = "matplotlib.font_manager"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(number: int) -> None:
    """Before the step of that number, from 0."""
    attempt = Stepper.step
    done = 0

    def step(self: Stepper, *args: object) -> float | None:
        nonlocal done
        if done == number:
            die()
        done += 1
        return attempt(self, *args)  # type: ignore[arg-type]

    Stepper.step = step  # type: ignore[method-assign, assignment]


def kill_at_write(number: int, half: bool) -> None:
    """At the rename that ends the write of that number, from 0."""
    replace = os.replace
    done = 0

    def replace_and_die(source: Path, target: Path) -> None:
        nonlocal done
        counts = NAME in Path(target).parts
        if counts and done == number and half:
            os.truncate(source, Path(source).stat().st_size // 2)
            die()
        replace(source, target)
        if counts and done == number:
            die()
        done += counts

    os.replace = replace_and_die  # type: ignore[assignment]


def kill(point: str) -> None:
    kind, number = point.split(":")
    if kind == "step":
        kill_at_step(int(number))
    else:
        kill_at_write(int(number), half=kind == "before")


def in_a_fork(arguments: list[str], point: str = "") -> int:
    """The exit code of brats-train; of a process that was killed, the signal, negative."""
    child = os.fork()
    if child == 0:
        if point:
            kill(point)
        os._exit(main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def live(out: Path, kills: list[str], arguments: list[str]) -> None:
    common = ["-o", str(out), "--name", NAME]
    first = [*arguments, *common]
    again = [*common, "--resume", "--quiet"]
    for point in kills:
        code = in_a_fork(first, point)
        if code != -signal.SIGKILL:
            sys.exit(f"{kills}: ended with {code} and not at {point}")
        first = again
    code = in_a_fork(again)
    if code:
        sys.exit(f"{kills}: the resumed run ended with {code}")


if __name__ == "__main__":
    if sys.argv[1] == "each":
        # Once, before the forks.
        for name in ("train.session", "torch.utils.tensorboard", "torch._dynamo", FONTS):
            import_module(name)
        parent, lives, *given = sys.argv[2:]
        for index, line in enumerate(lives.splitlines()):
            live(Path(parent) / str(index), line.split(), given)
    else:
        kill(sys.argv[1])
        sys.exit(main(sys.argv[2:]))
