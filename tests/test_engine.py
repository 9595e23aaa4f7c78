"""Building engines: TensorRT-RTX builds real ones without a GPU, each time in a child process (a
builder without a driver can crash at exit, so that only the files it leaves are judged); a fake
stands in for TensorRT 10 and 11.
"""

import _thread
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from rich.console import Console

from export.engine import BuildOptions, BuiltEngine, build_engine
from export.engine_graph import fix_input
from export.engine_view import EngineView
from export.fuse import fuse
from export.interrupt import Stop, interruptibly
from export.precision import reduce
from export.timing_cache import TimingCacheFile
from export.trace import trace
from runtime.backends.driver import Gpu
from runtime.backends.tensorrt_library import Messages, TensorRt, collecting_logger
from runtime.engine import EngineKey, EngineRecord, Profile
from runtime.errors import BackendUnavailableError, ComputeError, InputError, UsageError
from runtime.model_card import ModelCard
from runtime.model_dir import sha256_of
from tests import fake_cupy
from train.unet import UNet3D

ROOT = Path(__file__).parents[1]
WINDOW = (128, 128, 64)
PROFILE = Profile(WINDOW, 1, 4, 4)
TINY = Profile((32, 32, 16), 1, 2, 2)
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None and find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT-RTX is not installed: pip install brats-deploy[rtx]",
)


# --- real builds ------------------------------------------------------------------------------

