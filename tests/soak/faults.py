"""Lets each operation of the writer of one case go wrong, and looks at what is left.

python -m tests.soak.faults KIND OLD_CASE NEW_CASE MODEL OUT EVERY [CALL ...]
    KIND is "shim", which lets Python's calls fail, or "strace", which lets the system's. Of all
    pairs of an operation and a fault every EVERY-th is taken; of the system's calls only those
    named, where any is. Prints figures as JSON.

Each is tried on a fresh folder, resumed afterwards, and on one with an older result, which the run
was to replace.

Of the system's calls each one by each thread is tried, in that thread alone; a fault that did not
take place is counted as missed. Not covered: threads that write several cases at the same time, as
here is one case and so one that writes; two faults in one run; and the closing of a file that has
its final name already, which the shim lets fail.
"""

import itertools
import json
import os
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.soak.faulty_disk import FAULTS, Disk
from tests.soak.forks import end_of, fork_infer, warm
from tests.soak.outputs import leftovers, meaning, names_in, torn, untrue
from tests.soak.tracing import Traced, straced
from tests.test_segmenter import FakeBackend, network

SYSCALLS: Final = (
    "openat", "write", "pwrite64", "fsync", "fdatasync", "close", "rename", "renameat",
    "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "ftruncate",
)  # fmt: skip
INJECTED: Final = {
    "ENOSPC": "error=ENOSPC", "EIO": "error=EIO", "kill": "signal=KILL",
}  # fmt: skip
READ_TOO: Final = ("openat", "close")
"""Calls that a reader makes as well: of these only what is done to hidden files and the folder."""
FLAGS: Final = ("--probabilities", "--preview", "--report", "--quiet")


def fake_network() -> None:
    """A network of a few lines in the place of the exported one."""

    def opened(model: Any, wanted: Any) -> Any:
        return FakeBackend(network, model.card)

    import runtime.backends

    runtime.backends.open_backend = opened


def counted_tokens() -> None:
    """Names of temporary files that are the same in each run, so that strace can be told them."""
    numbers = itertools.count()
    secrets.token_hex = lambda count=4: f"{next(numbers):0{2 * count}x}"  # type: ignore[assignment]


@dataclass(frozen=True)
class Call:
    """A system call: by which thread, which of its calls, from 1, and about which file."""

    thread: str
    number: int
    file: str


@dataclass
class Found:
    """Counts over all faults; lists hold what must be empty."""

    faults: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    swallowed: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong_codes: list[str] = field(default_factory=list)
    left_by_errors: list[str] = field(default_factory=list)
    not_recovered: list[str] = field(default_factory=list)
    left_after_recovery: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


