"""Configurations that could grow or build something else are refused while they are text."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from runtime.errors import InputError
from train.config import Config, SplitConfig
from train.config_file import read_config, to_yaml, write_config
from train.plain_yaml import MOST_BYTES, load_plain_yaml

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

REFUSED: dict[str, tuple[str, str]] = {
    "billion laughs": (LAUGHS, "an anchor, &a0, in line 1"),
    "anchor": ("model: &m {dropout: 0.1}", "an anchor, &m, in line 1"),
    "anchor of a text": ("seed: 1\ndata: &d x", "an anchor, &d, in line 2"),
    "alias": ("model: *m", r"an alias, \*m, in line 1"),
    "tag that runs": ("data: !!python/object/apply:os.system [ls]", "a tag"),
    "own tag": ("data: !x y", "a tag, !x"),
    "core tag": ("data: !!str 1", "a tag"),
    "non-specific tag": ("data: ! 1", "a tag"),
    "merge": ("model: {<<: {dropout: 0.1}}", "a merge key"),
    "two documents": ("seed: 1\n---\nseed: 2", "a second document, in line 2"),
    "directive": ("%YAML 1.1\n---\nseed: 1", "a directive"),
    "tag directive": ("%TAG ! tag:x,2000:\n---\nseed: 1", "a directive"),
    "deep flow": ("data: " + "[" * 60_000, "nesting deeper than 16"),
    "deep block": ("- " * 30_000, "nesting deeper than 16"),
    "deep mapping": ("a: " + "{a: " * 20 + "}" * 20, "nesting deeper than 16"),
    "long": ("#" * (MOST_BYTES + 1), "65537 bytes, 65536 at most"),
    "long number": ("seed: " + "9" * 50_000, "a number of more than 400 digits"),
    "large number": ("seed: " + "9" * 30, "an integer of more than 63 bits"),
    "hexadecimal": ("seed: 0x" + "f" * 100, "an integer of more than 63 bits"),
    "no such day": ("data: 2001-99-99", "month must be"),
    "a mapping for a key": ("{{a: 1}: 1}", "unhashable"),
    "double key": ("seed: 1\nseed: 2", "duplicate key"),
    "half a character": (r'data: "\ud800"', "surrogates"),
    "NUL": (r'data: "a\0b"', "a text with a NUL"),
    "control character": ("data: \x01", "special characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, found = REFUSED[name]
    (tmp_path / "c.yaml").write_bytes(text.encode())
    if "a tag" in found or "anchor" in found or "alias" in found or "deeper" in found:
        # Before anything is made of it.
        monkeypatch.delattr(YAML, "load")
    with pytest.raises(InputError, match=found) as caught:
        read_config(tmp_path / "c.yaml")
    assert caught.value.where == str(tmp_path / "c.yaml")
    assert "64 KiB" in caught.value.expected
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_billion_laughs_take_milliseconds(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(LAUGHS)
    best = 9.0
    for _ in range(5):
        began = time.process_time()
        with pytest.raises(InputError):
            load_plain_yaml(tmp_path / "c.yaml")
        best = min(best, time.process_time() - began)
    assert best < 0.05


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="a pipe"):
        load_plain_yaml(tmp_path / "c.yaml")


def test_what_a_configuration_needs_is_read(tmp_path: Path) -> None:
    text = "---\n# why\na: [1, 2.5, 1e-4, .inf, true, null, x]\nb: {c: '<<', d: \"&x *y !z\"}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert load_plain_yaml(tmp_path / "c.yaml") == {
        "a": [1, 2.5, 1e-4, float("inf"), True, None, "x"],
        "b": {"c": "<<", "d": "&x *y !z"},
    }
    (tmp_path / "c.yaml").write_text("")
    assert load_plain_yaml(tmp_path / "c.yaml") is None


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    """Also where two keys hold one and the same list, and names look like YAML's own signs."""
    names = ("&a", "*b", "!c", "<<", "2001-01-01", "no", "%YAML 1.1")
    config = Config(data="&data", split=SplitConfig(train_cases=names, exclude=names))
    write_config(tmp_path / "c.yaml", config)
    assert read_config(tmp_path / "c.yaml") == config
    assert "*id" not in to_yaml(config)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    names = tuple(f"BraTS-GLI-{n:05}-000" for n in range(4000))
    with pytest.raises(InputError, match=r"--split\.file"):
        write_config(tmp_path / "c.yaml", Config(split=SplitConfig(train_cases=names)))
    assert not (tmp_path / "c.yaml").exists()


SIGNS = st.text("ab01:-[]{}&*!<>|%#'\"?, \n\t.~\\", max_size=60)


@given(SIGNS | st.text(max_size=60))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_a_value_or_bad_input(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (load_plain_yaml, read_config):
        try:
            read(path)
        except InputError as error:
            said = str(error)
        else:
            said = ""
        assert "\n" not in said
