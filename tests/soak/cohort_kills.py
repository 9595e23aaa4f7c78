"""Kills whole cohorts with SIGKILL, once each at a moment of their own, and has them resumed.

python -m tests.soak.cohort_kills CASES MODEL OUT KILLS SEED

A cohort runs in one process, in two that share it, or as a part as on a cluster. SIGKILL goes to
all of its processes, or to the first one alone, whose others must then notice; it is resumed at
once or when they have. The moments are random and spread over the run, from its start to its
tables: each is so many finished cases and a part of the time to the next. Prints figures as JSON.
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from runtime.errors import OutputError
from runtime.lock import only_writer
from tests.soak.outputs import leftovers, names_in, torn, untrue

COMMAND: Final = "import sys; from runtime.cli import infer; sys.exit(infer())"
FLAGS: Final = (
    "--backend", "ort", "--threads", "1", "--overlap", "0.5", "--probabilities", "--preview",
    "--quiet",
)  # fmt: skip
TIMES: Final = (
    "finished", "wall_s", "cpu_s", "busy", "cases_per_min", "seconds", "files", "sha256",
)  # fmt: skip
"""What a cohort's record says of one run; the hashes, its own too, are checked by `untrue`."""
PATIENCE_S: Final = 20.0
ATTEMPTS: Final = 5  # for each kill: a run that ends before its moment is none


@dataclass(frozen=True)
class Way:
    """How a cohort is run and killed.

    Attributes:
        flags: of the command line.
        alone: SIGKILL to the first process alone.
        at_once: resumed without a look at the others.
    """

    flags: tuple[str, ...] = ()
    alone: bool = False
    at_once: bool = False


TWO: Final = ("--device", "cpu,cpu")
WORKERS: Final = 2
WAYS: Final = (
    Way(),
    Way(TWO, alone=True),
    Way(TWO),
    Way(("--part", "1/1")),
    Way(TWO, alone=True, at_once=True),
)


@dataclass
class Figures:
    """Counts over all kills; lists hold what must be empty."""

    kills: int = 0
    kills_by_way: dict[str, int] = field(default_factory=dict)
    cases_finished_at_kill: list[int] = field(default_factory=list)
    kills_that_left_temporary_files: int = 0
    others_ended_after_s: float = 0.0
    seconds_uninterrupted: dict[str, float] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    still_running: list[str] = field(default_factory=list)
    went_on: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    done_twice: list[str] = field(default_factory=list)
    left_after_resume: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)


def content(folder: Path) -> dict[str, Any]:
    """All visible files by name: their bytes, without times in what tells of them."""
    return {name: _timeless(folder / name) for name in names_in(folder) if not name.startswith(".")}


def _timeless(path: Path) -> Any:
    name = path.name
    if name.endswith(".csv"):
        with path.open(newline="") as file:
            return [_row(row) for row in csv.DictReader(file)]
    if name.endswith(".html"):
        return _page(path.read_text())
    if not name.endswith(".json"):
        return path.read_bytes()
    told = json.loads(path.read_bytes())
    if name.startswith("cohort"):
        told = {key: value for key, value in told.items() if key not in TIMES}
        told["cases"]["done"] += told["cases"].pop("kept")
        for one in told["results"].values():
            one["status"] = _either(one["status"])
            del one["seconds"]
        return told
    run = {key: value for key, value in told.pop("run").items() if key != "finished"}
    del told["timings_s"]
    return {**told, "run": run}


def _row(row: dict[str, str]) -> dict[str, str]:
    timeless = {name: value for name, value in row.items() if not name.endswith("_s")}
    return {**timeless, "status": _either(row["status"])}


def _either(status: str) -> str:
    return "done" if status == "kept" else status


def _page(text: str) -> str:
    """Without the card of times, the rate and the date, and which run did how many."""
    text = re.sub(r"\s*<section[^>]*>\s*<h2[^>]*>Time</h2>.*?</section>", "", text, flags=re.S)
    text = re.sub(r"(?:[\d.]+ cases a minute · )?\d{4}-\d\d-\d\dT[\d:+]+", "", text)
    return re.sub(r'<p class="value">\d+</p>', "", text)


