"""Segments case after case in one process, and looks at what it holds more than before.

python -m tests.soak.leaking WAY CASES MODEL OUT COUNT WARM LEAK
    WAY is "cohort", one run of brats-infer on all cases, or "main", one run for each.
    LEAK is "none", or what is deliberately kept per case, to see that it is seen: "object",
    "descriptor", "thread" or "file".

Prints figures as JSON.
"""

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import runtime.cohort
from runtime.case import Case, find_cases
from runtime.cohort import Outcome
from runtime.nifti import load
from tests.soak.bar import status_bytes
from tests.soak.forks import run_main

READINGS: Final = 15


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    bytes: int
    descriptors: int
    threads: int
    temporary: int

    @classmethod
    def now(cls) -> "Held":
        return cls(
            status_bytes("VmRSS"),
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            len(os.listdir(tempfile.gettempdir())),
        )

    @classmethod
    def lately(cls, readings: list["Held"], out: Path) -> "Held":
        """Of the last readings the median of memory, and the least of what the next case, which is
        being read at the same time, may have open.
        """
        last = readings[-READINGS:]
        hidden = sum(path.name.startswith(".") for path in out.iterdir())
        return cls(
            int(statistics.median(one.bytes for one in last)),
            min(one.descriptors for one in last),
            min(one.threads for one in last),
            min(one.temporary for one in last) + hidden,
        )


class Watch:
    """Takes a reading after each case, and keeps what is to leak.

    Attributes:
        before, after: what was held after the warm-up, and after the last case; that one within
            the run, as its end would hide what was held through it.
        peak: the most bytes until the end of the warm-up.
    """

    def __init__(self, case: Case, out: Path, warm: int, count: int, kind: str) -> None:
        self.case, self.out, self.warm, self.count, self.kind = case, out, warm, count, kind
        self.readings: list[Held] = []
        self.kept: list[Any] = []
        self.before: Held | None = None
        self.after: Held | None = None
        self.peak = 0

    def step(self) -> None:
        self.readings.append(Held.now())
        number = len(self.readings)
        if number == self.warm:
            self.before = Held.lately(self.readings, self.out)
            self.peak = status_bytes("VmHWM")
        elif number > self.warm:
            leak(self.kind, self.case, self.kept)
        if number == self.warm + self.count:
            self.after = Held.lately(self.readings, self.out)

    def figures(self) -> dict[str, Any]:
        before, after = self.before, self.after
        assert before is not None
        assert after is not None, f"{len(self.readings)} cases instead of {self.warm + self.count}"
        return {
            "cases": self.count,
            "growth_mib": round((after.bytes - before.bytes) / 2**20, 2),
            "descriptors": after.descriptors - before.descriptors,
            "threads": after.threads - before.threads,
            "temporary_files": after.temporary - before.temporary,
            "from_case": self.warm,
            "resident_before_mib": round(before.bytes / 2**20, 1),
            "resident_mib": round(after.bytes / 2**20, 1),
            # To the run's end: with the tables of a cohort, which are written last.
            "peak_growth_mib": round((status_bytes("VmHWM") - self.peak) / 2**20, 2),
        }


def linked(found: list[Case], root: Path, count: int) -> None:
    """A folder of ``count`` cases: the files of a few, under other names."""
    for number, case in enumerate(islice(cycle(found), count)):
        name = f"C{number:05d}"
        (root / name).mkdir(parents=True)
        for modality, source in case.images.items():
            os.link(source.path, root / name / f"{name}_{modality}.nii.gz")


def infer(case: Path, *flags: object) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run_main([case, *flags, "--backend", "ort", "--threads", 1, "--overlap", 0])
    assert code == 0, said.getvalue()


def cohort(watch: Watch, found: list[Case], root: Path, flags: list[object]) -> None:
    """As a folder of many cases goes, with all that the command keeps of each."""
    linked(found, root, watch.warm + watch.count)
    segment_cases = runtime.cohort.segment_cases

    def watched(*given: Any, **more: Any) -> Iterator[Outcome]:
        for outcome in segment_cases(*given, **more):
            yield outcome
            # The next one is asked for when the command has done with this one.
            watch.step()

    runtime.cohort.segment_cases = watched
    infer(root, *flags)
    told = json.loads((watch.out / "cohort.json").read_bytes())
    assert told["cases"]["done"] == len(told["results"]) == watch.warm + watch.count


def commands(watch: Watch, found: list[Case], root: Path, flags: list[object]) -> None:
    """As a program that calls brats-infer's entry point once per case."""
    for case in islice(cycle(found), watch.warm + watch.count):
        infer(case.folder, *flags, "--overwrite")
        watch.step()


def leak(kind: str, case: Case, kept: list[Any]) -> None:
    if kind == "object":
        kept.append(load(case))
    elif kind == "descriptor":
        kept.append(os.open(os.devnull, os.O_RDONLY))
    elif kind == "thread":
        kept.append(threading.Event())
        threading.Thread(target=kept[-1].wait, daemon=True).start()
    elif kind == "file":
        kept.append(tempfile.mkstemp())
        os.close(kept[-1][0])


def main(arguments: list[str]) -> None:
    way, *paths = arguments[:4]
    root, model, out = map(Path, paths)
    count, warm = map(int, arguments[4:6])
    out.mkdir()
    found = find_cases(root)
    watch = Watch(found[0], out, warm, count, arguments[6])
    with tempfile.TemporaryDirectory() as place:
        tempfile.tempdir = place
        run = {"cohort": cohort, "main": commands}[way]
        run(watch, found, out.with_name("links"), ["--model", model, "-o", out])
        for event in watch.kept:
            if isinstance(event, threading.Event):
                event.set()
    print(json.dumps(watch.figures()))


if __name__ == "__main__":
    main(sys.argv[1:])
