"""What runs an ONNX model on the CPU of the machine that exports."""

from contextlib import suppress
from typing import Protocol

from runtime.backends import Backend, BackendInfo
from runtime.backends.loading import loading, require
from runtime.backends.ort import OrtBackend
from runtime.errors import BackendUnavailableError
from runtime.model_card import ModelCard


class Opener(Protocol):
    """Opens a CPU backend."""

    def __call__(
        self,
        model: bytes,
        card: ModelCard,
        info: BackendInfo,
        threads: int | None = None,
        *,
        varying: bool = False,
    ) -> Backend:
        """
        Args:
            model: a self-contained ONNX file.
            card: its contract.
            info: for the record.
            threads: CPU threads; None means all cores.
            varying: windows of many shapes are to be bound.
        """


def cpu_backends() -> list[tuple[str, Opener]]:
    """The CPU backends that are here by name, the fastest first and "ort" last."""
    found: list[tuple[str, Opener]] = [("ort", _ort)]
    # Not every machine that exports serves on its CPU.
    with suppress(BackendUnavailableError):
        require("openvino", "openvino")
        with loading("openvino", "openvino"):
            from runtime.backends.openvino import OpenVinoBackend
        found.insert(0, ("openvino", OpenVinoBackend))
    return found


def _ort(
    model: bytes,
    card: ModelCard,
    info: BackendInfo,
    threads: int | None = None,
    *,
    varying: bool = False,
) -> Backend:
    # It makes nothing of a shape before it runs.
    return OrtBackend(model, card, info, threads)
