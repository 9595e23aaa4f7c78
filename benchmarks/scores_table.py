"""The table of real cases' scores, from what brats-eval and brats-infer have written."""

import json
from pathlib import Path
from typing import Any

from benchmarks.results_page import table
from benchmarks.tables import LABELS, REGIONS


def scores(evaluation: dict[str, Any], predictions: Path) -> str:
    """Dice per case, region and label, HD95 per region, seconds."""
    rows = []
    made_by = []
    for case_id, found in evaluation["cases"].items():
        sidecar = json.loads((predictions / f"{case_id}.json").read_text())
        made_by.append(_made_by(sidecar))
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
    made = "; ".join(dict.fromkeys(made_by))
    return f"{table(head, rows)}\n\nProfile {evaluation['profile']}. {made}."


def _made_by(sidecar: dict[str, Any]) -> str:
    """What a prediction was made with, as far as its sidecar says: not on which machine."""
    model, backend, windows = (sidecar[key] for key in ("model", "backend", "windows"))
    patch = "x".join(map(str, windows["patch"]))
    overlap = "/".join(f"{one:g}" for one in dict.fromkeys(windows["overlap"]))
    return (
        f"Weights {model['name']} ({model['sha256'][:10]}), {backend['name']} on "
        f"{backend['device']} in {backend['precision']}, windows of {patch}, overlap {overlap}, "
        f"{windows['placement']}; brats-deploy {sidecar['run']['version']}, "
        f"{sidecar['run']['finished'][:10]}"
    )
