"""Reading what anybody may have written."""

import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from runtime.bounded import JSON_DEPTH, MIB, digest_of, parse_json, read_bounded, read_json


def test_a_file_comes_back_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "f").write_bytes(data)
    (tmp_path / "empty").touch()
    assert read_bounded(tmp_path / "f", len(data)) == data
    assert read_bounded(tmp_path / "f", 10**9, exactly=len(data)) == data
    assert read_bounded(tmp_path / "empty", 0) == b""
    with pytest.raises(ValueError, match="256000 bytes, 255999 at most"):
        read_bounded(tmp_path / "f", len(data) - 1)
    with pytest.raises(ValueError, match="256000 bytes instead of 256001"):
        read_bounded(tmp_path / "f", 10**9, exactly=len(data) + 1)


def test_a_file_is_hashed_in_parts(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 10**6)
    with (tmp_path / "f").open("r+b") as file:
        file.truncate(100 << 20)
    expected = hashlib.sha256((tmp_path / "f").read_bytes())
    tracemalloc.start()
    try:
        assert digest_of(tmp_path / "f") == expected.hexdigest()
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises((ValueError, OSError), match=r"a folder|Is a directory|a pipe"):
            digest_of(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a pipe, a device or a socket"):
        read_bounded(tmp_path / "pipe", 10)
    with pytest.raises(ValueError, match="a pipe, a device or a socket"):
        read_bounded(Path(os.devnull), 10)
    with pytest.raises((ValueError, OSError), match=r"a folder|Is a directory"):
        read_bounded(tmp_path, 10)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "nothing", 10)
    with pytest.raises(ValueError, match="null"):
        read_bounded(Path("a\0b"), 10)


def test_a_file_that_grows_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1234")
    real = os.fstat

    def then_grow(descriptor: int) -> Any:
        found = real(descriptor)
        with path.open("ab") as file:
            file.write(b"5")
        return found

    monkeypatch.setattr("runtime.bounded.os.fstat", then_grow)
    with pytest.raises(ValueError, match="changes while it is read"):
        read_bounded(path, 100)


def nested(depth: int, open_: str = "[", close: str = "]") -> str:
    return open_ * depth + "1" + close * depth


def test_json_is_as_deep_as_a_program_can_walk() -> None:
    assert parse_json(b'{"a": [1, 2.5, "x", null]}') == {"a": [1, 2.5, "x", None]}
    assert parse_json(nested(JSON_DEPTH - 1)) == json.loads(nested(JSON_DEPTH - 1))
    for text in (
        nested(JSON_DEPTH),
        nested(900),
        nested(10**6),
        nested(900, '{"a":', "}"),
        "[" * 10**6,
    ):
        with pytest.raises(ValueError, match=r"nested deeper than 64"):
            parse_json(text)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"b": {"a": 1, "\\u0061": 2}}]'])
def test_a_key_that_is_there_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the key 'a' twice in one object"):
        parse_json(text)


@pytest.mark.parametrize(
    "data",
    [b"", b"NaN", b"[Infinity]", b"-Infinity", b"\xff\xfe", b"\0", b"9" * 5000, b"{", b"{a}"],
)
def test_what_is_no_json_is_a_value_error(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(data)
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "f")


def test_json_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"[" + b"1," * 100 + b"1]")
    assert len(read_json(tmp_path / "f")) == 101
    with pytest.raises(ValueError, match="203 bytes, 202 at most"):
        read_json(tmp_path / "f", 202)
