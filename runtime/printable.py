"""Text from outside, as one line that a terminal, a log or a page can show."""

import unicodedata
from typing import Final

# Control, format (which turn the direction of writing, or hide), half of a surrogate pair (a byte
# of a file name that is no text), and breaks of lines and paragraphs.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


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
