"""RESULTS.md: where generated blocks stand, and what they are made of.

A block stands between `<!-- name -->` and `<!-- /name -->`; what is outside of blocks is prose.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace_block(text: str, name: str, content: str) -> str:
    """Put ``content`` between the markers of block ``name``.

    Raises:
        ValueError: the text has no such block.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no block {name}")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def machine(run: dict[str, Any]) -> str:
    """One line: processor, threads, versions, date, commit. Where the records of several runs were
    put together, what each of them was made with.
    """
    info = run["machine_info"]
    made = dict.fromkeys(
        _made_with(one["extra_info"].get("run", origin(run))) for one in run["benchmarks"]
    )
    return (
        f"{info['processor']}, {info['threads']} threads, Python {info['python_version']}; "
        f"{'; '.join(made)}."
    )


def origin(run: dict[str, Any]) -> dict[str, Any]:
    """What a run was made with, as each of its records says it."""
    commit = run["commit_info"]
    return {
        "libraries": run["machine_info"]["libraries"],
        "datetime": run["datetime"],
        "commit": commit.get("id", "unknown"),
        "dirty": bool(commit.get("dirty")),
    }


def _made_with(made: dict[str, Any]) -> str:
    libraries = ", ".join(
        f"{name} {version}" for name, version in made["libraries"].items() if version != "absent"
    )
    changes = " with uncommitted changes" if made["dirty"] else ""
    return f"{libraries}; {made['datetime'][:10]}, commit {made['commit'][:10]}{changes}"


def of_question(run: dict[str, Any], start: str) -> list[dict[str, Any]]:
    """The records of a run whose question begins so, each with its median seconds."""
    return [
        {**one["extra_info"], "seconds": one["stats"]["median"]}
        for one in run["benchmarks"]
        if one["extra_info"].get("question", "").startswith(start)
    ]


def rows_of(run: dict[str, Any], start: str) -> list[dict[str, Any]]:
    """Every peer beside each of ours that it was measured against: the records of a question whose
    rows are those of ours. A record of an earlier version holds one of ours.
    """
    records = of_question(run, start)
    return [{**one, **row} for one in records for row in one.get("rows", [{}])]


def is_quick(run: dict[str, Any]) -> bool:
    """Whether these figures are none that may stand as results."""
    settings = run["machine_info"].get("settings", {})
    marks = {settings.get("scale"), *(one["extra_info"].get("scale") for one in run["benchmarks"])}
    return "quick" in marks


def subjects(records: Sequence[dict[str, Any]]) -> str:
    """Which cases and which weights: of records that may be of several runs."""
    return " ".join(dict.fromkeys(map(subject, records)))


def subject(record: dict[str, Any]) -> str:
    """Which case and which weights; several cases are named without their shapes."""
    case = f"Over {record['case']}"
    if "shape" in record:
        case = f"Case {record['case']} ({'x'.join(map(str, record['shape']))})"
    return f"{case}, weights {record['weights'].removesuffix(' weights')}."
