"""The table of the ways to run a cohort, from figures whose ratios and differences are plain."""

from benchmarks.figures import figure
from benchmarks.ways_table import ways
from tests.run_records import run_of


def test_ways_are_set_beside_the_first() -> None:
    figures = {
        "one process": figure([20.0, 22.0], "s"),
        "one process, nothing to do": figure([2.0, 2.0], "s"),
        "--device cpu,cpu": figure([15.0, 11.0], "s"),
        "--device cpu,cpu, nothing to do": figure([3.0, 5.0], "s"),
        "--device cpu,cpu over one process": figure([0.75, 0.5], "ratio"),
        "forecast of --device cpu,cpu over what it did": figure([0.9, 1.1], "ratio"),
    }
    record = {"question": "ways", "figures": figures, "cohort": 10, "shape": [8, 9, 7]}
    text = ways(run_of(record | {"weights": "w weights"}, 1.0))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0][1:] == [
        "10 cases s",
        "over one process",
        "nothing to do s",
        "s a case beyond that |",
    ]
    assert rows[2] == ["| one process", "21.0 (20.0-22.0)", "", "2.0 (2.0-2.0)", "1.90 |"]
    # (15 - 3 + 11 - 5) / 2 / 10
    assert rows[3] == [
        "| `--device cpu,cpu`", "13.0 (11.0-15.0)", "0.62 (0.50-0.75)", "4.0 (3.0-5.0)", "0.90 |",
    ]  # fmt: skip
    assert "Forecast of --device cpu,cpu over what it did: 0.90-1.10." in text
    assert "10 phantoms of 8x9x7, weights w." in text
