"""brats-train: train a network and leave a run directory."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from runtime import DISCLAIMER, __version__
from runtime.cli.console import reader_may_leave, rest_idle_threads
from runtime.cli.console import run as run_command
from runtime.errors import BratsError, UsageError
from train.config import Config
from train.config_check import check
from train.config_file import DEFAULT_CONFIG, find_config, read_config
from train.resume import existing_run, time_limit
from train.run_dir import RunDir, new_run
from train.voice import one_voice

PROGRAM = "brats-train"
Switch = tyro.conf.FlagCreatePairsOff[bool]
DESCRIPTION = f"""Train a 3D U-Net on BraTS cases.

Values come from the defaults, then the YAML file of --config (with --resume the run's own), then
flags. Data: --data, else BRATS_DATA, else the file's. Writes RUNS/NAME; brats-export takes the
newest run's best checkpoint.

{DISCLAIMER}"""


@dataclass(frozen=True)
class Arguments:
    """The command line: how to run, and any key of the configuration."""

    config: Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="FILE|NAME")] = DEFAULT_CONFIG
    """a YAML file, or brats2020, tutorial, demo, small_cpu"""
    name: str = ""
    """of the run; by default the configuration's name and the time"""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs")
    """parent of the run directories"""
    max_minutes: float | None = None
    """stop in time for validation and evaluation to end within so many minutes"""
    resume: Switch = False
    """go on with the run --name, or with the newest"""
    dry_run: Switch = False
    """check the data, run one step, print the plan, write nothing"""
    quiet: Switch = False
    """print nothing but errors"""
    version: Switch = False
    """print the version and exit"""
    keys: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    Args:
        args: the command line without the program's name; None takes the process's.
    """
    rest_idle_threads()
    given = list(sys.argv[1:] if args is None else args)
    try:
        with one_voice():
            with reader_may_leave():
                if "--version" in given:
                    print(f"{PROGRAM} {__version__}")
                    return 0
                arguments = parse(given)
            check(arguments.keys)
            _check_minutes(arguments.max_minutes)
            run = _run_dir(arguments)
    except BratsError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        return error.exit_code
    return run_command(lambda console: _run(arguments, given, run, console), quiet=arguments.quiet)


def parse(given: Sequence[str]) -> Arguments:
    """Defaults, then YAML (and BRATS_DATA), then flags.

    Raises:
        BratsError: the YAML file, or the run to resume, is not there or wrong.
        SystemExit: 2 for arguments that tyro refuses, 0 for --help.
    """
    # A first look at the flags that say which file stands below all others.
    early = Arguments()
    wants_help = bool({"-h", "--help"} & set(given))
    if not wants_help:
        early = _tyro(given, Arguments())
    # Chosen once: another run may become the newest meanwhile.
    run = existing_run(early.output, early.name) if early.resume else None
    config = read_config(find_config(early.config) if run is None else run.config)
    if os.environ.get("BRATS_DATA"):
        config = replace(config, data=os.environ["BRATS_DATA"])
    below = Arguments(keys=config)
    if run is not None:
        below = replace(below, name=run.name, max_minutes=time_limit(run))
    return _tyro(given, below)


def _tyro(given: Sequence[str], default: Arguments) -> Arguments:
    return tyro.cli(
        Arguments,
        prog=PROGRAM,
        description=DESCRIPTION,
        args=list(given),
        default=default,
    )


def _run(arguments: Arguments, given: Sequence[str], run: RunDir, console: Console) -> int:
    # PyTorch takes seconds to import: a wrong flag or a missing run has been told before that.
    if arguments.resume and _leads():
        console.print(f"going on with {run.path}", markup=False, highlight=False, soft_wrap=True)
    from train.session import train

    return train(arguments, given, run, console)


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not 0 < minutes < inf:
        raise UsageError(
            "--max-minutes",
            found=f"{minutes:g}",
            expected="a number above 0",
            remedy="leave it out for no limit",
        )


def _run_dir(arguments: Arguments) -> RunDir:
    if arguments.resume:
        return existing_run(arguments.output, arguments.name)
    stem = Path(arguments.config).stem
    name = arguments.name or f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    # Of processes that torchrun starts, the first one's counts.
    return new_run(arguments.output, name) if _leads() else RunDir(arguments.output / name)


def _leads() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
