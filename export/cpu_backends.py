"""What runs an ONNX model on the CPU of the machine that exports."""

from collections.abc import Callable
from importlib.util import find_spec

from runtime.backends import Backend, BackendInfo
from runtime.backends.ort import OrtBackend
from runtime.model_card import ModelCard

Opener = Callable[[bytes, ModelCard, BackendInfo, int | None], Backend]
"""Opener(model, card, info, threads): a CPU backend."""


def cpu_backends() -> list[tuple[str, Opener]]:
    """The CPU backends that are here by name, the fastest first."""
    found: list[tuple[str, Opener]] = [("ort", OrtBackend)]
    # Not every machine that exports serves on its CPU.
    if find_spec("openvino") is not None:
        from runtime.backends.openvino import OpenVinoBackend

        found.insert(0, ("openvino", OpenVinoBackend))
    return found
