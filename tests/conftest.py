"""Fixtures that several test files share: phantoms, a tiny network, its model directory, cases."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Read when the libraries start: two cores, and no thread pools that outnumber them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from runtime.case import Case, Source
from runtime.model_card import InferenceDefaults, ModelCard
from runtime.model_dir import ONNX_FP16, ONNX_FP32, sha256_of
from runtime.nifti import Grid, Image, Volume, load
from runtime.phantom import Enhancement, write_phantoms
from train.checkpoint import Architecture, Checkpoint, save_checkpoint
from train.unet import UNet3D

# A shell that starts a command in the background lets it ignore Ctrl-C, and so all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_CASES = Path(__file__).parents[2] / "shared" / "data" / "brats18"
PHANTOM_SHAPE = (64, 56, 48)


@pytest.fixture(scope="session")
def real_cases() -> Path:
    """The folder of real cases beside the checkout."""
    if not REAL_CASES.is_dir():
        pytest.skip(f"no real cases in {REAL_CASES}")
    return REAL_CASES


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small phantoms in BraTS 2020 naming; read-only for tests."""
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, 2, seed=7, shape=PHANTOM_SHAPE, enhancement=Enhancement.RIM)
    return root


@pytest.fixture(scope="session")
def phantom_dir(phantom_root: Path) -> Path:
    """One phantom's case folder; read-only for tests."""
    return phantom_root / "BraTSPhantom_0001"


@pytest.fixture(scope="session")
def phantom_volume(phantom_dir: Path) -> Volume:
    return load(Case.from_dir(phantom_dir))


@pytest.fixture(scope="session")
def tiny_card() -> ModelCard:
    return ModelCard(
        name="tiny",
        patch=(32, 32, 16),
        divisor=4,
        inference=InferenceDefaults(overlap=0.5, batch=2),
    )


@pytest.fixture(scope="session")
def tiny_network() -> UNet3D:
    """Random weights, and batch norms that are not the identity, so that folding does something."""
    generator = torch.Generator().manual_seed(0)
    network = UNet3D(features=(4, 8, 16), dropout=0.0, residual=True)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(0.3 * torch.randn(module.num_features, generator=generator))
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            fan_in = module.weight[0].numel()
            module.weight.data.copy_(
                torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            )
    network.head.bias.data.zero_()
    return network.eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_network: UNet3D, tiny_card: ModelCard
) -> Path:
    path = tmp_path_factory.mktemp("run") / "tiny.pt"
    architecture = Architecture(features=(4, 8, 16), dropout=0.0, residual=True)
    save_checkpoint(path, Checkpoint(tiny_network.state_dict(), architecture, tiny_card, epoch=1))
    return path


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_network: UNet3D, tiny_card: ModelCard
) -> Path:
    """An exported model directory with both graphs; its certificate is one that no case decided.

    Read-only for tests; copy it to change it.
    """
    # Imported here: most tests need no exporter, and it takes seconds to import.
    from export.build import build
    from export.precision import reduce
    from export.release import release

    out = tmp_path_factory.mktemp("export") / "model"
    built = build(tiny_network, tiny_card)
    half = reduce(built.graphs["k4"], "fp16").SerializeToString()
    artefacts = [
        (candidate.file, candidate.sha256, candidate.backend.info.name)
        for candidate in built.candidates
    ]
    artefacts.append((ONNX_FP16, sha256_of(half), "emulation"))
    certificate = {
        "schema": 1,
        "verdict": "inconclusive",
        "artefacts": [
            {
                "file": file,
                "sha256": digest,
                "backend": backend,
                "verdict": "inconclusive",
                "reasons": [],
                "cases": [],
            }
            for file, digest, backend in artefacts
        ],
    }
    files = {ONNX_FP32: built.data["k4"], ONNX_FP16: half}
    release(out, tiny_card, files, certificate, allow_inconclusive=True)
    for candidate in built.candidates:
        candidate.backend.close()
    return out


@pytest.fixture
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back afterwards: Streamlit's AppTest leaves its script in the place of `__main__`, and
    processes that are spawned later would run it.
    """
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


MakeVolume = Callable[..., Volume]
WriteCase = Callable[..., Path]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="session")
def make_volume() -> MakeVolume:
    """make_volume(images, affine): a volume that never was on a disk."""

    def make(
        images: Mapping[str, npt.NDArray[Any]], affine: npt.NDArray[np.float64] = LPS
    ) -> Volume:
        paths = {name: Path(f"case/case_{name}.nii.gz") for name in images}
        case = Case("case", {name: Source(path) for name, path in paths.items()})
        stored = {
            name: Image(np.asfortranarray(voxels), f"hash of {name}", paths[name])
            for name, voxels in images.items()
        }
        shape = next(iter(images.values())).shape
        return Volume(case, stored, Grid.from_affine(shape, affine))

    return make


@pytest.fixture(scope="session")
def write_case() -> WriteCase:
    """write_case(folder, images, affine, pattern): files written by nibabel, not by us."""

    def write(
        folder: Path,
        images: Mapping[str, npt.NDArray[Any]],
        affine: npt.NDArray[np.float64] = LPS,
        pattern: str = "X_{}.nii.gz",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, voxels in images.items():
            nib.save(nib.Nifti1Image(voxels, affine), folder / pattern.format(name))
        return folder

    return write
