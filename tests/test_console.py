"""What all commands share: errors as one sentence with an exit code, and readers that leave."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from runtime.cli.console import run
from runtime.errors import InputError

ROOT = Path(__file__).parents[1]
SENTENCE = re.compile(r"error: [^\n]+: found [^\n]+, expected [^\n]+; [^\n]+\.\n")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("x", found="a", expected="b", remedy="c"), 3, "x: found a, expected b; c."),
        (MemoryError(), 8, "memory: found too little, expected"),
        (MemoryError("Unable to allocate 9 GiB"), 8, "too little (Unable to allocate 9 GiB)"),
        (RuntimeError("can't start new thread"), 8, "threads: found none that can be started"),
        (FileNotFoundError(2, "No such file or directory", "here"), 3, "here: found No such file"),
        (PermissionError(13, "Permission denied", b"there"), 3, "there: found Permission denied"),
        (OSError(28, "No space left on device", "out"), 7, "out: found No space left on device"),
        (OSError("odd"), 3, "a path: found odd, expected"),
        (OSError(), 3, "a path: found OSError, expected"),
    ],
)
def test_every_error_is_one_sentence(
    error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(_: Console) -> int:
        raise error

    assert run(body, quiet=True) == code
    text = capsys.readouterr().err
    assert SENTENCE.fullmatch(text), text
    assert words in text


def test_an_error_of_our_own_making_is_not_dressed_up() -> None:
    def body(_: Console) -> int:
        raise RuntimeError("run() before bind()")

    with pytest.raises(RuntimeError, match="before bind"):
        run(body, quiet=True)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("stream", ["closed", "full", "unread"])
def test_work_goes_on_where_its_messages_are_not_taken(
    tmp_path: Path, stream: str, as_json: bool
) -> None:
    """As in a pipeline whose logger has died: what is to be done is done, and the exit code is its
    own.
    """
    code = (
        "import sys; from pathlib import Path; from runtime.cli.console import run;"
        "from runtime.cli.events import log_event; from runtime.errors import CohortError\n"
        "def body(console):\n"
        "    for number in range(3):\n"
        "        console.print('line ' * 20); log_event('info', 'done', number=number)\n"
        "    file = open(sys.argv[1], 'wb'); assert file.fileno() > 2; file.write(b'all')\n"
        "    file.close(); raise CohortError('x', found='a', expected='b', remedy='c')\n"
        f"sys.exit(run(body, quiet=False, as_json={as_json}))"
    )
    redirected = {"closed": "2>&-", "full": "2>/dev/full", "unread": ""}[stream]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(
            ["bash", "-c", f'exec "$0" -c "$1" "$2" {redirected}', sys.executable, code,
             str(tmp_path / "out")],
            cwd=ROOT, stderr=pipe, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 6
    assert (tmp_path / "out").read_bytes() == b"all"


def _unread(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python code whose output nobody reads: the pipe is closed at once, as by `| head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    # What is buffered is refused only when it is flushed.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open(writer, "wb") as pipe:
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=ROOT,
            env=environment,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.mark.parametrize("module", ["train.cli", "runtime.cli.phantom"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_reader_that_has_enough_is_left_quietly(module: str, flag: str) -> None:
    code = f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))"
    done = _unread(code, flag)
    assert (done.returncode, done.stderr) == (0, "")


PRINTING = """
import sys
from runtime.cli.console import run

def body(console):
    print("a result")
    return 6

sys.exit(run(body, quiet=False))
"""


def test_results_that_nobody_reads_are_no_error() -> None:
    done = _unread(PRINTING)
    assert (done.returncode, done.stderr) == (6, "")
