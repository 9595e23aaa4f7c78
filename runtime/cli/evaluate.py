"""brats-eval: score predictions against truth."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.text import Text

from runtime.cli.console import ConventionFlag, optional, parse, run
from runtime.printable import printable


@dataclass(frozen=True)
class EvaluateArgs:
    """Arguments of brats-eval."""

    prediction: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PRED")]
    """A label map, or a folder of label maps named after their cases."""
    truth: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TRUTH")]
    """A label map, a folder of label maps, or a folder of cases with labels."""
    profile: Literal["brats2020", "brats2023"] = "brats2020"
    """Scoring rules; brats2023 scores lesion by lesion as well."""
    missing: Annotated[
        Literal["empty", "leave-out", "refuse"] | None, optional("{empty,leave-out,refuse}")
    ] = None
    """What a case without prediction counts as; otherwise what the profile says: empty in both."""
    json: Annotated[Path | None, optional("FILE")] = None
    """Write all scores, their means and the means' intervals as JSON."""
    csv: Annotated[Path | None, optional("FILE")] = None
    """Write a row per case and region."""
    plots: Annotated[Path | None, optional("DIR")] = None
    """Draw Dice, HD95 and volumes of all cases into a folder (needs the extra plots)."""
    labels: ConventionFlag = None
    """Label convention of the predictions; otherwise their sidecar's, else the truth's."""
    truth_labels: ConventionFlag = None
    """Label convention of the truth; otherwise what its naming implies, else the profile's."""
    quiet: bool = False
    """Print nothing but errors."""
    version: bool = False
    """Print the version and exit."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse(
        EvaluateArgs,
        "brats-eval",
        "Score label maps against truth: Dice, HD95, NSD, sensitivity, volumes, lesions.",
        args,
    )
    return run(lambda console: _score(options, console), quiet=options.quiet)


def _score(options: EvaluateArgs, console: Console) -> int:
    from runtime.evaluate import evaluate
    from runtime.metrics import PROFILES, Missing
    from runtime.score_files import check_outputs
    from runtime.score_plots import check_plots, draw_plots
    from runtime.score_table import render_summary, render_table, write_csv, write_json

    profile = PROFILES[options.profile]
    if options.missing is not None:
        profile = replace(profile, missing=Missing(options.missing))
    if options.plots is not None:
        check_plots()
    check_outputs(options.json, options.csv, options.plots, profile)
    with console.status("scoring") as status:
        evaluation = evaluate(
            options.prediction,
            options.truth,
            profile,
            options.labels,
            options.truth_labels,
            on_case=lambda case_id, count: status.update(
                Text(f"scoring {printable(case_id)}, of {count} cases")
            ),
        )
    for text in evaluation.warnings:
        console.print(printable(text), style="yellow", markup=False, soft_wrap=True)
    if options.json is not None:
        write_json(options.json, evaluation)
    if options.csv is not None:
        write_csv(options.csv, evaluation)
    if options.plots is not None:
        draw_plots(options.plots, evaluation)
    if not options.quiet:
        # A file or a pipe has no width of its own, and 80 columns break every interval.
        tables = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
        tables.print(render_table(evaluation))
        tables.print(render_summary(evaluation))
    return 0
