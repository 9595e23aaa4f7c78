"""Records as the benchmarks write them, of which tables and pictures are made."""

from typing import Any

from benchmarks.figures import figure


def run_of(info: dict[str, Any], median: float) -> dict[str, Any]:
    """A run of one benchmark."""
    return {
        "machine_info": {
            "processor": "P",
            "threads": 2,
            "python_version": "3.11",
            "libraries": {"torch": "2"},
        },
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"extra_info": info, "stats": {"median": median}}],
    }


def together(*runs: dict[str, Any]) -> dict[str, Any]:
    """The records of several runs in the first one's file."""
    return runs[0] | {"benchmarks": [one for run in runs for one in run["benchmarks"]]}


PEER = {
    "question": "peers",
    "peer": "MONAI, eager",
    "input": "volume",
    "placement": "fitted",
    "quality": "exact",
    "backend": "openvino",
    "peer_s": 99.0,
    "ours_s": 11.0,
    "ratio_median": 9.0,
    "ratio_min": 8.5,
    "ratio_max": 9.5,
    "rounds": 3,
    "changed_labels": 0.01,
    "case": "A",
    "shape": [240, 240, 155],
    "weights": "w",
}


SCALING = {
    "question": "scaling: batch",
    "points": [{"at": 1, "seconds": [2.0, 2.1]}],
    "case": "A",
    "shape": [8, 8, 8],
    "weights": "random weights",
}
MEMORY = {
    "question": "memory",
    "backend": "openvino",
    "peak_mib": 664.4,
    "case": "A",
    "shape": [8, 8, 8],
    "weights": "w",
}
PATIENT = {
    "question": "patient",
    "backend": "openvino",
    "stages_s": {"load": 0.04, "network": 8.0, "save": 0.01, "rest": 0.03},
    "figures": {
        "in all": figure([8.08, 8.1, 8.2], "s"),
        "network": figure([8.0, 8.01, 8.02], "s"),
        "around the network": figure([0.08, 0.09, 0.18], "s"),
    },
    "case": "A",
    "weights": "w",
}
PARITY = {"question": "parity", "artefacts": [], "case": "A, B", "weights": "w"}


def stages_of(state: str, infer: float) -> dict[str, Any]:
    p50 = {"decode": 0.05, "infer": infer, "save": 0.02}
    return {
        "question": "stages",
        "state": state,
        "p50_s": p50 | ({"open": 0.4} if state == "cold" else {}),
        "p95_s": {name: 2 * seconds for name, seconds in p50.items()} | {"open": 0.5},
        "figures": {"around the network": figure([0.06, 0.07, 0.09], "s")},
        "backend": "openvino",
        "device": "cpu",
        "case": "A",
        "shape": [8, 8, 8],
        "weights": "w",
    }


def modes_of(truth: bool) -> dict[str, Any]:
    dice = {"WT": 0.9, "TC": 0.8, "ET": 0.7}
    rows = [
        {
            "mode": name,
            "precision": "fp32",
            "windows": windows,
            "seconds": [seconds, 1.1 * seconds],
            "faster": [4 / seconds, 4.1 / seconds, 4.2 / seconds],
            "dice_to_truth": dice if truth else None,
            "dice_to_reference": dict.fromkeys(dice, 1.0),
            "changed_labels": 0.001,
        }
        for name, windows, seconds in (("overlap 0", 8, 2.0), ("overlap 0.5", 16, 4.0))
    ]
    return {
        "question": "scaling: modes",
        "rows": rows,
        "reference": "overlap 0.5",
        "scored_cases": ["A"],
        "backend": "openvino",
        "device": "cpu",
        "case": "A",
        "shape": [8, 8, 8],
        "weights": "w",
    }
