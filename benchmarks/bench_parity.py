"""Do the exported artefacts segment as PyTorch does? Region Dice against fp32 and against truth."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import onnx
import pytest

from benchmarks.conftest import THREADS, Report
from benchmarks.figures import VERDICTS, figure
from benchmarks.rounding import halved_gate
from benchmarks.scale import Scale
from export.calibrate import CalibrationCases, calibrate
from export.cpu_backends import cpu_backends
from export.emulate import EmulatedBackend, EmulatedGraph
from export.half_weights import is_halved, restore_weights
from export.int8 import quantize
from export.int8_search import arithmetic_of, int8_gate
from export.parity import Candidate, CaseList, Gate, ParityCase, Reference, certify
from export.precision import reduce
from runtime.backends import BackendInfo
from runtime.case import Case
from runtime.labels import REGIONS
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP16, ONNX_FP32, ONNX_INT8, ModelDir, sha256_of
from runtime.nifti import load
from runtime.phantom import Enhancement, write_phantom
from runtime.truth import load_truth
from train.backend import TorchBackend
from train.unet import UNet3D

HALVED: Final = "fp32, weights fp16"
"""Arithmetic of a graph in fp32 whose weights were rounded."""
_REDUCED: Final = ("fp16", "bf16", "int8")
# Of the phantom that int8 is calibrated on, where a model comes without: not the one it is judged
# on.
_CALIBRATION_SEED: Final = 71


@pytest.fixture(scope="module")
def graphs(
    model: ModelDir, scale: Scale, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Every graph of the model directory; fp16 and int8 are made of its fp32 where it has none,
    with no part in fp32 and without a search for those that need it.
    """
    found = {name: model.read(name) for name in sorted(model.hashes) if name.endswith(".onnx")}
    fp32 = restore_weights(onnx.load_model_from_string(found[ONNX_FP32]))
    if ONNX_FP16 not in found:
        found[ONNX_FP16] = reduce(fp32, "fp16").SerializeToString()
    if ONNX_INT8 not in found:
        other = _phantom(tmp_path_factory.mktemp("calibration"), scale)
        cases = CalibrationCases([load(other)], "phantom")
        limits = calibrate(fp32, model.card, cases).limits
        found[ONNX_INT8] = quantize(fp32, limits).SerializeToString()
    return found


def bench_parity(
    benchmark: Any,
    report: Report,
    trained: tuple[UNet3D, ModelCard, str],
    model: ModelDir,
    graphs: dict[str, bytes],
    cases: list[Case],
    phantom: Case,
    network_facts: dict[str, Any],
) -> None:
    """Every graph on whatever runs it here, judged as at export, over the phantom and, apart from
    it, over real cases where there are any; its figures go into the report.
    """
    network, card, _ = trained
    reference = Reference(TorchBackend(network, card))
    # Of its own verdict: what a network finds in a phantom, which has no patient's tumour, says
    # nothing of patients.
    groups = {"": cases} if phantom in cases else {"": cases, " of a phantom": [phantom]}
    read = {name: CaseList(map(_with_truth, group)) for name, group in groups.items()}

    def judge() -> list[dict[str, Any]]:
        entries = []
        for file, data in graphs.items():
            for candidate in _candidates(file, data, card):
                with closing(candidate.backend):
                    for name, group in read.items():
                        # Read to the last case.
                        every = replace(Gate(), informative_cases=len(groups[name]))
                        gate = int8_gate(every) if file == ONNX_INT8 else every
                        if candidate.arithmetic == HALVED:
                            gate = halved_gate(gate)
                        found = certify(reference, [candidate], group, gate, "benchmark")
                        entries += [one | {"group": name} for one in found["artefacts"]]
        return entries

    entries = benchmark.pedantic(judge, rounds=1)
    kept = ("file", "backend", "arithmetic", "verdict", "cases")
    report(
        "parity",
        figures_of(entries),
        artefacts=[
            {
                **{key: entry[key] for key in kept},
                "made_here": entry["file"] not in model.hashes,
            }
            for entry in entries
        ],
        model_sha256={name: model.hashes[name] for name in graphs if name in model.hashes},
        case=", ".join(case.case_id for group in groups.values() for case in group),
        **network_facts,
    )
    assert {(entry["file"], entry["group"]) for entry in entries} == set(product(graphs, groups))
    labels = np.unique(reference.predict(_with_truth(cases[0])).labels)
    assert len(labels) > 1, "one label for all: nothing can differ"
    # What computes in less promises nothing of cases that its own certificate is not about; that
    # it passed in an earlier run is for `--compare` to say.
    exact = [entry for entry in entries if entry["arithmetic"] in ("fp32", HALVED)]
    failed = [entry["reasons"] for entry in exact if entry["verdict"] == "fail"]
    assert not failed


def figures_of(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean Dice of each artefact, group of cases and region, to fp32 and, where it is known, to
    truth; its verdict over the group, and the most changed labels of a case.
    """
    figures = {}
    for entry in entries:
        name = f"{entry['file']} ({entry['backend']}){entry['group']}"
        figures[f"{name}, verdict"] = figure([VERDICTS[entry["verdict"]]], "verdict")
        changed = max(one["changed_labels"] for one in entry["cases"])
        figures[f"{name}, changed labels"] = figure([changed], "changed")
        truths = [one["dice_to_truth"] for one in entry["cases"] if one.get("dice_to_truth")]
        for region in REGIONS:
            to_fp32 = [one["dice_to_fp32"][region] for one in entry["cases"]]
            figures[f"{name}, {region} to fp32"] = figure([fmean(to_fp32)], "Dice")
            if truths:
                to_truth = [one["artefact"][region] for one in truths]
                figures[f"{name}, {region} to truth"] = figure([fmean(to_truth)], "Dice")
    return figures


def _candidates(file: str, data: bytes, card: ModelCard) -> Iterator[Candidate]:
    """A graph on each CPU backend; in half precision, which CPUs lack, on the emulation."""
    precision = next((kind for kind in _REDUCED if f".{kind}." in file), "fp32")
    digest = sha256_of(data)
    if precision in ("fp16", "bf16"):
        graph = EmulatedGraph(onnx.load_model_from_string(data))
        info = BackendInfo("emulation", "cpu", precision, file, digest)
        backend = EmulatedBackend(graph, card, info)
        yield Candidate(file, digest, backend, f"{precision} (emulated)", True, graph.peaks)
        return
    for name, opener in cpu_backends():
        info = BackendInfo(name, "cpu", precision, file, digest)
        served = opener(data, card, info, THREADS)
        served.bind(card.patch, 1)
        arithmetic = arithmetic_of(served) if precision == "int8" else precision
        halved = precision == "fp32" and is_halved(data)
        reduced = precision != "fp32" or halved
        yield Candidate(file, digest, served, HALVED if halved else arithmetic, reduced)


def _phantom(folder: Path, scale: Scale) -> Case:
    made = write_phantom(
        folder, 1, _CALIBRATION_SEED, shape=scale.phantom, enhancement=Enhancement.RIM
    )
    return Case.from_dir(made)


def _with_truth(case: Case) -> ParityCase:
    volume = load(case)
    return ParityCase(volume, load_truth(case, volume) if case.labels is not None else None)