Models = Mapping[str, Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The reference network with random weights, and what is wrong with some of its graphs."""
    torch.manual_seed(0)
    traced = trace(UNet3D(dropout=0.0).eval(), ModelCard(name="reference"))
    graphs = {}
    for form in ("k4", "interleave"):
        fused = onnx.ModelProto()
        fused.CopyFrom(traced)
        fuse(fused, form)
        graphs |= {
            f"{form} fp32": fused,
            f"{form} fp16": reduce(fused, "fp16"),
            f"{form} bf16": reduce(fused, "bf16"),
        }
    half = graphs["k4 fp16"]
    graphs["mixed types"] = mutated(half, without_cast)
    graphs["unknown operator"] = mutated(half, unknown_operator)
    out = tmp_path_factory.mktemp("reference")
    paths = {name: out / f"{name}.onnx" for name in (*graphs, "truncated", "empty")}
    for name, graph in graphs.items():
        paths[name].write_bytes(graph.SerializeToString())
    data = paths["k4 fp16"].read_bytes()
    paths["truncated"].write_bytes(data[: len(data) // 2])
    paths["empty"].write_bytes(b"")
    return paths


def mutated(model: onnx.ModelProto, change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy.graph)
    return copy


def without_cast(graph: onnx.GraphProto) -> None:
    """The first convolution gets float32 for its fp16 weights."""
    cast = next(node for node in graph.node if node.op_type == "Cast")
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == cast.output[0]:
                node.input[index] = cast.input[0]
    graph.node.remove(cast)


def unknown_operator(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Nonsense"


BUILDS = """
import json
import sys
from dataclasses import asdict
from pathlib import Path

from export.engine import BuildOptions, build_engine
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.engine import Profile
from runtime.errors import BratsError


class Watch:
    def __init__(self, stop_after):
        self.events, self.left = [], stop_after

    def started(self, phase, parent, steps):
        self.events.append(["started", phase, parent, steps])

    def stepped(self, phase, step):
        self.events.append(["stepped", phase, step])
        self.left -= 1
        if not self.left:
            raise InterruptedError("enough")

    def finished(self, phase):
        self.events.append(["finished", phase])


jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
library, answers = load_tensorrt(), {}
for name, job in jobs.items():
    watch = Watch(job["stop_after"])
    options = BuildOptions(Profile(*job["profile"]), **job["options"])
    answer = {"library": str(library)}
    try:
        built = build_engine(Path(job["model"]).read_bytes(), library, options, watch, "m.onnx")
    except (BratsError, InterruptedError) as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    else:
        (out / f"{name}.plan").write_bytes(built.plan)
        answer |= {
            "cache": built.timing_cache, "seconds": built.seconds, "warnings": built.warnings
        }
    answers[name] = answer | {"events": watch.events}
(out / "answers.json").write_text(json.dumps(answers))
"""


def job(
    model: str, *, profile: Profile = PROFILE, stop_after: int = 0, **options: Any
) -> dict[str, Any]:
    shape = (profile.window, profile.min_batch, profile.opt_batch, profile.max_batch)
    options = {"compute_capability": "8.9", **options}
    return {"model": model, "profile": shape, "stop_after": stop_after, "options": options}


JOBS = {
    "fp32": job("k4 fp32"),
    "fp16": job("k4 fp16"),
    "fp16 again": job("k4 fp16"),
    "fp16 dhwc8": job("k4 fp16", input_layout="dhwc8"),
    "fp16 static": job("k4 fp16", profile=Profile(WINDOW, 4, 4, 4), level=5),
    "fp16 another window": job("k4 fp16", profile=Profile((64, 96, 32), 1, 4, 4)),
    "fp16 anywhere": job("k4 fp16", compute_capability=None),
    "fp16 interleave": job("interleave fp16", input_layout="dhwc8"),
    "bf16 interleave": job("interleave bf16"),
    "stopped": job("k4 fp16", stop_after=1),
    "stopped later": job("k4 fp16", stop_after=70),
    "fp16 after all that": job("k4 fp16"),
    "bf16 k4": job("k4 bf16"),
    "fp32 dhwc8": job("k4 fp32", input_layout="dhwc8"),
    "mixed types": job("mixed types"),
    "unknown operator": job("unknown operator"),
    "truncated": job("truncated"),
    "empty": job("empty"),
    "no multiple of 16": job("k4 fp16", profile=Profile((120, 128, 64), 1, 4, 4)),
    "no workspace": job("k4 fp16", workspace_bytes=1),
    "no such target": job("k4 fp16", compute_capability="9.9"),
}


@pytest.fixture(scope="session")
def built(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Every job's answer, and the folder with the plans."""
    out = tmp_path_factory.mktemp("plans")
    jobs = {name: one | {"model": str(models[one["model"]])} for name, one in JOBS.items()}
    (out / "jobs.json").write_text(json.dumps(jobs))
    done = child(BUILDS, out / "jobs.json", out)
    _, errors = done.communicate(timeout=240)
    assert (out / "answers.json").is_file(), errors
    return json.loads((out / "answers.json").read_text()), out


def child(code: str, *args: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


PLANS = [name for name in JOBS if name.startswith("fp16") or name in ("fp32", "bf16 interleave")]


@needs_rtx
@pytest.mark.parametrize("name", PLANS)
def test_the_reference_network_builds(built: tuple[Any, Path], models: Models, name: str) -> None:
    answers, out = built
    answer = answers[name]
    assert "error" not in answer, answer["error"]
    # Weights are most of a plan: as many bytes as the graph's types say, and little else.
    model = onnx.load_model(models[JOBS[name]["model"]])
    weights = sum(numpy_helper.to_array(item).nbytes for item in model.graph.initializer)
    size = (out / f"{name}.plan").stat().st_size
    assert weights < size < 1.25 * weights
    assert answer["cache"] is None
    assert 0 < answer["seconds"] < 60
    assert answer["warnings"] == []


@needs_rtx
def test_the_same_build_gives_the_same_bytes_and_any_other_does_not(
    built: tuple[Any, Path],
) -> None:
    _, out = built
    plans = {name: sha256_of((out / f"{name}.plan").read_bytes()) for name in PLANS}
    same = {plans.pop("fp16 again"), plans.pop("fp16 after all that"), plans["fp16"]}
    assert same == {plans["fp16"]}
    assert len(set(plans.values())) == len(plans)


@needs_rtx
@pytest.mark.parametrize("name", PLANS)
def test_progress_is_told_in_order(built: tuple[Any, Path], name: str) -> None:
    answers, _ = built
    steps: dict[str, int] = {}  # of the phases that are open: steps in all
    done: dict[str, int] = {}
    phases = 0
    for event, phase, *rest in answers[name]["events"]:
        if event == "started":
            parent, total = rest
            assert phase not in steps
            assert parent is None or parent in steps
            assert total > 0
            steps[phase], done[phase] = total, 0
            phases += 1
        elif event == "stepped":
            assert rest[0] == done[phase]
            done[phase] += 1
            assert done[phase] <= steps[phase]
        else:
            del steps[phase]
    assert steps == {}
    assert phases >= 5


@needs_rtx
@pytest.mark.parametrize("name", ["stopped", "stopped later"])
def test_what_a_callback_raises_stops_the_build(built: tuple[Any, Path], name: str) -> None:
    answers, out = built
    assert answers[name]["error"] == "InterruptedError: enough"
    stepped = [event for event in answers[name]["events"] if event[0] == "stepped"]
    assert len(stepped) == JOBS[name]["stop_after"]
    assert answers[name]["events"][-1] == stepped[-1]
    assert not (out / f"{name}.plan").exists()


@needs_rtx
@pytest.mark.parametrize(
    ("name", "words"),
    [
        # Strongly typed: nothing is cast that the graph does not cast.
        ("mixed types", "InputError: m.onnx: .*`input` type is Float but `kernel` is of type Half"),
        ("unknown operator", "InputError: m.onnx: .* cannot parse: .*Nonsense"),
        ("truncated", "InputError: m.onnx: found no ONNX model with one input"),
        ("empty", "InputError: m.onnx: found no ONNX model with one input"),
        ("no multiple of 16", "InputError: m.onnx: .*broadcast dimensions must be conformable"),
        ("no workspace", "ComputeError: m.onnx: .*OutOfMemory"),
        ("fp32 dhwc8", "UsageError: input layout: found dhwc8, expected an fp16 graph"),
        ("no such target", r"UsageError: compute capability: found 9\.9, expected 7\.5, 8\.0"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    built: tuple[Any, Path], name: str, words: str
) -> None:
    answers, out = built
    error = answers[name]["error"]
    assert re.match(words, error), error
    assert "\n" not in error
    # The sentence quotes what this build said, not what an earlier one did.
    assert "canceled" not in error.lower()
    assert not (out / f"{name}.plan").exists()


@needs_rtx
def test_bf16_builds_or_says_why(built: tuple[Any, Path]) -> None:
    # TensorRT-RTX 1.7 has no transposed 3D convolution in bf16; a later one may.
    answers, out = built
    if "error" in answers["bf16 k4"]:
        assert "ComputeError: m.onnx: " in answers["bf16 k4"]["error"]
        assert "deconv" in answers["bf16 k4"]["error"]
    assert ("error" in answers["bf16 k4"]) != (out / "bf16 k4.plan").exists()


@needs_rtx
def test_a_record_describes_the_plan(built: tuple[Any, Path], models: Models) -> None:
    answers, out = built
    plan = (out / "fp16.plan").read_bytes()
    options = BuildOptions(PROFILE, compute_capability="8.9")
    flavour, version = "tensorrt_rtx", answers["fp16"]["library"].split()[-1]
    onnx_hash = hashlib.sha256(models["k4 fp16"].read_bytes()).hexdigest()
    key = EngineKey(onnx_hash, flavour, version, Gpu("X", "8.9"), "fp16", PROFILE, "linear")
    engine = BuiltEngine(plan, None, answers["fp16"]["seconds"], ())
    record = engine.record(key, options, source="model.fp16.onnx", up_branch="k4")
    assert record.sha256 == hashlib.sha256(plan).hexdigest()
    assert record.bytes == len(plan)
    assert EngineRecord.from_json(record.to_json(), "r.json") == record
    with pytest.raises(ValueError, match="differ"):
        engine.record(key, replace(options, input_layout="dhwc8"), source="m", up_branch="k4")


SLOW_BUILD = """
import sys
import time
from pathlib import Path

from export.engine import BuildOptions, build_engine
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.cli.console import run
from runtime.engine import Profile


class Slow:
    def started(self, phase, parent, steps):
        pass

    def stepped(self, phase, step):
        print("step", flush=True)
        time.sleep(0.2)

    def finished(self, phase):
        pass


def body(console):
    options = BuildOptions(Profile((128, 128, 64), 1, 4, 4), compute_capability="8.9")
    built = build_engine(Path(sys.argv[1]).read_bytes(), load_tensorrt(), options, Slow())
    Path(sys.argv[2]).write_bytes(built.plan)
    return 0


sys.exit(run(body, quiet=False))
"""


@needs_rtx
def test_ctrl_c_stops_the_build(models: Models, tmp_path: Path) -> None:
    # About 110 steps of 0.2 s, of which it may do no more than a few once it is interrupted.
    plan = tmp_path / "engine.plan"
    process = child(SLOW_BUILD, models["k4 fp16"], plan)
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - interrupted < 5
    assert output.count("step") < 20
    assert errors == "interrupted\n"
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


# --- interrupting -----------------------------------------------------------------------------


def test_the_work_is_told_to_stop_and_waited_for() -> None:
    stop, ended = Stop(), []

    def work() -> None:
        assert threading.current_thread() is not threading.main_thread()
        _thread.interrupt_main()
        while not stop.asked:
            time.sleep(0.01)
        time.sleep(0.2)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        interruptibly(work, stop)
    assert ended == [True]


def test_a_second_interrupt_does_not_wait() -> None:
    stop, free = Stop(), threading.Event()

    def work() -> None:
        _thread.interrupt_main()
        while not stop.asked:
            time.sleep(0.01)
        _thread.interrupt_main()
        free.wait(10)

    with pytest.raises(KeyboardInterrupt):
        interruptibly(work, stop)
    assert not free.is_set()
    free.set()


def test_results_and_errors_pass_through() -> None:
    assert interruptibly(lambda: 7, Stop()) == 7
    with pytest.raises(ZeroDivisionError):
        interruptibly(lambda: 1 // 0, Stop())
    stop = Stop()
    stop.ask(OSError("first"))
    stop.ask(OSError("second"))
    assert stop.asked
    with pytest.raises(OSError, match="first"):
        interruptibly(lambda: 1 // 0, stop)


# --- the input in the graph -------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_fp32(tiny_network: UNet3D, tiny_card: ModelCard) -> onnx.ModelProto:
    model = trace(tiny_network, tiny_card)
    fuse(model)
    return model


@pytest.fixture(scope="module")
def tiny_half(tiny_fp32: onnx.ModelProto) -> bytes:
    return reduce(tiny_fp32, "fp16").SerializeToString()


@pytest.mark.parametrize("batch", [(1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("layout", ["linear", "dhwc8"])
def test_the_fixed_graph_computes_the_same(
    tiny_half: bytes, layout: Any, batch: tuple[int, int, int]
) -> None:
    fixed = fix_input(tiny_half, Profile(TINY.window, *batch), layout, "m.onnx")
    model = onnx.load_model_from_string(fixed)
    onnx.checker.check_model(model, full_check=True)
    first, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in rest] == [4, *TINY.window]
    assert first.dim_value == (2 if batch == (2, 2, 2) else 0)
    image = np.random.default_rng(0).normal(size=(2, 4, *TINY.window)).astype(np.float16)
    outputs = []
    for data, kind in (
        (tiny_half, np.float32),
        (fixed, np.float16 if layout == "dhwc8" else np.float32),
    ):
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"image": image.astype(kind)})[0])
    assert outputs[1].dtype == np.float32
    # Not to the last bit: the runtime may fuse across a cast that is gone.
    np.testing.assert_allclose(outputs[1], outputs[0], atol=2e-3)


def test_dhwc8_needs_a_half_graph_of_few_channels(
    tiny_fp32: onnx.ModelProto, tiny_half: bytes
) -> None:
    with pytest.raises(UsageError, match="expected an fp16 graph of at most 8 modalities"):
        fix_input(tiny_fp32.SerializeToString(), TINY, "dhwc8", "m.onnx")
    model = onnx.load_model_from_string(tiny_half)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 9
    with pytest.raises(UsageError, match="at most 8"):
        fix_input(model.SerializeToString(), TINY, "dhwc8", "m.onnx")


@pytest.mark.parametrize("inputs", [0, 2])
def test_a_model_of_other_inputs_is_refused(tiny_half: bytes, inputs: int) -> None:
    model = onnx.load_model_from_string(tiny_half)
    image = model.graph.input[0]
    del model.graph.input[:]
    model.graph.input.extend([image] * inputs)
    with pytest.raises(InputError, match=r"m\.onnx: found no ONNX model with one input"):
        fix_input(model.SerializeToString(), TINY, "linear", "m.onnx")


def test_a_2d_model_is_refused(tiny_half: bytes) -> None:
    model = onnx.load_model_from_string(tiny_half)
    del model.graph.input[0].type.tensor_type.shape.dim[4]
    with pytest.raises(InputError, match=r"one input \(N, C, X, Y, Z\)"):
        fix_input(model.SerializeToString(), TINY, "linear", "m.onnx")


# --- TensorRT 10 and 11, which no package index has -------------------------------------------


class FakeTensorRt:
    """As much of TensorRT's module as a build uses; keeps what it was told in ``said``."""

    __name__ = "tensorrt"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    class IProgressMonitor:
        pass

    BuilderFlag = SimpleNamespace(TF32="TF32")
    MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
    TensorFormat = SimpleNamespace(LINEAR=0, DHWC8=6)

    def __init__(self, *, strongly_typed: int | None = 1, driver: bool = True) -> None:
        self.said: dict[str, Any] = {}
        self.driver = driver
        self.valid_cache = b"times of this GPU"
        flags = {} if strongly_typed is None else {"STRONGLY_TYPED": strongly_typed}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        if not self.driver:
            logger.log(self.ILogger.ERROR, "CUDA initialization failure with error: 35.")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        logger.log(self.ILogger.WARNING, "a warning")
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: SimpleNamespace(
                set_memory_pool_limit=lambda pool, size: self.said.update({pool: size}),
                clear_flag=lambda flag: self.said.update({flag: False}),
                set_flag=lambda flag: self.said.update({flag: True}),
                add_optimization_profile=lambda profile: 0,
                create_timing_cache=self._timing_cache,
                set_timing_cache=self._set_timing_cache,
                get_timing_cache=lambda: self.said["cache"],
            ),
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda name, *shapes: self.said.update({name: shapes})
            ),
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(parse=lambda data: True, num_errors=0)

    def _network(self, flags: int) -> Any:
        self.said["flags"] = flags
        self.image = SimpleNamespace(name="image", shape=(-1, 4, *TINY.window))
        self.probabilities = SimpleNamespace()
        return SimpleNamespace(
            num_inputs=1,
            get_input=lambda index: self.image,
            get_output=lambda index: self.probabilities,
        )

    def _timing_cache(self, data: bytes) -> Any:
        if data not in (b"", self.valid_cache):
            return None
        return SimpleNamespace(serialize=lambda: bytearray(data + b", and more"))

    def _set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.said["cache"] = cache
        return True

    def _build(self, network: Any, config: Any) -> bytearray | None:
        self.said["level"] = config.builder_optimization_level
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        going = monitor.step_complete("Building", 0) and monitor.step_complete("Building", 1)
        monitor.phase_finish("Building")
        return bytearray(b"plan") if going else None


def fake(trt: FakeTensorRt) -> TensorRt:
    return TensorRt(trt, "tensorrt", "10.9.0.34")


def test_an_engine_is_to_allocate_nothing_while_it_runs_where_that_can_be_said(
    tiny_half: bytes,
) -> None:
    """Otherwise TensorRT-RTX cannot be captured as a CUDA graph; TensorRT 10 knows no such flag."""
    trt = FakeTensorRt()
    build_engine(tiny_half, fake(trt), BuildOptions(TINY))
    assert "REQUIRE_USER_ALLOCATION" not in trt.said
    trt.BuilderFlag = SimpleNamespace(
        TF32="TF32", REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION"
    )
    build_engine(tiny_half, fake(trt), BuildOptions(TINY))
    assert trt.said["REQUIRE_USER_ALLOCATION"] is True
    assert trt.said["TF32"] is False


def test_the_device_is_current_in_the_thread_that_builds(
    tiny_half: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's current device is a property of a thread, and a builder has a thread of its own."""
    made: list[tuple[int, int]] = []
    with fake_cupy.installed(devices=3) as cuda:
        import runtime.ops.cupy

        trt = FakeTensorRt()
        builder = trt.Builder
        current = threading.local()
        monkeypatch.setattr(
            runtime.ops.cupy, "make_current", lambda device: setattr(current, "device", device)
        )

        def recorded(logger: Any) -> Any:
            made.append((getattr(current, "device", 0), threading.get_ident()))
            return builder(logger)

        trt.Builder = recorded  # type: ignore[method-assign]
        for device in (None, 2):
            build_engine(tiny_half, fake(trt), BuildOptions(TINY, device=device))
        monkeypatch.undo()
        runtime.ops.cupy.make_current(1)
        assert cuda.device == 1
    assert [device for device, _ in made] == [0, 2]
    assert threading.get_ident() not in {thread for _, thread in made}


@pytest.mark.parametrize(("strongly_typed", "flags"), [(1, 2), (0, 1), (None, 0)])
def test_every_network_is_strongly_typed(
    tiny_half: bytes, strongly_typed: int | None, flags: int
) -> None:
    trt = FakeTensorRt(strongly_typed=strongly_typed)
    options = BuildOptions(TINY, workspace_bytes=1 << 20, level=2, input_layout="dhwc8")
    engine = build_engine(tiny_half, fake(trt), options)
    assert engine.plan == b"plan"
    assert trt.said["flags"] == flags
    assert trt.said["TF32"] is False
    assert trt.said["WORKSPACE"] == 1 << 20
    assert trt.said["level"] == 2
    assert trt.said["image"] == tuple((n, 4, *TINY.window) for n in (1, 2, 2))
    assert trt.image.allowed_formats == 1 << 6
    assert trt.probabilities.allowed_formats == 1 << 0
    assert engine.warnings == ("a warning",)


@pytest.mark.parametrize(
    ("given_cache", "kept", "warned"),
    [
        (None, b", and more", False),
        (b"times of this GPU", b"times of this GPU, and more", False),
        (b"times of another", b", and more", True),
    ],
)
def test_the_timing_cache_goes_in_and_comes_out(
    tiny_half: bytes, given_cache: bytes | None, kept: bytes, warned: bool
) -> None:
    engine = build_engine(
        tiny_half, fake(FakeTensorRt()), BuildOptions(TINY, timing_cache=given_cache)
    )
    assert engine.timing_cache == kept
    assert any("timing cache" in warning for warning in engine.warnings) == warned


def test_a_callback_that_fails_is_not_swallowed(tiny_half: bytes) -> None:
    events = []

    class Failing:
        def started(self, phase: str, parent: str | None, steps: int) -> None:
            events.append((phase, parent, steps))

        def stepped(self, phase: str, step: int) -> None:
            events.append((phase, step))
            raise KeyboardInterrupt

        def finished(self, phase: str) -> None:
            events.append((phase,))

    with pytest.raises(KeyboardInterrupt):
        build_engine(tiny_half, fake(FakeTensorRt()), BuildOptions(TINY), Failing())
    assert events == [("Building", None, 2), ("Building", 0)]


def test_a_failed_build_quotes_tensorrt(tiny_half: bytes) -> None:
    trt = FakeTensorRt()
    trt._build = lambda network, config: None  # type: ignore[method-assign]
    messages = Messages()
    logger = collecting_logger(fake(trt), messages)
    logger.log(trt.ILogger.ERROR, "of an earlier build")
    with pytest.raises(ComputeError, match="could not build an engine: a warning, expected"):
        build_engine(tiny_half, fake(trt), BuildOptions(TINY), source="m.onnx")


def test_without_a_driver_there_is_no_builder(tiny_half: bytes) -> None:
    with pytest.raises(BackendUnavailableError, match=r"TensorRT 10\.9\.0\.34: found CUDA init"):
        build_engine(tiny_half, fake(FakeTensorRt(driver=False)), BuildOptions(TINY))


def test_tensorrt_builds_for_the_gpu_that_is_here_only(tiny_half: bytes) -> None:
    options = BuildOptions(TINY, compute_capability="8.9")
    with pytest.raises(UsageError, match=r"found 8\.9, expected that of the GPU that is here"):
        build_engine(tiny_half, fake(FakeTensorRt()), options)


@pytest.mark.parametrize("wrong", [{"level": 6}, {"level": -1}, {"workspace_bytes": 0}])
def test_options_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"level|workspace"):
        BuildOptions(TINY, **wrong)  # type: ignore[arg-type]


# --- the timing cache on disk -----------------------------------------------------------------

GPU = Gpu("NVIDIA H200", "9.0")


def cache_file(path: Path) -> TimingCacheFile:
    return TimingCacheFile(path / "timing.cache", TensorRt(None, "tensorrt", "11.0"), GPU)


def test_a_timing_cache_survives(tmp_path: Path) -> None:
    file = cache_file(tmp_path)
    assert file.load() == (None, None)
    body = b"\x00line\nline" * 100
    file.save(body)
    assert file.load() == (body, None)


@pytest.mark.parametrize(
    "other",
    [
        {"library": TensorRt(None, "tensorrt", "11.0.1")},
        {"gpu": replace(GPU, compute_capability="10.0")},
        {"gpu": replace(GPU, name="NVIDIA H100")},
    ],
)
def test_a_timing_cache_of_another_maker_is_left(tmp_path: Path, other: dict[str, Any]) -> None:
    cache_file(tmp_path).save(b"times")
    cache, note = replace(cache_file(tmp_path), **other).load()
    assert cache is None
    assert note is not None
    assert "made by TensorRT 11.0 on NVIDIA H200 (compute capability 9.0)" in note


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("cache")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_damaged_timing_cache_reaches_tensorrt(cache_folder: Path, data: Any) -> None:
    file = cache_file(cache_folder)
    file.save(b"times of kernels")
    whole = file.path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    bad = bytearray(whole)
    bad[place] ^= data.draw(st.integers(1, 255))
    file.path.write_bytes(data.draw(st.sampled_from([bytes(bad), whole[:place], whole + b"x"])))
    cache, note = file.load()
    assert cache in (None, b"times of kernels")
    assert (cache is None) == (note is not None)
    if cache is not None:  # only white space of the header may be another
        assert file.path.read_bytes().split() == whole.split()


def test_an_unreadable_timing_cache_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "timing.cache").mkdir()
    cache, note = cache_file(tmp_path).load()
    assert cache is None
    assert note is not None
    assert "not read" in note


# --- what is shown ----------------------------------------------------------------------------


def tell(view: EngineView) -> None:
    view.started("outer", None, 2)
    view.started("middle", "outer", 3)
    view.stepped("middle", 1)
    view.started("inner", "middle", 7)


def test_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    with EngineView(Console(file=text)) as view:
        tell(view)
        view.finished("inner")
        view.finished("middle")
        view.started("middle", "outer", 1)
        view.finished("never started")
    assert text.getvalue() == "engine: outer\nengine:   middle\nengine:   middle\n"


def test_nothing_where_the_console_is_quiet() -> None:
    text = io.StringIO()
    with EngineView(Console(file=text, quiet=True)) as view:
        tell(view)
    assert text.getvalue() == ""


def test_a_bar_per_open_phase_on_a_terminal() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, legacy_windows=False)

    def shown(pattern: str) -> bool:
        deadline = time.monotonic() + 5  # it is drawn ten times a second
        while time.monotonic() < deadline:
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
            if re.search(pattern, plain):
                return True
            time.sleep(0.02)
        return False

    with EngineView(console) as view:
        tell(view)
        assert shown(r"outer +\S+ +0/2 .*\n? *middle +\S+ +2/3 [^\n]*\n +inner +\S+ +0/7")
        view.finished("inner")
        view.finished("middle")
        text.truncate(0)
        text.seek(0)
        assert shown(r"outer +\S+ +0/2")
        assert "middle" not in text.getvalue()
