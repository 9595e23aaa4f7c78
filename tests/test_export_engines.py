"""Which engines brats-export chooses and releases, on a machine made of fakes: TensorRT's engines
run the real graph on the CPU, and how fast they are is planned.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.build import GRAPHS
from export.cases import parity_cases
from export.engine_choice import EngineChoice, add_engines, drop_unused_forms
from export.engines import (
    EngineDevice,
    EngineOptions,
    EngineSource,
    layouts,
    try_engines,
    window_seconds,
)
from export.parity import CaseList, Gate, Reference
from export.produce import Parity, Product, from_model
from export.release import release
from runtime.backends import BackendInfo, BackendOptions, Fill, Take, open_backend
from runtime.backends.driver import Gpu
from runtime.backends.ort import OrtBackend
from runtime.engine import EngineRecord, Profile, find_engine, read_records
from runtime.errors import ParityError
from runtime.model_card import ModelCard, Shape3
from runtime.model_dir import ModelDir, sha256_of
from runtime.segmenter import Segmenter
from tests.fake_gpu import GPU, VERSION, EngineSpec, FakeGpu, add_engine, fake_gpu, fake_tensorrt
from tests.tiny_export import (
    CARD,
    Builder,
    Combination,
    Tracer,
    bytes_of,
    exported,
    write_cases,
    write_checkpoints,
)

HALF = "model.fp16.onnx"
FORMS: tuple[Combination, ...] = tuple(
    (file, layout)
    for file in (HALF, "model.fp16.unfused.onnx", "model.fp16.interleave.onnx")
    for layout in ("linear", "dhwc8")
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    write_cases(root)
    return root


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A model directory with every form of both graphs, exported without a GPU; read-only."""
    root = tmp_path_factory.mktemp("elsewhere")
    write_checkpoints(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.build.trace", Tracer())
        flags = ("--fp16", "--up-branch", "all", "--engines", "no")
        code = exported(root / "good.pt", "-o", root / "model", "--data", data, *flags)
    assert code == 0
    return root / "model"


@pytest.fixture
def machine() -> Iterator[FakeGpu]:
    with fake_gpu() as made:
        yield made


@pytest.fixture
def plan(machine: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Builder]:
    """plan(...): the builder of this machine from now on."""

    def planned(**how: Any) -> Builder:
        builder = Builder(**how)
        monkeypatch.setattr("export.engines.build_engine", builder.build)
        monkeypatch.setattr("export.engines.window_seconds", builder.window_seconds)
        return builder

    return planned


@pytest.fixture(scope="module")
def judged(elsewhere: Path, data: Path) -> Callable[..., Parity]:
    """judged(cases, ...): how engines are judged; one case decides unless more are asked for. The
    reference's predictions are kept for all tests.
    """
    model = ModelDir.open(elsewhere)
    info = BackendInfo("ort", "cpu", "fp32", "model.onnx", model.hashes["model.onnx"])
    backend = OrtBackend(model.read("model.onnx"), model.card, info, 1)
    reference, read = Reference(backend), list(parity_cases(data, 3))

    def parity(cases: int = 1, **changes: Any) -> Parity:
        gate = Gate(informative_cases=cases)
        whole = Parity(reference, CaseList(read[:cases]), gate, "data", lambda line: None)
        return replace(whole, **changes)

    return parity


DEVICE = EngineDevice(fake_tensorrt(), 0, GPU)


@dataclass
class Added:
    product: Product
    choice: EngineChoice

    def chosen(self) -> list[Combination]:
        return [
            (one["file"], one["input_layout"])
            for one in self.product.certificate["engines"]["tried"]
            if one["chosen"]
        ]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Certificate entries of engines, by the graph that they were built from."""
        found = self.product.certificate["artefacts"]
        return {entry["built_from"]: entry for entry in found if "built_from" in entry}


def added(
    elsewhere: Path,
    parity: Parity,
    options: EngineOptions | None = None,
    device: EngineDevice = DEVICE,
) -> Added:
    product = from_model(ModelDir.open(elsewhere))
    return Added(product, add_engines(product, device, options or EngineOptions(4), parity))


# What is chosen


@pytest.mark.parametrize("fastest", FORMS)
def test_the_fastest_form_and_layout_is_chosen(
    elsewhere: Path, judged: Any, plan: Any, fastest: Combination
) -> None:
    builder = plan(ms={fastest: 0.25})
    result = added(elsewhere, judged())
    file, _ = fastest
    fp32 = file.replace(".fp16", "")
    assert result.chosen() == [fastest, (fp32, "linear")]
    # Every form and layout is built in fp16; fp32, the spare, only in the form that won.
    assert builder.order == [*FORMS, (fp32, "linear")]
    tried = result.product.certificate["engines"]["tried"]
    assert [one["window_ms"] for one in tried] == [0.25, 1, 1, 1, 1, 1, 1]
    assert [one["verdict"] for one in tried] == ["pass", *[""] * 5, "pass"]
    assert {one["build_s"] for one in tried} == {0.5}


def test_the_fastest_that_fails_the_gate_is_passed_over(
    elsewhere: Path, judged: Any, plan: Any
) -> None:
    first, second, third = FORMS[4], FORMS[3], FORMS[0]
    plan(ms={first: 0.1, second: 0.2, third: 0.3}, wrong=frozenset({first, second}))
    result = added(elsewhere, judged())
    assert result.chosen() == [third, ("model.onnx", "linear")]
    tried = result.product.certificate["engines"]["tried"]
    assert [(one["verdict"], bool(one["reasons"])) for one in tried[:4]] == [
        ("fail", True),
        ("fail", True),
        ("pass", False),
        ("", False),
    ]
    assert "Dice of WT to fp32 is 0.0000" in tried[0]["reasons"][0]
    assert [note.partition(":")[0] for note in result.product.notes] == [
        "model.fp16.interleave.onnx, linear input",
        "model.fp16.unfused.onnx, dhwc8 input",
    ]
    # What is not released does not fail the release.
    assert result.product.certificate["verdict"] == "pass"
    assert set(result.entries()) == {HALF, "model.onnx"}
    assert result.choice.rejected == {}


def test_a_combination_that_cannot_be_built_is_told_and_the_others_go_on(
    elsewhere: Path, judged: Any, plan: Any
) -> None:
    broken = FORMS[0]
    plan(broken=frozenset({broken}), ms={broken: 0.01})
    result = added(elsewhere, judged())
    assert result.chosen()[0] == FORMS[1]
    assert result.product.certificate["engines"]["unusable"] == [
        {
            "file": broken[0],
            "input_layout": broken[1],
            "reason": "found no tactic for node_conv3d, expected one",
        }
    ]
    assert len(result.product.certificate["engines"]["tried"]) == 6


def test_an_engine_that_cannot_run_is_told(
    elsewhere: Path, judged: Any, machine: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.faults.contexts = False
    result = added(elsewhere, judged())
    assert result.chosen() == []
    unusable = result.product.certificate["engines"]["unusable"]
    # Six of fp16, and three of fp32, as no form has won.
    assert len(unusable) == 9
    assert all("no memory for a context" in one["reason"] for one in unusable)
    assert result.product.certificate["verdict"] == "pass"
    assert not any(name.startswith("engines/") for name in result.product.files)


def test_an_undecided_engine_is_chosen_and_makes_the_certificate_undecided(
    elsewhere: Path, judged: Any, plan: Any
) -> None:
    plan()
    result = added(elsewhere, judged(gate=Gate(informative_cases=2)))
    assert result.choice.undecided
    assert result.product.certificate["verdict"] == "inconclusive"
    assert result.entries()[HALF]["verdict"] == "inconclusive"


def test_the_layout_of_8_channels_is_for_fp16_only() -> None:
    found = {precision: layouts(precision) for precision in GRAPHS}
    assert found == {"fp32": ("linear",), "fp16": ("linear", "dhwc8"), "bf16": ("linear",)}


# Time


class Ticking:
    """Array operations whose clock advances by what each run is said to take."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds_of_runs, self.now = iter(seconds), 0.0
        self.windows: list[Any] = []

    def upload(self, array: Any) -> Any:
        self.volume = array
        return array

    def gather(self, volume: Any, starts: Any, inputs: Any) -> None:
        assert volume is self.volume
        self.windows += [tuple(start) for start in starts]

    def mark(self) -> float:
        return self.now

    def seconds(self, began: float, ended: float) -> float:
        return ended - began


class Timed:
    def __init__(self, card: ModelCard, seconds: list[float]) -> None:
        self.card, self.ops = card, Ticking(seconds)
        self.bound: tuple[Shape3, int] | None = None

    def bind(self, window: Shape3, batch: int) -> None:
        self.bound = (window, batch)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        fill(0, n, None)
        self.ops.now += next(self.ops.seconds_of_runs)
        take(0, n, None)


def test_the_time_of_a_window_is_a_median_without_the_first_run() -> None:
    backend: Any = Timed(CARD, [99.0, 0.5, 0.1, 0.3, 0.2, 0.4])
    assert window_seconds(backend) == pytest.approx(0.3 / 2)
    assert backend.bound == (CARD.patch, 2)
    assert backend.ops.windows == [(0, 0, 0)] * 12
    # Noise: some devices are faster on zeros.
    assert backend.ops.volume.shape == (4, *CARD.patch)
    assert backend.ops.volume.std() == pytest.approx(1, abs=0.02)


def test_engines_are_timed_on_the_device_and_sorted(elsewhere: Path, machine: FakeGpu) -> None:
    data = (elsewhere / HALF).read_bytes()
    sources = [EngineSource(HALF, data, "fp16", "k4")]
    lines: list[str] = []
    trials = try_engines(sources, CARD, DEVICE, EngineOptions(4), told=lines.append)
    times = [engine.window_seconds for engine in trials.engines]
    assert times == sorted(times)
    assert all(0 < time < 60 for time in times)
    assert {engine.record.key.input_layout for engine in trials.engines} == {"linear", "dhwc8"}
    assert lines[0] == f"building an engine: {HALF}, linear input"
    assert lines[1].endswith("ms a window")
    assert len(lines) == 4


# Options and timing cache


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (EngineOptions(8), Profile(CARD.patch, 1, 2, 8)),
        (EngineOptions(1), Profile(CARD.patch, 1, 1, 1)),
        (EngineOptions(8, static=True), Profile(CARD.patch, 2, 2, 2)),
    ],
)
def test_every_engine_is_built_for_the_batches_that_were_asked_for(
    elsewhere: Path, judged: Any, plan: Any, options: EngineOptions, expected: Profile
) -> None:
    builder = plan()
    options = replace(options, level=1, workspace_bytes=12345)
    result = added(elsewhere, judged(), options)
    assert {given.profile for _, given in builder.built} == {expected}
    assert {(given.level, given.workspace_bytes) for _, given in builder.built} == {(1, 12345)}
    assert len(result.chosen()) == 2
    records = [
        EngineRecord.from_json(data.decode(), name)
        for name, data in result.product.files.items()
        if name.startswith("engines/") and name.endswith(".json")
    ]
    assert {record.key.profile for record in records} == {expected}


