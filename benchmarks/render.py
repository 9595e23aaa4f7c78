"""Write measured figures into the generated blocks of RESULTS.md: `python -m benchmarks.render`.

    python -m benchmarks.render BENCHMARK_JSON      peers, patient, memory, parity and training
    python -m benchmarks.render --scores SCORES_JSON PREDICTIONS_DIR      scores of real cases

A block stands between `<!-- name -->` and `<!-- /name -->`; what is outside of blocks is prose.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
REGIONS = ("WT", "TC", "ET")
LABELS = ("NCR", "ED", "ET")


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
    libraries = ", ".join(f"{name} {version}" for name, version in info["libraries"].items())
    commit = run["commit_info"].get("id", "unknown")[:10]
    return (
        f"{info['processor']}, {info['threads']} threads, Python {info['python_version']}; "
        f"{libraries}; {run['datetime'][:10]}, commit {commit}."
    )


def _by_question(run: dict[str, Any], start: str) -> list[dict[str, Any]]:
    found = []
    for one in run["benchmarks"]:
        if one["extra_info"].get("question", "").startswith(start):
            found.append({**one["extra_info"], "seconds": one["stats"]["median"]})
    return found


def peers(run: dict[str, Any]) -> str:
    """MONAI against ours, ratios with their spread."""
    rows = [
        [
            one["question"],
            one["backend"],
            f"{one['peer_s']:.1f}",
            f"{one['seconds']:.1f}",
            f"**{one['ratio_median']:.2f}** ({one['ratio_min']:.2f}-{one['ratio_max']:.2f})",
            f"{one['changed_labels']:.1e}",
        ]
        for one in _by_question(run, "same crop") + _by_question(run, "full volume")
    ]
    first = _by_question(run, "full volume")[0]
    head = ("question", "backend", "MONAI s", "ours s", "ratio (spread)", "changed labels")
    note = f"Case {first['case']}, weights {first['weights']}. {machine(run)}"
    return f"{table(head, rows)}\n\n{note}"


def patient(run: dict[str, Any]) -> str:
    """Seconds per stage, disk to disk."""
    found = _by_question(run, "patient")
    stages = list(found[0]["stages_s"])
    rows = [
        [
            one["backend"],
            *(f"{one['stages_s'][stage]:.3f}" for stage in stages),
            f"**{one['around_the_network_s']:.3f}**",
            f"{one['seconds']:.2f}",
        ]
        for one in found
    ]
    head = ("backend", *(f"{stage} s" for stage in stages), "around the network s", "in all s")
    return f"{table(head, rows)}\n\nCase {found[0]['case']}. {machine(run)}"


def memory(run: dict[str, Any]) -> str:
    """Peak resident memory of one patient."""
    rows = [[one["backend"], f"{one['peak_mib']:.0f}"] for one in _by_question(run, "memory")]
    return table(("backend", "peak MiB"), rows)


def parity(run: dict[str, Any]) -> str:
    """Per artefact and case: Dice to fp32 PyTorch, Dice against truth, changed labels."""
    rows = []
    for artefact in _by_question(run, "parity")[0]["artefacts"]:
        for case in artefact["cases"]:
            truth = case.get("dice_to_truth")
            rows.append(
                [
                    f"{artefact['file']} ({artefact['backend']}, {artefact['arithmetic']})",
                    case["case_id"],
                    " / ".join(f"{case['dice_to_fp32'][name]:.5f}" for name in REGIONS),
                    " / ".join(f"{truth['artefact'][name]:.4f}" for name in REGIONS)
                    if truth
                    else "",
                    " / ".join(f"{truth['fp32'][name]:.4f}" for name in REGIONS) if truth else "",
                    f"{case['changed_labels']:.1e}",
                    f"{case['max_probability_error']:.1e}",
                ]
            )
    head = (
        "artefact",
        "case",
        "Dice to fp32 WT / TC / ET",
        "Dice to truth",
        "fp32's",
        "changed labels",
        "max probability error",
    )
    return table(head, rows)


def loading(run: dict[str, Any]) -> str:
    """Patches a second of loading and augmenting beside those of the step."""
    rows = [
        [
            _network(one),
            one["augmentation"],
            f"{one['loader_patches_s']:.1f}",
            f"{one['step_patches_s']:.2f}",
            f"{one['processes_to_feed_it']:.2f}",
        ]
        for one in _by_question(run, "loading")
    ]
    head = (
        "network and patch",
        "augmentation",
        "loader patches/s, one process",
        "step patches/s",
        "processes the step needs",
    )
    return f"{table(head, rows)}\n\n{machine(run)}"


def training(run: dict[str, Any]) -> str:
    """A training step of a plain MONAI loop against ours, ratios with their spread."""
    rows = [
        [
            _network(one),
            one["precision"],
            f"{one['peer_s']:.2f}",
            f"{one['ours_s']:.2f}",
            f"**{one['ratio_median']:.2f}** ({one['ratio_min']:.2f}-{one['ratio_max']:.2f})",
        ]
        for one in _by_question(run, "a training step")
    ]
    head = ("network and patch", "ours in", "MONAI s a step", "ours s a step", "ratio (spread)")
    return f"{table(head, rows)}\n\n{machine(run)}"


def _network(one: dict[str, Any]) -> str:
    features, patch = ("-".join(map(str, one["features"])), "x".join(map(str, one["patch"])))
    return f"{features}, {patch}"


def scores(evaluation: dict[str, Any], predictions: Path) -> str:
    """Dice per case, region and label, HD95 per region, seconds."""
    rows = []
    for case_id, found in evaluation["cases"].items():
        sidecar = json.loads((predictions / f"{case_id}.json").read_text())
        seconds = sidecar["timings_s"]
        rows.append(
            [
                case_id,
                *(f"{found[name]['dice']:.3f}" for name in REGIONS),
                *(f"{found[name]['dice']:.3f}" for name in LABELS[:2]),
                *(f"{found[name]['hd95']:.1f}" for name in REGIONS),
                f"{seconds['network']:.1f}",
                f"{sum(seconds.values()) - seconds['network']:.2f}",
            ]
        )
    summary = evaluation["summary"]
    rows.append(
        [
            "**mean**",
            *(f"**{summary[name]['dice']['mean']:.3f}**" for name in REGIONS),
            *(f"**{summary[name]['dice']['mean']:.3f}**" for name in LABELS[:2]),
            *(f"**{summary[name]['hd95']['mean']:.1f}**" for name in REGIONS),
            "",
            "",
        ]
    )
    head = (
        "case",
        *(f"Dice {name}" for name in REGIONS),
        *(f"Dice {name}" for name in LABELS[:2]),
        *(f"HD95 mm {name}" for name in REGIONS),
        "network s",
        "around it s",
    )
    return table(head, rows)


def main(args: Sequence[str]) -> None:
    """Fill the blocks that the given files have figures for."""
    text = RESULTS.read_text()
    if args[0] == "--scores":
        evaluation = json.loads(Path(args[1]).read_text())
        text = replace_block(text, "scores", scores(evaluation, Path(args[2])))
    else:
        run = json.loads(Path(args[0]).read_text())
        blocks = {"same crop": ("peers", peers), "patient": ("patient", patient)}
        blocks |= {"memory": ("memory", memory), "parity": ("parity", parity)}
        blocks |= {"loading": ("loading", loading), "a training step": ("training", training)}
        for question, (name, render) in blocks.items():
            if _by_question(run, question):
                text = replace_block(text, name, render(run))
    RESULTS.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
