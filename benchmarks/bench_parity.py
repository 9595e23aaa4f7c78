"""Do the exported artefacts segment as PyTorch does? Region Dice against fp32 and against truth."""

from itertools import islice
from typing import Any

import pytest

from export.build import build
from export.cases import parity_cases
from export.parity import Gate, certify
from runtime.model_card import ModelCard
from train.backend import TorchBackend
from train.unet import UNet3D


def bench_parity(
    benchmark: Any, request: pytest.FixtureRequest, trained: tuple[UNet3D, ModelCard, str]
) -> None:
    """The whole certificate, timed; its figures go into the report."""
    network, card, weights = trained
    built = build(network, card, fp16=True)
    cases = parity_cases(request.config.getoption("--data"), 8)
    limit = request.config.getoption("--parity-cases")
    certificate = benchmark.pedantic(
        lambda: certify(
            TorchBackend(network, card), built.candidates, islice(cases, limit), Gate(), "benchmark"
        ),
        rounds=1,
    )
    for candidate in built.candidates:
        candidate.backend.close()
    benchmark.extra_info |= {
        "question": "parity",
        "weights": weights,
        "artefacts": [
            {
                "file": entry["file"],
                "backend": entry["backend"],
                "arithmetic": entry["arithmetic"],
                "cases": entry["cases"],
                "peak": entry.get("peak"),
            }
            for entry in certificate["artefacts"]
        ],
    }
    assert certificate["verdict"] != "fail"
