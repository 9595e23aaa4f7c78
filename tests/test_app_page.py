"""The page in a real Chromium against a real server: uploaded, run, looked at, downloaded."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.app_options import AppOptions
from runtime.cli.infer import main as infer
from runtime.labels import MODALITIES
from runtime.model_dir import ModelDir
from runtime.phantom import write_phantom

pytestmark = pytest.mark.browser

SHAPE = (72, 80, 60)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    # Without a GPU the 3D view is drawn in software.
    "--enable-unsafe-swiftshader",
)
WAIT_MS = 90_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: install Debian's packages chromium and chromium-driver")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@dataclass(frozen=True)
class Server:
    """A running page and where it keeps uploaded files."""

    url: str
    files: Path
    log: Path


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, case_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The page's own process, with a tiny model, on a free port of this machine."""
    pytest.importorskip("streamlit", reason="the page's package streamlit is not installed")
    place = tmp_path_factory.mktemp("app")
    files = place / "files"
    files.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = AppOptions(
        root=str(place),
        model=str(tiny_model),
        data=str(case_dir.parent),
        device="cpu",
        threads=1,
        grace_s=15.0,
    )
    command = (sys.executable, "-m", "runtime.app.serve", "127.0.0.1", str(port))
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            (*command, options.to_argument()),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=place,
            env={**os.environ, "TMPDIR": str(files), "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: answers(f"{url}/_stcore/health"))
            yield Server(url, files, place / "log")
        finally:
            process.terminate()
            process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def case_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    for number in (1, 2):
        write_phantom(folder, number, seed=3, shape=SHAPE)
    return min(folder.iterdir())


@pytest.fixture(scope="module")
def expected(case_dir: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the command line makes of the same files."""
    out = tmp_path_factory.mktemp("out")
    flags = ("--model", str(tiny_model), "--device", "cpu", "--threads", "1", "--quiet")
    assert infer([str(case_dir), *flags, "-o", str(out)]) == 0
    return (out / f"{case_dir.name}_seg.nii.gz").read_bytes()


@dataclass
class Visit:
    """A page in a browser window, and everything that it asked for and complained about."""

    page: Any
    server: Server
    asked: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def text(self, what: str | re.Pattern[str]) -> Any:
        return self.page.get_by_text(what).first

    def upload(self, *files: Path | dict[str, Any]) -> None:
        self.page.locator("input[type=file]").first.set_input_files(
            [str(file) if isinstance(file, Path) else file for file in files]
        )

    def check(self) -> None:
        """Nothing was asked of another machine, nothing complained of, nothing went wrong."""
        own = (self.server.url, self.server.url.replace("http", "ws"), "blob:", "data:")
        assert {url for url in self.asked if not url.startswith(own)} == set()
        assert self.complaints == []
        assert self.page.is_closed() or self.page.get_by_test_id("stException").count() == 0

    def segment(self) -> Any:
        return self.page.get_by_role("button", name="Segment", exact=True)

    def choose(self, view: str) -> None:
        self.page.get_by_role("radio", name=view).or_(
            self.page.get_by_test_id("stButtonGroup").get_by_text(view, exact=True)
        ).first.click()

    def pick(self, label: str, option: str) -> None:
        box = self.page.get_by_role("combobox", name=label)
        wanted = self.page.get_by_role("option", name=option)

        def opened() -> bool:
            # A list that opens while the page is still being put together closes again.
            if not wanted.count():
                box.click()
                self.page.wait_for_timeout(500)
            return bool(wanted.count())

        until(opened)
        wanted.click()

    def wait_for_slices(self) -> None:
        self.page.locator("figure canvas").first.wait_for()
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('*')].some((one) => one.shadowRoot"
            " && one.shadowRoot.querySelector('.viewer[data-at]'))"
        )


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Visit]]:
    """visit(width): a new visitor with an empty browser."""
    contexts: list[Any] = []
    visits: list[Visit] = []

    def begin(width: int = 1280, height: int = 900) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True
        )
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        made = Visit(context.new_page(), server)
        visits.append(made)
        page = made.page
        page.on("request", lambda request: made.asked.add(request.url))
        page.on("pageerror", lambda error: made.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: made.complaints.append(said.text) if said.type == "error" else None,
        )
        page.on("dialog", lambda dialog: made.complaints.append(f"dialog {dialog.message}"))
        page.goto(server.url)
        made.segment().wait_for()
        return made

    yield begin
    for made in visits:
        made.check()
    for context in contexts:
        context.close()


def images_of(case_dir: Path) -> list[Path]:
    return [case_dir / f"{case_dir.name}_{name}.nii.gz" for name in MODALITIES]


def downloaded(visit: Visit, label: str) -> tuple[str, bytes]:
    with visit.page.expect_download() as caught:
        visit.page.get_by_role("button", name=label).click()
    found = caught.value
    return found.suggested_filename, Path(found.path()).read_bytes()


def slice_number(visit: Visit, plane: str) -> int:
    said = visit.page.locator(f".sliders label[data-plane={plane}] span").inner_text()
    found = re.fullmatch(r"\w+ (\d+) of \d+", said)
    assert found is not None
    return int(found[1])


def test_the_whole_way_from_four_files_to_the_command_lines_bytes(
    visit: Callable[..., Visit], case_dir: Path, expected: bytes
) -> None:
    here = visit()
    assert not here.segment().is_enabled()
    truth = case_dir / f"{case_dir.name}_seg.nii.gz"
    here.upload(*reversed(images_of(case_dir)), truth)
    for path in (*images_of(case_dir), truth):
        here.page.locator("code", has_text=path.name).wait_for()
    here.segment().click()
    here.wait_for_slices()

    # Keys and wheel change the slice by one, and it is another picture.
    axial = here.page.locator("figure[data-plane=axial]")
    axial.focus()
    here.page.keyboard.press("Home")
    until(lambda: slice_number(here, "axial") < 5)
    first = slice_number(here, "axial")
    for _ in range(20):
        here.page.keyboard.press("ArrowUp")
    until(lambda: slice_number(here, "axial") == first + 20)
    shot = axial.screenshot()
    axial.hover()
    here.page.mouse.wheel(0, -100)
    until(lambda: slice_number(here, "axial") == first + 21)
    assert axial.screenshot() != shot
    axial.focus()
    here.page.keyboard.press("ArrowDown")
    until(lambda: slice_number(here, "axial") == first + 20)
    assert axial.screenshot() == shot

    # The truth was taken: there is a difference to look at.
    here.page.locator("select[name=shown]").select_option("difference")
    here.page.locator(".legend", has_text="only in the truth").wait_for()

    # A region alone, and all of them again.
    here.page.locator("select[name=shown]").select_option("prediction")
    boxes = here.page.locator(".legend input[type=checkbox]")
    for region, ticked in (("TC", [True, False, True]), ("ET", [False, False, True])):
        button = here.page.locator(".legend button", has_text=region)
        button.press("Enter")
        assert [box.is_checked() for box in boxes.all()] == ticked
        assert button.get_attribute("aria-pressed") == "true"
    boxes.nth(0).check()
    assert here.page.locator(".legend button[aria-pressed=true]").all_inner_texts() == ["TC"]
    here.page.locator(".legend button", has_text="WT").click()
    assert all(box.is_checked() for box in boxes.all())

    here.choose("Files")
    name, data = downloaded(here, "Label map (.nii.gz)")
    assert name == f"{case_dir.name}_seg.nii.gz"
    assert data == expected
    name, data = downloaded(here, "Figures (.json)")
    assert set(json.loads(data)["structures"]) == {"WT", "TC", "ET", "NCR", "ED"}
    name, data = downloaded(here, "Report (.html)")
    assert case_dir.name in data.decode()
    assert b"<script" not in data

    # Whatever else there is to see asks nobody either.
    for view, told in (("Figures", "by the rules of BraTS 2020"), ("Details", "Model and machine")):
        here.choose(view)
        here.text(told).wait_for()


def test_the_3d_view_is_not_blank(visit: Callable[..., Visit], case_dir: Path) -> None:
    here = visit()
    here.upload(*images_of(case_dir))
    here.segment().click()
    here.wait_for_slices()
    here.choose("3D")
    canvas = here.page.locator("iframe").first.content_frame.locator("canvas").first
    canvas.wait_for()

    def colours() -> int:
        from io import BytesIO

        from PIL import Image

        picture = Image.open(BytesIO(canvas.screenshot())).convert("RGB")
        return len(picture.getcolors(1 << 24) or ())

    until(lambda: colours() > 200)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("scan_t1.nii.gz", b"\x1f\x8b" + b"nonsense" * 50, "found a damaged"),
        ("page_t1.nii", b"<html>" * 100, "found a file that starts with"),
        ("torn_t1.nii.gz", None, "found no flair and no t1ce and no t2"),
    ],
)
def test_a_wrong_file_is_a_sentence_and_nothing_can_be_run(
    visit: Callable[..., Visit], case_dir: Path, name: str, content: bytes | None, said: str
) -> None:
    here = visit()
    data = (case_dir / f"{case_dir.name}_t1.nii.gz").read_bytes() if content is None else content
    here.upload({"name": name, "mimeType": "application/octet-stream", "buffer": data})
    here.text(re.compile(said)).wait_for()
    assert not here.segment().is_enabled()


def test_a_file_that_is_damaged_further_in_is_told_by_its_name(
    visit: Callable[..., Visit], case_dir: Path
) -> None:
    here = visit()
    *good, last = images_of(case_dir)
    data = bytearray(last.read_bytes())
    data[-6] ^= 1
    here.upload(
        *({"name": one.name, "mimeType": "", "buffer": one.read_bytes()} for one in good),
        {"name": last.name, "mimeType": "", "buffer": bytes(data)},
    )
    here.text(re.compile(re.escape(last.name) + ": found a damaged or truncated gzip")).wait_for()
    assert not here.segment().is_enabled()


def test_the_uploader_tells_one_limit_and_the_true_one(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.text(re.compile("at most 512 MiB each")).wait_for()
    # The widget would round it to "1GB per file".
    assert not here.page.get_by_text("per file").first.is_visible()


def test_the_sample_takes_one_click(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.choose("Sample")
    here.text(re.compile("FLAIR, T1, T1CE, T2 and truth")).wait_for()
    until(lambda: bool(here.segment().is_enabled()))


def test_names_from_outside_are_text(visit: Callable[..., Visit], case_dir: Path) -> None:
    here = visit()
    name = "<img src=x onerror=alert(1)>**b**_t1.nii.gz"
    data = (case_dir / f"{case_dir.name}_t1.nii.gz").read_bytes()
    here.upload({"name": name, "mimeType": "", "buffer": data})
    here.page.locator("code", has_text=name).wait_for()
    assert here.page.locator("img[src=x]").count() == 0


def test_two_visitors_wait_for_each_other_and_get_their_own(
    visit: Callable[..., Visit], case_dir: Path, tmp_path: Path, tiny_model: Path
) -> None:
    write_phantom(tmp_path / "other", 2, seed=11, shape=SHAPE)
    (other_dir,) = (tmp_path / "other").iterdir()
    one, other = visit(), visit()
    one.upload(*images_of(case_dir))
    other.upload(*images_of(other_dir))
    one.segment().click()
    other.segment().click()
    one.wait_for_slices()
    other.wait_for_slices()
    for here, folder in ((one, case_dir), (other, other_dir)):
        assert here.page.locator(".viewer .case").inner_text() == folder.name
        here.choose("Files")
        name, data = downloaded(here, "Label map (.nii.gz)")
        assert name == f"{folder.name}_seg.nii.gz"
        flags = ("--model", str(tiny_model), "--device", "cpu", "--threads", "1", "--quiet")
        out = tmp_path / f"out {folder.name}"
        assert infer([str(folder), *flags, "-o", str(out)]) == 0
        assert data == (out / name).read_bytes()


def test_a_case_can_be_cancelled(visit: Callable[..., Visit], case_dir: Path) -> None:
    here = visit()
    here.upload(*images_of(case_dir))
    # Far more windows than a test would wait for.
    here.text("How it is run").click()
    slider = here.page.get_by_role("slider", name="Overlap of windows")
    slider.focus()
    for _ in range(6):
        here.page.keyboard.press("ArrowRight")
    here.segment().click()
    here.page.get_by_role("button", name="Cancel").click()
    here.text("Cancelled: nothing was kept.").wait_for()
    slider.press("ArrowLeft")
    here.text("Cancelled: nothing was kept.").wait_for(state="detached")
    assert here.page.locator("figure canvas").count() == 0
    assert here.segment().is_enabled()


def test_what_was_segmented_last_is_shown_and_two_can_be_compared(
    visit: Callable[..., Visit], case_dir: Path
) -> None:
    here = visit()
    one, two = sorted(path.name for path in case_dir.parent.iterdir())
    here.choose("Folder")
    for number, name in enumerate((one, two, one)):
        if number:
            here.text("Choose another case").click()
        here.pick("Case", name)
        here.segment().click()
        here.page.locator(".viewer .case", has_text=name).wait_for()
    here.page.get_by_role("combobox", name="Result").click()
    assert here.page.get_by_role("option").all_inner_texts() == [one, two, f"{one} (2)"]
    here.page.keyboard.press("Escape")
    here.text("compare two visits").click()
    here.page.locator(".viewer .case").nth(1).wait_for()
    assert here.page.locator(".viewer .case").all_inner_texts() == [two, one]
    here.text("not registered to each other").wait_for()


@pytest.mark.slow
def test_a_checkpoint_is_exported_at_the_push_of_a_button(
    visit: Callable[..., Visit], server: Server, tiny_checkpoint: Path
) -> None:
    pytest.importorskip("onnx", reason="the package onnx, which exports, is not installed")
    from train.checkpoint import load_checkpoint, save_checkpoint

    trained = load_checkpoint(tiny_checkpoint)
    root = server.files.parent
    path = root / "runs" / "fresh" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, replace(trained, card=replace(trained.card, name="fresh")))
    here = visit()
    here.page.get_by_test_id("stExpander").filter(has_text="not exported yet").click()
    here.page.locator("code", has_text=f"brats-export {path}").wait_for()
    here.page.get_by_role("button", name="Export", exact=True).click()
    # It is certified on phantoms of full size.
    here.text("not exported yet").wait_for(state="detached", timeout=900_000)
    here.pick("Model", "fresh (model)")
    here.text("certified").wait_for()
    assert ModelDir.open(root / "model").card.name == "fresh"


def test_a_real_case_gives_the_command_lines_bytes(
    visit: Callable[..., Visit], real_cases: Path, tiny_model: Path, tmp_path: Path
) -> None:
    case_dir = real_cases / "Brats18_CBICA_AOZ_1"
    flags = ("--model", str(tiny_model), "--device", "cpu", "--threads", "1", "--quiet")
    assert infer([str(case_dir), *flags, "-o", str(tmp_path)]) == 0
    here = visit()
    here.upload(*images_of(case_dir))
    here.segment().click()
    here.wait_for_slices()
    here.choose("Files")
    name, data = downloaded(here, "Label map (.nii.gz)")
    assert data == (tmp_path / name).read_bytes()


def test_everything_can_be_reached_with_the_keyboard(
    visit: Callable[..., Visit], case_dir: Path
) -> None:
    here = visit()
    here.upload(*images_of(case_dir))
    here.segment().click()
    here.wait_for_slices()
    reached = set()
    here.page.locator("body").press("Tab")
    for _ in range(70):
        reached.add(
            here.page.evaluate(
                "() => { let at = document.activeElement;"
                " while (at && at.shadowRoot && at.shadowRoot.activeElement)"
                " at = at.shadowRoot.activeElement;"
                " return at ? at.getAttribute('aria-label') || at.innerText || at.name || '' : '' }"
            ).strip()
        )
        here.page.keyboard.press("Tab")
    for name in ("Segment", "Layout", "Modality", "Overlay", "Axial slice", "Slices", "Files"):
        assert any(name in one for one in reached), (name, sorted(reached))
    assert any(one.startswith("Sagittal, T1CE, slice") for one in reached)


def test_files_of_a_visit_are_deleted_when_it_ends(
    browser: Any, visit: Callable[..., Visit], case_dir: Path, server: Server
) -> None:
    def folders() -> set[Path]:
        return set(server.files.glob("brats-app-server-*/*"))

    before = folders()
    here = visit()
    here.upload(*images_of(case_dir))
    here.page.locator("code").first.wait_for()
    until(lambda: len(folders() - before) >= 1)
    new = folders() - before
    stored = [path for folder in new for path in folder.rglob("*") if path.is_file()]
    assert len(stored) == 4
    assert not any(case_dir.name in path.name for path in stored)
    here.page.context.close()
    until(lambda: not any(folder.exists() for folder in new))


def test_a_page_that_is_loaded_again_has_its_results(
    visit: Callable[..., Visit], case_dir: Path, server: Server
) -> None:
    here, other = visit(), visit()
    here.upload(*images_of(case_dir))
    here.segment().click()
    here.wait_for_slices()
    assert server.url.rstrip("/") == here.page.url.rstrip("/")
    here.page.reload()
    here.wait_for_slices()
    here.page.reload()
    here.wait_for_slices()
    # Nobody else has them, and what is over is said to be.
    other.page.reload()
    other.segment().wait_for()
    assert other.page.locator("figure canvas").count() == 0
    other.page.evaluate("() => sessionStorage.setItem('brats-visit', 'of a server before')")
    other.page.reload()
    other.text("its files and results were deleted").wait_for()


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_wider_than_the_window(
    visit: Callable[..., Visit], case_dir: Path, width: int
) -> None:
    here = visit(width)
    here.upload(*images_of(case_dir))
    here.segment().click()
    here.wait_for_slices()
    wide = here.page.evaluate(
        "() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    )
    assert wide <= 0
    for figure in here.page.locator("figure").all():
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] > 100
        assert box["x"] + box["width"] <= width


def test_it_listens_on_this_machine_only(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    listening = set()
    for kind in ("tcp", "tcp6"):
        table = Path("/proc/net", kind)
        if not table.is_file():
            pytest.skip(f"no {table}, which lists listening sockets")
        for line in table.read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                listening.add(local.rpartition(":")[0])
    # 127.0.0.1 as the kernel writes it on a little-endian machine.
    assert listening == {"0100007F"}
