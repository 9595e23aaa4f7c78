"""Ctrl-C, whatever it meets: exit 130 and one word."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import runtime.backends.tensorrt_library
from runtime.backends.cupy_device import cupy_ops
from runtime.backends.loading import interrupted_later
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.errors import interrupted
from runtime.labels import MODALITIES

ROOT = Path(__file__).parents[1]
INFER = "import sys; from runtime.cli import infer; sys.exit(infer())"
# As pybind11 does where a module is interrupted while it is initialised: with a signal, because
# only a signal comes as Ctrl-C does.
INTERRUPTED_LIBRARY = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
except KeyboardInterrupt as error:
    raise ImportError("initialization failed") from error
"""
# Another process sends the signal so long after the import of a library's own module has begun.
LATER = """
import os, subprocess, sys
module, delay = sys.argv.pop(1), sys.argv.pop(1)
begun = []
def look(event, arguments):
    if event == "import" and arguments[0] == module and not begun:
        begun.append(subprocess.Popen(["sh", "-c", f"sleep {delay}; kill -INT {os.getpid()}"]))
sys.addaudithook(look)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


@pytest.fixture
def case(tmp_path: Path, write_case: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(1, 900, (24, 20, 16), dtype=np.int16) + index
        for index, name in enumerate(MODALITIES)
    }
    return write_case(tmp_path / "data" / "X", images)


def run(
    code: str, *words: str | Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    places = [str(path)] if path is not None else []
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*places, str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("backend", ["ort", "openvino", "auto"])
def test_an_interrupt_that_a_library_makes_an_error_of(
    tmp_path: Path, tiny_model: Path, case: Path, backend: str
) -> None:
    for name in ("onnxruntime", "openvino"):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(INTERRUPTED_LIBRARY)
    out = tmp_path / "out"
    words = (case, "--model", tiny_model, "-o", out, "--backend", backend, "--device", "cpu")
    done = run(INFER, *words, "--quiet", path=tmp_path / "fake")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert not list(out.rglob("X*"))


@pytest.mark.parametrize(
    ("backend", "module"),
    [
        ("ort", "onnxruntime.capi.onnxruntime_pybind11_state"),
        ("openvino", "openvino._pyopenvino"),
    ],
)
@pytest.mark.parametrize("delay", ["0.005", "0.02"])
def test_an_interrupt_while_a_library_loads(
    tmp_path: Path, tiny_model: Path, case: Path, backend: str, module: str, delay: str
) -> None:
    words = (case, "--model", tiny_model, "-o", tmp_path / "out", "--backend", backend)
    done = run(LATER + INFER, module, delay, *words, "--device", "cpu", "--quiet")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


OPENED_AND_CLOSED = """
import gc, os, signal, sys
from pathlib import Path
from runtime.backends import BackendOptions, open_backend
from runtime.model_dir import ModelDir
model = ModelDir.open(Path(sys.argv[1]))
opened = [open_backend(model, BackendOptions("openvino", "cpu", threads=1)) for _ in range(2)]
for backend in opened:
    backend.bind(model.card.patch, 1)
del backend
while opened:
    opened.pop(int(sys.argv[2])).close()
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("first", [0, -1])
def test_an_interrupt_after_openvino_was_closed_in_any_order(tiny_model: Path, first: int) -> None:
    done = run(OPENED_AND_CLOSED, tiny_model, str(first))
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


# At the moment at which the import of a module begins.
NOW = """
import os, signal, sys
module = sys.argv.pop(1)
begun = []
def look(event, arguments):
    if event == "import" and arguments[0] == module and not begun:
        begun.append(module)
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(look)
"""
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "scripts"
]
BEGINNINGS = [
    *((name, module) for name in COMMANDS for module in ("tyro", "rich.console")),
    # The last is what the work itself needs.
    *(("brats-train", module) for module in ("runtime.errors", "train.config_file", "torch")),
    *(("brats-export", module) for module in ("runtime.cli.arguments", "torch")),
    *(("brats-infer", module) for module in ("runtime.errors", "pathlib", "runtime.case")),
]


@pytest.mark.parametrize(("name", "module"), BEGINNINGS)
def test_an_interrupt_while_a_command_begins(name: str, module: str, tmp_path: Path) -> None:
    place, _, function = COMMANDS[name].partition(":")
    # As the script that pip writes.
    begin = f"from {place} import {function}\nsys.exit({function}())"
    words = {
        "brats-train": ["--data", str(tmp_path), "--output", str(tmp_path / "runs")],
        "brats-export": [str(tmp_path / "best.pt")],
        "brats-infer": [str(tmp_path)],
    }
    done = run(NOW + begin, module, *words.get(name, [str(tmp_path), str(tmp_path)]))
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_interrupt_while_a_command_begins_is_an_event_where_those_are_asked_for(
    tmp_path: Path,
) -> None:
    begin = "from runtime.cli import infer\nsys.exit(infer())"
    done = run(NOW + begin, "rich.console", tmp_path, "--log-json")
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert done.returncode == told["exit_code"] == 130
    assert (told["level"], told["event"]) == ("error", "interrupted")


def interrupting(*_: object) -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _number in range(1000):
            pass
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error


def test_an_interrupted_tensorrt_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    library = runtime.backends.tensorrt_library.importlib
    monkeypatch.setattr(library, "import_module", interrupting)
    with pytest.raises(KeyboardInterrupt):
        load_tensorrt()


def test_an_interrupted_cupy_is_not_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cupy":
                interrupting()

    for name in [name for name in sys.modules if name.startswith("runtime.ops.cupy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        cupy_ops(0)


def test_what_is_behind_an_error_is_found_however_deep() -> None:
    deep: BaseException = KeyboardInterrupt()
    for number in range(4):
        after: BaseException = RuntimeError(str(number))
        after.__cause__, after.__context__ = (deep, None) if number % 2 else (None, deep)
        deep = after
    assert interrupted(deep)
    loop = ValueError()
    loop.__context__ = other = OSError()
    other.__context__ = loop
    assert not interrupted(loop)


def interrupted_block(done: list[str], error: Exception | None) -> None:
    with interrupted_later():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("whole")
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, ImportError("of a library that was interrupted")])
def test_an_interrupt_in_a_block_that_must_not_be_interrupted_comes_after_it(
    error: Exception | None,
) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_block(done, error)
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupted_later():
        done.append("undisturbed")
    assert len(done) == 2