def test_each_build_gets_the_timing_cache_of_the_one_before(
    elsewhere: Path, judged: Any, plan: Any
) -> None:
    builder = plan(broken=frozenset({FORMS[1]}))
    product = from_model(ModelDir.open(elsewhere))
    choice = add_engines(product, DEVICE, EngineOptions(4), judged(), b"from the file")
    given = [options.timing_cache for _, options in builder.built]
    # The second build fails and leaves the cache as it was.
    assert given[:4] == [b"from the file", b"timings 1", b"timings 1", b"timings 3"]
    assert choice.timing_cache == b"timings 7"
    tried = product.certificate["engines"]["tried"]
    assert sorted(one["warnings"][0] for one in tried) == [
        f"warning {n}" for n in (1, 3, 4, 5, 6, 7)
    ]


# What is released


def test_the_certificate_of_an_engine_says_where_it_ran_and_against_what(
    elsewhere: Path, judged: Any, plan: Any
) -> None:
    plan(ms={("model.fp16.unfused.onnx", "dhwc8"): 0.5})
    result = added(elsewhere, judged(3, source="phantoms", gate=Gate(truth=0.99)))
    entry = result.entries()["model.fp16.unfused.onnx"]
    plan_bytes = result.product.files[entry["file"]]
    before = json.loads((elsewhere / "parity.json").read_text())
    assert entry["sha256"] == sha256_of(plan_bytes)
    assert (entry["backend"], entry["device"]) == ("trt", "cuda:0")
    assert entry["arithmetic"] == "fp16 on Fake H100"
    assert entry["up_branch"] == "unfused"
    assert entry["verdict"] == "pass"
    assert entry["reference"] == {
        "backend": "ort",
        "device": "cpu",
        "arithmetic": "fp32",
        "file": "model.onnx",
        "sha256": sha256_of((elsewhere / "model.onnx").read_bytes()),
    }
    # These cases are the ones of the export; gate and source are not.
    assert "inputs" not in entry
    assert entry["source"] == "phantoms"
    assert entry["gate"]["truth"] == 0.99
    assert [case["case_id"] for case in entry["cases"]] == [
        case["case_id"] for case in before["cases"]
    ]
    assert all(0 < case["max_probability_error"] < 0.5 for case in entry["cases"])
    assert result.product.certificate["reference"] == before["reference"]
    assert before["reference"]["backend"] == "torch"


