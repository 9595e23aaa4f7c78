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
from benchmarks.ways_table import ways
from runtime.errors import BratsError, InputError

BLOCKS: Final[dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], str]]]] = {
    "stages": (("stages",), tables.stages),
    "peers": (("peers",), tables.peers),
    "patient": (("patient",), tables.patient),
    "memory": (("memory",), tables.memory),
    "parity": (("parity",), tables.parity),
    "modes": (("scaling: modes",), tables.modes),
    "scaling": (tables.SCALED, tables.scaling),
    "startup": (("imports", "first result"), tables.startup),
    "cohort": (("a cohort",), tables.cohort),
    "ways": (("ways",), ways),
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


def read_run(path: Path) -> dict[str, Any]:
    """A run's JSON.

    Raises:
        InputError: it is not what `--benchmark-json` of these benchmarks wrote.
    """
    run = _read_json(path)
    benchmarks = run.get("benchmarks") if isinstance(run, dict) else None
    whole = (
        isinstance(run, dict)
        and {"machine_info", "commit_info", "datetime"} <= run.keys()
        and "libraries" in run["machine_info"]
        and isinstance(benchmarks, list)
        and all("extra_info" in one and "stats" in one for one in benchmarks)
    )
    if not whole:
        raise _no_run(path, "JSON that is no run of the benchmarks")
    return dict(run)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise _no_run(path, (error.strerror or str(error)).lower()) from error
    except ValueError as error:  # not UTF-8, or no JSON
        raise _no_run(path, f"no JSON ({error})") from error


def _no_run(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=found,
        expected="what these benchmarks or brats-eval have written",
        remedy="write it with pytest benchmarks --benchmark-only --benchmark-json FILE, or with "
        "brats-eval --json FILE for --scores",
    )


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
    try:
        if not options.page.is_file():
            raise InputError(
                options.page,
                found="no such file",
                expected="RESULTS.md or a copy of it",
                remedy="name one with --page",
            )
        runs = {path: read_run(path) for path in options.runs}
        if options.scores:
            _render_scores(*options.scores, options.page)
        for path, run in runs.items():
            filled = _rendered(path, run, options.page)
            print(f"{path}: {', '.join(filled) or 'nothing to show'}")
    except BratsError as error:
        print(error, file=sys.stderr)
        return 2
    except QuickRunError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    return 0


def _rendered(path: Path, run: dict[str, Any], page: Path) -> list[str]:
    try:
        return render(run, page)
    except (KeyError, TypeError, IndexError) as error:
        # Figures are there, but of another version of the benchmarks.
        raise _no_run(path, f"a run that lacks {error}") from error


def _render_scores(evaluation: Path, predictions: Path, page: Path) -> None:
    scores = _read_json(evaluation)
    try:
        block = tables.scores(scores, predictions)
    except (KeyError, TypeError) as error:
        raise _no_run(evaluation, f"scores that lack {error}") from error
    except OSError as error:
        raise InputError(
            error.filename or predictions,
            found=(error.strerror or str(error)).lower(),
            expected="the folder of the scored predictions, with their sidecars",
            remedy="name the folder that brats-infer wrote to",
        ) from error
    page.write_text(replace_block(page.read_text(), "scores", block))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
