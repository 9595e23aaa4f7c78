"""The tables of RESULTS.md, each from the JSON of a run."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.figures import middle
from benchmarks.results_page import machine, of_question, rows_of, subject, subjects, table

REGIONS = ("WT", "TC", "ET")
LABELS = ("NCR", "ED", "ET")
SCALED = ("scaling: batch", "scaling: threads", "scaling: volume")


def peers(run: dict[str, Any]) -> str:
    """Every peer against ours, ratios with their spread."""
    found = rows_of(run, "peers")
    rows = [
        [
            one["peer"],
            one["input"],
            f"{one['backend']}, {_how(one)}",
            f"{one['peer_s']:.1f}",
            f"{one['ours_s']:.1f}",
            _ratio(one, one["rounds"]),
            _how_often(one),
            f"{one['changed_labels']:.1e}",
        ]
        for one in sorted(found, key=lambda one: one["input"])
    ]
    head = (
        *("peer", "gets the", "ours", "peer s", "ours s", "ratio (spread)", "rounds"),
        "changed labels",
    )
    # The latter in records of an earlier version.
    halved = any(one.get("weights_stored") == "float16" or one.get("half_weights") for one in found)
    note = " Ours stores its weights in fp16; those of the peers are not rounded." if halved else ""
    return f"{table(head, rows)}\n\n{subjects(found)}{note} {machine(run)}"


def _how_often(one: dict[str, Any]) -> str:
    """Its rounds, and why there is but one."""
    by_design = one["rounds"] == 1 and one.get("once")
    return "1 (too slow for more; 2 with --rounds 2)" if by_design else str(one["rounds"])


def _how(one: dict[str, Any]) -> str:
    """The windows of ours: a mode's name, or where they lie."""
    exact = one["quality"] == "exact"
    return str(one["placement"] if exact else one["quality"])


def _ratio(one: dict[str, Any], rounds: int) -> str:
    middle, ends = one["ratio_median"], (one["ratio_min"], one["ratio_max"])
    return f"**{middle:.2f}** ({_spread(ends, rounds)})"


def _spread(values: Sequence[float], rounds: int, digits: int = 2) -> str:
    """The range over the rounds; of one there is none."""
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}" if rounds > 1 else "1 round"


def stages(run: dict[str, Any]) -> str:
    """Milliseconds per stage, cold and warm: median and 95th percentile over the rounds."""
    found = of_question(run, "stages")
    names = list(dict.fromkeys(name for one in found for name in one["p50_s"]))
    rows = [[name, *(_percentiles(one, name) for one in found)] for name in names]
    around = [one["figures"]["around the network"]["values"] for one in found]
    rows.append(["**around the network**", *(f"**{1000 * median(one):.0f}**" for one in around)])
    head = ("stage, ms", *(f"{one['state']}: p50 (p95)" for one in found))
    rounds = ", ".join(
        f"{one['state']} {len(all_)}" for one, all_ in zip(found, around, strict=True)
    )
    return (
        f"{table(head, rows)}\n\n{found[0]['backend']} on {found[0]['device']}; rounds: {rounds}. "
        "Cold is the network: files lie in the page cache, decode and gate are medians of five "
        f"reads. {subject(found[0])} {machine(run)}"
    )


def _percentiles(one: dict[str, Any], name: str) -> str:
    if name not in one["p50_s"]:
        return ""
    return f"{1000 * one['p50_s'][name]:.1f} ({1000 * one['p95_s'][name]:.1f})"


def modes(run: dict[str, Any]) -> str:
    """Overlap and whatever other modes there are: time, Dice against truth and the reference."""
    (found,) = of_question(run, "scaling: modes")
    rows = []
    for row in found["rows"]:
        faster = row["faster"]
        truth = row["dice_to_truth"]
        rows.append(
            [
                row["mode"],
                row["precision"],
                str(row["windows"]),
                f"{median(row['seconds']):.2f}",
                f"**{median(faster):.2f}** ({_spread(faster, len(row['seconds']))})",
                _regions(truth) if truth else "",
                _regions(row["dice_to_reference"]),
                f"{row['changed_labels']:.1e}",
            ]
        )
    reference = found["reference"]
    head = (
        *("mode", "precision", "windows", "s", f"times as fast as {reference} (spread)"),
        "Dice to truth WT / TC / ET",
        f"Dice to {reference}",
        "changed labels",
    )
    scored = ", ".join(found["scored_cases"])
    return (
        f"{table(head, rows)}\n\nDice over {scored}. {found['backend']} on {found['device']}. "
        f"{subject(found)} {machine(run)}"
    )


def _regions(dice: dict[str, float]) -> str:
    return " / ".join(f"{dice[name]:.4f}" for name in REGIONS)


def scaling(run: dict[str, Any]) -> str:
    """Batch, threads and the size of the volume: seconds with their spread."""
    rows = []
    used = []
    for question in SCALED:
        what = question.removeprefix("scaling: ")
        for found in of_question(run, question):
            used.append(found)
            first = median(found["points"][0]["seconds"])
            for point in found["points"]:
                seconds = point["seconds"]
                windows = f", {point['windows']} windows" if "windows" in point else ""
                rows.append(
                    [
                        what,
                        f"{point['at']}{windows}",
                        f"{median(seconds):.2f} ({_spread(seconds, len(seconds))})",
                        f"{median(seconds) / first:.2f}",
                    ]
                )
    head = ("what", "at", "s (spread)", "to the first")
    return f"{table(head, rows)}\n\n{subjects(used)} {machine(run)}"


