"""`--help` of each command as a golden file that someone has read.

To renew them: `python -m tests.test_help`, then read the difference.
"""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden" / "help"
WIDTH = "100"


def _mains() -> dict[str, Callable[[Sequence[str]], int]]:
    from export.cli import main as export
    from runtime.cli.app import main as app
    from runtime.cli.evaluate import main as evaluate
    from runtime.cli.infer import main as infer
    from runtime.cli.phantom import main as phantom
    from train.cli import main as train

    return {
        "brats-train": train,
        "brats-export": export,
        "brats-infer": infer,
        "brats-eval": evaluate,
        "brats-phantom": phantom,
        "brats-app": app,
    }


def _help(program: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        _mains()[program](["--help"])
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize(
    "program",
    ["brats-train", "brats-export", "brats-infer", "brats-eval", "brats-phantom", "brats-app"],
)
def test_help_is_what_was_read(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", WIDTH)
    monkeypatch.delenv("BRATS_DATA", raising=False)
    assert _help(program) == (GOLDEN / f"{program}.txt").read_text()


if __name__ == "__main__":
    os.environ["COLUMNS"] = WIDTH
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in _mains():
        (GOLDEN / f"{name}.txt").write_text(_help(name))
