"""How soon is the page there, and how soon is the next slice, in a headless Chromium?

The server and the browser share this machine's cores, as on a researcher's own.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure
from benchmarks.options import RANDOM
from runtime.case import Case
from runtime.cli.app_options import AppOptions
from runtime.model_card import ModelCard
from runtime.model_dir import ModelDir
from train.unet import UNet3D

pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

WINDOW: Final = {"width": 1440, "height": 860}
STEPS: Final = 40
_PAINTED: Final = """
() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime
"""
# From the wheel's event to the second frame after it: the first one draws, and only when the next
# begins has that been shown.
_STEP: Final = """
(delta) => new Promise((done) => {
  const all = (root) => [...root.querySelectorAll("*")].flatMap(
    (one) => one.shadowRoot ? [one, ...all(one.shadowRoot)] : [one]);
  const figure = all(document).find((one) => one.matches("figure[data-plane=axial]"));
  const start = performance.now();
  figure.dispatchEvent(new WheelEvent("wheel", { deltaY: delta, cancelable: true }));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})
"""


@pytest.fixture(scope="module")
def url(model: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the model."""
    place = tmp_path_factory.mktemp("page")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = AppOptions(str(place), str(model.path.resolve()), device="cpu", threads=THREADS)
    with subprocess.Popen(
        (
            *(sys.executable, "-m", "runtime.app.serve", "127.0.0.1", str(port)),
            options.to_argument(),
        ),
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_for(url: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def bench_first_paint(benchmark: Any, report: Report, url: str, browser: Any, rounds: int) -> None:
    """From asking for the address to the button that can be pressed; every visitor is a new one."""
    painted: list[float] = []

    def visit() -> None:
        page = browser.new_page(viewport=WINDOW)
        page.goto(url, wait_until="commit")
        page.get_by_role("button", name="Segment", exact=True).wait_for()
        painted.append(page.evaluate(_PAINTED))
        page.close()

    # The first visitor of a server is the one who waits for its imports: none to warm up.
    benchmark.pedantic(visit, rounds=max(rounds, 3), iterations=1)
    report(
        "first paint",
        {"first contentful paint": figure([one / 1000 for one in painted], "s")},
        first_contentful_paint_ms=[round(one) for one in painted],
    )


@pytest.mark.parametrize("layout", ["planes", "grid"])
def bench_slice_change(
    benchmark: Any,
    report: Report,
    url: str,
    browser: Any,
    case: Case,
    rounds: int,
    layout: str,
    case_facts: dict[str, Any],
    trained: tuple[UNet3D, ModelCard, str],
) -> None:
    """From a step of the wheel to the slice on the screen."""
    if trained[2] == RANDOM:
        pytest.skip("random weights: the page draws a segmentation, and there is none")
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(180_000)
    page.goto(url)
    button = page.get_by_role("button", name="Segment", exact=True)
    button.wait_for()
    files = [str(source.path) for source in case.images.values()]
    page.locator("input[type=file]").first.set_input_files(files)
    page.locator("code", has_text=Path(files[-1]).name).wait_for()
    button.click()
    page.locator("figure canvas").first.wait_for()
    page.locator("select[name=layout]").select_option(layout)
    taken: list[float] = []

    def steps() -> None:
        for number in range(STEPS):
            taken.append(page.evaluate(_STEP, 100 if number % 20 < 10 else -100))

    benchmark.pedantic(steps, rounds=rounds, iterations=1, warmup_rounds=1)
    page.close()
    timed = sorted(taken[STEPS:])
    report(
        "slice change",
        {"step": figure([one / 1000 for one in timed], "s")},
        layout=layout,
        median_ms=round(timed[len(timed) // 2], 1),
        slowest_ms=round(timed[-1], 1),
        steps=len(timed),
        **case_facts,
    )
