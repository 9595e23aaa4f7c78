"""Text from outside, as one line that a terminal, a log or a page can show."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

# Control, format (which turn the direction of writing, or hide), half of a surrogate pair (a byte
# of a file name that is no text), and breaks of lines and paragraphs.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# OWASP's list for CSV, and the wide forms that some spreadsheets take for the same.
_FORMULA: Final = ("=", "+", "-", "@", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def printable(text: str) -> str:
    r"""``text``, with an escape such as ``\x1b`` for what does more than to be seen.

    Names of files can hold line breaks, colours and cursor movements of a terminal, and bytes that
    are no text at all.
    """
    if text.isprintable():
        return text
    return "".join(
        ascii(letter)[1:-1] if unicodedata.category(letter) in _HIDDEN else letter
        for letter in text
    )


def cell(text: str) -> str:
    """``text`` for a table that a spreadsheet may open: `printable`, and never a formula.

    An apostrophe goes before what a spreadsheet would take for the beginning of one, and before
    another apostrophe, so that no two names become one.
    """
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV with line feeds; texts in it are to be those of `cell`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
