"""Text from files in a page that reads Markdown."""

from typing import Final

_MEANING: Final = frozenset("\\`*_{}[]()<>#+-!|$~:@&")


def escaped(text: str) -> str:
    """Text in which Markdown finds nothing to do: names of files and messages show as they are."""
    return "".join(f"\\{letter}" if letter in _MEANING else letter for letter in text)


def code(text: str) -> str:
    """Text as code in Markdown; backticks in it become apostrophes."""
    return f"`{text.replace('`', chr(39))}`"
