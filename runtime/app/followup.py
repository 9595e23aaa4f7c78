"""Two visits of one patient side by side, and what has changed in volume."""

import pandas
import streamlit as st

from runtime.app import viewer
from runtime.app.results import measured, packet_of
from runtime.app.session import Session
from runtime.measure import Measurements


def show(visit: Session) -> None:
    """Choose two results and compare them."""
    titles = list(visit.results)
    left, right = st.columns(2)
    earlier = left.selectbox("Earlier visit", titles, key="earlier")
    later = right.selectbox("Later visit", titles, key="later")
    if earlier == later:
        st.info("Choose two different results.")
        return
    table = changes(measured(visit, earlier), measured(visit, later))
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="%+.1f" if "change" in name else "%.1f")
            for name in table.columns[1:]
        },
    )
    st.caption(
        "Volumes are compared, not voxels: the visits are not registered to each other, and a "
        "change may come from the network as well as from the patient."
    )
    with left:
        viewer.show(packet_of(visit, earlier), key="viewer earlier")
    with right:
        viewer.show(packet_of(visit, later), key="viewer later")


def changes(one: Measurements, two: Measurements) -> pandas.DataFrame:
    """A row per structure: volumes (ml) of both, their difference, also in % of the earlier one,
    and diameters (mm).
    """
    rows = []
    for name, before in one.structures.items():
        after = two.structures[name]
        change = after.volume_ml - before.volume_ml
        percent = 100 * change / before.volume_ml if before.volume_ml else None
        rows.append(
            {
                "structure": name,
                "earlier ml": before.volume_ml,
                "later ml": after.volume_ml,
                "change ml": change,
                "change %": percent,
                "earlier diameter mm": before.diameter_mm,
                "later diameter mm": after.diameter_mm,
            }
        )
    return pandas.DataFrame(rows)
