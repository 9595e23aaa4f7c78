"""Modes as a certificate defines them, one window over the box, and the choice by a budget."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import runtime.budget
import runtime.preprocess
from runtime.backends import Backend, BackendInfo, BackendOptions, Fill, Take
from runtime.budget import MARGIN, best_within
from runtime.case import Case
from runtime.errors import (
    BackendUnavailableError,
    ComputeError,
    InputError,
    ParityError,
    UsageError,
)
from runtime.labels import MODALITIES
from runtime.model_card import InferenceDefaults, ModelCard, Shape3
from runtime.model_dir import ONNX_FP32, ONNX_INT8, ModelDir
from runtime.modes import (
    EXACT,
    Mode,
    box_mode,
    certified,
    check_covers,
    mode_of,
    options_of,
    placed,
    wanted_of,
)
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.preprocess import LARGEST_BOX, prepare
from runtime.segmenter import Segmenter, SegmentOptions

MakeVolume = Callable[..., Volume]
Floats = npt.NDArray[np.float32]

CARD = ModelCard("m", patch=(8, 8, 4), divisor=4, inference=InferenceDefaults(0.5, 1))
HASHES = {ONNX_FP32: "ab" * 32, ONNX_INT8: "cd" * 32}
BALANCED = Mode("balanced", box=True)
FAST = Mode("fast", precision="int8", overlap=0.25)


def entry(mode: Mode, **other: Any) -> dict[str, Any]:
    """What a certificate says of a mode that passed."""
    passed = {"verdict": "pass", "sha256": HASHES[mode.artefact], "source": "data"}
    return mode.record() | passed | {"backend": "fake", "device": "cpu"} | other


def model(*entries: dict[str, Any]) -> ModelDir:
    return ModelDir(Path("m"), CARD, HASHES, {}, {"modes": list(entries)})


# --- what a certificate allows ------------------------------------------------------------------


def test_a_mode_is_what_its_certificate_says() -> None:
    made = model(entry(BALANCED), entry(FAST))
    assert mode_of(made, "balanced") == BALANCED
    assert mode_of(made, "fast") == FAST
    assert certified(made) == [EXACT, BALANCED, FAST]


def test_the_exact_way_needs_no_certificate_of_its_own() -> None:
    assert mode_of(model(), "exact") == EXACT
    assert certified(model()) == [EXACT]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([], "no certificate for it"),
        ([entry(BALANCED)], "no certificate for it"),
        ([entry(FAST, verdict="fail", reasons=["ET is lost"])], "says fail: ET is lost"),
        ([entry(FAST, verdict="inconclusive", reasons=["2 cases"])], "says inconclusive: 2 cases"),
        ([entry(FAST, verdict=None)], "says None"),
        ([entry(FAST, verdict="fail", reasons=5)], "says fail: it does not say why"),
        ([entry(FAST, verdict="fail", reasons={"a": 1})], "says fail: it does not say why"),
        ([entry(FAST, verdict="fail", reasons=[])], "says fail: it does not say why"),
        ([entry(FAST, sha256="ab" * 32)], "for another model.int8.onnx"),
        ([entry(FAST, source="phantoms")], "made on phantoms"),
        ([entry(FAST, source=None)], "made on None"),
    ],
)
def test_a_mode_without_a_passed_certificate_is_refused(entries: list[Any], told: str) -> None:
    with pytest.raises(ParityError, match=told) as caught:
        mode_of(model(*entries), "fast")
    assert caught.value.exit_code == 5
    assert "brats-export m --modes" in str(caught.value)
    assert FAST not in certified(model(*entries))


@pytest.mark.parametrize(
    "terms",
    [
        {"precision": "int4"},
        {"window": "ball"},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"overlap": True},
        {"overlap": "0.5"},
        {"overlap": float("nan")},
    ],
)
def test_terms_that_nobody_knows_are_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a mode fast of unknown terms"):
        mode_of(model(entry(FAST, **terms)), "fast")


@pytest.mark.parametrize("modes", [{"quality": "fast"}, ["fast"], 5, "fast"])
def test_modes_of_no_known_form_are_refused(modes: Any) -> None:
    made = ModelDir(Path("m"), CARD, HASHES, {}, {"modes": modes})
    with pytest.raises(InputError, match="modes that are no list of entries"):
        mode_of(made, "fast")


def test_one_name_for_two_modes_is_refused() -> None:
    other = replace(FAST, overlap=0.5)
    made = model(entry(FAST), entry(other, backend="ort"))
    with pytest.raises(InputError, match="two kinds of mode fast"):
        mode_of(made, "fast")


def test_a_mode_that_passed_somewhere_is_one() -> None:
    failed = entry(FAST, verdict="fail", reasons=["slow"])
    made = model(failed, entry(FAST, backend="ort"))
    assert mode_of(made, "fast") == FAST
    check_covers(made, FAST, "auto", "auto")
    check_covers(made, FAST, "ort", "cpu")
    with pytest.raises(ParityError, match="expected what it was certified with: ort on cpu"):
        check_covers(made, FAST, "fake", "cpu")


@pytest.mark.parametrize(
    ("backend", "device", "covered"),
    [
        ("fake", "cpu", True),
        ("auto", "auto", True),
        ("auto", "cpu", True),
        ("fake", "auto", True),
        ("ort", "cpu", False),
        ("ort", "auto", False),
        ("fake", "cuda:0", False),
        ("auto", "cuda", False),
        ("trt", "auto", False),
    ],
)
def test_a_mode_runs_where_it_was_certified(backend: str, device: str, covered: bool) -> None:
    made = model(entry(BALANCED))
    check_covers(made, EXACT, backend, device)
    if covered:
        check_covers(made, BALANCED, backend, device)
        return
    with pytest.raises(ParityError, match="certified with: fake on cpu") as caught:
        check_covers(made, BALANCED, backend, device)
    assert f"on {device}" in caught.value.found
    assert "--quality exact" in str(caught.value)
    assert "run it with --backend fake --device cpu" in caught.value.remedy
    # No modes are certified on a GPU.
    assert ("brats-export" in caught.value.remedy) == (device != "cuda:0" and backend == "ort")


def test_auto_is_what_was_certified() -> None:
    auto = BackendOptions()
    both = model(entry(BALANCED, backend="openvino"), entry(BALANCED, backend="ort"))
    # A GPU is not asked, and which of the two is left open.
    assert placed(both, BALANCED, auto) == replace(auto, device="cpu")
    assert placed(both, BALANCED, replace(auto, backend="ort")) == BackendOptions("ort", "cpu")
    assert placed(both, EXACT, auto) == auto
    one = model(entry(BALANCED, backend="ort"))
    assert placed(one, BALANCED, auto) == BackendOptions("ort", "cpu")
    on_both = model(entry(BALANCED, backend="ort"), entry(BALANCED, backend="ort", device="cuda:1"))
    assert placed(on_both, BALANCED, auto) == BackendOptions("ort", "auto")
    named = replace(auto, device="cuda:0")
    assert placed(on_both, BALANCED, named) == BackendOptions("ort", "cuda:0")
    with pytest.raises(ParityError, match="certified with: ort on cpu"):
        placed(one, BALANCED, named)
    # What is no backend of ours is never opened by its name.
    assert placed(model(entry(BALANCED, device="tpu")), BALANCED, auto) == auto


def test_one_window_over_the_box_is_the_mode_that_does_it() -> None:
    fast = Mode("fast", precision="int8", box=True)
    made = model(entry(BALANCED), entry(fast))
    assert box_mode(made, "auto") == box_mode(made, "fp32") == BALANCED
    assert box_mode(made, "int8") == fast
    for precision in ("fp16", "bf16"):
        with pytest.raises(ParityError, match=f"no certificate .* in precision {precision}"):
            box_mode(made, precision)
    lost = model(entry(BALANCED), entry(fast, verdict="fail", reasons=["ET is lost"]))
    with pytest.raises(ParityError, match="says fail: ET is lost"):
        box_mode(lost, "int8")
    # Windows of a patch are another plan, and the exact way vouches for nothing else.
    for other in (model(entry(FAST)), model(entry(replace(fast, quality="exact"))), model()):
        with pytest.raises(ParityError, match="no certificate"):
            box_mode(other, "int8")


def test_a_mode_changes_its_own_terms_and_nothing_else() -> None:
    asked = SegmentOptions(batch=2, probabilities=True, force_spacing=True, postprocess=False)
    assert options_of(EXACT, asked) == replace(asked, quality="exact")
    assert options_of(BALANCED, asked) == replace(asked, quality="balanced", patch="box")
    assert options_of(FAST, asked) == replace(asked, quality="fast", overlap=0.25)
    wanted = BackendOptions("ort", "cpu", threads=3)
    assert wanted_of(EXACT, wanted) == wanted
    # The graph that its certificate is about, on a GPU too.
    assert wanted_of(BALANCED, wanted) == replace(wanted, patch="box", precision="fp32")
    assert wanted_of(FAST, wanted) == replace(wanted, precision="int8")


# --- one window over the box --------------------------------------------------------------------


def network(inputs: Floats) -> Floats:
    """Class k has the logit of modality k."""
    odds = np.exp(2 * inputs)
    return odds / odds.sum(axis=1, keepdims=True)


class FakeBackend:
    """A plain function as a backend, whose every window takes some seconds of a made-up clock, and
    the first of its shape some more, as with OpenVINO.
    """

    def __init__(self, window_s: float = 0.0, first_s: float = 0.0, name: str = "fake") -> None:
        self.card, self.info = CARD, BackendInfo(name, "cpu", "fp32")
        self.ops, self.window_s, self.first_s = Clock(), window_s, first_s
        self.windows: list[Shape3] = []
        self.fault: BaseException | None = None
        self.closed = False

    def bind(self, window: Shape3, batch: int) -> None:
        self.buffer = np.zeros((1, len(MODALITIES), *window), np.float32)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        for index in range(n):
            fill(index, index + 1, self.buffer)
            if self.fault is not None:
                raise self.fault
            window: Shape3 = self.buffer.shape[2:]  # type: ignore[assignment]
            self.ops.now += self.window_s + (0 if window in self.windows else self.first_s)
            self.windows.append(window)
            take(index, index + 1, network(self.buffer))

    def close(self) -> None:
        self.closed = True


class Clock(NumpyOps):
    now = 0.0

    def mark(self) -> float:
        return self.now


def brain(shape: Shape3, box: Shape3, low: Shape3 = (3, 2, 1)) -> dict[str, Any]:
    """Four modalities of noise in a box of a volume."""
    images = {}
    for number, name in enumerate(MODALITIES):
        images[name] = np.zeros(shape, np.int16)
        place = tuple(slice(a, a + n) for a, n in zip(low, box, strict=True))
        images[name][place] = np.random.default_rng(number).integers(100, 900, box)
    return images


@pytest.mark.parametrize("box", [(8, 8, 4), (9, 11, 13), (12, 5, 3), (20, 17, 16)])
def test_one_window_holds_the_whole_box(make_volume: MakeVolume, box: Shape3) -> None:
    volume = make_volume(brain((24, 20, 18), box))
    backend = FakeBackend()
    found = Segmenter(backend, SegmentOptions(patch="box", probabilities=True)).segment(volume)
    # Each axis up to the next multiple of the card's divisor.
    assert backend.windows == [tuple(-(-size // 4) * 4 for size in box)]
    assert len(found.plan) == 1
    # Voxel by voxel, so that windows do not matter.
    windows = Segmenter(FakeBackend(), SegmentOptions(probabilities=True)).segment(volume)
    inside = np.any([image.voxels != 0 for image in volume.images.values()], axis=0)
    np.testing.assert_array_equal(found.labels[inside], windows.labels[inside])
    assert found.probabilities is not None
    assert windows.probabilities is not None
    np.testing.assert_allclose(
        found.probabilities[inside], windows.probabilities[inside], atol=2e-6
    )


def test_a_box_follows_its_case(make_volume: MakeVolume) -> None:
    backend = FakeBackend()
    segmenter = Segmenter(backend, SegmentOptions(patch="box"))
    for box in ((8, 8, 8), (16, 8, 8), (8, 8, 8)):
        assert segmenter.segment(make_volume(brain((24, 20, 18), box))).plan.patch == box
    assert backend.windows == [(8, 8, 8), (16, 8, 8), (8, 8, 8)]


def test_a_box_too_large_for_one_window_is_refused(make_volume: MakeVolume) -> None:
    size = (208, 204, 200)
    assert size[0] * size[1] * size[2] > LARGEST_BOX
    images = {name: np.zeros(size, np.int16) for name in MODALITIES}
    for image in images.values():
        image[0, 0, 0] = image[-1, -1, -1] = 1
        image[5, 5, 5] = 7
    volume = make_volume(images)
    with pytest.raises(InputError, match="208x204x200, too large for a single window"):
        prepare(volume, CARD, NumpyOps(), "box")
    assert prepare(volume, CARD, NumpyOps(), CARD.patch).placement.shape == size


# --- a budget -----------------------------------------------------------------------------------


class Machine:
    """Opens fake backends: seconds of a window by precision and patch; None is not here, and an
    error is raised by its first window.
    """

    def __init__(
        self, first_s: float = 0.0, name: str = "fake", **seconds: float | BaseException | None
    ) -> None:
        self.seconds, self.opened = seconds, []  # type: ignore[var-annotated]
        self.first_s, self.name = first_s, name

    def open_backend(self, model: ModelDir, options: BackendOptions) -> Backend:
        kind = options.precision if options.patch is None else f"{options.precision}_box"
        seconds = self.seconds[kind]
        if seconds is None:
            raise BackendUnavailableError(kind, found="nothing", expected="it", remedy="none")
        fault = seconds if isinstance(seconds, BaseException) else None
        backend = FakeBackend(
            0.0 if isinstance(seconds, BaseException) else seconds, self.first_s, self.name
        )
        backend.fault = fault
        self.opened.append((kind, backend))
        return backend


@pytest.fixture
def choose(
    make_volume: MakeVolume, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Machine, float], Any]:
    # 2 x 2 x 3 windows of the card's patch at overlap 0.5, and 2 x 2 x 3 at 0.25.
    volume = make_volume(brain((24, 20, 18), (12, 12, 8)))
    monkeypatch.setattr(runtime.budget, "load", lambda case: volume)
    monkeypatch.setattr(runtime.budget, "perf_counter", lambda: 0.0)

    def run(machine: Machine, seconds: float, options: SegmentOptions | None = None) -> Any:
        monkeypatch.setattr(runtime.budget, "open_backend", machine.open_backend)
        case = Case("X", {})
        made = model(entry(BALANCED), entry(FAST))
        return best_within(seconds, made, case, BackendOptions(), options or SegmentOptions())

    return run


SECONDS = {"auto": 1.0, "fp32_box": 5.0, "int8": 0.25}


@pytest.mark.parametrize(
    ("budget", "quality"),
    [
        (12 * MARGIN + 0.01, "exact"),
        (12 * MARGIN - 0.01, "balanced"),
        (5 * MARGIN + 0.01, "balanced"),
        (5 * MARGIN - 0.01, "fast"),
        (3 * MARGIN + 0.01, "fast"),
    ],
)
def test_the_best_that_keeps_to_it_is_taken(
    choose: Callable[[Machine, float], Any], budget: float, quality: str
) -> None:
    machine = Machine(**SECONDS)
    choice = choose(machine, budget)
    forecasts = choice.forecasts
    assert choice.mode.quality == quality
    expected = {"exact": (12, 1.0), "balanced": (1, 5.0), "fast": (12, 0.25)}
    for one in forecasts:
        windows, seconds = expected[one.mode.quality]
        assert (one.windows, one.window_s) == (windows, pytest.approx(seconds))
        assert one.seconds == pytest.approx(windows * seconds * MARGIN)
    # What is worse than what fits is not even opened, and nothing stays open but what fits.
    assert [one.mode.quality for one in forecasts][-1] == quality
    *others, (_, chosen) = machine.opened
    assert chosen is choice.backend
    assert not chosen.closed
    assert all(backend.closed for _, backend in others)
    assert len(machine.opened) == len(forecasts)
    assert choice.passed_over == ()


@pytest.mark.parametrize("box", [(12, 12, 8), CARD.patch])
def test_what_a_shape_costs_when_it_is_first_seen_is_forecast(
    choose: Callable[[Machine, float], Any],
    make_volume: MakeVolume,
    monkeypatch: pytest.MonkeyPatch,
    box: Shape3,
) -> None:
    """Every brain is another box, while the windows of the exact way have one shape for all."""
    volume = make_volume(brain((24, 20, 18), box))
    monkeypatch.setattr(runtime.budget, "load", lambda case: volume)
    machine = Machine(first_s=70.0, auto=100.0, fp32_box=5.0, int8=100.0)
    exact, balanced = choose(machine, (5 + 70) * MARGIN + 0.01).forecasts
    assert exact.seconds == pytest.approx(exact.windows * 100 * MARGIN)
    assert balanced.seconds == pytest.approx((5 + 70) * MARGIN)
    # Nothing but the one window is paid for each case.
    assert machine.opened[1][1].windows[-1] == box


def test_probabilities_are_part_of_the_forecast(
    choose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, kinds = [0.0], []

    def slow(path: Path, probabilities: Floats, *other: Any) -> None:
        now[0] += 7.0
        kinds.append((probabilities.shape, probabilities.dtype))
        # Mostly at 0, as after a few windows, they would be written in no time.
        assert np.count_nonzero(probabilities[3:15, 2:14, 1:9]) > 0.99 * 12 * 12 * 8 * 4

    monkeypatch.setattr(runtime.budget, "perf_counter", lambda: now[0])
    monkeypatch.setattr(runtime.budget, "write_probabilities", slow)
    (forecast,) = choose(Machine(**SECONDS), 100).forecasts
    assert forecast.seconds == pytest.approx(12 * MARGIN)
    (forecast,) = choose(Machine(**SECONDS), 100, SegmentOptions(probabilities=True)).forecasts
    assert forecast.seconds == pytest.approx((12 + 7) * MARGIN)
    assert kinds == [((24, 20, 18, 4), np.float32)]


def test_what_is_done_after_the_network_costs_its_time(
    choose: Callable[[Machine, float], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow(*given: Any) -> Any:
        now[0] += 5.0
        return given[0]

    monkeypatch.setattr(runtime.budget, "perf_counter", lambda: now[0])
    monkeypatch.setattr(runtime.budget, "postprocess", slow)
    monkeypatch.setattr(runtime.budget, "write_label_map", slow)
    (forecast,) = choose(Machine(**SECONDS), 100).forecasts
    assert forecast.seconds == pytest.approx((12 + 5 + 5) * MARGIN)


def test_none_in_time_is_refused_with_what_it_would_take(
    choose: Callable[[Machine, float], Any],
) -> None:
    with pytest.raises(UsageError, match=r"3\.3 s for X at --quality fast") as caught:
        choose(Machine(**SECONDS), 3)
    assert "give it 4s" in str(caught.value)
    # All three are certified already.
    assert "certify" not in str(caught.value).partition("expected")[2]


def test_a_mode_whose_backend_is_not_here_is_passed_over(
    choose: Callable[[Machine, float], Any],
) -> None:
    choice = choose(Machine(auto=1.0, fp32_box=None, int8=0.25), 5)
    assert choice.mode.quality == "fast"
    assert [one.mode.quality for one in choice.forecasts] == ["exact", "fast"]
    assert len(choice.passed_over) == 1
    assert choice.passed_over[0].startswith("balanced is passed over: fp32_box: found nothing")
    with pytest.raises(BackendUnavailableError, match="found nothing"):
        choose(Machine(auto=None, fp32_box=None, int8=None), 5)
    # Where nothing fits, it is told too, and that a certificate would help is not.
    with pytest.raises(UsageError, match="balanced is passed over: fp32_box: nothing") as caught:
        choose(Machine(auto=1.0, fp32_box=None, int8=0.25), 1)
    assert "or a faster machine" in caught.value.remedy


def failed(found: str) -> ComputeError:
    return ComputeError("network", found=found, expected="a result", remedy="none")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (failed("a failed run"), "network: found a failed run"),
        (MemoryError("no room"), "--quality balanced: found too little memory (no room)"),
        (MemoryError(), "--quality balanced: found too little memory, expected room for case"),
    ],
)
def test_a_mode_that_fails_on_the_case_is_passed_over(
    choose: Callable[[Machine, float], Any], fault: BaseException, told: str
) -> None:
    machine = Machine(auto=1.0, fp32_box=fault, int8=0.25)
    choice = choose(machine, 5)
    assert choice.mode.quality == "fast"
    assert len(choice.passed_over) == 1
    assert choice.passed_over[0].startswith(f"balanced is passed over: {told}")
    assert [backend.closed for _, backend in machine.opened] == [True, True, False]
    with pytest.raises(ComputeError):
        choose(Machine(auto=fault, fp32_box=fault, int8=fault), 5)


def test_a_box_too_large_for_one_window_is_passed_over(
    choose: Callable[[Machine, float], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.preprocess, "LARGEST_BOX", 12 * 12 * 8 - 1)
    machine = Machine(**SECONDS)
    choice = choose(machine, 5)
    assert choice.mode.quality == "fast"
    assert "12x12x8, too large for a single window" in choice.passed_over[0]
    assert [backend.closed for _, backend in machine.opened] == [True, True, False]


def test_a_case_that_the_exact_way_cannot_read_is_told_at_once(
    choose: Callable[[Machine, float], Any],
    make_volume: MakeVolume,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = brain((24, 20, 18), (12, 12, 8))
    images["t2"][...] = 0
    volume = make_volume(images)
    monkeypatch.setattr(runtime.budget, "load", lambda case: volume)
    machine = Machine(**SECONDS)
    with pytest.raises(InputError, match="an image of zeros"):
        choose(machine, 100)
    assert [backend.closed for _, backend in machine.opened] == [True]


def test_a_mode_that_is_not_certified_on_what_is_here_is_passed_over(
    choose: Callable[[Machine, float], Any],
) -> None:
    machine = Machine(name="other", **SECONDS)
    with pytest.raises(UsageError, match="--quality exact, the fastest") as caught:
        choose(machine, 5)
    assert "certify balanced and fast" in str(caught.value)
    assert all(backend.closed for _, backend in machine.opened)
    assert choose(Machine(name="other", **SECONDS), 100).mode == EXACT
