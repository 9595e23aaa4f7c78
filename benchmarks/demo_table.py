"""The last word of `make demo`: Dice per region and latency per stage, from the files that it
wrote.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from runtime import DISCLAIMER

REGIONS = ("WT", "TC", "ET")


def main(demo: Path) -> None:
    """Print the table of ``demo``/scores.json and the sidecars in ``demo``/predictions."""
    scores = json.loads((demo / "scores.json").read_text())
    table = Table(
        title="Phantoms the network has not seen: Dice, and seconds per stage", title_justify="left"
    )
    table.add_column("case", no_wrap=True)
    for region in REGIONS:
        table.add_column(f"Dice {region}", justify="right", no_wrap=True)
    stages: list[str] = []
    for case_id, found in scores["cases"].items():
        sidecar = json.loads((demo / "predictions" / f"{case_id}.json").read_text())
        if not stages:
            stages = list(sidecar["timings_s"])
            for stage in stages:
                table.add_column(stage, justify="right", no_wrap=True)
        table.add_row(
            case_id,
            *(f"{found[region]['dice']:.3f}" for region in REGIONS),
            *(f"{sidecar['timings_s'][stage]:.2f}" for stage in stages),
        )
    console = Console(width=max(130, Console().width))
    console.print(table)
    for picture in sorted((demo / "predictions").glob("*_preview.png")):
        console.print(f"result beside truth: {picture.resolve()}", soft_wrap=True)
    console.print(DISCLAIMER, style="dim")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
