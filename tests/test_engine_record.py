"""What an engine is: key, record, which one may run; driver and TensorRT as found, all without
either.
"""

import copy
import ctypes
import gc
import hashlib
import importlib
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import atomic
from runtime.backends.driver import Gpu, cuda_devices, gpu
from runtime.backends.tensorrt_library import (
    Messages,
    TensorRt,
    collecting_logger,
    load_tensorrt,
)
from runtime.engine import EngineKey, EngineRecord, Profile, find_engine, read_records
from runtime.errors import BackendUnavailableError, InputError
from runtime.manifest import manifest_of
from runtime.model_card import ModelCard
from runtime.model_dir import ModelDir, sha256_of

H200 = Gpu("NVIDIA H200", "9.0")
A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0")
ONNX = b"an ONNX model"
PATCH = (128, 128, 64)
KEY = EngineKey(
    onnx_sha256=sha256_of(ONNX),
    flavour="tensorrt",
    version="11.0.0.1",
    gpu=H200,
    precision="fp16",
    profile=Profile(PATCH, 1, 4, 16),
    input_layout="dhwc8",
)


def record_of(key: EngineKey, plan: bytes) -> EngineRecord:
    return EngineRecord(
        key=key,
        source="model.fp16.onnx",
        up_branch="k4",
        sha256=sha256_of(plan),
        bytes=len(plan),
        seconds=12.5,
        level=3,
        workspace_bytes=4 << 30,
    )


# --- key and record ---------------------------------------------------------------------------


def test_the_name_is_the_hash_of_canonical_json() -> None:
    # Written by hand: the order of keys, the separators and the spelling of numbers are fixed.
    canonical = (
        '{"flavour":"tensorrt",'
        '"gpu":{"compute_capability":"9.0","name":"NVIDIA H200"},'
        '"input_layout":"dhwc8",'
        f'"onnx_sha256":"{hashlib.sha256(ONNX).hexdigest()}",'
        '"precision":"fp16",'
        '"profile":{"max_batch":16,"min_batch":1,"opt_batch":4,"window":[128,128,64]},'
        '"version":"11.0.0.1"}'
    )
    name = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert KEY.name == name
    assert (KEY.plan, KEY.record) == (f"engines/{name}.plan", f"engines/{name}.json")


OTHER_KEYS = {
    "onnx": replace(KEY, onnx_sha256="0" * 64),
    "flavour": replace(KEY, flavour="tensorrt_rtx"),
    "version": replace(KEY, version="11.0.0.2"),
    "gpu": replace(KEY, gpu=replace(H200, name="NVIDIA H200 NVL")),
    "compute capability": replace(KEY, gpu=replace(H200, compute_capability="9.1")),
    "precision": replace(KEY, precision="fp32"),
    "window": replace(KEY, profile=replace(KEY.profile, window=(128, 64, 128))),
    "min": replace(KEY, profile=replace(KEY.profile, min_batch=2)),
    "opt": replace(KEY, profile=replace(KEY.profile, opt_batch=8)),
    "max": replace(KEY, profile=replace(KEY.profile, max_batch=8)),
    "layout": replace(KEY, input_layout="linear"),
}


def test_every_field_of_the_key_is_in_its_name() -> None:
    names = {KEY.name, *(key.name for key in OTHER_KEYS.values())}
    assert len(names) == len(OTHER_KEYS) + 1


@pytest.mark.parametrize(
    "wrong",
    [{"window": (0, 16, 16)}, {"min_batch": 0}, {"opt_batch": 17}, {"min_batch": 5}],
)
def test_a_profile_is_ordered(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"window|batch"):
        replace(KEY.profile, **wrong)


hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1)
batches = st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted)
profiles = st.builds(
    lambda window, batch: Profile(window, *batch), st.tuples(*[st.integers(1, 512)] * 3), batches
)
keys = st.builds(
    EngineKey,
    onnx_sha256=hashes,
    flavour=st.sampled_from(["tensorrt", "tensorrt_rtx"]),
    version=words,
    gpu=st.builds(Gpu, name=words, compute_capability=st.sampled_from(["8.0", "9.0", "12.1"])),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
    profile=profiles,
    input_layout=st.sampled_from(["linear", "dhwc8"]),
)
records = st.builds(
    EngineRecord,
    key=keys,
    source=words.filter(lambda name: not set(name) & set("/\\")),
    up_branch=words,
    sha256=hashes,
    bytes=st.integers(1, 1 << 40),
    seconds=st.floats(0, 1e6),
    level=st.integers(0, 5),
    workspace_bytes=st.integers(1, 1 << 40),
    schema=st.just(1),
)


