"""brats-phantom: synthetic BraTS-shaped cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

from runtime.cli.console import parse, run
from runtime.errors import UsageError


@dataclass(frozen=True)
class PhantomArgs:
    """Arguments of brats-phantom."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder for the case folders."""
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

    if options.cases < 1:
        raise UsageError(
            "--cases", found=str(options.cases), expected="1 or more", remedy="ask for one at least"
        )
    if options.seed < 0:
        raise UsageError(
            "--seed", found=str(options.seed), expected="0 or more", remedy="choose another seed"
        )
    for case in track(
        range(1, options.cases + 1), "phantoms", console=console, disable=options.quiet
    ):
        write_phantom(options.out, case, options.seed)
    console.print(f"{options.cases} cases in {options.out}")
    return 0
