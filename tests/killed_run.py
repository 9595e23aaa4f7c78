"""Runs brats-train and kills it, with SIGKILL, at a step or in the middle of writing a file.

python killed_run.py step|write N ARGUMENTS...
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import train.checkpoint
from train.cli import main
from train.step import Stepper


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


def kill_in_write(number: int) -> None:
    """When half of the checkpoint of that number, from 0, has been written."""
    opened = train.checkpoint.open_atomic
    done = 0

    @contextmanager
    def open_and_die(path: Path) -> Iterator[BinaryIO]:
        nonlocal done
        with opened(path) as file:
            yield file
            if done == number:
                size = file.tell()
                file.truncate(size // 2)
                file.flush()
                die()
            done += 1

    train.checkpoint.open_atomic = open_and_die


if __name__ == "__main__":
    kind, number, *arguments = sys.argv[1:]
    {"step": kill_at_step, "write": kill_in_write}[kind](int(number))
    sys.exit(main(arguments))
