"""What the page's process tells Streamlit."""

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")

from runtime.app.serve import flags
from runtime.cli.app_options import AppOptions

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("browser", [False, True])
def test_streamlit_asks_for_no_address(browser: bool) -> None:
    told = flags("127.0.0.1", 8501, AppOptions(), browser)
    assert "--server.showEmailPrompt=false" in told
    assert f"--server.headless={str(not browser).lower()}" in told
    assert "--browser.gatherUsageStats=false" in told


def test_a_first_start_with_a_browser_at_a_terminal_listens(tmp_path: Path) -> None:
    """Streamlit asks only where its home is fresh and its input is a terminal."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ours, theirs = pty.openpty()
    told = AppOptions(root=str(tmp_path)).to_argument()
    process = subprocess.Popen(
        (sys.executable, "-m", "runtime.app.serve", "127.0.0.1", str(port), told, "--browser"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "BROWSER": "true",
            "TMPDIR": str(tmp_path),
        },
    )
    said = b""
    try:
        end = time.monotonic() + 90
        while not _answers(port):
            assert time.monotonic() < end, said
            if select.select([ours], [], [], 0.2)[0]:
                said += os.read(ours, 4096)
            assert b"mail" not in said
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        os.close(ours)
        os.close(theirs)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1):
            return True
    except OSError:
        return False
