"""What all benchmarks share: options, the case, the network and its exported model, the record.

With no options a benchmark takes what the four lines of the README have left behind (the newest
run below runs/ and the model directory model/), and a phantom that is smaller than a real case, so
that all benchmarks together take less than 15 minutes. Without a run it exports a reference network
with random weights, whose speed is the same; its label maps hold every label, so that ways to run
it can be told apart, and mean nothing (`benchmarks.random_network`). `--quick` takes a
small network and a small phantom and fewer points; what it measured is marked and never becomes a
result.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch

from benchmarks.calibration import WORK, calibrate
from benchmarks.compare import (
    IncomparableError,
    Missing,
    Row,
    check_machine,
    compare,
    missing,
    read_run,
    shown,
)
from benchmarks.options import (
    RANDOM,
    add_options,
    cases_of,
    check_options,
    checkpoint_of,
    given_model,
    random_card,
    scale_of,
)
from benchmarks.random_network import middle_window, random_network
from benchmarks.results_page import origin
from benchmarks.scale import Scale
from export.build import build
from export.release import release
from runtime.case import Case
from runtime.model_card import ModelCard, Shape3
from runtime.model_dir import ONNX_FP32, ModelDir
from runtime.nifti import Volume, load
from runtime.phantom import Enhancement, write_phantom
from train.checkpoint import load_model
from train.unet import UNet3D

THREADS = 2
EXPORTED = "exported-here"
"""Name of the model directory that is made here."""
LIBRARIES = (
    "torch",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "monai",
    "torchio",
    "nnunetv2",
    "numpy",
)
Report = Callable[..., None]
"""report(question, figures, **facts): put figures, and what they are of, into a record."""
_EARLIER = pytest.StashKey[dict[str, Any]]()
_LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse at once what could not be measured or compared in the end."""
    check_options(config)
    path = config.getoption("--compare")
    if path is None:
        return
    try:
        earlier = read_run(path)
        check_machine(earlier["machine_info"]["settings"], _settings(config))
    except IncomparableError as error:
        raise pytest.UsageError(f"--compare: {error}") from error
    config.stash[_EARLIER] = earlier


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Versions, threads and scale stand beside every figure."""
    settings = _settings(config)
    machine_info["settings"] = settings
    machine_info["threads"] = THREADS
    machine_info["processor"] = settings["processor"]
    machine_info["libraries"] = {name: _version(name) for name in LIBRARIES}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Every record says of which run it is: those of several are put together into one table."""
    for record in output_json["benchmarks"]:
        record["extra_info"]["run"] = origin(output_json)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With --compare: a regression fails the run, and so does a figure that is gone or a comparison
    that cannot be made.
    """
    earlier = session.config.stash.get(_EARLIER, None)
    if earlier is None:
        return
    done: Any = session.config._benchmarksession  # type: ignore[attr-defined]
    now = {
        "machine_info": {"settings": _settings(session.config)},
        "benchmarks": [one.as_dict() for one in done.benchmarks if one],
    }
    rows: list[Row] = []
    absent: list[Missing] = []
    try:
        rows = compare(earlier, now)
        collected = [item.nodeid for item in session.items]
        absent = missing(earlier, now, collected, _whole(session.config))
        lines = shown(rows, absent)
    except IncomparableError as error:
        lines = [f"not compared: {error}"]
    session.config.stash[_LINES] = lines
    lost = any(one.lost for one in absent)
    if not rows or lost or any(row.regressed for row in rows):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(_LINES, None)
    if lines is not None:
        terminalreporter.section(f"against {config.getoption('--compare')}")
        for line in lines:
            terminalreporter.write_line(line)


def _whole(config: pytest.Config) -> bool:
    """Whether all benchmarks were asked for, rather than single files or names."""
    chosen = (config.getoption(name, None) for name in ("keyword", "markexpr", "deselect", "lf"))
    named = (Path(str(arg)) for arg in config.args)
    return not any(chosen) and any(Path(__file__).parent == path.resolve() for path in named)


def _settings(config: pytest.Config) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": THREADS,
        "scale": scale_of(config).name,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    return scale_of(pytestconfig)


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config, scale: Scale) -> int:
    given = pytestconfig.getoption("--rounds")
    return scale.rounds if given is None else int(given)


@pytest.fixture(scope="session")
def phantom(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A case of no patient."""
    return _phantom(tmp_path_factory, scale.phantom)


