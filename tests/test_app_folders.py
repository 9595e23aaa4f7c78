"""A server's folder: gone with the server, also where it was killed; never another's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.app.folders import ServerFolder, sweep

ROOT = Path(__file__).parents[1]
SERVER = """
import sys, time
from pathlib import Path
from runtime.app.folders import ServerFolder
folder = ServerFolder(Path(sys.argv[1]))
(folder.path / "visit").mkdir()
(folder.path / "visit" / "patient.nii").write_bytes(b"x")
print(folder.path, flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def server(parent: Path, seconds: float) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Another process and its folder."""
    with subprocess.Popen(
        (sys.executable, "-c", SERVER, str(parent), str(seconds)),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_what_a_killed_server_left_goes_when_the_next_one_starts(tmp_path: Path) -> None:
    with server(tmp_path, 600) as (process, left):
        process.kill()
        process.wait(60)
        assert (left / "visit" / "patient.nii").is_file()
        sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_running_servers_folder_is_left_alone(tmp_path: Path) -> None:
    with server(tmp_path, 600) as (_, theirs):
        sweep(tmp_path)
        assert (theirs / "visit" / "patient.nii").is_file()
    mine = ServerFolder(tmp_path)
    sweep(tmp_path)
    assert mine.path.is_dir()
    assert mine.path.stat().st_mode & 0o777 == 0o700
    mine.close()


def test_a_server_that_ends_deletes_its_own(tmp_path: Path) -> None:
    with server(tmp_path, 0) as (process, folder):
        assert process.wait(60) == 0
        assert not folder.exists()


def test_what_only_looks_like_one_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "precious"
    other.mkdir()
    (tmp_path / "brats-app-server-link").symlink_to(other)
    (tmp_path / "brats-app-server-file").write_bytes(b"x")
    (tmp_path / "brats-app-notes").mkdir()
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert other.is_dir()
