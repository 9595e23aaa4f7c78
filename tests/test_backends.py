"""Every backend keeps one contract, and what cannot run is refused with the right exit code."""

import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from export.build import GRAPHS
from export.emulate import EmulatedBackend, EmulatedGraph
from export.engine import build_engine
from export.trace import set_card
from export.triton import write_repository
from runtime.backends import Backend, BackendInfo, BackendOptions, open_backend
from runtime.backends.cupy_device import cupy_ops
from runtime.backends.driver import cuda_devices, gpu
from runtime.backends.ort import OrtBackend
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.engine import EnginePrecision, InputLayout
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    InputError,
    ParityError,
    UsageError,
)
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_card import ModelCard, Shape3
from runtime.model_dir import ONNX_FP32, PARITY, ModelDir
from runtime.windows import Patch
from tests.fake_gpu import EngineSpec, add_engine, fake_gpu
from train.backend import TorchBackend
from train.unet import UNet3D

Floats = npt.NDArray[np.float32]
WINDOW = (16, 12, 8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Windows this small are faster on one thread, and two cores serve many tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def truth_of(network: UNet3D, windows: Floats) -> npt.NDArray[np.float64]:
    """Softmax of the network in float64."""
    double = UNet3D(network.in_channels, network.classes, network.features, 0.0, residual=True)
    double.load_state_dict(network.state_dict())
    double.double().eval()
    with torch.no_grad():
        result: npt.NDArray[np.float64] = torch.softmax(
            double(torch.from_numpy(windows).double()), 1
        ).numpy()
    return result


@dataclass(frozen=True)
class Kind:
    """A backend, and what it runs on: "cpu", the "fake" GPU of tests/fake_gpu.py, or "cuda", the
    real one. That of "triton" is the server in this process of tests/fake_triton.py.
    """

    name: str
    device: str = "cpu"
    precision: EnginePrecision = "fp32"
    layout: InputLayout = "linear"
    varying: bool = False

    def __str__(self) -> str:
        own = f"-{self.layout}" if self.name == "trt" else "-varying" * self.varying
        return f"{self.name}-{self.device}-{self.precision}{own}"


ON_GPU = [("ort", "fp32", "linear"), ("ort", "fp16", "linear"), ("trt", "fp32", "linear"),
    ("trt", "fp16", "linear"), ("trt", "fp16", "dhwc8")]  # fmt: skip
FAKES = [Kind(name, "fake", *rest) for name, *rest in ON_GPU]  # type: ignore[arg-type]
KINDS = [
    *(Kind(name) for name in ("ort", "openvino", "torch", "emulation", "triton")),
    Kind("openvino", varying=True),
    *FAKES,
    *(replace(fake, device="cuda") for fake in FAKES),
]


def marked(kinds: Iterable[Kind]) -> list[Any]:
    return [
        pytest.param(kind, marks=pytest.mark.gpu if kind.device == "cuda" else (), id=str(kind))
        for kind in kinds
    ]


def only(wanted: Callable[[Kind], bool]) -> pytest.MarkDecorator:
    """Run a test on some kinds of backend."""
    return pytest.mark.parametrize("kind", marked(filter(wanted, KINDS)), indirect=True)


@pytest.fixture(params=marked(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    if found.device == "cuda" and cuda_devices() == 0:
        pytest.skip("no CUDA device")
    return found


@pytest.fixture
def unclosed(
    kind: Kind, tiny_model: Path, tiny_network: UNet3D, tiny_card: ModelCard, tmp_path: Path
) -> Iterator[Backend]:
    """A backend of every kind that this machine has; whoever gets it closes it."""
    with ExitStack() as machine:
        if kind.name == "torch":
            yield TorchBackend(tiny_network, tiny_card)
            return
        if kind.name == "emulation":
            graph = EmulatedGraph(onnx.load(tiny_model / ONNX_FP32))
            yield EmulatedBackend(graph, tiny_card, BackendInfo("emulation", "cpu", "fp32"))
            return
        device = "cpu" if kind.device == "cpu" else "cuda:0"
        if kind.name == "triton":
            pytest.importorskip("tritonclient.grpc", reason="tritonclient is in the extra triton")
            from tests.fake_triton import serving

            write_repository(ModelDir.open(tiny_model), tmp_path / "repository")
            _, address = machine.enter_context(serving(tmp_path / "repository"))
            device = f"{address}/{tiny_card.name}"
        if kind.device == "fake":
            machine.enter_context(fake_gpu())
        elif kind.device == "cuda":
            pytest.importorskip("cupy", reason="cupy is not installed")
        folder = tiny_model
        if kind.name == "trt":
            folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
            put_engine(folder, kind)
        name: Any = kind.name
        window: Patch = "box" if kind.varying else WINDOW
        options = BackendOptions(name, device, kind.precision, threads=1, patch=window)
        yield open_backend(ModelDir.open(folder), options)


def put_engine(model: Path, kind: Kind) -> None:
    """Build the engine of a kind for this file's window."""
    spec = EngineSpec(kind.precision, kind.layout, WINDOW)
    if kind.device == "fake":
        add_engine(model, spec)
        return
    try:
        library = load_tensorrt()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    spec = replace(spec, gpu=gpu(0), version=library.version)
    add_engine(model, spec, build_engine, library)


@pytest.fixture
def opened(unclosed: Backend) -> Iterator[Backend]:
    yield unclosed
    unclosed.close()


def tolerance(backend: Backend) -> float:
    return 1e-4 if backend.info.precision == "fp32" else 2e-2


def run(backend: Backend, windows: Floats) -> tuple[list[tuple[str, int, int]], Floats]:
    """Run windows (n, C, X, Y, Z) through a backend with its own array operations: they are laid
    side by side along x in one volume on its device.
    """
    calls: list[tuple[str, int, int]] = []
    results = np.full((len(windows), 4, *windows.shape[2:]), np.nan, np.float32)
    volume = backend.ops.upload(np.ascontiguousarray(np.concatenate(list(windows), axis=1)))
    starts = np.array([[i * windows.shape[2], 0, 0] for i in range(len(windows))])

    def fill(first: int, last: int, inputs: Any) -> None:
        assert inputs.shape == (last - first, *windows.shape[1:])
        assert inputs.dtype in (np.float32, np.float16)
        calls.append(("fill", first, last))
        backend.ops.gather(volume, starts[first:last], inputs)

    def take(first: int, last: int, probabilities: Any) -> None:
        assert probabilities.shape == (last - first, 4, *windows.shape[2:])
        assert probabilities.dtype == np.float32
        calls.append(("take", first, last))
        results[first:last] = backend.ops.download(probabilities)

    backend.run(len(windows), fill, take)
    return calls, results


def random_windows(count: int, window: Shape3 = WINDOW, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, 4, *window)).astype(np.float32)


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (4, 2), (5, 2), (7, 3), (2, 4)])
def test_every_window_is_filled_and_taken_once_in_order(
    opened: Backend, count: int, batch: int
) -> None:
    opened.bind(WINDOW, batch)
    windows = random_windows(count)
    calls, results = run(opened, windows)
    fills, takes = (
        [(first, last) for kind, first, last in calls if kind == name] for name in ("fill", "take")
    )
    assert fills == takes
    assert all(calls.index(("fill", *one)) < calls.index(("take", *one)) for one in takes)
    assert takes[0][0] == 0
    assert takes[-1][1] == count
    assert all(one[1] == two[0] for one, two in itertools.pairwise(takes))
    assert all(0 < last - first <= batch for first, last in takes)
    assert np.isfinite(results).all()