@given(records)
def test_a_record_survives_json(record: EngineRecord) -> None:
    again = EngineRecord.from_json(record.to_json(), "r.json")
    assert again == record
    assert again.key.name == record.key.name


@given(keys, keys)
def test_names_are_equal_where_keys_are(one: EngineKey, other: EngineKey) -> None:
    assert (one.name == other.name) == (one == other)
    assert copy.deepcopy(one).name == one.name


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for name in value for leaf in leaves(value[name], (*path, name))]
    return [path]


RECORD_JSON = json.loads(record_of(KEY, b"plan").to_json())
PATHS = leaves(RECORD_JSON)
# Wrong for every field: of another type, out of range, or not one of the few words allowed.
WRONG = (None, True, -1, [], {}, "", [1, 2, 3, 4], float("inf"))


def changed(path: tuple[str, ...], change: Callable[[dict[str, Any], str], None]) -> str:
    value = copy.deepcopy(RECORD_JSON)
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    change(inner, path[-1])
    return json.dumps(value)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_a_tampered_record_is_refused(path: tuple[str, ...]) -> None:
    assert len(PATHS) == 19
    for wrong in WRONG:
        text = changed(path, lambda inner, name, to=wrong: inner.__setitem__(name, to))
        with pytest.raises(InputError, match=r"r\.json: found an unreadable engine record"):
            EngineRecord.from_json(text, "r.json")
    missing = changed(path, lambda inner, name: inner.__delitem__(name))
    with pytest.raises(InputError, match=rf"missing field {path[-1]}"):
        EngineRecord.from_json(missing, "r.json")
    unknown = changed(path, lambda inner, name: inner.__setitem__("colour", 1))
    with pytest.raises(InputError, match="unknown field colour"):
        EngineRecord.from_json(unknown, "r.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 100_000, json.dumps(RECORD_JSON | {"schema": 2})]
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="an unreadable engine record"):
        EngineRecord.from_json(text, "r.json")


# --- the model directory ----------------------------------------------------------------------

WritePlans = Callable[..., ModelDir]


@pytest.fixture
def write_engines(tmp_path: Path) -> WritePlans:
    """write_engines({key: plan}, {key: verdict}): a model directory with these engines."""

    def write(plans: dict[EngineKey, bytes], verdicts: dict[EngineKey, str]) -> ModelDir:
        path = tmp_path / "a model"
        atomic.write_text(path / "card.json", ModelCard(name="m", patch=PATCH).to_json())
        atomic.write_bytes(path / "model.fp16.onnx", ONNX)
        for key, plan in plans.items():
            atomic.write_bytes(path / key.plan, plan)
            atomic.write_text(path / key.record, record_of(key, plan).to_json())
        artefacts = [
            {"file": key.plan, "sha256": sha256_of(plans[key]), "verdict": verdict}
            for key, verdict in verdicts.items()
        ]
        atomic.write_json(path / "parity.json", {"schema": 1, "artefacts": artefacts})
        atomic.write_bytes(path / "manifest.json", manifest_of(path))
        return ModelDir.open(path)

    return write


def find(model: ModelDir, **changes: Any) -> EngineRecord:
    wanted = {
        "library_flavour": "tensorrt",
        "library_version": "11.0.0.1",
        "gpu": H200,
        "precision": "fp16",
        "window": PATCH,
    }
    return find_engine(model, **(wanted | changes))


