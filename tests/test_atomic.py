"""A file is complete under its name, or it is not there; what is not ours stays as it was."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.atomic import (
    check_writable,
    open_atomic,
    sweep,
    write_bytes,
    write_json,
    write_text,
)
from runtime.atomic_directory import (
    add_directory,
    check_replaceable,
    replace_directory,
    set_aside,
)
from runtime.errors import OutputError

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, error: type[BaseException]) -> None:
    with open_atomic(path) as file:
        file.write(b"new")
        raise error


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_bytes_text_and_json_are_written_with_their_folders(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "bytes", b"\0\1\xff")
    write_text(tmp_path / "a" / "text", "ödem\n")
    write_json(tmp_path / "a" / "json", {"b": [1, 2.5, None], "a": "ä"})
    assert (tmp_path / "a" / "b" / "bytes").read_bytes() == b"\0\1\xff"
    assert (tmp_path / "a" / "text").read_bytes() == "ödem\n".encode()
    assert json.loads((tmp_path / "a" / "json").read_text()) == {"b": [1, 2.5, None], "a": "ä"}
    assert names(tmp_path / "a") == ["b", "json", "text"]


def test_the_name_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open_atomic(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"
    with open_atomic(path) as file:
        file.write(b"another")
        file.flush()
        assert path.read_bytes() == b"half"
    assert path.read_bytes() == b"another"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_inside_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    for before in (None, b"old"):
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(error):
            write_half(path, error)
        assert names(tmp_path) == ([] if before is None else ["file"])
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(f"runtime.atomic.os.{step}", failing(errno.ENOSPC))
    with pytest.raises(OutputError) as caught:
        write_bytes(path, b"new")
    assert caught.value.exit_code == 7
    assert caught.value.where == str(path)
    assert caught.value.found == os.strerror(errno.ENOSPC)
    assert names(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        with pytest.raises(OutputError):
            write_text(path, "x")
        with pytest.raises(OutputError):
            check_writable(path)
        with pytest.raises(OutputError):
            replace_directory(path, lambda folder: None, "owned")
    with pytest.raises(OutputError):
        check_writable(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_check_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_a_folder_that_cannot_be_listed_is_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.atomic.os.scandir", failing(errno.EIO))
    with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
        sweep(tmp_path)


def test_a_trial_file_that_fails_or_is_killed_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def failing_close(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("os.close", failing_close)
        with pytest.raises(OutputError):
            check_writable(tmp_path)
    assert names(tmp_path) == []
    # As after a kill: it is never removed by the one that made it.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        check_writable(tmp_path)
    assert len(names(tmp_path)) == 1
    sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1.0, float("-inf")]}])
def test_json_has_no_nan(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", value)
    assert names(tmp_path) == []


def fill(folder: Path) -> None:
    (folder / "owned").write_text("new")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("new")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


NEW = {"owned": b"new", "sub/file": b"new"}


def test_a_directory_appears_as_a_whole(tmp_path: Path) -> None:
    replace_directory(tmp_path / "deep" / "out", fill, "owned")
    assert tree(tmp_path / "deep" / "out") == NEW
    (tmp_path / "empty").mkdir()
    replace_directory(tmp_path / "empty", fill, "owned")
    assert tree(tmp_path / "empty") == NEW
    assert names(tmp_path) == ["deep", "empty"]


def test_our_own_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "owned").write_text("old")
    (out / "engine of last year").write_text("old")
    replace_directory(out, fill, "owned")
    assert tree(out) == NEW
    assert names(tmp_path) == ["out"]


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("theirs")
    (tmp_path / "file").write_text("theirs")
    for path in (out, tmp_path / "file"):
        with pytest.raises(OutputError, match="not ours"):
            check_replaceable(path, "owned")
        with pytest.raises(OutputError, match="not ours"):
            replace_directory(path, fill, "owned")
    assert tree(tmp_path) == {"file": b"theirs", "out/thesis.tex": b"theirs"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_while_filling_leaves_the_old_directory(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    out = tmp_path / "out"
    if exists:
        replace_directory(out, fill, "owned")

    def broken(folder: Path) -> None:
        (folder / "owned").write_text("half")
        raise error

    with pytest.raises(error):
        replace_directory(out, broken, "owned")
    assert tree(tmp_path) == ({"out/owned": b"new", "out/sub/file": b"new"} if exists else {})
    assert names(tmp_path) == (["out"] if exists else [])


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_rename_that_fails_brings_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "owned").write_text("old")
    rename, calls = os.replace, []

    def once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing_call:
            raise OSError(errno.ENOSPC, "full")
        rename(source, target)

    monkeypatch.setattr("runtime.atomic_directory._exchange", lambda one, other: False)
    monkeypatch.setattr("os.replace", once)
    with pytest.raises(OutputError):
        replace_directory(out, fill, "owned")
    assert tree(out) == {"owned": b"old"}
    assert names(tmp_path) == ["out"]


KILLED = """
import os, sys
from pathlib import Path
import runtime.atomic_directory as atomic
calls = [0]
def counted(function):
    def call(*arguments):
        calls[0] += 1
        if calls[0] == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return function(*arguments)
    return call
