"""YAML that says no more than a configuration needs: one small document of mappings, lists, texts
and numbers. What could make it grow or build something else is refused while it is still text.
"""

from pathlib import Path
from typing import Any, Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from runtime.bounded import read_bounded, words
from runtime.errors import InputError

MOST_BYTES: Final = 64 << 10
DEEPEST: Final = 16
_LARGEST: Final = 1 << 63
_DIGITS: Final = 400


def load_plain_yaml(path: Path) -> Any:
    """The value of a YAML 1.2 file; None for an empty one.

    Raises:
        InputError: missing, no regular file, over `MOST_BYTES`, not YAML, nested deeper than
            `DEEPEST`; of several documents, or with a directive, an anchor, an alias, a tag, a
            merge key or an integer of more than 63 bits.
    """
    try:
        text = read_bounded(path, MOST_BYTES).decode()
        _check_events(text)
        value = YAML(typ="safe", pure=True).load(text)
        _check_values(value)
        return value
    # Dates out of the calendar, keys that are lists: every kind of value has its own error.
    except (OSError, ValueError, TypeError, ArithmeticError, LookupError, YAMLError) as error:
        raise InputError(
            path,
            found=f"no readable YAML ({words(error)})",
            expected=f"a configuration: one document of up to {MOST_BYTES >> 10} KiB, without "
            "anchors, aliases and tags",
            remedy="correct the file",
        ) from error


def _check_events(text: str) -> None:
    """Go through the file without making anything of it, and stop at the first thing amiss."""
    depth = documents = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                _refuse("a second document", event)
            if event.version or event.tags:
                _refuse("a directive", event)
        elif isinstance(event, AliasEvent):
            _refuse(f"an alias, *{event.anchor}", event)
        elif isinstance(event, MappingStartEvent | SequenceStartEvent | ScalarEvent):
            if event.anchor is not None:
                _refuse(f"an anchor, &{event.anchor}", event)
            if event.tag is not None:
                _refuse(f"a tag, {event.tag}", event)
            if isinstance(event, ScalarEvent):
                _check_scalar(event)
            else:
                depth += 1
                if depth > DEEPEST:
                    _refuse(f"nesting deeper than {DEEPEST}", event)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            depth -= 1


def _check_scalar(event: ScalarEvent) -> None:
    plain = event.style is None
    if plain and event.value == "<<":
        _refuse("a merge key, <<", event)
    # Turning digits into a number takes time that grows with their square.
    if plain and len(event.value) > _DIGITS and event.value.lstrip("+-")[:1].isdigit():
        _refuse(f"a number of more than {_DIGITS} digits", event)


def _check_values(value: Any) -> None:
    if isinstance(value, dict):
        for key, member in value.items():
            _check_values(key)
            _check_values(member)
    elif isinstance(value, list | tuple):
        for member in value:
            _check_values(member)
    elif isinstance(value, str):
        # Halves of characters can neither be printed nor be a part of a name.
        value.encode()
        if "\0" in value:
            raise ValueError("a text with a NUL in it")
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError("an integer of more than 63 bits")


def _refuse(what: str, event: Any) -> NoReturn:
    raise ValueError(f"{what[:80]}, in line {event.start_mark.line + 1}")