def test_an_engine_for_this_very_place_is_found(write_engines: WritePlans) -> None:
    model = write_engines({KEY: b"plan"}, {KEY: "pass"})
    record = find(model)
    assert record == record_of(KEY, b"plan")
    assert model.read(record.key.plan) == b"plan"
    assert find(model, window=None) == record


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ({"gpu": A100}, "an engine for NVIDIA H200,", "one for NVIDIA A100-SXM4-80GB;"),
        (
            {"gpu": replace(H200, compute_capability="9.1")},
            "an engine for NVIDIA H200 (compute capability 9.0),",
            "one for NVIDIA H200 (compute capability 9.1);",
        ),
        ({"library_version": "10.9.0"}, "TensorRT 11.0.0.1,", "one for TensorRT 10.9.0;"),
        (
            {"library_flavour": "tensorrt_rtx", "library_version": "1.7.1"},
            "an engine for TensorRT 11.0.0.1,",
            "one for TensorRT-RTX 1.7.1;",
        ),
        ({"precision": "fp32"}, "an engine for fp16,", "one for fp32;"),
        ({"window": (64, 64, 64)}, "for window 128x128x64,", "one for window 64x64x64;"),
        (
            {"gpu": A100, "library_version": "10.9.0"},
            "an engine for NVIDIA H200, TensorRT 11.0.0.1,",
            "one for NVIDIA A100-SXM4-80GB, TensorRT 10.9.0;",
        ),
    ],
)
def test_an_engine_for_another_place_is_told_apart(
    write_engines: WritePlans, wanted: dict[str, Any], found: str, expected: str
) -> None:
    model = write_engines({KEY: b"plan"}, {KEY: "pass"})
    with pytest.raises(BackendUnavailableError) as caught:
        find(model, **wanted)
    assert caught.value.exit_code == 4
    assert found in str(caught.value)
    assert expected in str(caught.value)
    remedy = f"build one here with brats-export {shlex.quote(str(model.path))}"
    assert caught.value.remedy == remedy
    assert "' '" not in remedy
    assert shlex.split(remedy)[-1] == str(model.path)


def test_an_engine_of_another_onnx_model_does_not_run(write_engines: WritePlans) -> None:
    key = OTHER_KEYS["onnx"]
    model = write_engines({key: b"plan"}, {key: "pass"})
    with pytest.raises(BackendUnavailableError, match=r"for another model\.fp16\.onnx, exp"):
        find(model)
    model = write_engines({KEY: b"plan"}, {KEY: "pass"})
    (model.path / key.plan).unlink()
    (model.path / key.record).unlink()
    (model.path / "model.fp16.onnx").unlink()
    atomic.write_bytes(model.path / "manifest.json", manifest_of(model.path))
    with pytest.raises(BackendUnavailableError, match=r"one for the model\.fp16\.onnx that is her"):
        find(ModelDir.open(model.path))


def test_without_engines_it_says_what_to_build(write_engines: WritePlans) -> None:
    with pytest.raises(
        BackendUnavailableError,
        match=r"found no engine, expected one for NVIDIA H200, TensorRT 11\.0\.0\.1, fp16; build",
    ):
        find(write_engines({}, {}))


def test_many_other_engines_make_one_short_sentence(write_engines: WritePlans) -> None:
    many = {replace(KEY, version=f"10.{minor}.0"): b"plan" for minor in range(9)}
    with pytest.raises(BackendUnavailableError) as caught:
        find(write_engines(many, {}))
    assert caught.value.found.count("an engine for") == 4
    assert caught.value.found.endswith(" and 5 more")
    assert caught.value.expected == "one for TensorRT 11.0.0.1"


def test_the_better_certificate_comes_first(write_engines: WritePlans) -> None:
    small, large, linear = OTHER_KEYS["max"], OTHER_KEYS["opt"], OTHER_KEYS["layout"]
    plans = {KEY: b"k", small: b"s", large: b"l", linear: b"i"}
    ranked = [(small, "pass"), (linear, "inconclusive"), (large, "none"), (KEY, "fail")]
    while ranked:
        here = dict(ranked)
        verdicts = {key: verdict for key, verdict in here.items() if verdict != "none"}
        model = write_engines({key: plans[key] for key in here}, verdicts)
        for name in list(model.path.glob("engines/*")):
            if name.stem not in {key.name for key in here}:
                name.unlink()
        atomic.write_bytes(model.path / "manifest.json", manifest_of(model.path))
        assert find(ModelDir.open(model.path)).key == ranked.pop(0)[0]


def test_among_equals_the_cards_patch_then_the_larger_batch(write_engines: WritePlans) -> None:
    other = replace(KEY, profile=Profile((64, 64, 64), 1, 4, 64))
    small = OTHER_KEYS["max"]
    model = write_engines({other: b"o", small: b"s", KEY: b"k"}, {})
    assert find(model, window=None).key == KEY
    assert find(model, window=(64, 64, 64)).key == other


def test_a_certificate_of_other_bytes_is_none(write_engines: WritePlans) -> None:
    model = write_engines({KEY: b"plan"}, {KEY: "pass"})
    assert model.verdict(find(model).key.plan) == "pass"
    atomic.write_bytes(model.path / KEY.plan, b"another plan")
    record = record_of(KEY, b"another plan")
    atomic.write_text(model.path / KEY.record, record.to_json())
    atomic.write_bytes(model.path / "manifest.json", manifest_of(model.path))
    model = ModelDir.open(model.path)
    assert model.verdict(find(model).key.plan) == "none"


