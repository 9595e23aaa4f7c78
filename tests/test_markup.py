"""Whatever the text is, a browser reads it back as text."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from runtime.markup import element, joined, table
from runtime.printable import printable

TEXT = st.text(st.characters(codec=None))
HOSTILE = st.sampled_from(["</td>", "<script>", '" onload="x', "' x='", "&lt;", "&amp", "-->"])


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@given(TEXT | HOSTILE, TEXT | HOSTILE)
def test_text_and_attributes_come_back(text: str, value: str) -> None:
    read = Reader(element("p", text, element("b", text), title=value, aria_label=value))
    assert read.tags == ["p", "b"]
    assert read.text == 2 * printable(text)
    assert read.attributes == [("title", printable(value)), ("aria-label", printable(value))]


def test_markup_is_taken_as_it_is_and_text_is_not() -> None:
    assert joined(["<", element("b", "&"), ">"], " ") == "&lt; <b>&amp;</b> &gt;"
    assert element("img", src="data:,", alt=None, class_="a") == '<img src="data:," class="a">'
    assert element("meta", name="x") == '<meta name="x">'


def test_a_table_names_its_columns_and_rows() -> None:
    made = table(["a", "<b>"], [["1", "<2>"]], "a caption")
    assert '<th scope="col">a</th><th scope="col">&lt;b&gt;</th>' in made
    assert '<tr><th scope="row">1</th><td>&lt;2&gt;</td></tr>' in made
    assert "<caption>a caption</caption>" in made
    assert "thead" not in table([], [["1", "2"]], "of facts")