class Faults:
    """One case, old and new, in a folder that is fresh or holds the old one's result."""

    def __init__(self, old: Path, new: Path, model: Path, out: Path) -> None:
        self.case, self.model = new, model
        self.folder, self.errors, self.old = out / "predictions", out / "errors", out / "old"
        self.found = Found()
        self.begin_clean = partial(self.run, before=fake_network)
        self.must(self.run(old, before=fake_network))
        self.folder.rename(self.old)
        self.must(self.run(new, before=fake_network))
        self.new_meaning, self.new_names = meaning(self.folder), names_in(self.folder)
        self.old_bytes = {path.name: path.read_bytes() for path in self.old.iterdir()}
        same = [
            name for name in self.old_bytes if self.new_meaning.get(name) == self.old_bytes[name]
        ]
        assert self.new_names == set(self.old_bytes), (self.new_names, set(self.old_bytes))
        assert not [name for name in same if not name.startswith(".")], "old and new are alike"

    def run(self, case: Path, *flags: str, before: Any) -> int:
        return end_of(self.begin(case, *flags, before=before))

    def begin(self, case: Path, *flags: str, before: Any) -> int:
        arguments = (case, "--model", self.model, "-o", self.folder, *FLAGS, *flags)
        return fork_infer(arguments, self.errors, before)

    def must(self, code: int) -> None:
        if code:
            sys.exit(f"a run without a fault ended with {code}: {self.errors.read_text()}")

    def prepare(self, fresh: bool) -> tuple[str, ...]:
        """The folder as it is before the run, and the run's flags."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.errors.unlink(missing_ok=True)
        if fresh:
            return ()
        shutil.copytree(self.old, self.folder)
        return ("--overwrite",)

    def judge(self, what: str, fault: str, code: int, fresh: bool) -> None:
        """What a fault has left, and whether the next run puts it right."""
        found = self.found
        name = f"{what}, {fault}, {'fresh' if fresh else 'over an older one'}"
        found.faults += 1
        found.operations[what.split()[0]] = found.operations.get(what.split()[0], 0) + 1
        found.codes[str(code)] = found.codes.get(str(code), 0) + 1
        found.partial += [f"{name}: {one}" for one in (*torn(self.folder), *self.neither())]
        found.untrue += [f"{name}: {one}" for one in untrue(self.folder)]
        if fault != "kill" and not fresh and self.is_hidden_file(what):
            # Nothing of the new result has taken its place yet: the old one is there whole.
            now = {path.name: path.read_bytes() for path in self.folder.iterdir()}
            found.lost += [f"{name}: {one}" for one in self.old_bytes if one not in now]
            found.lost += [
                f"{name}: {one} is another"
                for one in set(now) & set(self.old_bytes)
                if now[one] != self.old_bytes[one] and code == 7
            ]
        complete = meaning(self.folder) == self.new_meaning
        if fault == "kill":
            right = code == -signal.SIGKILL
        else:
            right = code == 7 or (code == 0 and complete)
            found.swallowed += [what] * (code == 0)
            # Of what cannot be removed something stays.
            if not what.startswith("unlink"):
                found.left_by_errors += [f"{name}: {one}" for one in leftovers(self.folder)]
        if not right:
            found.wrong_codes.append(f"{name}: {code} {self.errors.read_text()[-500:]}")
        again = self.begin_clean(self.case, "--resume" if fresh else "--overwrite")
        if again or meaning(self.folder) != self.new_meaning:
            found.not_recovered.append(f"{name}: {again} {self.errors.read_text()[-500:]}")
        found.left_after_recovery += [f"{name}: {one}" for one in leftovers(self.folder)]

    def is_hidden_file(self, what: str) -> bool:
        """Whether an operation is the making or writing of what has no final name yet."""
        call, _, target = what.partition(" ")
        return target.startswith(".") and not call.startswith(("rename", "replace", "close"))

    def neither(self) -> list[str]:
        """Files that are neither the old one nor the new one."""
        now = meaning(self.folder) if self.folder.is_dir() else {}
        return [
            f"{name} is neither old nor new"
            for name, content in now.items()
            if content != self.new_meaning.get(name)
            and (self.folder / name).read_bytes() != self.old_bytes.get(name)
        ]

    def shim(self, every: int) -> None:
        for fresh in (True, False):
            count = self.operations(fresh)
            for number, fault in [*itertools.product(range(len(count)), FAULTS)][::every]:
                flags = self.prepare(fresh)
                before = partial(self.install, number, fault)
                code = self.run(self.case, *flags, before=before)
                self.judge(count[number], fault, code, fresh)

    def install(self, number: int, fault: Any) -> None:
        fake_network()
        Disk(self.folder, number, fault).install()

    def operations(self, fresh: bool) -> list[str]:
        """What a run does that meets no fault."""
        flags = self.prepare(fresh)
        told = self.folder.with_name("operations")

        def before() -> None:
            fake_network()
            disk = Disk(self.folder)
            disk.install()
            end = os._exit

            def leave(code: int) -> None:
                told.write_text(json.dumps(disk.done))
                end(code)

            os._exit = leave  # type: ignore[assignment]

        self.must(self.run(self.case, *flags, before=before))
        operations: list[str] = json.loads(told.read_text())
        return operations

    def strace(self, every: int, wanted: Sequence[str] = SYSCALLS) -> None:
        for fresh in (True, False):
            paths = self.traced_paths(fresh)
            for call in wanted:
                watched = [path for path in paths if call not in READ_TOO or self.hidden(path)]
                calls = self.traced(fresh, call, watched)
                for at, fault in [*itertools.product(calls, INJECTED)][::-every]:
                    hit, code = self.inject(fresh, call, watched, at, fault)
                    if hit:
                        self.judge(f"{call} {at.file}", fault, code, fresh)
                    else:
                        self.found.missed.append(f"{call}, {at}, {fault}, {fresh=}")

    def hidden(self, path: str) -> bool:
        return path == str(self.folder) or Path(path).name.startswith(".")

    def traced_paths(self, fresh: bool) -> list[str]:
        """Every path in the folder that a run touches."""
        log = self.straced(fresh, ",".join(SYSCALLS)).log
        pattern = rf"{re.escape(str(self.folder))}(?:/[^\"<>]*)?(?=[\"<>])"
        return sorted(set(re.findall(pattern, log)))

    def traced(self, fresh: bool, call: str, paths: list[str]) -> list[Call]:
        """The calls of one name to these paths, by all threads."""
        run = self.straced(fresh, call, paths)
        numbers: dict[str, int] = {}
        found = []
        for line in run.log.splitlines():
            if re.search(rf"\b{call}\(", line):
                thread = run.names[line.split()[0]]
                numbers[thread] = numbers.get(thread, 0) + 1
                target = re.findall(r"/[^\"<>]*(?=[\"<>])", line)[-1]
                found.append(Call(thread, numbers[thread], Path(target).name))
        return found

    def inject(
        self, fresh: bool, call: str, paths: list[str], at: Call, fault: str
    ) -> tuple[bool, int]:
        """Whether the fault took place, and the exit code."""
        rule = f"inject={call}:{INJECTED[fault]}:when={at.number}"
        run = self.straced(fresh, call, paths, rule, at.thread)
        return "INJECTED" in run.log or run.code == -signal.SIGKILL, run.code

    def straced(
        self,
        fresh: bool,
        calls: str,
        paths: Sequence[str] = (),
        rule: str = "",
        thread: str | None = None,
    ) -> Traced:
        """One run in which those calls to those paths are traced, of one thread or of all."""
        flags = self.prepare(fresh)

        def begin(first: Callable[[], None]) -> int:
            def before() -> None:
                first()
                fake_network()
                counted_tokens()

            return self.begin(self.case, *flags, before=before)

        options = ["-y", "-qq", "-s", "0", *(f"-P{path}" for path in paths), "-e", f"trace={calls}"]
        options += ["-e", rule] if rule else []
        return straced(begin, self.folder.parent, options, thread)


def main(arguments: list[str]) -> None:
    kind, *paths = arguments[:5]
    every, calls = int(arguments[5]), arguments[6:]
    warm()
    faults = Faults(*map(Path, paths))
    if kind == "shim":
        faults.shim(every)
    else:
        faults.strace(every, calls or SYSCALLS)
    print(json.dumps(vars(faults.found)))


if __name__ == "__main__":
    main(sys.argv[1:])
