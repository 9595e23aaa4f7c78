"""brats-app before there is a server: what is refused, and what the server is told."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.app import main
from runtime.cli.app_options import AppOptions

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that would have taken the process's place."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr("runtime.cli.app.find_spec", lambda name: name)
    monkeypatch.setattr("os.execv", lambda program, command: found.append(tuple(command)))
    return found


def test_the_server_listens_on_this_machine_and_is_told_everything(
    started: list[tuple[str, ...]],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["--model", str(tiny_model), "--data", str(tmp_path), "--port", "0", "--threads", "2"])
    ((program, dash_m, module, host, port, told),) = started
    assert (program, dash_m, module, host) == (
        *(sys.executable, "-m", "runtime.app.serve"),
        "127.0.0.1",
    )
    assert 1024 < int(port) < 65536
    assert AppOptions.from_arguments([told]) == AppOptions(
        root=str(tmp_path), model=str(tiny_model), data=str(tmp_path), threads=2
    )
    said = capsys.readouterr().err
    assert f"http://127.0.0.1:{port}" in said
    assert "not for diagnosis or treatment" in said
    assert "no password" not in said


@pytest.mark.parametrize(("host", "warned"), [("localhost", False), ("0.0.0.0", True)])
def test_an_address_that_others_reach_is_warned_of(
    started: list[tuple[str, ...]], capsys: Captured, host: str, warned: bool
) -> None:
    main(["--host", host, "--port", "0"])
    assert len(started) == 1
    assert ("it has no password" in capsys.readouterr().err) is warned


@pytest.mark.parametrize(
    ("flags", "code", "found"),
    [
        (("--port", "70000"), 2, "--port: found 70000"),
        (("--port", "-1"), 2, "--port: found -1"),
        (("--max-upload-mb", "0"), 2, "--max-upload-mb: found 0"),
        (("--threads", "0"), 2, "--threads: found 0, expected 1 to 1024"),
        (("--threads", "99999999999999999999"), 2, "--threads: found 99999999999999999999"),
        (("--model", "nowhere"), 3, "nowhere: found no such directory"),
        (("--data", "nowhere"), 3, "nowhere: found no such folder"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    started: list[tuple[str, ...]], capsys: Captured, flags: tuple[str, ...], code: int, found: str
) -> None:
    assert main(list(flags)) == code
    said = capsys.readouterr().err
    assert said.startswith(f"error: {found}")
    assert said.count("\n") == 1
    assert started == []


def test_a_port_that_is_taken_is_told(started: list[Any], capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 7
    assert f"127.0.0.1:{port}: found a port that cannot be listened on" in capsys.readouterr().err
    assert started == []


def test_without_its_package_the_remedy_is_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("runtime.cli.app.find_spec", lambda name: None)
    assert main([]) == 4
    assert "install brats-deploy[app]" in capsys.readouterr().err


def test_options_survive_the_command_line() -> None:
    options = AppOptions(root="/a b'c", model=None, data="ü", max_upload_mb=3)
    assert AppOptions.from_arguments([options.to_argument()]) == options
    assert json.loads(options.to_argument())["data"] == "ü"
    assert AppOptions.from_arguments([]) == AppOptions()
