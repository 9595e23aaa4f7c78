"""What `gpu_check` prints last."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any], console: Console) -> None:
    """The short table: what was chosen, whether it agrees, how fast it is, against whom."""
    facts = report.get("environment", {})
    console.rule("result")
    where = f"{facts.get('gpu', {}).get('name', '')}, {facts.get('tensorrt', '')}"
    engines = Table(title=f"Engines on {where}", title_justify="left")
    for name in ("graph", "input", "ms/window", "verdict", ""):
        engines.add_column(name, overflow="fold")
    for one in (report.get("export", {}).get("engines") or {}).get("tried", []):
        engines.add_row(
            one["file"],
            one["input_layout"],
            f"{one['window_ms']:.3f}",
            one["verdict"],
            "chosen" if one["chosen"] else "",
        )
    console.print(engines)
    times = Table(
        title="One patient: n windows, device ms, host ms (wall), changed labels",
        title_justify="left",
    )
    for name in ("", "n", "total", "from", "to", "window", "wall", "MiB", "changed"):
        times.add_column(name, no_wrap=True, justify="right" if name else "left")
    agreed = report.get("agreement", {})
    for name, entry in report.get("patient", {}).items():
        if isinstance(entry, dict):
            changed = agreed.get(name, {}).get("changed_labels")
            times.add_row(
                name,
                str(entry["windows"]),
                *(f"{value:.2f}" for value in (entry["total"], *entry["spread"])),
                f"{entry['per_window']:.3f}",
                f"{entry['wall']:.1f}",
                f"{entry['memory_mib']:.0f}",
                "" if changed is None else f"{changed:.1e}",
            )
    console.print(times)
    for name in ("contract", "disk", "ort_options", "peers", "ceilings"):
        if name in report:
            console.print(f"{name}: {_short(report[name])}", markup=False, soft_wrap=True)
    for line in ratios(report):
        console.print(line)
    if report["rehearsal"]:
        console.print("a rehearsal on fakes: these times mean nothing", style="bold yellow")


def ratios(report: dict[str, Any]) -> list[str]:
    """Ours against the peers, where both were measured."""
    peer, ours = report.get("peers", {}), report.get("patient", {})
    pairs = [
        ("MONAI AMP, full volume / ours, default plan", "monai_full_ms", "trt fp16"),
        ("MONAI AMP, same box / ours, default plan", "monai_box_ms", "trt fp16"),
        ("PyTorch AMP, same windows / ours", "amp_patient_ms", "trt fp16"),
        ("torch.compile, same windows / ours", "compiled_patient_ms", "trt fp16"),
    ]
    found = [
        f"{title}: {peer[key] / ours[name]['total']:.2f}x"
        for title, key, name in pairs
        if key in peer and isinstance(ours.get(name), dict)
    ]
    disk_s = report.get("disk", {}).get("one_patient_s", {}).get("total")
    if disk_s and "monai_disk_to_disk_ms" in peer:
        ratio = peer["monai_disk_to_disk_ms"] / 1e3 / disk_s
        found.append(f"MONAI AMP, disk to disk / ours: {ratio:.2f}x")
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
