"""Runs brats-infer, --check and brats-eval on hostile names, and looks at the whole tree around
them before and after.

python -m tests.soak.naming_harm MODEL FOLDER COUNT

A fake network runs in this process; what is printed goes into files. Prints figures as JSON.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime.grid import Grid
from runtime.labels import MODALITIES
from runtime.nifti_writer import write_image, write_label_map
from tests.soak.forks import run_main
from tests.soak.hostile_names import hostile_names
from tests.test_segmenter import FakeBackend, network

SHAPE: Final = (20, 18, 10)
LPS: Final = np.diag([-1.0, -1, 1, 1])
CODES: Final = frozenset({0, 2, 3, 6, 7})
# What does more on a terminal than to be seen: control characters, and those that turn the
# direction of writing or are not seen at all. Of them only the end of a line is ours to write.
CONTROL: Final = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
Tree = dict[bytes, tuple[Any, ...]]


def tree(root: Path) -> Tree:
    """Everything below ``root``, links not followed: by path what it is, and its content."""
    found: Tree = {}
    for where, folders, names in os.walk(os.fsencode(root)):
        for name in (*folders, *names):
            path = os.path.join(where, name)
            stat = os.lstat(path)
            if os.path.islink(path):
                found[path] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[path] = ("folder", stat.st_ino)
            else:
                with open(path, "rb") as file:
                    found[path] = ("file", stat.st_ino, hashlib.sha256(file.read()).digest())
    return found


def changed(before: Tree, after: Tree, out: bytes) -> list[bytes]:
    """What is other than before outside of the output folder."""
    return [
        path
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) and path != out and not path.startswith(out + b"/")
    ]


@dataclass
class Figures:
    """Counts; lists hold what must be empty."""

    names: int = 0
    runs: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    label_maps: int = 0
    scored: int = 0
    links_replaced: int = 0
    links_removed: int = 0
    not_made: int = 0
    outside: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    strange_codes: list[str] = field(default_factory=list)
    raw_on_stderr: list[str] = field(default_factory=list)
    raw_in_files: list[str] = field(default_factory=list)
    unescaped: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)


class Elements(HTMLParser):
    """The elements of a page, each with the names of its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *sorted(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.found.add(("comment",))


class Harm:
    """One run after another, each in a tree of its own: cases, an output folder, and elsewhere."""

    def __init__(self, model: Path, root: Path) -> None:
        self.model, self.root, self.figures = model, root, Figures()
        self.images = root / "images"
        self.place = root / "place"
        self.innocent: set[tuple[str, ...]] = set()
        rng = np.random.default_rng(0)
        self.grid = Grid.from_affine(SHAPE, LPS)
        ramp = np.add.outer(np.add.outer(*map(np.arange, SHAPE[:2])), np.arange(SHAPE[2]))
        for number, name in enumerate(MODALITIES, start=1):
            # Smooth: pictures of noise take a second to pack.
            voxels = (100 + 7 * ramp * number % 300).astype(np.int16)
            write_image(self.images / f"{name}.nii.gz", voxels, self.grid)
        frames = rng.integers(1, 900, (*SHAPE, 4)).astype(np.int16)
        write_image(self.images / "4d.nii.gz", frames, self.grid)
        write_label_map(self.images / "ours.nii.gz", np.ones(SHAPE, np.uint8), self.grid)

    def case(self, folder: bytes, pattern: bytes) -> bool:
        """Four images under names such as b"%s_flair.nii.gz"; whether the system took them."""
        try:
            os.makedirs(folder, exist_ok=True)
            for name in MODALITIES:
                target = os.path.join(folder, pattern + name.encode() + b".nii.gz")
                os.link(self.images / f"{name}.nii.gz", target)
        except OSError:
            self.figures.not_made += 1
            return False
        return True

    @contextlib.contextmanager
    def fresh(self) -> Iterator[bytes]:
        """An empty tree, in which an innocent bystander lies; its path."""
        shutil.rmtree(os.fsencode(self.place), ignore_errors=True)
        (self.place / "elsewhere").mkdir(parents=True)
        (self.place / "elsewhere" / "bystander").write_text("untouched")
        (self.place / "in").mkdir()
        yield os.fsencode(self.place)

    def run(self, what: str, name: bytes, case: bytes, out: bytes, *flags: str) -> int:
        """brats-infer, with everything that it must not have done looked at."""
        arguments = [case, "--model", self.model, f"--output={os.fsdecode(out)}", *flags]
        return self.watched(what, name, out, arguments)

    def watched(
        self, what: str, name: bytes, out: bytes, arguments: list[object], command: str = "infer"
    ) -> int:
        """A command that may write into ``out`` alone."""
        figures = self.figures
        label = f"{what} {name!r}"
        real = os.path.realpath(out)
        before = tree(self.place)
        said = self.root / "said"
        code: int | None = None
        here = os.getcwd()
        os.chdir(self.place)
        with (
            said.open("w", errors="backslashreplace") as file,
            contextlib.redirect_stderr(file),
            contextlib.redirect_stdout(file),
        ):
            try:
                code = run_main(arguments, command)
            except Exception:
                figures.crashed.append(f"{label}: {traceback.format_exc()[-600:]}")
        os.chdir(here)
        figures.runs += 1
        figures.codes[str(code)] += 1
        if code is not None and code not in CODES:
            figures.strange_codes.append(f"{label}: {code}")
        after = tree(self.place)
        figures.outside += [f"{label}: {path!r}" for path in changed(before, after, real)]
        self.look(label, name, said, real)
        return -1 if code is None else code

    def look(self, label: str, name: bytes, said: Path, out: bytes) -> None:
        """At what was printed and written."""
        figures = self.figures
        told = said.read_text(errors="surrogateescape")
        text = os.fsdecode(name)
        if (found := CONTROL.search(told)) or ("\n" in text and text.strip() and text in told):
            figures.raw_on_stderr.append(f"{label}: {found[0] if found else 'line break'!r}")
        for entry in os.listdir(out) if os.path.isdir(out) else ():
            if not entry.endswith((b".json", b".html", b".csv")):
                figures.label_maps += entry.endswith(b"_seg.nii.gz")
                continue
            if os.path.islink(os.path.join(out, entry)):
                continue  # planted, and left by a run that ended before it wrote
            with open(os.path.join(out, entry), "rb") as file:
                page = file.read().decode(errors="surrogateescape")
            if found := CONTROL.search(page):
                figures.raw_in_files.append(f"{label}: {entry[-9:]!r}, {found[0]!r}")
            if entry.endswith(b".csv"):
                figures.formulas += [
                    f"{label}: {row[0]!r}"
                    for row in csv.reader(io.StringIO(page))
                    if row[0].lstrip().startswith(("=", "+", "-", "@"))
                ]
            if entry.endswith(b".html"):
                # What the page of an innocent name has none of, this name has put there.
                elements = Elements(page).found
                self.innocent = self.innocent or elements
                figures.unescaped += [f"{label}: {one}" for one in elements - self.innocent]

    def prefix(self, name: bytes) -> None:
        """The name is what the files of a case begin with, and so what the outputs are named by."""
        with self.fresh() as place:
            if self.case(place + b"/in/X", name + b"_"):
                # A page takes ten times as long as all the rest: for names that could harm one.
                page = re.search(rb"[^\w. -]", name) or not self.innocent
                flags = ("--report",) if page else ()
                self.run("prefix", name, place + b"/in", place + b"/out", *flags)

    def folder(self, name: bytes) -> None:
        """The name is the folder's, whose files are named by their modality alone."""
        with self.fresh() as place:
            if self.case(place + b"/in/" + name, b""):
                self.run("folder", name, place + b"/in", place + b"/out", "--log-json")
                self.run("folder, again", name, place + b"/in/" + name, place + b"/out")

    def output(self, name: bytes) -> None:
        """The name is the output folder's."""
        with self.fresh() as place:
            self.case(place + b"/in/X", b"X_")
            out = place + b"/" + name
            self.run("output", name, place + b"/in", out)
            self.run("output, again", name, place + b"/in", out, "--resume")

    def four_d(self, name: bytes) -> None:
        """The name is a 4D file's."""
        with self.fresh() as place:
            path = place + b"/in/" + name[:248] + b".nii.gz"
            try:
                os.link(self.images / "4d.nii.gz", path)
            except OSError:
                self.figures.not_made += 1
                return
            self.run("4D", name, path, place + b"/out", "--channels", "flair,t1,t1ce,t2", "--quiet")
            self.run("4D, no channels", name, path, place + b"/out")

    def described(self, name: bytes) -> None:
        """The name is a channel's in dataset.json, which may hold anything."""
        with self.fresh() as place:
            os.link(self.images / "4d.nii.gz", place + b"/in/X.nii.gz")
            text = name.decode(errors="replace")
            description = {
                "channel_names": {str(n): f"{text}{n}" for n in range(4)},
                "labels": {text: 1},
            }
            (self.place / "in" / "dataset.json").write_text(json.dumps(description))
            self.run("dataset.json", name, place + b"/in/X.nii.gz", place + b"/out")

    def links(self, name: bytes) -> None:
        """Links lie where the outputs are to go, and point outside."""
        with self.fresh() as place:
            if not self.case(place + b"/in/X", name + b"_"):
                return
            out, elsewhere = place + b"/out", place + b"/elsewhere/"
            os.mkdir(out)
            shutil.copy(self.images / "ours.nii.gz", elsewhere + b"ours")
            ends = (b"_seg.nii.gz", b".json", b"_report.html", b"_preview.png", b"_prob.nii.gz")
            targets = (b"ours", b"absent", b"absent2", b"../absent3", b"absent4")
            made = []
            for end, target in zip(ends, targets, strict=True):
                with contextlib.suppress(OSError):
                    os.symlink(elsewhere + target, os.path.join(out, name + end))
                    made.append(os.path.join(out, name + end))
            flags = ("--overwrite", "--preview", "--probabilities")
            if self.run("links", name, place + b"/in", out, *flags) == 0:
                self.figures.links_replaced += sum(os.path.isfile(path) for path in made)
                self.figures.links_removed += sum(not os.path.lexists(path) for path in made)
                self.figures.outside += [
                    f"links {name!r}: {path!r} is still a link"
                    for path in made
                    if os.path.islink(path)
                ]

    def linked_output(self, name: bytes) -> None:
        """The output folder is a link to another place, which is then the output folder."""
        with self.fresh() as place:
            self.case(place + b"/in/X", b"X_")
            os.mkdir(place + b"/real")
            with contextlib.suppress(OSError):
                os.symlink(place + b"/real", place + b"/" + name)
                self.run("linked output", name, place + b"/in", place + b"/" + name)

    def checked(self, name: bytes) -> None:
        """The name is a case's whose files are looked at, and its folder's."""
        with self.fresh() as place:
            in_, out = place + b"/in/", place + b"/out"
            if self.case(in_ + b"X", name + b"_") | self.case(in_ + name, b""):
                arguments: list[object] = [in_, "--check", "--json", out + b"/check.json"]
                self.watched("check", name, out, arguments)

    def scored(self, name: bytes) -> None:
        """The name is a label map's, and its truth's."""
        with self.fresh() as place:
            in_, out = place + b"/in/", place + b"/out"
            try:
                for folder in (b"predicted", b"truth"):
                    os.mkdir(in_ + folder)
                    path = os.path.join(in_, folder, name + b"_seg.nii.gz")
                    os.link(self.images / "ours.nii.gz", path)
            except OSError:
                self.figures.not_made += 1
                return
            files = ("--json", out + b"/scores.json", "--csv", out + b"/scores.csv")
            arguments: list[object] = [in_ + b"predicted", in_ + b"truth", *files]
            code = self.watched("eval", name, out, arguments, "evaluate")
            self.figures.scored += code == 0


def main(arguments: list[str]) -> None:
    import runtime.backends

    def opened(model: Any, wanted: Any) -> Any:
        return FakeBackend(network, model.card)

    runtime.backends.open_backend = opened
    model, folder = map(Path, arguments[:2])
    names = hostile_names(int(arguments[2]))
    harm = Harm(model, folder)
    harm.figures.names = len(names)
    harm.prefix(b"Innocent")
    ways: list[Callable[[bytes], None]] = [
        harm.prefix, harm.folder, harm.output, harm.four_d, harm.links, harm.described,
        harm.linked_output, harm.checked, harm.scored,
    ]  # fmt: skip
    # Each name is a case's; of the other ways each takes its turn.
    for number, name in enumerate(names):
        harm.prefix(name)
        ways[1 + number % (len(ways) - 1)](name)
    print(json.dumps(vars(harm.figures), ensure_ascii=True))


if __name__ == "__main__":
    main(sys.argv[1:])
