"""From a network to the fp32 graphs of a model directory, and what executes them here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from torch import nn

from export.cpu_backends import Opener, cpu_backends
from export.fuse import FusionReport, fuse
from export.half_weights import halve_weights, is_halved
from export.parity import Candidate
from export.trace import trace
from export.up_branch import UpBranch
from runtime.backends import BackendInfo
from runtime.engine import EnginePrecision
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_BF16, ONNX_FP16, ONNX_FP32, sha256_of

GRAPHS: Final[Mapping[EnginePrecision, str]] = {
    "fp32": ONNX_FP32,
    "fp16": ONNX_FP16,
    "bf16": ONNX_BF16,
}


def file_of(precision: EnginePrecision, form: UpBranch) -> str:
    """Name of a graph: model.fp16.onnx, model.fp16.interleave.onnx, model.interleave.onnx."""
    plain = GRAPHS[precision]
    return plain if form == "k4" else plain.removesuffix("onnx") + f"{form}.onnx"


@dataclass(frozen=True)
class Built:
    """What an export has made.

    Attributes:
        graphs: fp32, by the form of their up branches; "k4" is model.onnx.
        data: the graphs as they are to be stored.
        candidates: model.onnx on every CPU backend, the other forms on ONNX Runtime.
        report: what the rewrite to "k4" did.
    """

    graphs: Mapping[UpBranch, onnx.ModelProto]
    data: Mapping[UpBranch, bytes]
    candidates: tuple[Candidate, ...]
    report: FusionReport


def build(
    network: nn.Module,
    card: ModelCard,
    forms: Sequence[UpBranch] = ("k4",),
    threads: int | None = None,
    *,
    half_weights: bool = False,
) -> Built:
    """Trace and rewrite, and open every CPU backend on the result.

    Args:
        network: maps float32 (N, C, X, Y, Z) to logits; in evaluation mode.
        card: stored in every graph.
        forms: of the up branches; "k4" is made in any case, and no other of a graph in which none
            can be composed, since it would be the same.
        threads: for the CPU backends; None means all cores.
        half_weights: store weights in fp16; the graphs still compute in fp32.

    Raises:
        InputError: a weight leaves the range of fp16, in which it was to be stored.
    """
    traced = trace(network, card)
    graphs: dict[UpBranch, onnx.ModelProto] = {}
    reports: dict[UpBranch, FusionReport] = {}
    for form in dict.fromkeys(("k4", *forms)):
        graphs[form] = onnx.ModelProto()
        graphs[form].CopyFrom(traced)
        reports[form] = fuse(graphs[form], form)
        if not reports["k4"].composed:
            break
    data = {
        form: (halve_weights(graph) if half_weights else graph).SerializeToString()
        for form, graph in graphs.items()
    }
    runners = cpu_backends()
    candidates = [_candidate(name, kind, "k4", data["k4"], card, threads) for name, kind in runners]
    candidates += [
        _candidate(*runners[-1], form, stored, card, threads)
        for form, stored in data.items()
        if form != "k4"
    ]
    return Built(graphs, data, tuple(candidates), reports["k4"])


def _candidate(
    name: str,
    opener: Opener,
    form: UpBranch,
    data: bytes,
    card: ModelCard,
    threads: int | None,
) -> Candidate:
    file, digest = file_of("fp32", form), sha256_of(data)
    backend = opener(data, card, BackendInfo(name, "cpu", "fp32", file, digest), threads)
    halved = is_halved(data)
    arithmetic = "fp32, weights stored in fp16" if halved else "fp32"
    return Candidate(file, digest, backend, arithmetic, reduced=halved, up_branch=form)
