"""The certificate of the faster modes, on label maps of known counts, then through brats-export."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import export.cli
import runtime.backends.opening
import runtime.budget
import runtime.cli.infer_mode
from export.modes import ModeGate, certify_modes
from export.parity import ParityCase
from runtime.atomic import write_bytes, write_json
from runtime.backends import Backend, BackendInfo, BackendOptions, Fill, Take, open_backend
from runtime.budget import Forecast
from runtime.cli.infer import main as infer
from runtime.labels import REGIONS, Label, LabelMap
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_card import InferenceDefaults, ModelCard, Shape3
from runtime.model_dir import ONNX_FP32, ONNX_INT8, ModelDir
from runtime.modes import Mode
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps

Probabilities = npt.NDArray[np.float32]
Cases = Callable[..., Iterator[ParityCase]]

SHAPE = (64, 56, 48)
# One window is the whole volume, so that a backend decides every voxel's label.
CARD = ModelCard("fake", patch=SHAPE, divisor=1, inference=InferenceDefaults(0.5, 1))
MODE = Mode("fast", overlap=0.0)


class Fake:
    """Gives one label map after another."""

    def __init__(self, maps: Sequence[LabelMap], name: str = "fake") -> None:
        self.card, self.ops = CARD, NumpyOps()
        self.info = BackendInfo(name, "cpu", "fp32", sha256="ab" * 32)
        self.maps = list(maps)

    def bind(self, window: Shape3, batch: int) -> None:
        self.buffer = np.zeros((1, 4, *window), np.float32)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        assert n == 1
        fill(0, 1, self.buffer)
        one_hot = np.eye(4, dtype=np.float32)[self.maps.pop(0)]
        take(0, 1, np.moveaxis(one_hot, -1, 0)[None] * np.float32(0.9) + np.float32(0.025))

    def close(self) -> None:
        pass


def blocks(ncr: int = 1000, ed: int = 2000, et: int = 1000) -> LabelMap:
    """So many voxels of each label, side by side."""
    flat = np.zeros(SHAPE, np.uint8).ravel()
    flat[: ncr + ed + et] = np.repeat((Label.NCR, Label.ED, Label.ET), (ncr, ed, et))
    return flat.reshape(SHAPE)


def without(labels: LabelMap, label: int, count: int, other: int = 0) -> LabelMap:
    """So many voxels of a label become another."""
    changed = labels.copy()
    changed.ravel()[np.flatnonzero(labels == label)[:count]] = other
    return changed


@pytest.fixture
def cases(phantom_volume: Volume) -> Cases:
    def make(truths: Sequence[LabelMap | None]) -> Iterator[ParityCase]:
        for number, truth in enumerate(truths):
            case = replace(phantom_volume.case, case_id=f"case{number}")
            yield ParityCase(replace(phantom_volume, case=case), truth)

    return make


def judged(
    cases: Iterator[ParityCase], exact: Sequence[LabelMap], mode: Sequence[LabelMap]
) -> dict[str, Any]:
    (entry,) = certify_modes(Fake(exact), [(MODE, Fake(mode, "quick"))], cases, ModeGate(), "data")
    return entry


def test_a_mode_that_changes_nothing_passes(cases: Cases) -> None:
    maps = [blocks()] * 3
    entry = judged(cases(maps), maps, maps)
    assert entry["verdict"] == "pass"
    assert entry["reasons"] == []
    assert (entry["quality"], entry["precision"], entry["overlap"]) == ("fast", "auto", 0.0)
    assert (entry["file"], entry["sha256"], entry["backend"]) == ("model.onnx", "ab" * 32, "quick")
    assert [one["case_id"] for one in entry["cases"]] == ["case0", "case1", "case2"]
    for one in entry["cases"]:
        assert one["dice_to_exact"] == dict.fromkeys(REGIONS, 1.0)
        assert one["dice_to_truth"]["mode"] == dict.fromkeys(REGIONS, 1.0)
        assert one["changed_labels"] == 0.0


def test_what_is_lost_is_told_in_numbers(cases: Cases) -> None:
    """Of 1,000 voxels of ET 50 become NCR: Dice 2 * 950 / 1950, nothing else differs."""
    exact = [blocks()] * 3
    mode = [without(blocks(), Label.ET, 50, Label.NCR)] * 3
    entry = judged(cases(exact), exact, mode)
    for one in entry["cases"]:
        assert one["dice_to_exact"] == pytest.approx({"WT": 1, "TC": 1, "ET": 1900 / 1950})
        assert one["changed_labels"] == pytest.approx(50 / 4000)
    # 0.974 of what the exact way scores, which is 1.
    assert entry["verdict"] == "fail"
    assert entry["reasons"] == ["mean Dice of ET against truth is 0.9744 < 0.99 x 1.0000"]


def test_a_mean_does_not_hide_a_case_that_is_lost(cases: Cases) -> None:
    """One of ten, in a region that truth says nothing of."""
    exact = [blocks()] * 10
    lost = without(blocks(), Label.ET, 250, Label.NCR)
    entry = judged(cases([None] * 10), exact, [lost, *exact[1:]])
    assert entry["reasons"][0] == "Dice of ET to the exact way is 0.8571 < 0.9 in case0"
    assert entry["verdict"] == "fail"
    # Of so few voxels a handful decides.
    few = [blocks(et=90)] * 10
    lost = without(few[0], Label.ET, 30, Label.NCR)
    assert judged(cases([None] * 10), few, [lost, *few[1:]])["verdict"] == "inconclusive"


def test_means_are_judged(cases: Cases) -> None:
    exact = [blocks()] * 4
    worse = without(blocks(), Label.ET, 50, Label.NCR)
    assert judged(cases(exact), exact, [worse, *exact[1:]])["verdict"] == "pass"
    assert judged(cases(exact), exact, [worse, worse, *exact[2:]])["verdict"] == "fail"


def test_another_label_map_that_scores_as_well_is_not_the_same(cases: Cases) -> None:
    """Truth is nowhere near either, so that only the comparison with the exact way can tell."""
    truth = [np.roll(blocks(), 20, axis=0)] * 3
    exact, mode = [blocks()] * 3, [without(blocks(), Label.ET, 120, Label.ED)] * 3
    entry = judged(cases(truth), exact, mode)
    assert entry["verdict"] == "fail"
    assert any("mean Dice of ET to the exact way is 0.93" in reason for reason in entry["reasons"])


@pytest.mark.parametrize("labelled", [0, 2])
def test_too_few_labelled_cases_decide_nothing(cases: Cases, labelled: int) -> None:
    maps = [blocks()] * 4
    truths = [blocks() if number < labelled else None for number in range(4)]
    entry = judged(cases(truths), maps, maps)
    assert entry["verdict"] == "inconclusive"
    assert f"{labelled} labelled cases" in entry["reasons"][0]


def test_cases_in_which_little_is_found_decide_nothing(cases: Cases) -> None:
    maps = [blocks(et=99)] * 3
    assert judged(cases(maps), maps, maps)["verdict"] == "inconclusive"
    maps = [blocks(et=100)] * 3
    assert judged(cases(maps), maps, maps)["verdict"] == "pass"


def test_a_mode_that_cannot_run_fails_with_the_reason(cases: Cases) -> None:
    maps = [blocks()] * 3

    class Broken(Fake):
        def run(self, n: int, fill: Fill, take: Take) -> None:
            take(0, 1, np.full((1, 4, *SHAPE), np.nan, np.float32))

    (entry,) = certify_modes(Fake(maps), [(MODE, Broken([]))], cases(maps), ModeGate(), "data")
    assert entry["verdict"] == "fail"
    assert entry["reasons"][0].startswith("case0: ")
    assert entry["times_faster"] is None


# --- through the commands -----------------------------------------------------------------------


def test_modes_are_added_to_a_model_and_asked_for_by_name(
    tiny_model: Path, phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    before = ModelDir.open(given)
    phantom = next(phantom_root.iterdir())
    out, flags = tmp_path / "out", ["--model", str(given), "--backend", "ort"]
    assert infer([str(phantom), *flags, "-o", str(out), "--quality", "balanced"]) == 5
    assert "no certificate for it" in capsys.readouterr().err
    assert not list(out.iterdir())
    flags_of_export = ["--modes", "--engines", "no", "--allow-inconclusive", "--cases", "2"]
    # Its label maps are noise, as its weights are: the mode fails, and the model is written.
    assert export.cli.main([str(given), *flags_of_export, "--data", str(phantom_root)]) == 5
    shown = capsys.readouterr()
    assert "--int8" in shown.out + shown.err
    assert "found balanced on openvino: fail: Dice of TC" in shown.err
    made = ModelDir.open(given)
    # Nothing but the certificate is another.
    assert {name for name in made.hashes if made.hashes[name] != before.hashes[name]} == {
        "parity.json"
    }
    entry, other = made.certificate["modes"]
    assert {entry["backend"], other["backend"]} == {"openvino", "ort"}
    assert made.certificate["artefacts"] == before.certificate["artefacts"]
    assert (entry["quality"], entry["window"]) == ("balanced", "box")
    # Noise is far from itself on either backend.
    for one in (entry, other):
        assert one["verdict"] == "fail"
        assert "to the exact way" in one["reasons"][0]
    assert infer([str(phantom), *flags, "-o", str(out), "--quality", "balanced"]) == 5
    assert "a certificate that says fail" in capsys.readouterr().err


def test_a_certified_mode_runs_and_is_recorded(
    tiny_model: Path, phantom_dir: Path, tmp_path: Path
) -> None:
    model = with_modes(tiny_model, tmp_path / "model", Mode("balanced", box=True))
    out = tmp_path / "out"
    flags = ["--model", str(model), "--backend", "ort", "-o", str(out), "--quality", "balanced"]
    assert infer([str(phantom_dir), *flags]) == 0
    (sidecar,) = (json.loads(path.read_text()) for path in out.glob("*.json"))
    assert sidecar["settings"]["quality"] == "balanced"
    assert sidecar["windows"]["count"] == 1
    divisor = ModelDir.open(model).card.divisor
    assert all(size % divisor == 0 for size in sidecar["windows"]["patch"])
    # The same window asked for by hand gives the same label map, by the same certificate, under no
    # name.
    for number, flags in enumerate(([], ["--precision", "fp32"], ["--uncertified"])):
        by_hand = tmp_path / f"by_hand{number}"
        flags += ["--model", str(model), "--backend", "ort", "-o", str(by_hand), "--patch", "box"]
        assert infer([str(phantom_dir), *flags]) == 0
        (other,) = (json.loads(path.read_text()) for path in by_hand.glob("*.json"))
        assert other["output"]["sha256"] == sidecar["output"]["sha256"]
        assert other["settings"]["quality"] == ""
        assert other["warnings"] == sidecar["warnings"]


def with_modes(model: Path, copy: Path, *modes: Mode, **other: Any) -> Path:
    """A copy of a model directory whose certificate says that some modes passed."""
    shutil.copytree(model, copy)
    write_bytes(copy / MANIFEST, manifest_of(copy))
    opened = ModelDir.open(copy)
    passed = {"verdict": "pass", "source": "data", "backend": "ort", "device": "cpu"} | other
    entries = [mode.record() | passed | {"sha256": opened.hashes[mode.artefact]} for mode in modes]
    write_json(copy / "parity.json", {**opened.certificate, "modes": entries})
    write_bytes(copy / MANIFEST, manifest_of(copy))
    return copy


def test_a_mode_is_not_run_where_nobody_certified_it(
    tiny_model: Path, phantom_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_modes(tiny_model, tmp_path / "model", Mode("balanced", box=True))
    flags = [str(phantom_dir), "--model", str(model), "-o", str(tmp_path / "out")]
    for asked in (["--backend", "openvino"], ["--device", "cuda:0"], ["--backend", "trt"]):
        assert infer([*flags, "--quality", "balanced", *asked]) == 5
        told = capsys.readouterr().err
        assert "certified with: ort on cpu" in told
        assert "run it with --backend ort --device cpu" in told
        # By hand it is the same mode.
        assert infer([*flags, "--patch", "box", *asked]) == 5
        assert "--patch box: found" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("asked", [["--quality", "balanced"], ["--patch", "box"]])
def test_a_mode_runs_on_what_it_was_certified_with_though_there_is_a_gpu(
    tiny_model: Path,
    phantom_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
) -> None:
    model = with_modes(tiny_model, tmp_path / "model", Mode("balanced", box=True))
    out = tmp_path / "out"
    flags = [str(phantom_dir), "--model", str(model), "-o", str(out)]
    for module in (runtime.backends.opening, runtime.cli.infer_mode):
        monkeypatch.setattr(module, "cuda_devices", lambda: 1)
    assert infer([*flags, *asked]) == 0
    assert "certified on the CPU alone: that runs it, not the GPU" in capsys.readouterr().err
    (sidecar,) = (json.loads(path.read_text()) for path in out.glob("*.json"))
    backend = sidecar["backend"]
    # OpenVINO, which else opens before it, is not certified; and neither was tried in vain.
    assert (backend["name"], backend["device"], backend["precision"]) == ("ort", "cpu", "fp32")
    assert backend["fell_back_from"] is None


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_what_a_certificate_refuses_is_refused_by_any_other_spelling(
    tiny_model: Path,
    phantom_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    given = Path(shutil.copytree(tiny_model, tmp_path / "given"))
    # Any graph will do.
    shutil.copy(given / ONNX_FP32, given / ONNX_INT8)
    mode = Mode("fast", "int8", box=True) if precision == "int8" else Mode("balanced", box=True)
    lost = {"verdict": "fail", "reasons": ["ET is lost"]}
    model = with_modes(given, tmp_path / "model", mode, **lost)
    flags = [str(phantom_dir), "--model", str(model), "--backend", "ort"]
    out = tmp_path / "out"
    named = [*flags, "-o", str(out), "--quality", mode.quality]
    by_hand = [*flags, "-o", str(out), "--patch", "box", "--precision", precision]
    for asked in (named, by_hand):
        assert infer(asked) == 5
        assert "ET is lost" in capsys.readouterr().err
    assert infer(by_hand) == 5
    told = capsys.readouterr().err
    assert told.startswith("error: --patch box: found a certificate that says fail: ET is lost")
    assert "--uncertified" in told
    assert not list(out.iterdir())
    assert infer([*by_hand, "--uncertified"]) == 0
    (sidecar,) = (json.loads(path.read_text()) for path in out.glob("*.json"))
    warning = "uncertified: one window over the brain box: a certificate that says fail: ET is lost"
    assert warning in sidecar["warnings"]
    assert warning in " ".join(capsys.readouterr().err.split())
    assert sidecar["settings"]["patch"] == "box"


def test_what_a_better_mode_has_done_is_not_done_again(
    tiny_model: Path, phantom_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_modes(tiny_model, tmp_path / "model", Mode("balanced", box=True))
    out = tmp_path / "out"
    flags = [str(phantom_dir), "--model", str(model), "--backend", "ort", "-o", str(out)]

    def quality() -> str:
        (sidecar,) = (json.loads(path.read_text()) for path in out.glob("*.json"))
        return str(sidecar["settings"]["quality"])

    def takes(mode: Mode, *given: Any) -> Forecast:
        return Forecast(mode, 1, 1.0, 100.0 if mode.quality == "exact" else 1.0)

    monkeypatch.setattr(runtime.budget, "_forecast", takes)
    assert infer([*flags, "--quality", "exact"]) == 0
    assert infer([*flags, "--budget", "10s", "--resume"]) == 0
    assert quality() == "exact"
    # Other terms than those of the exact mode are not its result.
    assert infer([*flags, "--overlap", "0", "--overwrite"]) == 0
    assert infer([*flags, "--budget", "10s", "--resume"]) == 0
    assert quality() == "balanced"
    # What is worse is not as good.
    assert infer([*flags, "--budget", "200s", "--resume"]) == 0
    assert quality() == "exact"


def test_modes_without_cases_of_patients_are_refused(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.cli.main([str(tiny_model), "--modes", "--engines", "no"]) == 2
    assert "add --data CASES" in capsys.readouterr().err


class Slow:
    """A backend whose every window takes longer, and the first of its shape longer still."""

    def __init__(self, backend: Backend, window_s: float, first_s: float = 0.0) -> None:
        self.card, self.info, self.ops = backend.card, backend.info, backend.ops
        self.window_s, self.first_s = window_s, first_s
        self.inner, self.seen, self.window = backend, set[Shape3](), (0, 0, 0)

    def bind(self, window: Shape3, batch: int) -> None:
        self.window = window
        self.inner.bind(window, batch)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        time.sleep(n * self.window_s + (0 if self.window in self.seen else self.first_s))
        self.seen.add(self.window)
        self.inner.run(n, fill, take)

    def close(self) -> None:
        self.inner.close()


def test_a_budget_is_kept_or_refused(
    tiny_model: Path,
    phantom_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the machine is doing besides, a window takes 0.2 s or more, and a new shape 1 s."""
    model = with_modes(tiny_model, tmp_path / "model", Mode("balanced", box=True))

    def slow(model: ModelDir, wanted: BackendOptions) -> Backend:
        return Slow(open_backend(model, wanted), 0.2, 1.0)

    monkeypatch.setattr(runtime.budget, "open_backend", slow)

    def run(budget: str) -> tuple[int, str, dict[str, Any], dict[str, float]]:
        """Exit code, what was told, the sidecar, and the forecasts."""
        out = tmp_path / budget
        flags = ["--model", str(model), "--backend", "ort", "-o", str(out), "--budget", budget]
        code, told = infer([str(phantom_dir), *flags]), capsys.readouterr().err
        forecasts = re.findall(r"(exact|balanced) is forecast to take ([0-9.]+) s", told)
        written = [json.loads(path.read_text()) for path in out.glob("*.json")]
        return code, told, *written, {mode: float(seconds) for mode, seconds in forecasts}

    code, told, sidecar, forecasts = run("1min")
    assert code == 0
    assert sidecar["settings"]["quality"] == "exact"
    exact = sidecar["windows"]["count"] * 0.2
    assert exact > 3
    assert forecasts["exact"] >= exact
    assert exact <= sum(sidecar["timings_s"].values()) <= 60
    assert re.search(r"planning took [0-9.]+ s; the budget of 60 s is for each case", told)

    code, _, sidecar, forecasts = run("3s")
    assert code == 0
    assert sidecar["settings"]["quality"] == "balanced"
    assert forecasts["exact"] > 3 >= forecasts["balanced"] >= 1.2
    assert 0.2 <= sum(sidecar["timings_s"].values()) <= 3
    assert not any("budget" in text for text in sidecar["warnings"])

    # A window would be in time, but not the next brain's, whose box is another.
    code, told, forecasts = run("1100ms")  # type: ignore[assignment]
    assert code == 2
    assert "at --quality balanced, the fastest certified mode here" in " ".join(told.split())