def test_probabilities_are_those_of_the_network_in_float64(
    opened: Backend, tiny_network: UNet3D
) -> None:
    opened.bind(WINDOW, 2)
    windows = random_windows(3)
    _, results = run(opened, windows)
    expected = truth_of(tiny_network, windows)
    assert expected.std() > 0.05  # no flat field
    np.testing.assert_allclose(results, expected, atol=tolerance(opened))
    np.testing.assert_allclose(results.sum(axis=1), 1, atol=1e-5)


@only(lambda kind: kind.device == "fake")
def test_a_graph_gives_the_same_values_through_every_library(
    kind: Kind, opened: Backend, tiny_model: Path
) -> None:
    """On the fake GPU the network is the CPU's: whatever differs is in what surrounds it."""
    opened.bind(WINDOW, 3)
    windows = random_windows(5)
    if kind.layout == "dhwc8":
        # ONNX Runtime drops the cast of its input on a CPU; a gather into float16 cannot.
        windows = windows.astype(np.float16).astype(np.float32)
    _, results = run(opened, windows)
    graph = (tiny_model / GRAPHS[kind.precision]).read_bytes()
    cpu = OrtBackend(graph, opened.card, BackendInfo("ort", "cpu", kind.precision), 1)
    cpu.bind(WINDOW, 1)
    np.testing.assert_array_equal(results, run(cpu, windows)[1])
    cpu.close()


