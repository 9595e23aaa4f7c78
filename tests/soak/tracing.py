"""Runs a fork under strace: all of its threads, or one of them.

strace counts the calls of each thread by itself, so a fault "at the third call" takes place in
every thread that makes three. Where one thread is to meet it, that one alone is traced: it is known
by its name, and waits at its beginning until strace has it.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.soak.forks import end_of

MAIN: Final = "MainThread"
_POOLED: Final = re.compile(r"ThreadPoolExecutor-(\d+)_(\d+)")


@dataclass(frozen=True)
class Traced:
    """A run that has ended.

    Attributes:
        log: of strace; each line begins with a thread's id where all were traced.
        names: of the threads that Python began, by that id: MAIN, or which one of which pool, by
            the order in which the run made them.
        code: exit code, or the signal that killed it, negative.
    """

    log: str
    names: dict[str, str]
    code: int


def straced(
    begin: Callable[[Callable[[], None]], int],
    scratch: Path,
    options: Sequence[str],
    thread: str | None = None,
) -> Traced:
    """Trace a run.

    Args:
        begin: forks, calls what it is given in the fork before the work, and returns its id.
        scratch: a folder for the logs.
        options: of strace: what is traced and what goes wrong.
        thread: name, as in `Traced.names`, of the only one that is traced; None traces all. Where
            no such thread begins the log is empty.
    """
    log, begun = scratch / "log", scratch / "threads"
    for path in (log, begun):
        path.write_text("")
    told, tell = os.pipe()
    read, write = os.pipe()
    pools = 0

    def begins(*_: object) -> None:
        """Called in each thread before all else."""
        sys.setprofile(None)
        name, number = threading.current_thread().name, threading.get_native_id()
        if at := _POOLED.fullmatch(name):
            name = f"pool {int(at[1]) - pools} thread {at[2]}"
        with begun.open("a") as file:
            file.write(f"{number} {name}\n")
        if name == (thread or MAIN):
            os.write(tell, b"%d\n" % number)
            os.read(read, 1)  # until the other end is closed

    def before() -> None:
        nonlocal pools
        pools = _pools_before()
        os.close(write)
        os.close(told)
        threading.setprofile(begins)
        begins()

    child = begin(before)
    os.close(read)
    os.close(tell)
    try:
        with os.fdopen(told) as file:
            number = file.readline().strip()
        command = ["strace", *([] if thread else ["-f"]), "-o", str(log), "-p", number, *options]
        tracer = _attached(command, number) if number else None
    finally:
        os.close(write)
        code = end_of(child)
    if tracer is not None:
        tracer.communicate()
    names = dict(line.split(" ", 1) for line in begun.read_text().splitlines())
    return Traced(log.read_text(), names, code)


def _attached(command: list[str], number: str) -> "subprocess.Popen[str]":
    """strace, once it has the thread of that number."""
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{number}/status")
    while "TracerPid:\t0\n" in status.read_text():
        if tracer.poll() is not None:
            sys.exit(f"strace may not trace here: {tracer.communicate()[1]}")
        time.sleep(0.002)
    return tracer


def _pools_before() -> int:
    """How the pools of this process are numbered from now on; a fork goes on where it was made."""
    with ThreadPoolExecutor(1) as pool:
        name = pool.submit(lambda: threading.current_thread().name).result()
    found = _POOLED.fullmatch(name)
    assert found is not None, name
    return int(found[1]) + 1
