"""Kills brats-infer at random moments, again and again, and lets it be resumed.

python -m tests.soak.kills CASES MODEL OUT KILLS SEED

Each life begins with an empty output folder; it is killed up to three times in a row, then resumed
to its end. Prints figures as JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from runtime.segmented import Ready
from tests.soak.forks import end_of, fork_infer, warm
from tests.soak.outputs import leftovers, meaning, names_in, torn, untrue

MODES: Final = ((), ("--probabilities",), ("--preview", "--report"))
ATTEMPTS: Final = 20  # for each kill: a run that ends before its moment is none


def note_calls(log: Path) -> None:
    """Write down, before the work, each case that the segmenter is given."""
    from runtime.segmenter import Segmenter

    attempt = Segmenter.run

    def run(self: Segmenter, ready: Ready, *rest: Any, **more: Any) -> Any:
        with log.open("a") as file:
            file.write(ready.volume.case.case_id + "\n")
        return attempt(self, ready, *rest, **more)

    Segmenter.run = run  # type: ignore[method-assign]


@dataclass
class Figures:
    """Counts over all lives; lists hold what must be empty."""

    kills: int = 0
    lives: int = 0
    cases_finished_at_kill: int = 0
    cases_begun_at_kill: int = 0
    kills_that_left_temporary_files: int = 0
    torn: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    done_twice: list[str] = field(default_factory=list)
    left_after_resume: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass
class Whole:
    """A run that nobody killed.

    Attributes:
        flags: of the command line.
        names: everything in the folder; what is in another one beyond them was left over.
        meaning: of its files.
        seconds: it took.
        cases: it ran.
    """

    flags: tuple[str, ...]
    names: set[str]
    meaning: dict[str, Any]
    seconds: float
    cases: set[str]


@dataclass
class Killer:
    cases: Path
    model: Path
    out: Path
    figures: Figures
    random: random.Random

    def begin(self, flags: tuple[str, ...]) -> int:
        self.log.unlink(missing_ok=True)
        common = ("--model", self.model, "-o", self.folder, "--backend", "ort", "--threads", 1)
        arguments = (self.cases, *common, "--overlap", 0, "--quiet", *flags)
        return fork_infer(arguments, self.errors, partial(note_calls, self.log))

    @property
    def folder(self) -> Path:
        return self.out / "predictions"

    @property
    def log(self) -> Path:
        return self.out / "calls"

    @property
    def errors(self) -> Path:
        return self.out / "errors"

    def calls(self) -> list[str]:
        return self.log.read_text().split() if self.log.is_file() else []

    def whole(self, flags: tuple[str, ...]) -> Whole:
        shutil.rmtree(self.folder, ignore_errors=True)
        start = time.perf_counter()
        code = end_of(self.begin(flags))
        seconds = time.perf_counter() - start
        if code:
            sys.exit(f"a run that was left alone ended with {code}: {self.errors.read_text()}")
        assert not torn(self.folder)
        cases = set(self.calls())
        return Whole(flags, names_in(self.folder), meaning(self.folder), seconds, cases)

    def life(self, whole: Whole, kills: int) -> None:
        """Of up to ``kills`` kills in a row."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.figures.lives += 1
        finished: dict[str, list[tuple[int, int]]] = {}
        flags = whole.flags
        for _ in range(kills):
            child = self.begin(flags)
            time.sleep(self.random.uniform(0, whole.seconds))
            os.kill(child, signal.SIGKILL)
            code = end_of(child)
            if code != -signal.SIGKILL:
                # It had ended by itself: that is the end of this life, and checked as such.
                self.told(code)
                break
            self.figures.kills += 1
            finished = self.after_a_kill(whole, finished)
            flags = (*whole.flags, "--resume")
        self.told(end_of(self.begin((*whole.flags, "--resume"))))
        self.at_the_end(whole, finished)

    def told(self, code: int) -> None:
        if code:
            self.figures.failed.append(f"exit {code}: {self.errors.read_text()[-2000:]}")

    def after_a_kill(
        self, whole: Whole, before: dict[str, list[tuple[int, int]]]
    ) -> dict[str, list[tuple[int, int]]]:
        self.figures.torn += torn(self.folder)
        self.figures.untrue += untrue(self.folder)
        self.figures.kills_that_left_temporary_files += bool(leftovers(self.folder))
        finished = {case: self.files(whole, case) for case in whole.cases if self.done(whole, case)}
        self.figures.cases_finished_at_kill += len(finished)
        self.figures.cases_begun_at_kill += len(set(self.calls()) - finished.keys())
        self.once_only(finished, before)
        return finished

    def once_only(self, now: dict[str, Any], before: dict[str, Any]) -> None:
        for case, files in before.items():
            if now.get(case) != files:
                self.figures.done_twice.append(f"{case}: its files are other ones")
            if case in self.calls():
                self.figures.done_twice.append(f"{case}: given to the segmenter once more")

    def at_the_end(self, whole: Whole, finished: dict[str, Any]) -> None:
        now = {case: self.files(whole, case) for case in whole.cases}
        self.once_only(now, finished)
        self.figures.torn += torn(self.folder)
        self.figures.untrue += untrue(self.folder)
        self.figures.left_after_resume += sorted(names_in(self.folder) - whole.names)
        found = meaning(self.folder)
        self.figures.differing += sorted(
            name
            for name in found.keys() | whole.meaning.keys()
            if found.get(name) != whole.meaning.get(name)
        )

    def done(self, whole: Whole, case: str) -> bool:
        """Whether all that was asked for lies there, and the sidecar vouches for it."""
        return (self.folder / f"{case}.json").is_file() and all(
            (self.folder / name).is_file() for name in self.names(whole, case)
        )

    def names(self, whole: Whole, case: str) -> list[str]:
        return sorted(name for name in whole.names if name.startswith((f"{case}_", f"{case}.")))

    def files(self, whole: Whole, case: str) -> list[tuple[int, int]]:
        """Which files these are: a new one has another number or time."""
        stats = [(self.folder / name).stat() for name in self.names(whole, case)]
        return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]


def main(arguments: list[str]) -> None:
    cases, model, out = map(Path, arguments[:3])
    wanted, seed = map(int, arguments[3:])
    warm()
    killer = Killer(cases, model, out, Figures(), random.Random(seed))
    wholes = [killer.whole(flags) for flags in MODES]
    while killer.figures.kills < wanted and killer.figures.lives < ATTEMPTS * wanted:
        whole = wholes[killer.figures.lives % len(wholes)]
        left = wanted - killer.figures.kills
        killer.life(whole, min(left, killer.random.randint(1, 3)))
    seconds = [round(whole.seconds, 3) for whole in wholes]
    print(json.dumps({**vars(killer.figures), "seconds_uninterrupted": seconds}))


if __name__ == "__main__":
    main(sys.argv[1:])