os.replace = counted(os.replace)
if sys.argv[3] == "exchange":
    atomic._exchange = counted(atomic._exchange)
else:
    atomic._exchange = lambda one, other: False
def fill(path):
    (path / "owned").write_text("new")
atomic.replace_directory(Path(sys.argv[1]), fill, "owned")
"""


@pytest.mark.parametrize(("kind", "call"), [("exchange", 1), ("renames", 1), ("renames", 2)])
def test_a_writer_that_is_killed_leaves_a_directory_or_one_that_is_found(
    tmp_path: Path, kind: str, call: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "owned").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(out), str(call), kind], cwd=ROOT, check=False
    )
    assert done.returncode == -9
    left = set_aside(out)
    if (kind, call) == ("renames", 2):
        assert not out.exists()
        assert left is not None
        assert tree(left) == {"owned": b"old"}
    else:
        assert left is None
        assert tree(out) == {"owned": b"old"}
    # The next one puts things right, and sweeps what the killed one left.
    with pytest.raises(ValueError, match="no"):
        replace_directory(out, refuse, "owned")
    assert tree(out) == {"owned": b"old"}
    assert names(tmp_path) == ["out"]


def refuse(path: Path) -> None:
    raise ValueError("no")


def test_there_is_a_directory_at_any_moment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    replace_directory(out, fill, "owned")
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add("there" if (out / "owned").is_file() else "gone")

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for _ in range(200):
            replace_directory(out, fill, "owned")
        stop.set()
        looking.result()
    assert seen == {"there"}


def test_the_hidden_directory_of_a_living_writer_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def slow(path: Path) -> None:
        (path / "owned").write_text("slow")
        replace_directory(out, fill, "owned")
        assert (path / "owned").read_text() == "slow"

    replace_directory(out, slow, "owned")
    assert tree(out) == {"owned": b"slow"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("length", [200, 243, 255])
@pytest.mark.parametrize("letter", ["x", "é"])
def test_any_name_that_the_system_takes_can_be_written(
    tmp_path: Path, length: int, letter: str
) -> None:
    path = tmp_path / (letter * (length // len(letter.encode())))
    write_bytes(path, b"all")
    assert path.read_bytes() == b"all"
    assert names(tmp_path) == [path.name]


def test_folders_are_known_to_the_disk_before_what_goes_into_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("runtime.atomic.sync_directory", synced.append)
    write_bytes(tmp_path / "a" / "b" / "file", b"x")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_many_writers_add_one_directory_each_time(tmp_path: Path) -> None:
    """Eight threads add the same forty directories, in step; readers never see half of one."""
    names = [f"entry{number}" for number in range(40)]
    barrier = threading.Barrier(8)

    def whole(path: Path) -> bool:
        try:
            return (path / "last").read_text() == (path / "first").read_text()
        except OSError:
            return False

    def fill(path: Path, name: str) -> None:
        (path / "first").write_text(name)
        (path / "last").write_text(name)

    def writer() -> int:
        failures = 0
        for name in names:
            barrier.wait(30)
            add_directory(tmp_path / name, lambda path, name=name: fill(path, name), whole)
            failures += (tmp_path / name / "first").read_text() != name
        return failures

    with ThreadPoolExecutor(8) as pool:
        assert [future.result() for future in [pool.submit(writer) for _ in range(8)]] == [0] * 8
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_damaged_directory_is_added_anew(tmp_path: Path) -> None:
    damaged = tmp_path / "entry"
    damaged.mkdir()
    (damaged / "half").write_text("")

    def whole(path: Path) -> bool:
        return (path / "all").is_file()

    def fill(path: Path) -> None:
        (path / "all").write_text("x")

    add_directory(damaged, fill, whole)
    assert [path.name for path in damaged.iterdir()] == ["all"]
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