def startup(run: dict[str, Any]) -> str:
    """Imports in fresh processes, and a process from its start to its first result."""
    rows = []
    for found in of_question(run, "imports"):
        for name, values in found["figures"].items():
            rows.append([f"import: {name}", _range(values)])
        rows += [[f"import: {name}", why] for name, why in found["left_out"].items()]
    for found in of_question(run, "first result"):
        for name, values in found["figures"].items():
            rows.append([f"first result, {found['backend']}: {name}", _range(values)])
    return f"{table(('what', 'median (spread)'), rows)}\n\n{machine(run)}"


def cohort(run: dict[str, Any]) -> str:
    """One by one against the pipeline, the network's share of it, and the forecast."""
    found = of_question(run, "a cohort")
    names = ("one by one over pipeline", "network over pipeline", "forecast over pipeline")
    rows = [
        [
            one["network"],
            str(one["cohort"]),
            *(_range(one["figures"][name]) for name in names),
            _range(one["figures"]["pipeline, a case"], 3),
        ]
        for one in found
    ]
    head = ("network", "cases", *names, "pipeline, a case")
    return f"{table(head, rows)}\n\n{subjects(found)} {machine(run)}"


def _range(found: dict[str, Any], digits: int = 2, mark: str = "") -> str:
    values, unit = found["values"], "" if found["unit"] == "ratio" else f" {found['unit']}"
    centre = f"{mark}{middle(found):.{digits}f}{unit}{mark}"
    return f"{centre} ({_spread(values, len(values), digits)})"


def patient(run: dict[str, Any]) -> str:
    """Seconds per stage, disk to disk, and by the clock, with their spread."""
    found = of_question(run, "patient")
    stages = list(found[0]["stages_s"])
    rounds = ", ".join(dict.fromkeys(str(len(one["figures"]["in all"]["values"])) for one in found))
    rows = [
        [
            one["backend"],
            *(f"{one['stages_s'][stage]:.3f}" for stage in stages),
            _range(one["figures"]["around the network"], 3, "**"),
            _range(one["figures"]["in all"]),
        ]
        for one in found
    ]
    head = ("backend", *(f"{stage} s" for stage in stages), "around the network", "in all")
    return (
        f"{table(head, rows)}\n\nIn all is from the first read to the sidecar on the disk, by the "
        f"clock; rest is what no stage claims, such as syncing. Rounds: {rounds}. "
        f"Case {found[0]['case']}. {machine(run)}"
    )


def memory(run: dict[str, Any]) -> str:
    """Peak resident memory of one patient."""
    found = of_question(run, "memory")
    rows = [
        [
            one["backend"],
            f"{one['peak_mib']:.0f}",
            f"{one['device_mib']:.0f}" if one.get("device_mib") is not None else "",
        ]
        for one in found
    ]
    head = ("backend", "peak MiB", "on the device MiB")
    return f"{table(head, rows)}\n\n{subjects(found)} {machine(run)}"


def parity(run: dict[str, Any]) -> str:
    """Per artefact and case: Dice to fp32 PyTorch, Dice against truth, changed labels."""
    (found,) = of_question(run, "parity")
    rows = []
    for artefact in found["artefacts"]:
        for case in artefact["cases"]:
            truth = case.get("dice_to_truth")
            rows.append(
                [
                    f"{artefact['file']} ({artefact['backend']}, {artefact['arithmetic']})"
                    + (" made for this table" if artefact.get("made_here") else ""),
                    case["case_id"],
                    " / ".join(f"{case['dice_to_fp32'][name]:.5f}" for name in REGIONS),
                    " / ".join(f"{truth['artefact'][name]:.4f}" for name in REGIONS)
                    if truth
                    else "",
                    " / ".join(f"{truth['fp32'][name]:.4f}" for name in REGIONS) if truth else "",
                    f"{case['changed_labels']:.1e}",
                    f"{case['max_probability_error']:.1e}",
                    artefact["verdict"],
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
        "gate over all cases",
    )
    return f"{table(head, rows)}\n\n{subject(found)} {machine(run)}"


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
        for one in of_question(run, "loading")
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
            _ratio(one, _rounds(one)),
        ]
        for one in rows_of(run, "a training step")
    ]
    head = ("network and patch", "ours in", "MONAI s a step", "ours s a step", "ratio (spread)")
    return f"{table(head, rows)}\n\n{machine(run)}"


def _rounds(step: dict[str, Any]) -> int:
    """Of a step; records of an earlier version tell it by their figure alone."""
    return int(step["rounds"]) if "rounds" in step else len(step["figures"]["ratio"]["values"])


def _network(one: dict[str, Any]) -> str:
    features, patch = ("-".join(map(str, one["features"])), "x".join(map(str, one["patch"])))
    return f"{features}, {patch}"
