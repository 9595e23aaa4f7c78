"""brats-phantom: synthetic BraTS-shaped cases."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import tyro
from rich.console import Console
from rich.progress import track

from runtime.cli.console import parse, run
from runtime.errors import UsageError

_MOST: Final = 9999  # their names have four digits


@dataclass(frozen=True)
class PhantomArgs:
    """Arguments of brats-phantom."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder for the case folders; earlier phantoms in it are made anew."""
    cases: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """How many cases."""
    seed: int = 0
    """Of the series; the same seed gives the same voxels."""
    quiet: bool = False
    """Print nothing but errors."""
    version: bool = False
    """Print the version and exit."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse(
        PhantomArgs,
        "brats-phantom",
        "Write synthetic BraTS cases: four modalities, brain, nested tumour, truth.",
        args,
    )
    return run(lambda console: _write(options, console), quiet=options.quiet)


def _write(options: PhantomArgs, console: Console) -> int:
    from runtime.phantom import write_phantom

    if not 1 <= options.cases <= _MOST:
        raise UsageError(
            "--cases",
            found=str(options.cases),
            expected=f"1 to {_MOST}",
            remedy="write several series, each into a folder of its own",
        )
    if options.seed < 0:
        raise UsageError(
            "--seed", found=str(options.seed), expected="0 or more", remedy="choose another seed"
        )
    _check_places(options.out, options.cases)
    for case in track(
        range(1, options.cases + 1), "phantoms", console=console, disable=options.quiet
    ):
        write_phantom(options.out, case, options.seed)
    console.print(f"{options.cases} cases in {options.out}")
    return 0


def _check_places(out: Path, cases: int) -> None:
    """Look at every place before the first file is written.

    Raises:
        UsageError: something lies there that is no phantom.
    """
    from runtime.nifti import is_ours
    from runtime.phantom import PHANTOM_MARK, phantom_files

    for case in range(1, cases + 1):
        for path in phantom_files(out, case).values():
            if os.path.lexists(path) and not is_ours(path, PHANTOM_MARK):
                raise UsageError(
                    path,
                    found="something that brats-phantom did not write",
                    expected="a free name, or an earlier phantom",
                    remedy="choose another folder or move it away",
                )
