"""What `gpu_check` prints last; also of the report of an earlier run.

python -m benchmarks.gpu_report OUT/gpu_check.json
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

WIDTH: Final = 120
OURS: Final = ("trt fp16", "ort fp16", "trt fp32", "ort fp32")
"""What peers are compared with: the first of these that was measured."""


def report_console() -> Console:
    """Standard output; in a file or a pipe wide enough for the tables."""
    console = Console()
    if not console.is_terminal:
        console.width = max(WIDTH, console.width)
    return console


def show(report: dict[str, Any], console: Console) -> None:
    """What was chosen, whether it agrees, how fast it is, against whom, and what is missing."""
    console.rule("result")
    facts = _section(report, "environment")
    gpu = facts.get("gpu")
    name = gpu["name"] if isinstance(gpu, dict) else gpu
    console.print(
        f"{name or 'GPU not known'}, {facts.get('tensorrt') or 'TensorRT not known'}",
        markup=False,
        soft_wrap=True,
    )
    for table in (_contract(report), _engines(report), _times(report), _compared(report)):
        if table is not None:
            console.print(table, markup=False, soft_wrap=isinstance(table, str))
    for line in _figures(report):
        console.print(line, markup=False, soft_wrap=True)
    _missing(report, console)
    if report.get("rehearsal"):
        console.print("a rehearsal on fakes: these times mean nothing", style="bold yellow")


@dataclass(frozen=True)
class Comparison:
    """A peer and ours at the same thing.

    Attributes:
        peer, ours: what was run.
        peer_ms, ours_ms: how long it took.
    """

    peer: str
    peer_ms: float
    ours: str
    ours_ms: float

    @property
    def ratio(self) -> float:
        return self.peer_ms / self.ours_ms


def comparisons(report: dict[str, Any]) -> list[Comparison]:
    """The peers against ours, where both were measured."""
    peer, ours = _section(report, "peers"), _section(report, "patient")
    best = next((one for one in OURS if "total" in _section(ours, one)), "")
    found = []
    for title, key, setting, plan in (
        ("MONAI AMP, full volume", "monai_full_ms", best, "default plan"),
        ("MONAI AMP, full volume", "monai_full_ms", f"{best} full", "same windows"),
        ("MONAI AMP, same box", "monai_box_ms", best, "default plan"),
        ("PyTorch AMP", "amp_patient_ms", best, "same windows"),
        ("torch.compile", "compiled_patient_ms", best, "same windows"),
    ):
        entry = _section(ours, setting)
        if "total" in entry and _is_figure(peer.get(key)):
            found.append(Comparison(title, peer[key], f"{setting}, {plan}", entry["total"]))
    one = _section(_section(report, "disk"), "one_patient")
    theirs = peer.get("monai_disk_to_disk_ms")
    if "total" in one and isinstance(theirs, float):
        found.append(
            Comparison("MONAI AMP, disk to disk", theirs, one["setting"], 1e3 * one["total"])
        )
    return found


def _compared(report: dict[str, Any]) -> Table | None:
    table = Table(title="Peers on the same case, weights and device", title_justify="left")
    for name in ("peer", "ms", "ours", "ms", "ratio"):
        side: Literal["left", "right"] = "left" if name in ("peer", "ours") else "right"
        table.add_column(name, no_wrap=True, justify=side)
    for one in comparisons(report):
        table.add_row(
            one.peer, f"{one.peer_ms:.2f}", one.ours, f"{one.ours_ms:.2f}", f"{one.ratio:.2f}x"
        )
    return table if table.row_count else None


def _contract(report: dict[str, Any]) -> str | None:
    found = _section(report, "contract")
    if "passed" not in found:
        return None
    counts = ", ".join(f"{found[name]} {name}" for name in ("passed", "failed", "skipped"))
    skips = "".join(f"\n  skipped {n} times: {why}" for why, n in found["skips"].items())
    return f"contract tests: {counts}{skips}"


def _engines(report: dict[str, Any]) -> Table | None:
    engines = _section(report, "export").get("engines") or {}
    table = Table(title="Engines", title_justify="left")
    table.add_column("graph", no_wrap=True)
    table.add_column("input", no_wrap=True)
    for name in ("ms/window", "build s"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in engines.get("tried", []):
        table.add_row(
            one["file"],
            one["input_layout"],
            f"{one['window_ms']:.3f}",
            f"{one['build_s']:.1f}",
            one["verdict"] or "not judged",
            "chosen" if one["chosen"] else "; ".join(one["reasons"]),
        )
    for one in engines.get("unusable", []):
        table.add_row(one["file"], one["input_layout"], "", "", "unusable", one["reason"])
    return table if table.row_count else None


def _times(report: dict[str, Any]) -> Table | None:
    patient, agreed = _section(report, "patient"), _section(report, "agreement")
    table = Table(
        title="One patient: n windows, ms of the device (wall: of the host), labels changed",
        title_justify="left",
    )
    for name in ("", "n", "total", "least", "most", "window", "wall", "MiB", "changed", "gate"):
        table.add_column(name, no_wrap=True, justify="right" if name else "left")
    for name in dict.fromkeys([*agreed, *patient]):
        found, entry = _section(agreed, name), _section(patient, name)
        figures = [""] * 7
        if "total" in entry:
            figures = [
                str(entry["windows"]),
                *(f"{value:.2f}" for value in (entry["total"], *entry["spread"])),
                f"{entry['per_window']:.3f}",
                f"{entry['wall']:.1f}",
                f"{entry['memory_mib']:.0f}",
            ]
        elif "error" in entry:
            figures[-1] = "failed"
        judged = ["failed" if "error" in found else "", ""]
        if "changed_labels" in found:
            sign = ">" if "error" in found else "<="
            judged = [f"{found['changed_labels']:.1e}", f"{sign} {found['limit']:.0e}"]
        failed = "error" in found or "error" in entry
        table.add_row(name, *figures, *judged, style="red" if failed else None)
    return table if table.row_count else None


def _figures(report: dict[str, Any]) -> Iterator[str]:
    disk = _section(report, "disk")
    one, many = _section(disk, "one_patient"), _section(disk, "cohort")
    if "total" in one:
        parts = ", ".join(f"{name} {1e3 * one[name]:.1f}" for name in ("load", "segment", "save"))
        yield f"disk to disk, {one['setting']}: {1e3 * one['total']:.1f} ms ({parts})"
    if "patients_per_s" in many:
        yield f"throughput, {many['setting']}: {many['patients_per_s']:.2f} patients/s"
    for what, section, part in (
        ("ONNX Runtime fp16, ms per window", "ort_options", ""),
        ("PyTorch, ms per window", "peers", "window"),
    ):
        figures = [
            f"{key.removesuffix('_ms')} {value:.4g}"
            for key, value in _section(report, section).items()
            if _is_figure(value) and part in key
        ]
        if figures:
            yield f"{what}: {'; '.join(figures)}"
    ceilings = _section(report, "ceilings")
    if "tflops" in ceilings:
        yield (
            f"ceilings: {ceilings['tflops']:.0f} TFLOP/s fp16, {ceilings['tbytes']:.2f} TB/s; a "
            f"window of {ceilings['graph']} at least {ceilings['arithmetic_us']:.0f} us of "
            f"arithmetic, {ceilings['memory_us']:.0f} us of memory traffic"
        )


def _missing(report: dict[str, Any], console: Console) -> None:
    """What failed and what was left out, with reasons: nobody must take silence for success."""
    rows = report.get("rows", [])
    for status, what, style in (
        ("left out", "left out", ""),
        ("no time", f"left out, as {report.get('minutes')} minutes were given", "yellow"),
        ("failed", "failed", "bold red"),
    ):
        chosen = [row for row in rows if row["status"] == status]
        if chosen:
            console.print(f"{what}:", style=style)
        for row in chosen:
            line = f"  {row['row']}: {row['why']}"
            console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    if rows and all(row["status"] != "failed" for row in rows):
        ran = sum(row["status"] == "ok" for row in rows)
        console.print(f"{ran} of {len(rows)} rows ran, and none failed", style="green")


def _section(report: dict[str, Any], name: str) -> dict[str, Any]:
    """A section or a row that may not be there, or may be no dict."""
    found = report.get(name)
    return found if isinstance(found, dict) else {}


def _is_figure(value: Any) -> bool:
    return isinstance(value, float)


def main() -> None:
    """Print the tables of a report."""
    show(json.loads(Path(sys.argv[1]).read_text()), report_console())


if __name__ == "__main__":
    main()
