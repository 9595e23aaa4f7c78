"""What brats-export shows at the end: parity, engines, and what a person should know beside them.

The tables fit 80 columns. Lines that name files are never wrapped here, so that a name can be
copied.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from export.fuse import FusionReport
from export.modes import mean_over
from export.produce import Product
from runtime.labels import REGIONS


def say(console: Console, line: str, style: str = "") -> None:
    """A line as it is, whatever its length."""
    console.print(line, style=style, markup=False, soft_wrap=True)


def show_graph(report: FusionReport, console: Console) -> None:
    """What was rewritten in the graph, and what could not be."""
    composed = f"{report.composed} up branches composed into one transposed convolution each"
    say(
        console,
        f"graph: {report.folded} batch norms folded, "
        + (composed if report.composed else "no up branch composed"),
    )
    for note in report.left_alone:
        say(console, f"left alone: {note}")


def show_product(product: Product, reference: str, console: Console) -> None:
    """Tables of parity and of engines, layers kept in fp32, and, in yellow, what went wrong.

    Args:
        product: what is about to be released, or refused.
        reference: name of the backend that it was compared with.
        console: to print on.
    """
    certificate = product.certificate
    against = "fp32 PyTorch" if reference == "torch" else "fp32"
    console.print(parity_table(certificate, f"Parity with {against}"))
    engines = certificate.get("engines")
    if engines is not None:
        console.print(engine_table(engines))
    if certificate.get("modes"):
        console.print(mode_table(certificate["modes"]))
    for entry in certificate["artefacts"]:
        kept = [part["part"] for part in entry.get("kept", {}).get("kept_fp32", ())]
        if kept and "built_from" not in entry:
            say(console, f"{entry['file']}: kept in fp32: {', '.join(kept)}")
    for note in product.notes:
        say(console, note, "yellow")
    if engines is not None:
        for reason, titles in _by_reason(engines).items():
            say(console, f"unusable: {'; '.join(titles)}: {reason}", "yellow")


def parity_table(certificate: Mapping[str, Any], title: str) -> Table:
    """The certificate for people: a row per artefact and what ran it; an engine by its graph."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("artefact", overflow="fold")
    shown.add_column("run by", overflow="fold")
    shown.add_column("least\nDice", justify="right")
    shown.add_column("changed\nlabels", justify="right")
    shown.add_column("verdict")
    for entry in certificate["artefacts"]:
        records = [case for case in entry.get("cases", ()) if not case["non_finite"]]
        shown.add_row(
            entry.get("built_from", entry["file"]),
            _runner(entry),
            f"{min(min(record['dice_to_fp32'].values()) for record in records):.5f}"
            if records
            else "",
            f"{max(record['changed_labels'] for record in records):.1e}" if records else "",
            entry["verdict"],
        )
    return shown


def engine_table(engines: Mapping[str, Any]) -> Table:
    """What was built for the device at hand, how fast it is, and what became of it.

    Args:
        engines: of parity.json.
    """
    shown = Table(title=f"Engines on {engines['gpu']}, {engines['library']}", title_justify="left")
    shown.add_column("graph", overflow="fold")
    shown.add_column("input")
    shown.add_column("ms per\nwindow", justify="right")
    shown.add_column("build s", justify="right")
    shown.add_column("verdict")
    for one in engines["tried"]:
        verdict = one["verdict"] or "slower"
        shown.add_row(
            one["file"],
            one["input_layout"],
            f"{one['window_ms']:.3f}",
            f"{one['build_s']:.1f}",
            f"{verdict}, chosen" if one["chosen"] else verdict,
            style="bold" if one["chosen"] else None,
        )
    for one in engines["unusable"]:
        shown.add_row(one["file"], one["input_layout"], "", "", "unusable")
    return shown


def mode_table(modes: Sequence[Mapping[str, Any]]) -> Table:
    """What the faster modes lose: mean Dice per region, to the exact way and against truth.

    Args:
        modes: of parity.json.
    """
    shown = Table(title="Modes beside the exact way, mean Dice", title_justify="left")
    shown.add_column("quality", no_wrap=True)
    shown.add_column("run by", no_wrap=True)
    shown.add_column("region", no_wrap=True)
    for name in ("to exact", "to truth", "exact to truth"):
        shown.add_column(name, justify="right", min_width=6)
    shown.add_column("times faster", justify="right")
    shown.add_column("gate")
    for one in modes:
        scored = [case["dice_to_truth"] for case in one["cases"] if "dice_to_truth" in case]
        faster = "" if one["times_faster"] is None else f"{one['times_faster']:.1f}"
        for region in REGIONS:
            first = region == next(iter(REGIONS))
            shown.add_row(
                one["quality"] if first else "",
                one["backend"] if first else "",
                region,
                _mean(one["cases"], "dice_to_exact", region),
                _mean(scored, "mode", region),
                _mean(scored, "exact", region),
                faster if first else "",
                one["verdict"] if first else "",
            )
    return shown


def _mean(records: Sequence[Mapping[str, Any]], name: str, region: str) -> str:
    mean = mean_over(records, name, region)
    return "" if mean is None else f"{mean:.4f}"


def _runner(entry: Mapping[str, Any]) -> str:
    """Backend and device; emulation is on the CPU by nature."""
    backend, device = entry["backend"], entry.get("device", "")
    return str(backend if backend == "emulation" else f"{backend} {device}".rstrip())


def _by_reason(engines: Mapping[str, Any]) -> dict[str, list[str]]:
    """Combinations that could not be built or run, gathered by what stood in the way."""
    found: dict[str, list[str]] = {}
    for one in engines["unusable"]:
        found.setdefault(one["reason"], []).append(f"{one['file']}, {one['input_layout']} input")
    return found