def test_other_cases_than_those_of_the_export_are_named(
    elsewhere: Path, judged: Any, plan: Any
) -> None:
    plan()
    entry = added(elsewhere, judged(1)).entries()[HALF]
    before = json.loads((elsewhere / "parity.json").read_text())
    assert entry["inputs"] == before["cases"][:1]


def test_what_is_released_runs_and_labels_as_the_cpu_does(
    elsewhere: Path, judged: Any, plan: Any, tmp_path: Path, data: Path
) -> None:
    plan(ms={("model.fp16.interleave.onnx", "dhwc8"): 0.5})
    result = added(elsewhere, judged(3))
    drop_unused_forms(result.product)
    product, out = result.product, tmp_path / "model"
    release(out, product.card, product.files, product.certificate, False)
    files = bytes_of(out)
    manifest = json.loads(files.pop("manifest.json"))["files"]
    assert manifest == {
        name: {"sha256": sha256_of(content), "bytes": len(content)}
        for name, content in files.items()
    }
    engines = {name for name in files if name.startswith("engines/")}
    assert len(engines) == 4
    # Forms that no engine was built from are gone, from the certificate too.
    kept = {HALF, "model.onnx", "model.fp16.interleave.onnx", "model.interleave.onnx"}
    assert set(files) - engines == kept | {"card.json", "parity.json"}
    certificate = json.loads(files["parity.json"])
    plans = {name for name in engines if name.endswith(".plan")}
    assert {entry["file"] for entry in certificate["artefacts"]} == kept | plans
    model = ModelDir.open(out)
    assert len(read_records(model)) == 2
    found = find_engine(model, "tensorrt", VERSION, GPU, "fp16", CARD.patch)
    assert found.source == "model.fp16.interleave.onnx"
    assert found.up_branch == "interleave"
    assert found.key.input_layout == "dhwc8"
    volume = next(iter(parity_cases(data, 1))).volume
    labels = {}
    for name, device, precision in (
        ("ort", "cpu", "fp32"),
        ("trt", "cuda:0", "fp32"),
        ("trt", "cuda:0", "fp16"),
    ):
        backend = open_backend(model, BackendOptions(name, device, precision, 1))  # type: ignore[arg-type]
        assert backend.info.certificate == "pass"
        labels[name, precision] = Segmenter(backend).segment(volume).labels
        backend.close()
    cpu = labels["ort", "fp32"]
    assert np.bincount(cpu.ravel()).min() > 100
    np.testing.assert_array_equal(labels["trt", "fp32"], cpu)
    tumour = np.count_nonzero(cpu)
    assert np.count_nonzero(labels["trt", "fp16"] != cpu) < 5e-3 * tumour