# --- what is broken is an error, not another engine -------------------------------------------


@pytest.mark.parametrize("listed", [True, False], ids=["in the manifest", "not there"])
@pytest.mark.parametrize("lost", ["plan", "record"])
def test_half_a_pair_is_refused(write_engines: WritePlans, lost: str, listed: bool) -> None:
    model = write_engines({KEY: b"plan"}, {})
    name = getattr(KEY, lost)
    (model.path / name).unlink()
    if not listed:
        atomic.write_bytes(model.path / "manifest.json", manifest_of(model.path))
        model = ModelDir.open(model.path)
    with pytest.raises(InputError, match=name.rpartition("/")[2]):
        find(model)


def test_a_foreign_file_among_the_engines_is_refused(write_engines: WritePlans) -> None:
    model = write_engines({KEY: b"plan"}, {})
    atomic.write_bytes(model.path / "engines" / "model.engine", b"plan")
    atomic.write_bytes(model.path / "manifest.json", manifest_of(model.path))
    with pytest.raises(InputError, match=r"model\.engine"):
        read_records(ModelDir.open(model.path))


def test_swapped_plans_are_refused(write_engines: WritePlans) -> None:
    other = OTHER_KEYS["gpu"]
    model = write_engines({KEY: b"one plan", other: b"another"}, {KEY: "pass"})
    one, two = model.path / KEY.plan, model.path / other.plan
    swapped = (two.read_bytes(), one.read_bytes())
    for path, data in zip((one, two), swapped, strict=True):
        atomic.write_bytes(path, data)
    # With the old manifest the bytes are refused, with a new one the pair is.
    with pytest.raises(InputError, match=r"differs from the manifest|bytes instead of"):
        model.read(find(model).key.plan)
    atomic.write_bytes(model.path / "manifest.json", manifest_of(model.path))
    with pytest.raises(InputError, match="a plan other than its record describes"):
        find(ModelDir.open(model.path))


def test_a_record_under_another_name_is_refused(write_engines: WritePlans) -> None:
    # What someone would do who wants an engine of another device to run.
    model = write_engines({OTHER_KEYS["gpu"]: b"plan"}, {})
    atomic.write_text(model.path / OTHER_KEYS["gpu"].record, record_of(KEY, b"plan").to_json())
    with pytest.raises(InputError, match=r"differs from the manifest|bytes instead of"):
        find(model)
    atomic.write_bytes(model.path / "manifest.json", manifest_of(model.path))
    with pytest.raises(InputError, match=f"found the record of {KEY.name}"):
        find(ModelDir.open(model.path))


@given(st.data())
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_changed_plan_is_ever_handed_out(write_engines: WritePlans, data: Any) -> None:
    plan = bytes(range(256))
    model = write_engines({KEY: plan}, {KEY: "pass"})
    kind = data.draw(st.sampled_from(["flip", "cut", "append"]))
    place = data.draw(st.integers(0, len(plan) - 1))
    bad = bytearray(plan)
    if kind == "flip":
        bad[place] ^= data.draw(st.integers(1, 255))
    bad = bad[:place] if kind == "cut" else bad + b"x" if kind == "append" else bad
    (model.path / KEY.plan).write_bytes(bad)
    with pytest.raises(InputError, match=r"differs from the manifest|bytes instead of"):
        model.read(find(model).key.plan)


# --- the driver -------------------------------------------------------------------------------


class FakeDriver:
    """libcuda as `runtime.backends.driver` uses it: results through pointers, codes returned."""

    def __init__(self, names: list[str], failing: str = "") -> None:
        self.names, self.failing = names, failing

    def __getattr__(self, call: str) -> Any:
        if not call.startswith("cu"):
            raise AttributeError(call)
        if call == self.failing:
            return lambda *_: 999
        return getattr(self, f"_{call}")

    def _cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def _cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = 100 + index  # a handle, not the index
        return 0

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        text = self.names[device.value - 100].encode() + b"\0"
        ctypes.memmove(name, text, min(size, len(text)))
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: device.value - 100}[attribute]
        return 0


def test_the_driver_names_its_devices() -> None:
    driver = FakeDriver(["NVIDIA H200", "NVIDIA H200 NVL"])
    assert cuda_devices(driver) == 2
    assert gpu(0, driver) == Gpu("NVIDIA H200", "9.0")
    assert gpu(1, driver) == Gpu("NVIDIA H200 NVL", "9.1")
    assert str(gpu(0, driver)) == "NVIDIA H200 (compute capability 9.0)"


