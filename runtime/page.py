"""One page of HTML that needs nothing but itself: its style stands in it, pictures are data: URIs,
plots are SVG, there is no script, and a content security policy forbids the browser to fetch
anything. It prints on A4. The same input gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from runtime import DISCLAIMER, __version__
from runtime.markup import Markup, element, joined
from runtime.nifti import INTENT_NAME
from runtime.overlay import LABEL_COLOURS

_LINE: Final = Markup("\n")
"""As text it would be shown, like everything else that cannot be seen."""
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_page(title: str, sections: Sequence[Markup]) -> str:
    """The page.

    Args:
        title: of the browser's window.
        sections: of the body, in order; empty ones are left out.

    Returns:
        HTML, to be stored as UTF-8.
    """
    body = element("body", element("main", joined([one for one in sections if one], "\n")))
    # The mark stands first: it tells that the file is ours.
    metas = [
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=f"{INTENT_NAME} {__version__}"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", _style()),
    ]
    page = element("html", element("head", joined(metas, "\n")), _LINE, body, lang="en")
    # A file's name may hold bytes that are no text.
    return f"<!doctype html>\n{page}\n".encode(errors="replace").decode()


def card(title: str, *content: str) -> Markup:
    """A part of the page with a title of its own."""
    return element("section", element("h2", title), _LINE, joined(content, "\n"), class_="card")


def heading(kicker: str, title: str, told: Sequence[str]) -> Markup:
    """The top of the page: what kind of page it is, what of, and a line of facts."""
    return element(
        "header",
        element("p", kicker, class_="kicker"),
        element("h1", title),
        element("p", " · ".join(told), class_="dim"),
    )


def notice() -> Markup:
    """What the page must not be taken for."""
    return element(
        "p",
        element("strong", DISCLAIMER),
        " A network drew these labels; nobody has checked them.",
        class_="notice",
        role="note",
    )


def _style() -> Markup:
    rules = [Path(__file__).with_suffix(".css").read_text(encoding="utf-8")]
    for label, (red, green, blue) in LABEL_COLOURS.items():
        rules.append(f".{label.name} {{ --colour: rgb({red} {green} {blue}); }}")
    return Markup("\n".join(rules))
