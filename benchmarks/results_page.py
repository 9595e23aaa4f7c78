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
    """One line: processor, threads, versions, date, commit."""
    info = run["machine_info"]
    libraries = ", ".join(
        f"{name} {version}" for name, version in info["libraries"].items() if version != "absent"
    )
    commit = run["commit_info"].get("id", "unknown")[:10]
    return (
        f"{info['processor']}, {info['threads']} threads, Python {info['python_version']}; "
        f"{libraries}; {run['datetime'][:10]}, commit {commit}."
    )


def of_question(run: dict[str, Any], start: str) -> list[dict[str, Any]]:
    """The records of a run whose question begins so, each with its median seconds."""
    return [
        {**one["extra_info"], "seconds": one["stats"]["median"]}
        for one in run["benchmarks"]
        if one["extra_info"].get("question", "").startswith(start)
    ]


def is_quick(run: dict[str, Any]) -> bool:
    """Whether these figures are none that may stand as results."""
    settings = run["machine_info"].get("settings", {})
    marks = {settings.get("scale"), *(one["extra_info"].get("scale") for one in run["benchmarks"])}
    return "quick" in marks


def subject(record: dict[str, Any]) -> str:
    """Which case and which weights."""
    shape = "x".join(map(str, record["shape"]))
    return f"Case {record['case']} ({shape}), weights {record['weights']}."