@only(lambda kind: kind.name == "trt")
def test_an_engine_takes_the_window_that_it_was_built_for(opened: Backend) -> None:
    with pytest.raises(UsageError, match="16,12,8, for which the engine was built") as caught:
        opened.bind((8, 20, 4), 1)
    assert caught.value.found == "8,20,4"


@only(lambda kind: kind.name != "trt")
def test_another_window_can_be_bound_and_the_first_one_again(
    opened: Backend, tiny_network: UNet3D, kind: Kind
) -> None:
    for window in (WINDOW, (8, 20, 4), (4, 4, 4), WINDOW):
        windows = random_windows(3, window, seed=1)
        opened.bind(window, 2)
        _, results = run(opened, windows)
        truth = truth_of(tiny_network, windows)
        np.testing.assert_allclose(results, truth, atol=tolerance(opened))
        _, again = run(opened, windows)
        # cuDNN adds up a transposed convolution in an order that varies.
        varies = 1e-6 if kind.device == "cuda" else 0.0
        np.testing.assert_allclose(again, results, rtol=0, atol=varies)


@pytest.mark.parametrize(("patch", "compiled"), [("box", 1), (None, 3)])
def test_windows_of_many_shapes_are_compiled_for_once(
    patch: Patch | None, compiled: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BackendOptions("openvino", "cpu", threads=1, patch=patch)
    calls = []
    openvino = pytest.importorskip("openvino", reason="a GPU machine may lack it")
    compile_model = openvino.Core.compile_model

    def counted(*given: Any) -> Any:
        calls.append(given)
        return compile_model(*given)

    monkeypatch.setattr(openvino.Core, "compile_model", counted)
    with closing(open_backend(ModelDir.open(tiny_model), options)) as backend:
        for window in (WINDOW, WINDOW, (8, 20, 4), WINDOW):
            backend.bind(window, 1)
            run(backend, random_windows(2, window))
    assert len(calls) == compiled


@pytest.mark.parametrize("window", [(16, 12, 6), (16, 13, 8), (0, 12, 8), (-4, 12, 8)])
def test_a_window_the_network_cannot_halve_is_refused(opened: Backend, window: Shape3) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        opened.bind(window, 1)


def test_the_card_and_info_are_those_of_the_model(
    kind: Kind, opened: Backend, tiny_card: ModelCard
) -> None:
    assert opened.card == tiny_card
    assert opened.info.name == kind.name
    if kind.name == "triton":
        assert re.fullmatch(r"127\.0\.0\.1:\d+/tiny", opened.info.device)
    else:
        assert opened.info.device == ("cpu" if kind.device == "cpu" else "cuda:0")
    assert opened.info.precision == kind.precision


@only(lambda kind: kind.name != "emulation")
def test_nothing_runs_after_close(unclosed: Backend) -> None:
    unclosed.bind(WINDOW, 1)
    unclosed.close()
    with pytest.raises((RuntimeError, AttributeError, ValueError)):
        unclosed.run(1, lambda *_: None, lambda *_: None)


@only(lambda kind: kind.name not in ("torch", "emulation"))
def test_nothing_runs_before_bind(opened: Backend) -> None:
    with pytest.raises(RuntimeError, match="before bind"):
        opened.run(1, lambda *_: None, lambda *_: None)


def test_torch_leaves_the_network_in_the_mode_it_was_in(
    tiny_card: ModelCard, tiny_network: UNet3D
) -> None:
    network = UNet3D(features=(4, 8, 16), dropout=0.5, residual=True)
    network.load_state_dict(tiny_network.state_dict())
    backend = TorchBackend(network.train(), tiny_card)
    backend.bind(WINDOW, 1)
    windows = random_windows(1)
    np.testing.assert_allclose(run(backend, windows)[1], truth_of(tiny_network, windows), atol=1e-4)
    assert network.training


# Opening


def test_auto_is_openvino_on_a_cpu(tiny_model: Path) -> None:
    backend = open_backend(ModelDir.open(tiny_model), BackendOptions(device="cpu", threads=1))
    info = backend.info
    backend.close()
    assert (info.name, info.device, info.precision) == ("openvino", "cpu", "fp32")
    assert info.artefact == ONNX_FP32
    assert info.sha256 == hashlib.sha256((tiny_model / ONNX_FP32).read_bytes()).hexdigest()
    assert info.certificate == "inconclusive"
    assert info.fell_back_from is None


def test_auto_falls_back_and_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runtime.backends.loading

    found = runtime.backends.loading.find_spec
    monkeypatch.setattr(
        runtime.backends.loading,
        "find_spec",
        lambda name: None if name == "openvino" else found(name),
    )
    backend = open_backend(ModelDir.open(tiny_model), BackendOptions(device="cpu", threads=1))
    info = backend.info
    backend.close()
    assert info.name == "ort"
    assert "openvino" in str(info.fell_back_from)
    with pytest.raises(BackendUnavailableError):
        open_backend(ModelDir.open(tiny_model), BackendOptions("openvino"))


BROKEN = (
    'raise ImportError("libtbb.so.12: cannot open shared object file: No such file")',
    'raise OSError("libtbb.so.12: wrong ELF class")',
    'raise AttributeError("module numpy has no attribute bool8")',
    "",  # a folder that an uninstaller left
)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """broken(module, code): the library is installed, and runs this code when it is imported."""

    def put(module: str, code: str) -> None:
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(code)
        ours = {
            "onnxruntime": ("ort", "ort_cuda"),
            "openvino": ("openvino",),
            "cupy": (),
        }[module]
        for name in list(sys.modules):
            if name.partition(".")[0] == module or name.startswith(f"runtime.ops.{module}"):
                monkeypatch.delitem(sys.modules, name)
        for part in ours:
            monkeypatch.delitem(sys.modules, f"runtime.backends.{part}", raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))

    return put


