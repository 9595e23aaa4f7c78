"""What one visitor has uploaded and made: nobody else's, and gone when the visit is over.

A visit is a tab's: when its page is loaded again, Streamlit begins another session, which takes the
visit over by a secret that the tab has kept.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import streamlit as st
from streamlit.runtime import get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from runtime.app.desk import Job, Order, Result
from runtime.app.folders import ServerFolder
from runtime.app.uploads import Store, Upload
from runtime.case import Case
from runtime.cli.app_options import AppOptions
from runtime.errors import InputError
from runtime.measure import Measurements

_KEY: Final = "brats_session"
_TAB: Final = "brats_tab"
# A page that is loaded again may come before its old connection is known to be gone.
_LEAVING_S: Final = 2.0
_SCRIPT: Final = Path(__file__).with_name("tab.js")


@dataclass
class Session:
    """State of a visit.

    Attributes:
        store: its private folder.
        token: secret by which its tab is known.
        refused: token of an earlier visit that the tab has asked for in vain.
        lost: an earlier visit of the tab was over, with all that it had.
        taken: id of an uploaded file to what it was stored as, or to what is wrong with it.
        sample: the synthetic case, once it has been made.
        job: what is being worked on.
        begun: how many cases have been.
        last: what was worked on before and came to nothing.
        offered: the order that could be given when that was told; None where there was no case.
        results: segmented cases by a title of their own, oldest first.
        packets, measurements, scores: of those results, by the same titles, made when first shown.
        made: files for download, by title and what they are.
    """

    store: Store
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    refused: str = field(default="", repr=False)
    lost: bool = False
    taken: dict[str, tuple[Upload, ...] | InputError] = field(default_factory=dict)
    sample: Case | None = None
    job: Job | None = None
    begun: int = 0
    last: Job | None = None
    offered: Order | None = None
    results: dict[str, Result] = field(default_factory=dict)
    packets: dict[str, bytes] = field(default_factory=dict)
    measurements: dict[str, Measurements] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    made: dict[tuple[str, str], bytes] = field(default_factory=dict)

    @property
    def untouched(self) -> bool:
        """Whether nothing has been done in it yet."""
        return not (self.taken or self.sample or self.job or self.last or self.results)

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

    def end(self) -> None:
        """Delete its files and drop everything else, which Streamlit would keep for a while."""
        self.store.close()
        if self.job is not None:
            self.job.cancel()
            # Streamlit's fragments may hold on to the job itself.
            self.job.result = None
        self.job = self.last = self.offered = self.sample = None
        for kept in (self.results, self.packets, self.measurements, self.scores):
            kept.clear()
        self.made.clear()
        self.taken.clear()

    def _forget(self, title: str) -> None:
        for kept in (self.results, self.packets, self.measurements, self.scores):
            kept.pop(title, None)
        self.made = {key: data for key, data in self.made.items() if key[0] != title}


def current(options: AppOptions) -> Session:
    """The visit's state, made when it begins, and anew if it has ended meanwhile."""
    state: Any = st.session_state
    context = get_script_run_ctx()
    session_id = "" if context is None else context.session_id
    janitor = _janitor(options.grace_s)
    if _KEY not in state or not janitor.owns(session_id, state[_KEY]):
        lost = _KEY in state and state[_KEY].store.closed
        folder = _server_folder().path
        state[_KEY] = Session(Store(folder, max_bytes=options.max_upload_mb << 20), lost=lost)
        janitor.watch(session_id, state[_KEY])
    visit: Session = state[_KEY]
    _mount_tab(visit, lambda: _come_back(janitor, session_id))
    if visit.lost and visit.untouched:
        st.info("The earlier visit of this tab has ended: its files and results were deleted.")
    return visit


def _mount_tab(visit: Session, asked: Callable[[], None]) -> None:
    tab = st.components.v2.component("brats_tab", js=_SCRIPT.read_text("utf-8"))
    tab(
        key=_TAB,
        data={"token": visit.token, "refused": visit.refused},
        on_kept_change=asked,
    )