def _phantom(folders: pytest.TempPathFactory, shape: Shape3) -> Case:
    out = folders.mktemp("phantom")
    return Case.from_dir(write_phantom(out, 1, 3, shape=shape, enhancement=Enhancement.RIM))


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> list[Case]:
    """The case that is timed first: real with --data, else a phantom; after it those that parity
    is compared on, as many as --parity-cases.
    """
    if pytestconfig.getoption("--data") is not None:
        return cases_of(pytestconfig)
    return [request.getfixturevalue("phantom")]


@pytest.fixture(scope="session")
def overlap_cases(
    pytestconfig: pytest.Config, scale: Scale, tmp_path_factory: pytest.TempPathFactory
) -> list[Case]:
    """Those of --data, else a phantom on which overlaps differ."""
    if pytestconfig.getoption("--data") is not None:
        return cases_of(pytestconfig)
    return [_phantom(tmp_path_factory, scale.overlap_phantom)]


@pytest.fixture(scope="session")
def case(cases: list[Case]) -> Case:
    """The case that is timed."""
    return cases[0]


@pytest.fixture(scope="session")
def volume(case: Case) -> Volume:
    return load(case)


@pytest.fixture(scope="session")
def trained(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, scale: Scale
) -> tuple[UNet3D, ModelCard, str]:
    """The network in eval mode, its card, and where the weights come from."""
    torch.set_num_threads(THREADS)
    path = checkpoint_of(pytestconfig)
    if path is None:
        card = random_card(scale)
        window = middle_window(request.getfixturevalue("volume"), card)
        return random_network(scale.features, window), card, RANDOM
    network, card = load_model(path)
    return network, card, card.name


@pytest.fixture(scope="session")
def case_facts(volume: Volume) -> dict[str, Any]:
    """Which case, for a record."""
    return facts_of(volume)


def facts_of(volume: Volume) -> dict[str, Any]:
    """A case by its name, shape and voxels."""
    digests = "".join(image.sha256 for image in volume.images.values())
    return {
        "case": volume.case.case_id,
        "shape": list(volume.grid.shape),
        "case_sha256": hashlib.sha256(digests.encode()).hexdigest(),
    }


@pytest.fixture(scope="session")
def network_facts(trained: tuple[UNet3D, ModelCard, str], model: ModelDir) -> dict[str, Any]:
    """Which network with which weights, and where its graphs come from, for a record."""
    network, card, weights = trained
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return {
        "weights": weights,
        "weights_sha256": digest.hexdigest(),
        "patch": list(card.patch),
        "exported_here": model.path.name == EXPORTED,
        "parameters": sum(value.numel() for value in network.parameters()),
    }


@pytest.fixture(scope="session")
def model(
    request: pytest.FixtureRequest,
    trained: tuple[UNet3D, ModelCard, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> ModelDir:
    """The exported model: --model, or model/ where it is the network's, else exported here."""
    network, card, _ = trained
    given = given_model(request.config, card)
    if given is not None:
        return given
    out = tmp_path_factory.mktemp("export") / EXPORTED
    built = build(network, card)
    release(
        out,
        card,
        {ONNX_FP32: built.data["k4"]},
        {"schema": 1, "verdict": "inconclusive", "artefacts": []},
        allow_inconclusive=True,
    )
    for candidate in built.candidates:
        candidate.backend.close()
    return ModelDir.open(out)


@pytest.fixture
def report(benchmark: Any, scale: Scale) -> Report:
    def put(question: str, figures: dict[str, Any], **facts: Any) -> None:
        benchmark.extra_info |= {
            "question": question,
            "scale": scale.name,
            **facts,
            "figures": figures,
        }

    return put


@pytest.fixture(autouse=True)
def calibrated(benchmark: Any) -> Iterator[None]:
    """How fast the machine is before and after each benchmark."""
    torch.set_num_threads(THREADS)
    before = calibrate()
    yield
    torch.set_num_threads(THREADS)
    benchmark.extra_info |= {"calibration_s": before + calibrate(), "calibration": WORK}