# Adding to what is there


OTHERS = (
    EngineSpec(gpu=Gpu("Another GPU", "8.6")),
    EngineSpec(gpu=Gpu("Fake H100", "9.1")),
    EngineSpec(version="10.13.3"),
)


@pytest.fixture
def occupied(elsewhere: Path, tmp_path: Path) -> Path:
    """A model with engines of other machines, and one of this machine for another batch."""
    out = tmp_path / "occupied"
    for name, content in bytes_of(elsewhere).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    for spec in (*OTHERS, EngineSpec(max_batch=64), EngineSpec("fp32", max_batch=64)):
        add_engine(out, spec)
    return out


def keys_of(product: Product) -> list[EngineRecord]:
    return [
        EngineRecord.from_json(data.decode(), name)
        for name, data in product.files.items()
        if name.startswith("engines/") and name.endswith(".json")
    ]


def test_engines_of_other_machines_stay_and_those_of_this_one_are_replaced(
    occupied: Path, judged: Any, plan: Any
) -> None:
    before = bytes_of(occupied)
    plan(ms={FORMS[4]: 0.5})
    result = added(occupied, judged())
    product = result.product
    other = (GPU, VERSION)
    mine = [one for one in keys_of(product) if (one.key.gpu, one.key.version) == other]
    theirs = [one for one in keys_of(product) if (one.key.gpu, one.key.version) != other]
    assert len(theirs) == len(OTHERS)
    for record in theirs:
        for name in (record.key.plan, record.key.record):
            assert product.files[name] == before[name]
    assert {(one.source, one.key.profile.max_batch) for one in mine} == {
        ("model.fp16.interleave.onnx", 4),
        ("model.interleave.onnx", 4),
    }
    # Nothing is certified that is not there.
    files = {entry["file"] for entry in product.certificate["artefacts"]}
    assert files <= set(product.files)
    assert {one.key.plan for one in (*mine, *theirs)} <= files
    # A form that another machine's engine was built from stays with it.
    product.files["model.fp16.unfused.onnx"] = b"unused"
    drop_unused_forms(product)
    assert "model.fp16.unfused.onnx" not in product.files
    assert HALF in product.files


