"""What all benchmarks share: the case, the network and its exported model, the number of threads.

With no options a benchmark takes what the four lines of the README have left behind (the newest
run below runs/ and the model directory model/), and a phantom. Without those it exports a reference
network with random weights, whose speed is the same and whose label maps mean nothing.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch

from export.build import build
from export.release import release
from runtime.case import Case, find_cases
from runtime.errors import InputError
from runtime.manifest import MANIFEST
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP32, ModelDir
from runtime.nifti import Volume, load
from runtime.phantom import Enhancement, write_phantom
from train.checkpoint import load_model, newest_run
from train.unet import UNet3D

THREADS = 2
LIBRARIES = ("torch", "openvino", "onnxruntime-gpu", "monai", "numpy")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("brats-deploy")
    group.addoption("--data", type=Path, help="folder of cases; a phantom by default")
    group.addoption("--checkpoint", type=Path, help="network; the newest run's by default")
    group.addoption("--model", type=Path, default=Path("model"), help="its model directory")
    group.addoption("--case", help="the case to time; the first of --data by default")
    group.addoption("--rounds", type=int, default=2, help="times each figure is taken")
    group.addoption("--parity-cases", type=int, default=1, help="cases to compare on")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Versions and threads stand beside every figure."""
    machine_info["threads"] = THREADS
    machine_info["libraries"] = {name: _version(name) for name in LIBRARIES}
    machine_info["processor"] = _processor()


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
def rounds(request: pytest.FixtureRequest) -> int:
    return max(1, int(request.config.getoption("--rounds")))


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The case that is timed: real with --data, else a full-size phantom."""
    data = request.config.getoption("--data")
    if data is None:
        folder = write_phantom(
            tmp_path_factory.mktemp("phantom"), 1, 3, enhancement=Enhancement.RIM
        )
        return Case.from_dir(folder)
    wanted = request.config.getoption("--case")
    cases = [found for found in find_cases(data) if wanted in (None, found.case_id)]
    if not cases:
        raise pytest.UsageError(f"--case {wanted}: no such case in {data}")
    return cases[0]


@pytest.fixture(scope="session")
def volume(case: Case) -> Volume:
    return load(case)


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest) -> tuple[UNet3D, ModelCard, str]:
    """The network in eval mode, its card, and where the weights come from."""
    torch.set_num_threads(THREADS)
    path = request.config.getoption("--checkpoint")
    if path is None:
        try:
            path = newest_run(Path("runs")) / "checkpoints" / "best.pt"
        except InputError:
            torch.manual_seed(0)
            return UNet3D(dropout=0.0).eval(), ModelCard(name="random"), "random weights"
    network, card = load_model(path)
    return network, card, card.name


@pytest.fixture(scope="session")
def model(
    request: pytest.FixtureRequest,
    trained: tuple[UNet3D, ModelCard, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> ModelDir:
    """The exported model: --model where its card is the network's, else exported here."""
    network, card, _ = trained
    path = request.config.getoption("--model")
    if (path / MANIFEST).is_file():
        found = ModelDir.open(path)
        if json.loads(found.card.to_json()) == json.loads(card.to_json()):
            return found
    out = tmp_path_factory.mktemp("export") / "model"
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


@pytest.fixture(autouse=True)
def two_threads() -> None:
    torch.set_num_threads(THREADS)
