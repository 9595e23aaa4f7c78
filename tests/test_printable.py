"""Nothing from a file's name reaches a terminal or a page but letters."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.markup import element
from runtime.printable import cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Brats18_2013_3_1", "Brats18_2013_3_1"),
        ("Müller 脳 é", "Müller 脳 é"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9" if os.name == "posix" else "café"),
        ("a\u2028b\x85c\x00", r"a\u2028b\x85c\x00"),
        ("thin\u2009space", "thin\u2009space"),
    ],
)
def test_what_does_more_than_to_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None), max_size=40))
def test_any_text_becomes_one_line_that_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A1", "+1", "-rf", "@SUM(A1)", "\t=1", " =1", "'x"]
)
def test_no_name_is_a_formula_of_a_spreadsheet(text: str) -> None:
    shown = cell(text)
    assert shown == f"'{printable(text)}" or not shown.lstrip().startswith(tuple("=+-@\t\r"))
    assert cell("BraTS20_Training_001") == "BraTS20_Training_001"


@given(st.lists(st.text("=+-@' a\t", max_size=4), unique_by=printable))
def test_no_two_names_become_one_cell(names: list[str]) -> None:
    assert len({cell(name) for name in names}) == len(names)


def test_errors_and_pages_show_no_control_characters() -> None:
    error = InputError("a\nb\x1b[2J", found="c\rd", expected="e\x00", remedy="f")
    assert str(error) == r"a\nb\x1b[2J: found c\rd, expected e\x00; f."
    assert error.where == "a\nb\x1b[2J"
    page = element("p", "<b>\x1b\udc80", title="\u202e\"'>")
    assert page == (
        r"<p title="
        r'"\u202e&quot;&#x27;&gt;"'
        r">&lt;b&gt;\x1b\udc80</p>"
    )