def test_an_engine_of_this_machine_stays_where_none_passes_now(
    occupied: Path, judged: Any, plan: Any
) -> None:
    plan(ms={FORMS[2]: 0.5}, wrong=frozenset(FORMS))
    result = added(occupied, judged())
    assert result.chosen() == [("model.onnx", "linear")]
    # The fastest one is what is told of where engines are required.
    assert {kind: one["built_from"] for kind, one in result.choice.rejected.items()} == {
        "fp16": FORMS[2][0]
    }
    mine = {
        (one.key.precision, one.key.profile.max_batch)
        for one in keys_of(result.product)
        if (one.key.gpu, one.key.version) == (GPU, VERSION)
    }
    assert mine == {("fp16", 64), ("fp32", 4)}
    assert result.product.certificate["verdict"] == "pass"


def test_the_same_engine_built_again_has_one_certificate(
    elsewhere: Path, judged: Any, plan: Any, tmp_path: Path
) -> None:
    builder = plan()
    first = added(elsewhere, judged()).product
    release(tmp_path / "model", first.card, first.files, first.certificate, False)
    again = added(tmp_path / "model", judged()).product
    assert len(builder.built) == 14
    assert set(again.files) == set(first.files)
    files = [entry["file"] for entry in again.certificate["artefacts"] if "built_from" in entry]
    assert len(files) == len(set(files)) == 2


# The verdict is that of what is released


def entry_of(file: str, verdict: str, **more: Any) -> dict[str, Any]:
    return {"file": file, "verdict": verdict, "reasons": ["why"], "backend": "ort", **more}


@pytest.mark.parametrize(
    ("verdicts", "dropped", "expected"),
    [
        ("pass fail", (1,), "pass"),
        ("pass fail inconclusive", (1,), "inconclusive"),
        ("fail pass", (1,), "fail"),
        ("pass inconclusive", (), "inconclusive"),
        ("pass inconclusive", (1,), "pass"),
    ],
)
def test_what_is_dropped_no_longer_counts(
    verdicts: str, dropped: tuple[int, ...], expected: str
) -> None:
    names = [f"{number}.onnx" for number in range(3)]
    product = Product(CARD, dict.fromkeys(names, b""), {"artefacts": [], "verdict": "?"})
    for name, verdict in zip(names, verdicts.split(), strict=False):
        product.cover(entry_of(name, verdict))
    gone = [names[number] for number in dropped]
    product.forget(gone)
    assert product.certificate["verdict"] == expected
    assert set(product.files) == set(names) - set(gone)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (entry_of("model.fp16.onnx", "fail"), "without --fp16"),
        (entry_of("model.bf16.onnx", "fail"), "without --bf16"),
        (entry_of("model.fp16.onnx", "fail", kept={"gave_up": "x"}), "without --fp16"),
        (entry_of("model.fp16.onnx", "fail", kept={}), "without --strict-fp16"),
        (entry_of("model.onnx", "fail"), "check the checkpoint"),
        (entry_of("engines/ab.plan", "fail", built_from="model.onnx"), "engine of model.onnx"),
    ],
)
def test_a_refused_release_names_a_remedy(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    certificate = {"verdict": "fail", "artefacts": [entry]}
    with pytest.raises(ParityError, match=said):
        release(tmp_path / "model", CARD, {}, certificate, False)
    assert set(bytes_of(tmp_path)) == {"model.rejected/parity.json"}
