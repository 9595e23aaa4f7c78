"""HTML as a tree that can be asked, read by a parser that forgives nothing."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import numpy.typing as npt
from PIL import Image

VOID = {"meta", "img"}


@dataclass
class Node:
    """An element, with everything that is in it."""

    tag: str
    attributes: dict[str, str | None]
    children: list["Node"] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str | None = None, **attributes: str) -> list["Node"]:
        """This element and those in it, in order, that have such a tag and attributes."""
        asked = {
            key.removesuffix("_").replace("_", "-"): value for key, value in attributes.items()
        }
        return [
            node
            for node in self.walk()
            if tag in (None, node.tag)
            and all(node.attributes.get(key) == value for key, value in asked.items())
        ]

    def walk(self) -> Iterator["Node"]:
        yield self
        for child in self.children:
            yield from child.walk()

    def words(self) -> str:
        return "".join(node.text for node in self.walk())


class Tree(HTMLParser):
    """A page as a tree; an element that is not closed, or closed twice, is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Node("root", {})
        self._open = [self.root]
        self.feed(page)
        self.close()
        assert self._open == [self.root], f"not closed: {self._open[-1].tag}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].text += data


def tree_of(page: str) -> Node:
    return Tree(page).root


def table_of(root: Node, title: str) -> dict[str, list[str]]:
    """First cell of each row to the others."""
    (card,) = (one for one in root.all("section") if one.children[0].words() == title)
    (body,) = card.all("tbody")
    rows = ([cell.words() for cell in row.children] for row in body.all("tr"))
    return {first: rest for first, *rest in rows}


def png_of(node: Node) -> npt.NDArray[np.uint8]:
    source = node.attributes["src"] or ""
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
