"""brats-app: the web page."""

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from rich.console import Console

from runtime import DISCLAIMER
from runtime.backends import MAX_THREADS
from runtime.cli.console import optional, parse, run
from runtime.errors import BackendUnavailableError, InputError, OutputError, UsageError


@dataclass(frozen=True)
class AppArgs:
    """Arguments of brats-app."""

    model: Annotated[Path | None, optional("DIR")] = None
    """Model directory to offer first; others below this folder and the built-in one are found."""
    data: Annotated[Path | None, optional("DIR")] = None
    """Folder whose cases can be opened from the page; by default files are uploaded only."""
    host: str = "127.0.0.1"
    """Address to listen on. The page has no password: keep it on this machine."""
    port: int = 8501
    """Port; 0 takes a free one."""
    device: str = "auto"
    """auto, cpu, or cuda:N."""
    threads: Annotated[int | None, optional("N")] = None
    """CPU threads; all cores by default."""
    max_upload_mb: int = 512
    """Largest file to take, in MiB."""
    browser: bool = False
    """Open the page in the browser."""
    quiet: bool = False
    """Print nothing but errors."""
    version: bool = False
    """Print the version and exit."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse(
        AppArgs, "brats-app", "Segment and look at cases in a web page on this machine.", args
    )
    return run(lambda console: _serve(options, console), quiet=options.quiet)


def _serve(options: AppArgs, console: Console) -> int:
    _check(options)
    from runtime.cli.app_options import AppOptions

    port = options.port or _free_port(options.host)
    told = AppOptions(
        root=os.getcwd(),
        model=None if options.model is None else str(options.model),
        data=None if options.data is None else str(options.data),
        device=options.device,
        threads=options.threads,
        max_upload_mb=options.max_upload_mb,
    )
    shown = f"[{options.host}]" if ":" in options.host else options.host
    console.print(f"[bold]http://{shown}:{port}[/bold]  (Ctrl-C ends it)", highlight=False)
    if not _is_loopback(options.host):
        console.print(
            "whoever reaches this address can use the page: it has no password", style="yellow"
        )
    console.print(DISCLAIMER, style="dim")
    sys.stderr.flush()
    # The server takes this process's place, and with it every signal that is meant for it.
    os.execv(
        sys.executable,
        (
            *(sys.executable, "-m", "runtime.app.serve", options.host, str(port)),
            told.to_argument(),
            *(("--browser",) if options.browser else ()),
        ),
    )


def _check(options: AppArgs) -> None:
    if find_spec("streamlit") is None:
        raise BackendUnavailableError(
            "brats-app",
            found="streamlit is not installed",
            expected="the packages of the page",
            remedy="install brats-deploy[app]",
        )
    if not 0 <= options.port < 65536:
        raise UsageError(
            "--port", found=str(options.port), expected="0 to 65535", remedy="8501 is usual"
        )
    if options.max_upload_mb < 1:
        raise UsageError(
            "--max-upload-mb",
            found=str(options.max_upload_mb),
            expected="1 or more",
            remedy="512 is usual",
        )
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise UsageError(
            "--threads",
            found=str(options.threads),
            expected=f"1 to {MAX_THREADS}",
            remedy="drop --threads",
        )
    if options.model is not None:
        from runtime.model_dir import ModelDir

        ModelDir.open(options.model)
    if options.data is not None and not options.data.is_dir():
        raise InputError(
            options.data,
            found="no such folder",
            expected="a folder of cases",
            remedy="check --data",
        )
    if options.port and not _is_free(options.host, options.port):
        raise OutputError(
            f"{options.host}:{options.port}",
            found="a port that cannot be listened on",
            expected="a free one",
            remedy="choose another --port, or 0 for any",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=_family(host)) as server:
        return int(server.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port), family=_family(host)).close()
    except OSError:
        return False
    return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
