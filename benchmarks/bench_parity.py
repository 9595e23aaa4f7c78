"""Do the exported artefacts segment as PyTorch does? Region Dice against fp32 and against truth."""

from statistics import fmean
from typing import Any

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import figure
from export.build import build
from export.parity import CaseList, Gate, ParityCase, Reference
from export.produce import Parity, Reductions, from_network
from runtime.case import Case
from runtime.labels import REGIONS
from runtime.model_card import ModelCard
from runtime.nifti import load
from runtime.truth import load_truth
from train.backend import TorchBackend
from train.unet import UNet3D


def bench_parity(
    benchmark: Any,
    report: Report,
    trained: tuple[UNet3D, ModelCard, str],
    cases: list[Case],
    network_facts: dict[str, Any],
) -> None:
    """The whole certificate, timed; its figures go into the report."""
    network, card, _ = trained
    built = build(network, card, threads=THREADS)
    parity = Parity(
        Reference(TorchBackend(network, card)),
        CaseList(map(_with_truth, cases)),
        Gate(),
        "benchmark",
        lambda line: None,
    )
    product = benchmark.pedantic(
        lambda: from_network(built, card, parity, Reductions(("fp16",), strict=True)), rounds=1
    )
    certificate = product.certificate
    figures = {}
    for entry in certificate["artefacts"]:
        name = f"{entry['file']} ({entry['backend']})"
        for region in REGIONS:
            against = [("to fp32", [one["dice_to_fp32"][region] for one in entry["cases"]])]
            truths = [one["dice_to_truth"] for one in entry["cases"] if one.get("dice_to_truth")]
            against.append(("to truth", [one["artefact"][region] for one in truths]))
            for what, values in against:
                if values:
                    figures[f"{name}, {region} {what}"] = figure([fmean(values)], "Dice")
    report(
        "parity",
        figures,
        artefacts=[
            {
                "file": entry["file"],
                "backend": entry["backend"],
                "arithmetic": entry["arithmetic"],
                "cases": entry["cases"],
                "peak": entry.get("peak"),
            }
            for entry in certificate["artefacts"]
        ],
        case=", ".join(case.case_id for case in cases),
        **network_facts,
    )
    assert certificate["verdict"] != "fail"


def _with_truth(case: Case) -> ParityCase:
    volume = load(case)
    return ParityCase(volume, load_truth(case, volume) if case.labels is not None else None)