@pytest.mark.parametrize("index", [-1, 1, 7])
def test_a_device_that_is_not_there(index: int) -> None:
    with pytest.raises(BackendUnavailableError, match=f"cuda:{index}: found 1 CUDA devices"):
        gpu(index, FakeDriver(["NVIDIA H200"]))


@pytest.mark.parametrize("call", ["cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"])
def test_a_driver_that_fails(call: str) -> None:
    with pytest.raises(BackendUnavailableError, match="CUDA driver error 999"):
        gpu(0, FakeDriver(["NVIDIA H200"], failing=call))


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert cuda_devices() == 0
    with pytest.raises(BackendUnavailableError, match="no NVIDIA driver"):
        gpu(0)
    assert cuda_devices(FakeDriver(["x"], failing="cuInit")) == 0


# --- which TensorRT ---------------------------------------------------------------------------

WORKING = "Builder = Runtime = OnnxParser = object\n__version__ = '{}'\n"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(tensorrt="source", ...): packages of these names and no other TensorRT."""
    names = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")

    def install(**sources: str) -> None:
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)
            if name in sources:
                (tmp_path / f"{name}.py").write_text(sources[name])
            else:
                # Python's own way to say that a module cannot be imported.
                monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return install


def test_tensorrt_comes_before_tensorrt_rtx(install: Install) -> None:
    install(
        tensorrt=WORKING.format("11.0.0.1"),
        tensorrt_rtx=WORKING.format("1.7.1"),
    )
    library = load_tensorrt()
    assert (library.flavour, library.version) == ("tensorrt", "11.0.0.1")
    assert library.module.__name__ == "tensorrt"
    assert str(library) == "TensorRT 11.0.0.1"


@pytest.mark.parametrize(
    "broken",
    [
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
        "raise RuntimeError('The tensorrt package must be installed from pypi.nvidia.com')",
        "raise FileNotFoundError('Could not find: libnvinfer.so.10')",
        "import a_library_that_is_not_here",
        "__version__ = '0.0.1'",
    ],
)
def test_a_broken_tensorrt_is_passed_over(install: Install, broken: str) -> None:
    install(tensorrt=broken, tensorrt_rtx_bindings=WORKING.format("1.7.1"))
    library = load_tensorrt()
    assert (library.flavour, library.version) == ("tensorrt_rtx", "1.7.1")
    assert library.module.__name__ == "tensorrt_rtx_bindings"
    assert str(library) == "TensorRT-RTX 1.7.1"


def test_no_tensorrt_names_the_extras(install: Install) -> None:
    install()
    with pytest.raises(BackendUnavailableError) as caught:
        load_tensorrt()
    assert "no such package" in str(caught.value)
    assert "brats-deploy[trt]" in caught.value.remedy
    assert "brats-deploy[rtx]" in caught.value.remedy


def test_why_a_tensorrt_does_not_work_is_said(install: Install) -> None:
    install(
        tensorrt="raise ImportError('libnvinfer.so.10: cannot open\\n shared object file')",
        tensorrt_rtx="Runtime = object",
    )
    with pytest.raises(BackendUnavailableError) as caught:
        load_tensorrt()
    assert caught.value.found == (
        "tensorrt (libnvinfer.so.10: cannot open shared object file) and "
        "tensorrt_rtx (a package without Builder), which cannot be used"
    )


class FakeLogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


def test_messages_are_collected_for_whoever_listens() -> None:
    module = ModuleType("fake")
    module.ILogger = FakeLogger  # type: ignore[attr-defined]
    library = TensorRt(module, "tensorrt", "11.0")
    early, late = Messages(), Messages()
    logger = collecting_logger(library, early)
    logger.log(FakeLogger.WARNING, "a warning\n of two lines.")
    assert early.sentence() == "a warning of two lines"
    # TensorRT keeps the first logger of a process, so that there is only one.
    assert collecting_logger(library, late) is logger
    logger.log(FakeLogger.INFO, "of no interest")
    logger.log(FakeLogger.ERROR, "the cause.")
    logger.log(FakeLogger.INTERNAL_ERROR, "its aftermath")
    for messages in (early, late):
        assert messages.errors == ["the cause.", "its aftermath"]
        assert messages.sentence() == "the cause"
        assert messages.errors == []
    assert late.sentence() == "no message from TensorRT"
    del late
    gc.collect()
    logger.log(FakeLogger.ERROR, "x" * 1000)
    assert early.sentence() == "x" * 400 + " ..."
