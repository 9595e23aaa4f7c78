"""Write measured figures into the generated blocks of RESULTS.md: `python -m benchmarks.render`.

    python -m benchmarks.render RUN_JSON...      tables and plots of runs of the benchmarks
    python -m benchmarks.render --scores SCORES_JSON PREDICTIONS_DIR      scores of real cases

A run with `--quick` holds no results: it is refused, unless `--page` names a copy to look at.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import plots, tables
from benchmarks.results_page import RESULTS, is_quick, of_question, replace_block

BLOCKS: Final[dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], str]]]] = {
    "stages": (("stages",), tables.stages),
    "peers": (("peers",), tables.peers),
    "patient": (("patient",), tables.patient),
    "memory": (("memory",), tables.memory),
    "parity": (("parity",), tables.parity),
    "modes": (("scaling: modes",), tables.modes),
    "scaling": (tables.SCALED, tables.scaling),
    "startup": (("imports", "first result"), tables.startup),
    "loading": (("loading",), tables.loading),
    "training": (("a training step",), tables.training),
}
"""Block to the questions that fill it, and how."""
PLOTS: Final[dict[str, tuple[str, Callable[[dict[str, Any]], bytes]]]] = {
    "stages": ("Latency by stage", plots.stages),
    "peers": ("Peers over ours", plots.peers),
    "modes": ("Dice against latency", plots.modes),
}
"""Block to the picture below its table."""
_QUICK: Final = "**Of a quick run: no results.**"


class QuickRunError(Exception):
    """A quick run was to be shown as results."""


def render(run: dict[str, Any], page: Path) -> list[str]:
    """Fill the blocks of ``page`` that ``run`` has figures for, and draw their pictures into
    ``pictures`` beside it.

    Args:
        run: from `--benchmark-json`.
        page: RESULTS.md, or a copy.

    Returns:
        The names of the blocks.

    Raises:
        QuickRunError: a quick run, and the page is the one of results.
        ValueError: the page lacks a block.
    """
    quick = is_quick(run)
    if quick and page.resolve() == RESULTS.resolve():
        raise QuickRunError(
            "a run with --quick holds no results: take one without it, or name a copy with --page"
        )
    text = page.read_text()
    filled = []
    for name, (questions, make) in BLOCKS.items():
        if not any(of_question(run, question) for question in questions):
            continue
        parts = [_QUICK] if quick else []
        parts.append(make(run))
        if name in PLOTS:
            title, draw = PLOTS[name]
            pictures = page.parent / "pictures"
            pictures.mkdir(exist_ok=True)
            (pictures / f"bench_{name}.png").write_bytes(draw(run))
            parts.append(f"![{title}](pictures/bench_{name}.png)")
        text = replace_block(text, name, "\n\n".join(parts))
        filled.append(name)
    page.write_text(text)
    return filled


def main(args: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_JSON")
    parser.add_argument("--scores", nargs=2, type=Path, metavar=("JSON", "PREDICTIONS"))
    parser.add_argument("--page", type=Path, default=RESULTS, help="RESULTS.md by default")
    options = parser.parse_args(args)
    if not options.runs and not options.scores:
        parser.error("name a RUN_JSON, or --scores")
    if options.scores:
        evaluation, predictions = options.scores
        block = tables.scores(json.loads(evaluation.read_text()), predictions)
        options.page.write_text(replace_block(options.page.read_text(), "scores", block))
    for path in options.runs:
        try:
            filled = render(json.loads(path.read_text()), options.page)
        except QuickRunError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
        print(f"{path}: {', '.join(filled) or 'nothing to show'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