@pytest.mark.parametrize("code", BROKEN)
@pytest.mark.parametrize(("backend", "module"), [("ort", "onnxruntime"), ("openvino", "openvino")])
def test_a_library_that_does_not_load_is_unavailable(
    tiny_model: Path, broken: Callable[[str, str], None], backend: Any, module: str, code: str
) -> None:
    broken(module, code)
    with pytest.raises(BackendUnavailableError, match=f"{module} .* cannot be imported") as caught:
        open_backend(ModelDir.open(tiny_model), BackendOptions(backend, device="cpu"))
    assert caught.value.exit_code == 4
    assert "choose another --backend" in str(caught.value)


def test_auto_passes_over_a_library_that_does_not_load(
    tiny_model: Path, broken: Callable[[str, str], None]
) -> None:
    broken("openvino", BROKEN[0])
    backend = open_backend(ModelDir.open(tiny_model), BackendOptions(device="cpu", threads=1))
    info = backend.info
    backend.close()
    assert info.name == "ort"
    assert "libtbb.so.12: cannot open" in str(info.fell_back_from)
    broken("onnxruntime", BROKEN[1])
    with pytest.raises(BackendUnavailableError, match=r"12: cannot.*wrong ELF class"):
        open_backend(ModelDir.open(tiny_model), BackendOptions(device="cpu"))


