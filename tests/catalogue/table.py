"""The catalogue as a page, README.md beside this file: ``python -m tests.catalogue.table``."""

from pathlib import Path

from tests.catalogue.cases import CASES, LABELS
from tests.catalogue.files import FILES, HEADERS
from tests.catalogue.runs import MODELS, RUNS
from tests.catalogue.scene import Row

ROWS: tuple[Row, ...] = (*FILES, *HEADERS, *CASES, *LABELS, *MODELS, *RUNS)
README = Path(__file__).with_name("README.md")
_HEAD = """\
# What becomes of bad input

Every row is a test: `pytest tests/test_catalogue.py`. An *error* ends with the exit code and one
sentence that names the file, what was found, what was expected and the remedy, and no label map is
written. *Corrected* input is segmented as what it can only mean, with a warning on the screen, in
the sidecar and in the report. *Accepted* input is what it should be, and comes out as the healthy
case does.

Of files, headers, cases and labels, `brats-infer --check` says the same: whatever is an error here
is one of its own, exit code 3, and whatever is corrected is a warning.

Exit codes: 2 usage, 3 bad input, 4 backend unavailable, 6 some cases of several failed, 7 output
cannot be written, 130 interrupted. Written by `python -m tests.catalogue.table`.
"""
_MET_BY = {"infer": "brats-infer", "eval": "brats-eval", "read": "the reader"}


def text() -> str:
    """The whole page."""
    parts = [_HEAD]
    for area in dict.fromkeys(row.area for row in ROWS):
        parts.append(f"\n## {area}\n\n| input | what becomes of it | exit | met by | told |\n"
                     "|---|---|---|---|---|\n")  # fmt: skip
        parts += [_line(row) for row in ROWS if row.area == area]
    return "".join(parts)


def _line(row: Row) -> str:
    told = ", ".join(f"`{part}`" for part in row.told)
    return f"| {row.name} | {row.outcome} | {row.code} | {_MET_BY[row.command]} | {told} |\n"


if __name__ == "__main__":
    README.write_text(text())
