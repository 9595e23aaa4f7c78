"""HTML that cannot be broken by what it shows: text is escaped unless it was made here."""

from collections.abc import Iterable
from html import escape
from typing import Final

from runtime.printable import printable

_VOID: Final = frozenset({"img", "meta"})


class Markup(str):
    """A piece of HTML, which is inserted as it is; any other string is text."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element, such as "td".
        children: text, which is escaped, or `Markup`.
        attributes: by name; an underscore within stands for a hyphen, one at the end is dropped, so
            that ``class_`` and ``aria_label`` can be told. Values are escaped; None leaves one out.
    """
    told = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{joined(children)}</{name}>")


def joined(children: Iterable[str], between: str = "") -> Markup:
    """Text and markup one after the other."""
    return Markup(
        between.join(
            child if isinstance(child, Markup) else escape(printable(child), quote=False)
            for child in children
        )
    )


def table(
    head: Iterable[str], rows: Iterable[Iterable[str]], caption: str, class_: str | None = None
) -> Markup:
    """A table whose first column names its rows; a narrow screen scrolls it sideways.

    Args:
        head: titles of the columns; empty for a table of names and values.
        rows: cells of each row.
        caption: what the table holds.
        class_: its style.
    """
    titles = [element("th", title, scope="col") for title in head]
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    parts = [element("caption", caption)]
    if titles:
        parts.append(element("thead", element("tr", *titles)))
    parts.append(element("tbody", joined(body, "\n")))
    inner = element("table", joined(parts, "\n"), class_=class_)
    return element("div", inner, class_="scroll", tabindex=0, role="group", aria_label=caption)