@pytest.mark.parametrize("code", BROKEN[:3])
def test_a_cupy_that_does_not_load_is_unavailable(
    broken: Callable[[str, str], None], code: str
) -> None:
    broken("cupy", code)
    with pytest.raises(BackendUnavailableError, match="CuPy that cannot be imported"):
        cupy_ops(0)


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        (BackendOptions("trt"), BackendUnavailableError, 4),
        (BackendOptions(device="cuda:7"), BackendUnavailableError, 4),
        (BackendOptions("ort", device="cuda:7"), BackendUnavailableError, 4),
        (BackendOptions("openvino", device="cuda:7"), BackendUnavailableError, 4),
        (BackendOptions("trt", device="cpu"), UsageError, 2),
        (BackendOptions(device="gpu"), UsageError, 2),
        (BackendOptions(device="cuda:x"), UsageError, 2),
        (BackendOptions(device="cuda:"), UsageError, 2),
        (BackendOptions(device="cuda:\N{SUPERSCRIPT TWO}"), UsageError, 2),
        (BackendOptions(device="cuda:-1"), UsageError, 2),
        (BackendOptions("ort", device="cpu", precision="fp16"), UsageError, 2),
        (BackendOptions(device="cpu", precision="fp16"), UsageError, 2),
        (BackendOptions(device="cpu", precision="int8"), InputError, 3),
        (BackendOptions("trt", device="cpu", precision="int8"), UsageError, 2),
    ],
)
def test_what_cannot_be_had_is_refused(
    tiny_model: Path,
    options: BackendOptions,
    kind: type[BratsError],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import runtime.backends.opening

    monkeypatch.setattr(runtime.backends.opening, "cuda_devices", lambda: 0)
    with pytest.raises(kind) as caught:
        open_backend(ModelDir.open(tiny_model), options)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def put(model: Path, change: Callable[[Path], object]) -> ModelDir:
    """Change a model directory and make its manifest agree."""
    change(model)
    (model / MANIFEST).write_bytes(manifest_of(model))
    return ModelDir.open(model)


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_one_changed_byte_is_noticed(copied: Path, name: Any) -> None:
    data = bytearray((copied / ONNX_FP32).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / ONNX_FP32).write_bytes(data)
    model = ModelDir.open(copied)
    with pytest.raises(InputError, match="differs from the manifest") as caught:
        open_backend(model, BackendOptions(name))
    assert caught.value.where == str(copied / ONNX_FP32)


@pytest.mark.parametrize("name", ["ort", "openvino"])
@pytest.mark.parametrize("damage", ["text", "empty", "half", "another graph"])
def test_a_corrupt_graph_that_its_manifest_vouches_for(
    copied: Path, name: Any, damage: str
) -> None:
    def change(model: Path) -> None:
        file = model / ONNX_FP32
        data = file.read_bytes()
        if damage == "another graph":
            proto = onnx.load_from_string(data)
            proto.graph.node[0].op_type = "NoSuchOperator"
            data = proto.SerializeToString()
        file.write_bytes(
            {
                "text": b"this is no network\n" * 50,
                "empty": b"",
                "half": data[: len(data) // 2],
            }.get(damage, data)
        )

    model = put(copied, change)
    with pytest.raises(InputError) as caught:
        open_backend(model, BackendOptions(name, device="cpu", uncertified=True))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert ONNX_FP32 in str(caught.value)


def without_card(model: Path) -> None:
    proto = onnx.load(model / ONNX_FP32)
    del proto.metadata_props[:]
    onnx.save(proto, model / ONNX_FP32)


def with_another_card(model: Path) -> None:
    proto = onnx.load(model / ONNX_FP32)
    card = ModelCard(name="tiny", patch=(32, 32, 16), divisor=4, normalisation="zscore-volume")
    set_card(proto, card)
    onnx.save(proto, model / ONNX_FP32)


def with_a_card_that_is_none(model: Path) -> None:
    proto = onnx.load(model / ONNX_FP32)
    proto.metadata_props[0].value = "{"
    onnx.save(proto, model / ONNX_FP32)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_card, "no model card"),
        (with_another_card, "the card of another model"),
        (with_a_card_that_is_none, "the card of another model"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "fake", "openvino"])
def test_a_graph_that_is_not_that_of_the_card_is_refused(
    copied: Path, change: Callable[[Path], None], found: str, device: str
) -> None:
    model = put(copied, change)
    with fake_gpu() if device == "fake" else nullcontext():
        options = BackendOptions(
            "openvino" if device == "openvino" else "ort",
            "cuda:0" if device == "fake" else "cpu",
            "fp32",
            uncertified=True,
        )
        with pytest.raises(InputError, match=found) as caught:
            open_backend(model, options)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(copied / ONNX_FP32)
    assert "\n" not in str(caught.value)


def certificate(verdicts: dict[str, str] | None, sha256: str | None = None) -> Any:
    def change(model: Path) -> None:
        digest = sha256 or hashlib.sha256((model / ONNX_FP32).read_bytes()).hexdigest()
        entries = [
            {"file": ONNX_FP32, "sha256": digest, "backend": backend, "verdict": verdict}
            for backend, verdict in (verdicts or {}).items()
        ]
        (model / PARITY).write_text(json.dumps({"schema": 1, "artefacts": entries}))

    return change


