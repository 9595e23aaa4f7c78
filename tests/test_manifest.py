"""The manifest: every changed byte of it is refused, and so is whatever is no file of a model."""

import hashlib
import json
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.manifest import (
    MANIFEST,
    Entry,
    listed_names,
    manifest_of,
    read_manifest,
    read_verified,
)
from runtime.model_dir import foreign_files

FILES = {"card.json": b"{}", "model.onnx": b"a graph", "engines/0f.plan": b""}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    for name, data in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    (directory / MANIFEST).write_bytes(manifest_of(directory))
    return directory


def sealed(value: Any) -> bytes:
    """A manifest whose seal is right, whatever it says."""
    return with_seal(json.dumps(value, indent=2).encode().removesuffix(b"\n}"))


def with_seal(body: bytes) -> bytes:
    return body + b',\n  "sha256": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def test_it_lists_every_file_with_its_size_and_hash(model: Path) -> None:
    assert read_manifest(model) == {
        name: Entry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in FILES.items()
    }
    written = json.loads((model / MANIFEST).read_bytes())
    assert written["schema"] == 2
    assert written["files"]["model.onnx"]["bytes"] == 7
    assert sealed({name: written[name] for name in ("schema", "files")}) == manifest_of(model)


def test_every_byte_of_it_counts(model: Path) -> None:
    """Each byte changed in each of three ways, taken out, doubled; blanks put between any two."""
    whole = (model / MANIFEST).read_bytes()
    for at in range(len(whole)):
        head, byte, tail = whole[:at], whole[at], whole[at + 1 :]
        for changed in (
            *(head + bytes([byte ^ bit]) + tail for bit in (1, 32, 128)),
            head + tail,
            head + bytes([byte, byte]) + tail,
            head + b" " + whole[at:],
            whole[:at],
        ):
            if changed != whole:
                (model / MANIFEST).write_bytes(changed)
                with pytest.raises(InputError, match=r"manifest\.json"):
                    read_manifest(model)


def test_the_first_schema_names_the_remedy(model: Path) -> None:
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
             for name, data in FILES.items()}  # fmt: skip
    text = json.dumps({"schema": 1, "files": files}, indent=2) + "\n"
    (model / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"schema 1.*export the model again with brats-export"):
        read_manifest(model)
    # And it can be exported again, to the same place.
    assert foreign_files(model) == []


GOOD = {"sha256": "0" * 64, "bytes": 1}
NAMES = [
    "../card.json", "/etc/passwd", "a/../../b", "a\\b", "..\\b", "a\0b", "", ".", "..", ".hidden",
    "a//b", "a/", "./a", "C:a", "a\nb", "ä", "a/b/c/d/e", "x" * 201, MANIFEST, "~", "-rf",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(model: Path, name: str) -> None:
    (model / MANIFEST).write_bytes(sealed({"schema": 2, "files": {name: GOOD}}))
    with pytest.raises(InputError, match="a name that no file of a model has") as caught:
        read_manifest(model)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


DEEP: Any = []
for _ in range(80):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        {"schema": 2, "files": []},
        {"schema": 2},
        {"schema": 3, "files": {}},
        {"schema": "2", "files": {}},
        {"schema": 2.0, "files": {"a": GOOD}},
        {"schema": 2, "files": {"a": []}},
        {"schema": 2, "files": {"a": {"sha256": "0" * 64}}},
        {"schema": 2, "files": {"a": {**GOOD, "more": 1}}},
        {"schema": 2, "files": {"a": {**GOOD, "bytes": -1}}},
        {"schema": 2, "files": {"a": {**GOOD, "bytes": True}}},
        {"schema": 2, "files": {"a": {**GOOD, "bytes": 1.0}}},
        {"schema": 2, "files": {"a": {**GOOD, "bytes": 10**30}}},
        {"schema": 2, "files": {"card.json": {**GOOD, "bytes": 2**20 + 1}}},
        {"schema": 2, "files": {"a": {**GOOD, "sha256": "A" * 64}}},
        {"schema": 2, "files": {"a": {**GOOD, "sha256": 0}}},
        {"schema": 2, "files": {"b": GOOD, "a": GOOD}},
        {"files": {"a": GOOD}, "schema": 2},
        {"schema": 2, "files": {"a": GOOD}, "more": 1},
        {"schema": 2, "files": DEEP},
    ],
)
def test_a_sealed_manifest_of_something_else_is_refused(model: Path, value: Any) -> None:
    (model / MANIFEST).write_bytes(sealed(value))
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        read_manifest(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "9" * 5000, '{"a":' * 90_000])
def test_hostile_json_ends_as_bad_input(model: Path, text: str) -> None:
    for data in (
        text.encode(),
        text.encode() + sealed({})[2:],
        with_seal(text.encode()),
    ):
        (model / MANIFEST).write_bytes(data)
        with pytest.raises(InputError):
            read_manifest(model)
        assert listed_names(model) == frozenset()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        before = Path.cwd()
        # A socket's name must be short.
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(before)


IN_ITS_PLACE: list[Callable[[Path], object]] = [
    fifo,
    a_socket,
    Path.mkdir,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("nothing"),
    lambda path: None,
]


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx"])
@pytest.mark.parametrize("put", IN_ITS_PLACE, ids=range(len(IN_ITS_PLACE)))
def test_what_is_no_file_is_refused_and_not_waited_for(
    model: Path, name: str, put: Callable[[Path], object]
) -> None:
    entry = read_manifest(model)["model.onnx"]
    (model / name).unlink()
    put(model / name)
    read = read_manifest if name == MANIFEST else partial(read_verified, name=name, entry=entry)
    with pytest.raises(InputError) as caught:
        read(model)
    assert caught.value.where == str(model / name)


def test_a_link_may_stay_inside_but_not_leave(model: Path, tmp_path: Path) -> None:
    entries = read_manifest(model)
    for target, expected in ((model / "kept", b"a graph"), (tmp_path / "out", None)):
        target.write_bytes(b"a graph")
        (model / "model.onnx").unlink()
        (model / "model.onnx").symlink_to(target)
        if expected is None:
            with pytest.raises(InputError, match="a link out of the model directory"):
                read_verified(model, "model.onnx", entries["model.onnx"])
        else:
            assert read_verified(model, "model.onnx", entries["model.onnx"]) == expected
    # The directory itself may be a link.
    (model / "model.onnx").unlink()
    (model / "model.onnx").write_bytes(b"a graph")
    (tmp_path / "linked").symlink_to(model)
    assert read_verified(tmp_path / "linked", "model.onnx", entries["model.onnx"]) == b"a graph"


def test_a_file_of_another_size_is_not_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = read_manifest(model)
    file = model / "model.onnx"
    # A terabyte that takes no room.
    with file.open("r+b") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(InputError, match="1099511627776 bytes instead of 7"):
        read_verified(model, "model.onnx", entries["model.onnx"])
    file.write_bytes(b"a grap")
    with pytest.raises(InputError, match="6 bytes instead of 7"):
        read_verified(model, "model.onnx", entries["model.onnx"])
    file.write_bytes(b"a grapH")
    with pytest.raises(InputError, match="differs from the manifest"):
        read_verified(model, "model.onnx", entries["model.onnx"])
    with (model / MANIFEST).open("r+b") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(InputError, match="1048576 at most"):
        read_manifest(model)


@given(st.binary(max_size=400))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_bad_input(model: Path, data: bytes) -> None:
    (model / MANIFEST).write_bytes(data)
    with pytest.raises(InputError):
        read_manifest(model)
