"""Which run --resume goes on with: never an older one than the newest there is."""

from itertools import pairwise
from pathlib import Path
from typing import Final

from runtime.bounded import read_json
from runtime.errors import InputError
from train.run_dir import RunDir

# What a process leaves in a run directory as soon as it has it, has its cases, has trained.
_MARKS: Final = (".lock", "split.json", "checkpoints/last.pt")


def existing_run(output: Path, name: str) -> RunDir:
    """The run ``name``, or the one that was worked on last.

    A run can be gone on with from when its cases are known: config.yaml and split.json are there
    before the cases are prepared.

    Raises:
        InputError: there is none, or it was killed before that.
    """
    found = [output / name] if name else sorted(output.glob("*/"), key=_changed)
    if not found or not _changed(found[-1]):
        raise InputError(
            output / name if name else output,
            found="no run (a folder with split.json and checkpoints/last.pt)",
            expected="a run that was begun",
            remedy="name another with --name and its parent with -o, or begin anew",
        )
    run = RunDir(found[-1])
    if not run.split.is_file() and not run.last.is_file():
        raise InputError(
            run.path,
            found="a run that was killed before it had its cases (no split.json)",
            expected="one that can be gone on with",
            remedy="begin it again by the command that began it without --resume, and remove this "
            "folder, or name an older run with --name",
        )
    return run


def _changed(run: Path) -> int:
    """When a run was worked on last, in ns; 0 for a folder that is no run."""
    times = [mark.stat().st_mtime_ns for name in _MARKS if (mark := run / name).is_file()]
    return max(times, default=0)


def time_limit(run: RunDir) -> float | None:
    """Minutes that a run was begun with and has trained nothing of: its checkpoint would know."""
    if run.last.is_file():
        return None
    try:
        newest = read_json(run.environment)
        for made_with in (newest, *newest.get("earlier", [])):
            given = made_with.get("arguments", ())
            words = [part for word in given for part in word.split("=", 1)]
            for flag, value in pairwise(words):
                if flag.replace("_", "-") == "--max-minutes":
                    return float(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None
