"""An export from the page: in the queue like everything else, once, and cancelled when asked to."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")

from streamlit.testing.v1 import AppTest

from runtime.app.desk import Bench, Desk, Task
from runtime.app.exporting import Command, Export, Exports, brats_export
from runtime.app.models import FoundCheckpoint

pytestmark = pytest.mark.usefixtures("main_module")

WAIT_S = 120


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def checkpoint(root: Path, run: str = "one", target: str = "model") -> FoundCheckpoint:
    return FoundCheckpoint(root / "runs" / run / "best.pt", run, root / target)


def python(code: str) -> Command:
    """A command in the place of brats-export, with its arguments."""

    def command(one: FoundCheckpoint) -> Sequence[str]:
        return (sys.executable, "-S", "-c", code, *one.arguments)

    return command


WRITES_ITS_ID = """
import os, sys, time
open(sys.argv[-1] + ".pid", "a").write(f"{os.getpid()}\\n")
time.sleep(600)
"""


class Waits(Task):
    """Holds the desk until the test lets it go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = False

    def perform(self, bench: Bench) -> None:
        until(lambda: self.go)


def test_the_command_is_this_installations_and_no_shells(tmp_path: Path) -> None:
    one = checkpoint(tmp_path, "it's; rm -rf x")
    program, *_, path, fp16, dash_o, target = brats_export(one)
    assert program == sys.executable
    assert (path, fp16, dash_o, target) == (str(one.path), "--fp16", "-o", str(one.target))


def test_it_waits_its_turn_and_leaves_its_work(tmp_path: Path) -> None:
    desk = Desk()
    before = Waits()
    desk.queue(before)
    exports = Exports(desk, python("import sys, os; os.mkdir(sys.argv[-1])"))
    export = exports.submit(checkpoint(tmp_path), tmp_path)
    until(lambda: desk.place(before) == 0)
    assert exports.place(export) == 1
    assert (export.stage, exports.ended) == ("waiting", 0)
    before.go = True
    assert export.wait(WAIT_S)
    assert (tmp_path / "model").is_dir()
    assert (export.error, exports.ended) == ("", 1)


def test_what_failed_says_its_last_line(tmp_path: Path) -> None:
    said = "'a' * 200000 + '\\nerror: <b>x</b>: found y.\\n'"
    code = f"import sys; sys.stderr.write({said}); sys.exit(3)"
    exports = Exports(Desk(), python(code))
    export = exports.submit(checkpoint(tmp_path), tmp_path)
    assert export.wait(WAIT_S)
    assert export.error == "one: error: <b>x</b>: found y."
    # And may be tried again.
    again = exports.submit(checkpoint(tmp_path), tmp_path)
    assert again is not export
    assert again.wait(WAIT_S)
    silent = Exports(Desk(), python("raise SystemExit(1)")).submit(checkpoint(tmp_path), tmp_path)
    assert silent.wait(WAIT_S)
    assert silent.error == "one: the export failed and said nothing"


def test_a_second_press_joins_the_first_and_cancelling_ends_the_process(tmp_path: Path) -> None:
    exports = Exports(Desk(), python(WRITES_ITS_ID))
    one = checkpoint(tmp_path)
    export = exports.submit(one, tmp_path)
    assert exports.submit(one, tmp_path) is export
    assert exports.all() == (export,)
    written = tmp_path / "model.pid"
    until(lambda: written.is_file() and written.read_text().endswith("\n"))
    (process_id,) = map(int, written.read_text().split())
    assert export.stage == "exporting and certifying"
    exports.cancel(export)
    assert export.wait(WAIT_S)
    assert (export.error, export.stage) == ("", "cancelled")
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_two_checkpoints_are_not_written_to_one_place(tmp_path: Path) -> None:
    desk = Desk()
    before = Waits()
    desk.queue(before)
    exports = Exports(desk, python("pass"))
    one = exports.submit(checkpoint(tmp_path, "one"), tmp_path)
    other = exports.submit(checkpoint(tmp_path, "other"), tmp_path)
    assert one.checkpoint.target == tmp_path / "model"
    assert other.checkpoint.target == tmp_path / "models" / "other"
    exports.cancel(one)
    assert one.finished
    before.go = True
    assert other.wait(WAIT_S)


def page() -> None:
    import streamlit as st

    from runtime.app import exporting

    exporting.offer(st.session_state.found, st.session_state.root, st.session_state.exports)


def test_the_side_of_the_page_shows_place_state_and_error(tmp_path: Path) -> None:
    desk = Desk()
    before = Waits()
    desk.queue(before)
    app: Any = AppTest.from_function(page, default_timeout=WAIT_S)
    exports = Exports(desk, python("import sys; sys.exit('error: *it* failed')"))
    app.session_state.found = [checkpoint(tmp_path)]
    app.session_state.root = tmp_path
    app.session_state.exports = exports
    app.run()
    assert app.expander[0].label == "1 checkpoints not exported yet"
    app.button(key="export one").click().run()
    assert [one.value for one in app.caption] == ["**one**: waiting: 1 before this one"]
    app.button(key="export one").click().run()
    (export,) = exports.all()
    before.go = True
    assert export.wait(WAIT_S)
    app.run()
    assert not app.caption
    assert [one.value for one in app.error] == [r"one\: error\: \*it\* failed"]
    # Of one that has been exported meanwhile nothing is left.
    app.session_state.found = []
    app.run()
    assert not app.error
    assert not app.expander
    assert isinstance(export, Export)
