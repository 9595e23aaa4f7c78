"""One writer at a time, also over processes that are killed; what the dead left is swept."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from runtime.atomic import open_atomic, sweep, write_text
from runtime.errors import OutputError
from runtime.lock import Held, only_writer, try_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the system has no such locks")

HOLD = """
import sys
from pathlib import Path
from runtime.lock import only_writer, try_lock
from runtime.atomic import open_atomic
with only_writer(Path(sys.argv[1])), open_atomic(Path(sys.argv[1]) / "X.json") as file:
    file.write(b"half")
    file.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(OutputError, match="another process that writes into it"):
            only_writer(tmp_path).__enter__()
        (left,) = tmp_path.glob(".X.json.*.tmp")
        sweep(tmp_path)
        assert left.read_bytes() == b"half"  # its writer lives
        process.send_signal(signal.SIGKILL)
    with only_writer(tmp_path):
        assert left.exists()
        sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_free_again_after_its_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(OutputError):
        only_writer(tmp_path).__enter__()
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="No such file"):
        only_writer(tmp_path / "none").__enter__()


def test_a_folder_that_is_held_is_known_by_more_than_its_path(tmp_path: Path) -> None:
    out, aside = tmp_path / "out", tmp_path / "aside"
    out.mkdir()
    with only_writer(out) as held:
        held.check()
        out.rename(aside)
        with pytest.raises(OutputError, match="no longer the folder"):
            held.check()
        out.mkdir()
        with pytest.raises(OutputError, match="no longer the folder"):
            held.check()
        out.rmdir()
        out.symlink_to(aside)
        held.check()
        aside.rmdir()
        with pytest.raises(OutputError, match="no longer the folder"):
            held.check()


def test_a_sweep_takes_nothing_but_what_a_dead_writer_left(tmp_path: Path) -> None:
    kept = [".X.tmp", ".notes.0123abcd.tmp", "X.0123abcd.brats.tmp", ".X.0123abcd.brats.tmp.gz"]
    kept += [".X.0123abc.brats.tmp", ".X.0123ABCD.brats.tmp"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".folder.0123abcd.brats.tmp").mkdir()
    target = tmp_path / "target"
    target.write_text("of a link")
    (tmp_path / ".link.0123abcd.brats.tmp").symlink_to(target)
    (tmp_path / ".X_seg.nii.gz.0123abcd.brats.tmp").write_bytes(b"half of it")
    (tmp_path / ".a\nb.json.89abcdef.brats.tmp").touch()
    with open_atomic(tmp_path / "mine") as file:
        file.write(b"whole")
        sweep(tmp_path)
    write_text(tmp_path / "other", "whole")
    assert (tmp_path / "mine").read_bytes() == b"whole"
    assert {path.name for path in tmp_path.iterdir()} == {
        *kept, ".folder.0123abcd.brats.tmp", ".link.0123abcd.brats.tmp", "target", "mine", "other",
    }  # fmt: skip
    assert target.read_text() == "of a link"


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for _ in range(20):
        with only_writer(tmp_path):
            write_text(tmp_path / "a", "b")
            sweep(tmp_path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_parts_of_one_division_are_written_beside_each_other(tmp_path: Path) -> None:
    with only_writer(tmp_path, (1, 3)), only_writer(tmp_path, (3, 3)):
        for part in ((1, 3), (3, 3), None, (1, 2), (2, 4)):
            with pytest.raises(OutputError, match="another process that writes into it"):
                only_writer(tmp_path, part).__enter__()
        with only_writer(tmp_path, (2, 3)):
            pass
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path):
        pass


def test_no_part_is_written_into_a_folder_that_somebody_has_for_himself(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(OutputError):
        only_writer(tmp_path, (1, 2)).__enter__()


def test_what_the_run_of_a_part_left_when_it_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / ".part-1-of-2.lock").touch()
    (tmp_path / ".part-1-of-8.lock").touch()
    with only_writer(tmp_path, (1, 2)):
        assert [path.name for path in tmp_path.iterdir()] == [".part-1-of-2.lock"]
    assert list(tmp_path.iterdir()) == []


def test_where_a_part_s_file_is_a_link_nothing_is_written_through_it(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / ".part-1-of-2.lock").symlink_to(target)
    with pytest.raises(OutputError):
        only_writer(tmp_path, (1, 2)).__enter__()
    assert not target.exists()


def test_a_part_waits_for_those_who_only_look_whether_its_run_was_killed(tmp_path: Path) -> None:
    own = tmp_path / ".part-1-of-2.lock"
    descriptor = os.open(own, os.O_RDWR | os.O_CREAT)
    assert try_lock(descriptor)
    looked = Timer(0.2, lambda: (own.unlink(), os.close(descriptor)))
    looked.start()
    with only_writer(tmp_path, (1, 2)):
        assert own.exists()
    looked.join()


def test_a_part_waits_for_those_who_look_at_what_another_division_left(tmp_path: Path) -> None:
    left = tmp_path / ".part-1-of-8.lock"
    descriptor = os.open(left, os.O_RDWR | os.O_CREAT)
    assert try_lock(descriptor)
    looked = Timer(0.2, lambda: (left.unlink(), os.close(descriptor)))
    looked.start()
    with only_writer(tmp_path, (1, 2)):
        assert [path.name for path in tmp_path.iterdir()] == [".part-1-of-2.lock"]
    looked.join()


def test_another_process_knows_the_folder_again(tmp_path: Path) -> None:
    out, aside = tmp_path / "out", tmp_path / "aside"
    out.mkdir()
    with only_writer(out) as held:
        identity = held.identity
        assert identity == (out.stat().st_dev, out.stat().st_ino)
        Held.again(out, identity).check()
        out.rename(aside)
        with pytest.raises(OutputError, match="no longer the folder"):
            Held.again(out, identity)
        out.mkdir()
        with pytest.raises(OutputError, match="no longer the folder"):
            Held.again(out, identity)
        again = Held.again(aside, identity)
        aside.rename(tmp_path / "further")
        with pytest.raises(OutputError, match="no longer the folder"):
            again.check()
    assert Held.again(out, None) == Held(out, None)
