"""brats-eval: score predictions against truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from runtime.cli.console import ConventionFlag, optional, parse, run


@dataclass(frozen=True)
class EvaluateArgs:
    """Arguments of brats-eval."""

    prediction: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PRED")]
    """A label map, or a folder of label maps named after their cases."""
    truth: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TRUTH")]
    """A label map, or a folder of cases with labels."""
    profile: Literal["brats2020"] = "brats2020"
    """Scoring rules."""
    json: Annotated[Path | None, optional("FILE")] = None
    """Write all scores as JSON."""
    csv: Annotated[Path | None, optional("FILE")] = None
    """Write a row per case and region."""
    labels: ConventionFlag = None
    """Label convention of the predictions; otherwise their sidecar's, else the truth's."""
    truth_labels: ConventionFlag = None
    """Label convention of the truth; otherwise what its naming implies."""
    quiet: bool = False
    """Print nothing but errors."""
    version: bool = False
    """Print the version and exit."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse(
        EvaluateArgs, "brats-eval", "Score label maps against truth: Dice and HD95.", args
    )
    return run(lambda console: _score(options, console), quiet=options.quiet)


def _score(options: EvaluateArgs, console: Console) -> int:
    from runtime.evaluate import evaluate, render_table, write_csv, write_json
    from runtime.metrics import PROFILES

    with console.status("scoring"):
        evaluation = evaluate(
            options.prediction,
            options.truth,
            PROFILES[options.profile],
            options.labels,
            options.truth_labels,
        )
    if options.json is not None:
        write_json(options.json, evaluation)
    if options.csv is not None:
        write_csv(options.csv, evaluation)
    if not options.quiet:
        Console().print(render_table(evaluation))
    return 0
