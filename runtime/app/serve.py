"""The process of the page: `python -m runtime.app.serve ADDRESS PORT OPTIONS [--browser]`.

Streamlit is told everything by flags, so that no configuration file of the user's or of the folder
that the server was started in changes what the page may do.
"""

import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Final

from streamlit.web import cli

from runtime.app.folders import sweep
from runtime.cli.app_options import AppOptions

PAGE: Final = Path(__file__).with_name("page.py")
# What takes long to import and is needed only when somebody works with the page.
_LATER: Final = ("runtime.app.desk", "runtime.app.results", "openvino", "onnxruntime", "altair")


def flags(address: str, port: int, options: AppOptions, browser: bool = False) -> list[str]:
    """Streamlit's own options."""
    chosen = {
        "server.address": address,
        "server.port": port,
        "server.headless": str(not browser).lower(),
        # With a browser Streamlit would ask for an e-mail address and wait before it listens.
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": options.max_upload_mb,
        "server.enableStaticServing": "false",
        "server.enableXsrfProtection": "true",
        "browser.gatherUsageStats": "false",
        "browser.serverAddress": address,
        "logger.hideWelcomeMessage": "true",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "theme.base": "dark",
        "theme.primaryColor": "#56b4e9",
        "theme.backgroundColor": "#14171b",
        "theme.secondaryBackgroundColor": "#1d2127",
        "theme.textColor": "#e8eaed",
    }
    return [f"--{name}={value}" for name, value in chosen.items()]


def _warm_up() -> None:
    for name in _LATER:
        try:
            import_module(name)
        except ImportError:
            # What is missing is told when it is asked for.
            continue


def main() -> None:
    address, port, given = sys.argv[1:4]
    options = AppOptions.from_arguments([given])
    sweep()
    threading.Thread(target=_warm_up, name="brats-app-imports", daemon=True).start()
    sys.argv = [
        "streamlit",
        "run",
        str(PAGE),
        *flags(address, int(port), options, "--browser" in sys.argv),
        "--",
        options.to_argument(),
    ]
    cli.main()


if __name__ == "__main__":
    main()
