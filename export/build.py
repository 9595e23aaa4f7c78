"""From a network to the ONNX files of a model directory, and what executes each of them here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import nn

from export.emulate import EmulatedBackend, EmulatedGraph
from export.fuse import FusionReport, fuse
from export.parity import Candidate
from export.precision import to_fp16
from export.trace import trace
from runtime.backends import BackendInfo
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP16, ONNX_FP32, sha256_of

__all__ = ["ONNX_FP16", "ONNX_FP32", "Built", "build"]

_EMULATION: Final = "fp16 (emulated)"


@dataclass(frozen=True)
class Built:
    """What an export has made.

    Attributes:
        files: name to bytes of each ONNX file.
        candidates: one per file and backend that can execute it on this machine.
        report: what the graph rewrite did.
    """

    files: Mapping[str, bytes]
    candidates: tuple[Candidate, ...]
    report: FusionReport


def build(network: nn.Module, card: ModelCard, *, fp16: bool, threads: int | None = None) -> Built:
    """Trace, rewrite and, with ``fp16``, convert; open every CPU backend on the result.

    Args:
        network: maps float32 (N, C, X, Y, Z) to logits; in evaluation mode.
        card: stored in every file.
        fp16: also make the fp16 graph.
        threads: for the CPU backends; None means all cores.
    """
    model = trace(network, card)
    report = fuse(model)
    data = model.SerializeToString()
    files = {ONNX_FP32: data}
    digest = sha256_of(data)
    candidates = [
        Candidate(
            ONNX_FP32,
            digest,
            kind(data, card, BackendInfo(name, "cpu", "fp32", ONNX_FP32, digest), threads),
            "fp32",
            reduced=False,
        )
        for name, kind in (("openvino", OpenVinoBackend), ("ort", OrtBackend))
    ]
    if fp16:
        half = to_fp16(model)
        files[ONNX_FP16] = half.SerializeToString()
        digest = sha256_of(files[ONNX_FP16])
        graph = EmulatedGraph(half)
        info = BackendInfo("emulation", "cpu", "fp16", ONNX_FP16, digest)
        candidates.append(
            Candidate(
                ONNX_FP16,
                digest,
                EmulatedBackend(graph, card, info),
                _EMULATION,
                reduced=True,
                peaks=graph.peaks,
            )
        )
    return Built(files, tuple(candidates), report)