def test_cases_that_take_longer_than_the_budget_are_told(
    tiny_model: Path,
    phantom_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second of two takes 4 s more than was forecast of the first."""
    slow: list[Slow] = []

    class SlowAfterOne(Slow):
        def run(self, n: int, fill: Fill, take: Take) -> None:
            super().run(n, fill, take)
            self.first_s, self.seen = 4.0, set()

    def opened(model: ModelDir, wanted: BackendOptions) -> Backend:
        slow.append(SlowAfterOne(open_backend(model, wanted), 0.0))
        return slow[-1]

    def takes(mode: Mode, *given: Any) -> Forecast:
        return Forecast(mode, 1, 1.0, 1.0)

    monkeypatch.setattr(runtime.budget, "open_backend", opened)
    monkeypatch.setattr(runtime.budget, "_forecast", takes)
    out = tmp_path / "out"
    flags = ["--model", str(tiny_model), "--backend", "ort", "-o", str(out), "--budget", "3.5s"]
    assert infer([str(phantom_root), *flags, "--log-json", "--report"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    notes = [(one["case_id"], one["text"]) for one in events if one["event"] == "note"]
    pattern = r"took ([0-9.]+) s, longer than the budget of 3.5 s"
    told = [(case, re.fullmatch(pattern, text)) for case, text in notes]
    ((slowest, match),) = [(case, match) for case, match in told if match]
    # Of two that are read at once either may be the second.
    assert slowest == [one["case_id"] for one in events if one["event"] == "case-done"][1]
    assert match is not None
    total = rf"1 of 2 cases took longer than the budget of 3.5 s, {slowest} ([0-9.]+) s"
    found = re.fullmatch(total, notes[-1][1])
    assert found is not None
    assert float(found[1]) == pytest.approx(float(match[1]), abs=0.06)
    assert any("pages come on top of it" in text for _, text in notes)
    for name in ("BraTSPhantom_0001", "BraTSPhantom_0002"):
        sidecar = json.loads((out / f"{name}.json").read_text())
        seconds, late = sum(sidecar["timings_s"].values()), name == slowest
        assert (seconds > 3.5) == late
        assert any(f"took {seconds:.2f} s" in text for text in sidecar["warnings"]) == late


@pytest.mark.parametrize(
    "flags",
    [
        ["--quality", "fast", "--overlap", "0.5"],
        ["--quality", "fast", "--patch", "box"],
        ["--quality", "balanced", "--stride", "8,8,8"],
        ["--quality", "balanced", "--placement", "stride"],
        ["--quality", "fast", "--precision", "fp32"],
        ["--budget", "9s", "--overlap", "0.5"],
        ["--budget", "9s", "--quality", "fast"],
        ["--budget", "9s", "--quality", "exact"],
        ["--quality", "exact", "--precision", "fp32"],
        ["--patch", "box", "--overlap", "0.5"],
        ["--patch", "box", "--placement", "stride"],
    ],
)
def test_a_mode_and_other_terms_beside_it_are_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer([str(tmp_path), *flags]) == 2
    assert "one of the two" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0s", "-1", "nan", "inf", "ten", "10h", ""])
def test_a_budget_that_is_no_time_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        infer([str(tmp_path), f"--budget={text}"])


def test_a_mode_that_failed_before_hinders_nothing_else(
    tiny_model: Path, phantom_root: Path, tmp_path: Path
) -> None:
    given = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    flags = ["--engines", "no", "--allow-inconclusive", "--cases", "2", "--data", str(phantom_root)]
    assert export.cli.main([str(given), "--modes", *flags]) == 5
    assert export.cli.main([str(given), "--fp16", *flags]) == 0
    assert [one["verdict"] for one in ModelDir.open(given).certificate["modes"]] == ["fail"] * 2
