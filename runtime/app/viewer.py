"""The slice viewer as a component of the page: its own HTML, style and script, all from here."""

from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent


def _register() -> Any:
    html, css, script = (
        (_HERE / f"viewer.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    return st.components.v2.component("brats_viewer", html=html, css=css, js=script)


def show(packet: bytes, key: str) -> None:
    """Show a case.

    Args:
        packet: from `runtime.app.packet.pack`.
        key: of the place in the page; what the user has chosen there stays.
    """
    _register()(data=packet, key=key)
