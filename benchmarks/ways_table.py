"""The table of RESULTS.md that sets the ways to run a cohort beside each other."""

from typing import Any

from benchmarks.figures import middle
from benchmarks.results_page import machine, of_question, table

_NOTHING = ", nothing to do"


def ways(run: dict[str, Any]) -> str:
    """Seconds a case by each way, what beginning and ending cost, and the forecast."""
    (found,) = of_question(run, "ways")
    figures, count = found["figures"], found["cohort"]
    names = [name.removesuffix(_NOTHING) for name in figures if name.endswith(_NOTHING)]
    rows = []
    for name in names:
        whole, nothing = figures[name], figures[name + _NOTHING]
        over = figures.get(f"{name} over {names[0]}")
        ratio = "" if over is None else f"{middle(over):.2f} ({_ends(over['values'])})"
        each = [
            (one - other) / count
            for one, other in zip(whole["values"], nothing["values"], strict=True)
        ]
        rows.append([
            f"`{name}`" if name.startswith("-") else name,
            f"{middle(whole):.1f} ({_ends(whole['values'], 1)})",
            ratio,
            f"{middle(nothing):.1f} ({_ends(nothing['values'], 1)})",
            f"{sum(each) / len(each):.2f}",
        ])  # fmt: skip
    head = (
        "way",
        f"{count} cases s",
        f"over {names[0]}",
        "nothing to do s",
        "s a case beyond that",
    )
    told = [
        f"{name}: {_ends(one['values'])}." for name, one in figures.items() if "forecast" in name
    ]
    shape = "x".join(map(str, found["shape"]))
    of = f"{count} phantoms of {shape}, weights {found['weights'].removesuffix(' weights')}."
    return f"{table(head, rows)}\n\n{' '.join(told).capitalize()} {of} {machine(run)}"


def _ends(values: list[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"
