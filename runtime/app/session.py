"""What one visitor has uploaded and made: nobody else's, and gone when the visit is over."""

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import streamlit as st
from streamlit.runtime import get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from runtime.app.desk import Job, Result
from runtime.app.uploads import Store, Upload
from runtime.case import Case
from runtime.cli.app_options import AppOptions
from runtime.errors import InputError
from runtime.measure import Measurements

_KEY: Final = "brats_session"


@dataclass
class Session:
    """State of a visit.

    Attributes:
        store: its private folder.
        taken: id of an uploaded file to what it was stored as, or to what is wrong with it.
        sample: the synthetic case, once it has been made.
        job: what is being worked on.
        last: what was worked on before.
        results: segmented cases by a title of their own, oldest first.
        packets, measurements, scores: of those results, by the same titles, made when first shown.
        made: files for download, by title and what they are.
    """

    store: Store
    taken: dict[str, tuple[Upload, ...] | InputError] = field(default_factory=dict)
    sample: Case | None = None
    job: Job | None = None
    last: Job | None = None
    results: dict[str, Result] = field(default_factory=dict)
    packets: dict[str, bytes] = field(default_factory=dict)
    measurements: dict[str, Measurements] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    made: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def keep(self, result: Result, most: int) -> str:
        """Keep a result beside the earlier ones, of which the oldest go; returns its title."""
        case_id = result.prediction.volume.case.case_id
        title, count = case_id, 1
        while title in self.results:
            count += 1
            title = f"{case_id} ({count})"
        self.results[title] = result
        while len(self.results) > most:
            self._forget(next(iter(self.results)))
        return title

    def _forget(self, title: str) -> None:
        for kept in (self.results, self.packets, self.measurements, self.scores):
            kept.pop(title, None)
        self.made = {key: data for key, data in self.made.items() if key[0] != title}


def current(options: AppOptions) -> Session:
    """The visit's state, made when it begins, and anew if its files have been deleted meanwhile."""
    state: Any = st.session_state
    if _KEY not in state or state[_KEY].store.closed:
        state[_KEY] = Session(Store(max_bytes=options.max_upload_mb << 20))
        context = get_script_run_ctx()
        if context is not None:
            _janitor(options.grace_s).watch(context.session_id, state[_KEY].store)
    session: Session = state[_KEY]
    return session


class Janitor:
    """Deletes the files of visits that are over.

    Streamlit keeps a session for some time after its browser has gone, in case that comes back, and
    forgets it only when another one comes or goes. Files of patients do not wait for that; but a
    page that is loaded again, or a network that fails, is no end of a visit.
    """

    def __init__(
        self,
        is_active: Callable[[str], bool],
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            is_active: whether a browser is connected to a session.
            grace_s: how long one may be gone before its files are.
            clock: seconds.
        """
        self._is_active = is_active
        self._grace_s = grace_s
        self._clock = clock
        self._watched: dict[str, tuple[weakref.ref[Store], float]] = {}
        self._lock = threading.Lock()

    def watch(self, session_id: str, store: Store) -> None:
        """Look after a store until its session ends."""
        with self._lock:
            self._watched[session_id] = (weakref.ref(store), self._clock())

    def sweep(self) -> None:
        """Close the stores of sessions that nobody has been connected to for the time of grace."""
        now = self._clock()
        with self._lock:
            for session_id, (reference, seen) in list(self._watched.items()):
                store = reference()
                if store is None or store.closed:
                    del self._watched[session_id]
                elif self._is_active(session_id):
                    self._watched[session_id] = (reference, now)
                elif now - seen > self._grace_s:
                    store.close()
                    del self._watched[session_id]

    def run(self, period_s: float = 5.0) -> None:
        """Sweep for ever."""
        while True:
            time.sleep(period_s)
            self.sweep()


@st.cache_resource(show_spinner=False)
def _janitor(grace_s: float) -> Janitor:
    janitor = Janitor(get_instance().is_active_session, grace_s)
    threading.Thread(target=janitor.run, name="brats-app-janitor", daemon=True).start()
    return janitor