def _come_back(janitor: "Janitor", session_id: str) -> None:
    """Give the tab the visit that it had before its page was loaded again."""
    state: Any = st.session_state
    token, visit = state[_TAB].get("kept"), state[_KEY]
    if not isinstance(token, str) or token in (visit.token, visit.refused):
        return
    earlier = janitor.take_over(token, session_id)
    if earlier is None:
        visit.refused = token
        # One that goes on belongs to another tab, of which this one is a copy.
        visit.lost = not janitor.knows(token)
        return
    janitor.end(visit)
    state[_KEY] = earlier


@dataclass
class _Watched:
    visit: Session
    owner: str
    seen: float


class Janitor:
    """Ends visits that are over.

    Streamlit keeps a session for some time after its browser has gone, in case that comes back, and
    forgets it only when another one comes or goes. Files of patients do not wait for that; but a
    page that is loaded again, or a network that fails, is no end of a visit.
    """

    def __init__(
        self,
        is_active: Callable[[str], bool],
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
        forget: Callable[[str], None] = lambda _: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            is_active: whether a browser is connected to a session.
            grace_s: how long one may be gone before its visit ends.
            clock: seconds.
            forget: drop what Streamlit itself has kept of a session's uploads.
            pause: sleeps.
        """
        self._is_active = is_active
        self._grace_s = grace_s
        self._clock = clock
        self._forget = forget
        self._pause = pause
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    def watch(self, session_id: str, visit: Session) -> None:
        """Look after a visit until nobody comes back to it."""
        with self._lock:
            self._watched[visit.token] = _Watched(visit, session_id, self._clock())

    def owns(self, session_id: str, visit: Session) -> bool:
        """Whether the visit goes on, and is this session's."""
        with self._lock:
            watched = self._watched.get(visit.token)
            return watched is not None and watched.owner == session_id and not visit.store.closed

    def knows(self, token: str) -> bool:
        """Whether a visit of that token goes on."""
        with self._lock:
            return token in self._watched

    def take_over(self, token: str, session_id: str) -> Session | None:
        """Give a visit whose browser has gone to another session.

        Returns:
            The visit; None if it has ended, or if its browser does not go.
        """
        end = self._clock() + _LEAVING_S
        while True:
            with self._lock:
                watched = self._watched.get(token)
                if watched is None or watched.visit.store.closed:
                    return None
                if not self._is_active(watched.owner):
                    self._forget(watched.owner)
                    watched.owner, watched.seen = session_id, self._clock()
                    return watched.visit
            if self._clock() >= end:
                return None
            self._pause(0.1)

    def end(self, visit: Session) -> None:
        """End a visit now."""
        with self._lock:
            self._watched.pop(visit.token, None)
        visit.end()

    def sweep(self) -> None:
        """End visits that nobody has been connected to for the time of grace."""
        now = self._clock()
        with self._lock:
            for token, watched in list(self._watched.items()):
                if watched.visit.store.closed:
                    del self._watched[token]
                elif self._is_active(watched.owner):
                    watched.seen = now
                elif now - watched.seen > self._grace_s:
                    del self._watched[token]
                    watched.visit.end()
                    self._forget(watched.owner)

    def run(self, period_s: float = 5.0) -> None:
        """Sweep for ever."""
        while True:
            time.sleep(period_s)
            self.sweep()


@st.cache_resource(show_spinner=False)
def _janitor(grace_s: float) -> Janitor:
    streamlit = get_instance()
    janitor = Janitor(
        streamlit.is_active_session,
        grace_s,
        forget=streamlit.uploaded_file_mgr.remove_session_files,
    )
    threading.Thread(target=janitor.run, name="brats-app-janitor", daemon=True).start()
    return janitor


@st.cache_resource(show_spinner=False)
def _server_folder() -> ServerFolder:
    return ServerFolder()