@pytest.mark.parametrize(
    ("verdicts", "sha256", "expected"),
    [
        ({"openvino": "pass", "ort": "pass"}, None, "pass"),
        ({"openvino": "pass", "ort": "inconclusive"}, None, "inconclusive"),
        ({"openvino": "fail", "ort": "pass"}, None, None),
        ({}, None, None),
        ({"openvino": "pass"}, "0" * 64, None),  # of other bytes
    ],
)
def test_only_a_certificate_of_these_bytes_counts(
    copied: Path, verdicts: dict[str, str], sha256: str | None, expected: str | None
) -> None:
    model = put(copied, certificate(verdicts, sha256))
    if expected is None:
        with pytest.raises(ParityError, match="--uncertified") as caught:
            open_backend(model, BackendOptions("ort", device="cpu"))
        assert caught.value.exit_code == 5
    options = BackendOptions("ort", device="cpu", uncertified=expected is None)
    backend = open_backend(model, options)
    backend.close()
    found = backend.info.certificate
    assert found == (expected or ("fail" if "fail" in verdicts.values() else "none"))


@pytest.mark.parametrize("file", [MANIFEST, PARITY, "card.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "text", "list", "changed"])
def test_a_damaged_model_directory_is_bad_input(copied: Path, file: str, damage: str) -> None:
    path = copied / file
    if damage == "gone":
        path.unlink()
    elif damage == "changed" and file != MANIFEST:
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    elif damage == "changed":
        path.write_text('{"schema": 1, "files": {"card.json": {}}}')
    else:
        path.write_text({"empty": "", "text": "no json", "list": "[]"}[damage])
    with pytest.raises(InputError) as caught:
        ModelDir.open(copied)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["no json", "[]", '{"artefacts": 3}', '{"artefacts": [{}]}'])
def test_a_certificate_of_no_use_lets_no_model_run(copied: Path, content: str) -> None:
    """Consistent with the manifest, and yet nothing that this version wrote."""

    def read_and_open() -> None:
        model = put(copied, lambda path: (path / PARITY).write_text(content))
        open_backend(model, BackendOptions("ort", device="cpu"))

    with pytest.raises((InputError, ParityError)) as caught:
        read_and_open()
    assert "\n" not in str(caught.value)


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        ModelDir.open(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file"):
        ModelDir.open(tmp_path / "file")


HOLE = """
import sys
from pathlib import Path
import numpy as np
from runtime.backends import BackendOptions, open_backend
from runtime.model_dir import ModelDir

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[2:]:
    backend = open_backend(ModelDir.open(Path(sys.argv[1])), BackendOptions("ort", threads=1))
SIZE = 20 << 20
for _ in range(3):
    blocks = [np.ones(SIZE, np.uint8) for _ in range(3)]
    kept = np.ones(100_000, np.uint8)
    before = resident()
    del blocks
print((before - resident()) // SIZE)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc only")
def test_large_blocks_go_back_to_the_system(tiny_model: Path) -> None:
    given = []
    for opened in ((), ("opened",)):
        command = [sys.executable, "-c", HOLE, str(tiny_model), *opened]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        )
        given.append(int(done.stdout))
    # Left alone, they stay as holes in the heap.
    assert given[0] < 2
    assert given[1] in (2, 3)


CORES = """
import os, sys, threading
from pathlib import Path
from runtime.backends import BackendOptions, open_backend
from runtime.model_dir import ModelDir

backend = open_backend(ModelDir.open(Path(sys.argv[1])), BackendOptions("openvino", threads=1))
backend.bind(backend.card.patch, 1)
seen, done = set(), threading.Event()

def watch():
    while not done.is_set():
        for thread in os.listdir("/proc/self/task"):
            seen.add(len(os.sched_getaffinity(int(thread))))

watching = threading.Thread(target=watch)
watching.start()
backend.run(200, lambda *given: None, lambda *given: None)
done.set()
watching.join()
print(min(seen), len(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which cores a thread may use")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one core only")
def test_processes_that_share_a_machine_are_not_bound_to_the_same_core(tiny_model: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    command = [sys.executable, "-c", CORES, str(tiny_model)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    fewest, all_of_them = map(int, done.stdout.split())
    assert fewest == all_of_them
