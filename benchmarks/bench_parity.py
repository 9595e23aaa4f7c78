"""Do the exported artefacts segment as PyTorch does? Region Dice against fp32 and against truth."""

from itertools import islice
from typing import Any

import pytest

from export.build import build
from export.cases import parity_cases
from export.parity import CaseList, Gate, Reference
from export.produce import Parity, Reductions, from_network
from runtime.model_card import ModelCard
from train.backend import TorchBackend
from train.unet import UNet3D


def bench_parity(
    benchmark: Any, request: pytest.FixtureRequest, trained: tuple[UNet3D, ModelCard, str]
) -> None:
    """The whole certificate, timed; its figures go into the report."""
    network, card, weights = trained
    built = build(network, card)
    cases = parity_cases(request.config.getoption("--data"), 8)
    limit = request.config.getoption("--parity-cases")
    parity = Parity(
        Reference(TorchBackend(network, card)),
        CaseList(islice(cases, limit)),
        Gate(),
        "benchmark",
        lambda line: None,
    )
    product = benchmark.pedantic(
        lambda: from_network(built, card, parity, Reductions(("fp16",), strict=True)), rounds=1
    )
    certificate = product.certificate
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