def children_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed.

    Attributes:
        content: of its folder.
        ends: seconds until each case was finished, in that order, and until its end.
    """

    content: dict[str, Any]
    ends: list[float]


class Killer:
    def __init__(self, cases: Path, model: Path, out: Path, chance: random.Random) -> None:
        self.cases, self.model, self.chance = cases, model, chance
        self.folder, self.errors = out / "predictions", out / "errors"
        self.figures = Figures()
        self.whole: dict[tuple[str, ...], Whole] = {}

    def begin(self, *flags: str) -> "subprocess.Popen[bytes]":
        """brats-infer as the first process of a group of its own."""
        command = [sys.executable, "-c", COMMAND, self.cases, "--model", self.model]
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                [*map(str, command), "-o", str(self.folder), *FLAGS, *flags],
                stderr=errors,
                start_new_session=True,
            )

    def leave_alone(self, flags: tuple[str, ...]) -> None:
        """A run that nobody kills."""
        shutil.rmtree(self.folder, ignore_errors=True)
        start = time.perf_counter()
        process = self.begin(*flags)
        ends: list[float] = []
        while process.poll() is None:
            ends += [time.perf_counter() - start] * (len(self.finished()) - len(ends))
            time.sleep(0.002)
        ends.append(time.perf_counter() - start)
        if process.returncode:
            sys.exit(f"a run that was left alone failed: {self.errors.read_text()}")
        assert not torn(self.folder)
        assert not untrue(self.folder)
        self.whole[flags] = Whole(content(self.folder), ends)
        self.figures.seconds_uninterrupted[" ".join(flags)] = round(ends[-1], 2)
        label_maps = {
            name: data
            for name, data in self.whole[flags].content.items()
            if name.endswith(".nii.gz")
        }
        first = next(iter(self.whole.values())).content
        assert label_maps.items() <= first.items(), f"{flags}: other label maps"

    def await_moment(self, process: "subprocess.Popen[bytes]", whole: Whole, moment: float) -> None:
        """Wait until so many cases are finished, and for a part of the time to the next."""
        count = int(moment * len(whole.ends))
        while len(self.finished()) < count and process.poll() is None:
            time.sleep(0.001)
        gap = whole.ends[count] - (whole.ends[count - 1] if count else 0)
        time.sleep((moment * len(whole.ends) - count) * gap)

    def kill(self, way: Way, moment: float) -> bool:
        """Begin, kill at a moment, resume.

        Args:
            moment: 0 at the start, 1 at the end; the time to each case and to the end counts alike.

        Returns:
            False where it had ended before.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.errors.unlink(missing_ok=True)
        process = self.begin(*way.flags)
        self.await_moment(process, self.whole[way.flags], moment)
        others = self.others(process)
        if way.alone:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return False
        figures = self.figures
        figures.kills += 1
        name = f"{' '.join(way.flags) or 'one process'}: {'first alone' if way.alone else 'all'}"
        figures.kills_by_way[name] = figures.kills_by_way.get(name, 0) + 1
        finished = self.finished()
        figures.cases_finished_at_kill.append(len(finished))
        if way.at_once:
            again = self.begin(*way.flags, "--resume")
            self.await_end(others, name)
        else:
            self.await_end(others, name)
            figures.torn += torn(self.folder)
            figures.untrue += untrue(self.folder)
            figures.kills_that_left_temporary_files += bool(leftovers(self.folder))
            more = len(self.finished()) - len(finished)
            if more > WORKERS:  # each may have been about to rename a sidecar
                figures.went_on.append(f"{name}: {more} cases more")
            finished = self.finished()
            again = self.begin(*way.flags, "--resume")
        if code := again.wait():
            figures.failed.append(f"{name}: {code} {self.errors.read_text()[-2000:]}")
        self.at_the_end(way, finished, f"{name}, at {moment:.2f}")
        return True

    def others(self, process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
        """What the first process has begun, and should not outlive it."""
        return children_of(process)

    def await_end(self, others: list[psutil.Process], name: str) -> None:
        """See all that the first process had begun end by itself."""
        start = time.perf_counter()
        while any(map(running, others)) and time.perf_counter() - start < PATIENCE_S:
            time.sleep(0.005)
        seconds = round(time.perf_counter() - start, 3)
        self.figures.others_ended_after_s = max(self.figures.others_ended_after_s, seconds)
        for one in filter(running, others):
            self.figures.still_running.append(f"{name}: {one.pid} {one.cmdline()[-3:]}")
            one.kill()

    def finished(self) -> dict[str, tuple[int, int]]:
        """Sidecars of cases that are done, and which file each is."""
        return {
            path.stem: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in self.folder.glob("*.json")
            if not path.name.startswith("cohort")
        }

    def at_the_end(self, way: Way, finished: dict[str, tuple[int, int]], name: str) -> None:
        figures, whole = self.figures, self.whole[way.flags].content
        figures.torn += torn(self.folder)
        figures.untrue += untrue(self.folder)
        found = content(self.folder)
        figures.differing += [
            f"{name}: {one}"
            for one in sorted(found.keys() | whole.keys())
            if found.get(one) != whole.get(one)
        ]
        figures.left_after_resume += [f"{name}: {one}" for one in names_in(self.folder) - {*whole}]
        now = self.finished()
        (record,) = self.folder.glob("cohort*.json")
        results = json.loads(record.read_bytes())["results"]
        figures.done_twice += [
            f"{name}: {case}"
            for case, file in finished.items()
            if now.get(case) != file or results[case]["status"] != "kept"
        ]
        try:
            with only_writer(self.folder):
                pass
        except OutputError as error:
            figures.locked.append(f"{name}: {error}")


def moments(kills: int, chance: random.Random) -> list[tuple[Way, float]]:
    """Of each way as many kills as of any other, each in a stretch of its own of the run."""
    found = []
    for at, way in enumerate(WAYS):
        count = len(range(at, kills, len(WAYS)))
        found += [(way, (number + chance.random()) / count) for number in range(count)]
    chance.shuffle(found)
    return found


def main(arguments: list[str]) -> None:
    cases, model, out = map(Path, arguments[:3])
    kills, seed = map(int, arguments[3:])
    killer = Killer(cases, model, out, random.Random(seed))
    wanted = moments(kills, killer.chance)
    for flags in dict.fromkeys(way.flags for way in WAYS if way in {way for way, _ in wanted}):
        killer.leave_alone(flags)
    for way, moment in wanted:
        # Nearer to the start where it has ended before.
        any(killer.kill(way, moment * 0.8**attempt) for attempt in range(ATTEMPTS))
    print(json.dumps(vars(killer.figures)))


if __name__ == "__main__":
    main(sys.argv[1:])
