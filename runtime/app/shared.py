"""What everybody who uses the server shares: the desk of its device, and what is exported there."""

import streamlit as st

from runtime.app.desk import Desk
from runtime.app.exporting import Exports


@st.cache_resource(show_spinner=False)
def desk_of(device: str) -> Desk:
    """The one of the server's device."""
    return Desk()


@st.cache_resource(show_spinner=False)
def exports_of(device: str) -> Exports:
    """Those that wait and run at the device's desk."""
    return Exports(desk_of(device))
