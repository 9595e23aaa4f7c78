"""The largest difference between our scores and each peer's.

    python -m benchmarks.score_agreement CASES

scores every perturbation of every label map below CASES, and writes the block ``agreement`` of
RESULTS.md. It leaves with 1 if a figure differs by more than rounding.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from benchmarks.results_page import RESULTS, replace_block, table
from benchmarks.score_peers import MODULES, Compared, compare, perturbations
from runtime.case import find_cases
from runtime.errors import BratsError
from runtime.truth import load_truth

SPACING = (1.0, 1.0, 1.0)


def agreement(found: Iterable[Compared]) -> str:
    """The table: peer, figure, how many were compared, the largest absolute difference."""
    grouped: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in found:
        grouped[one.peer, one.metric].append(one.difference)
    rows = [
        [peer, metric, str(len(differences)), f"{max(differences):.1e}"]
        for (peer, metric), differences in sorted(grouped.items())
    ]
    return table(("peer", "figure", "compared", "largest difference"), rows)


def main(root: Path) -> int:
    """Compare, print what disagrees, fill the block."""
    found: list[Compared] = []
    cases = [case for case in find_cases(root) if case.labels is not None]
    for seed, case in enumerate(cases):
        truth = load_truth(case)
        for name, prediction in perturbations(truth, seed).items():
            made = list(compare(prediction, truth, SPACING))
            for one in made:
                if not one.agrees:
                    print(f"{case.case_id} {name}: {one}")
            found += made
        print(f"{case.case_id}: {len(found)} figures so far", flush=True)
    libraries = ", ".join(f"{name} {version(name)}" for name in MODULES)
    note = f"{len(cases)} label maps, six perturbations of each; {libraries}."
    text = replace_block(RESULTS.read_text(), "agreement", f"{agreement(found)}\n\n{note}")
    RESULTS.write_text(text)
    return 0 if all(one.agrees for one in found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except BratsError as error:
        sys.exit(str(error))
