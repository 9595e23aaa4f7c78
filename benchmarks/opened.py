"""Every backend that there is, opened on the benchmark's model, or skipped with its reason."""

from dataclasses import dataclass
from typing import Final

import pytest

from benchmarks.conftest import THREADS
from runtime.backends import (
    Backend,
    BackendInfo,
    BackendName,
    BackendOptions,
    Precision,
    open_backend,
)
from runtime.errors import BackendUnavailableError, ParityError
from runtime.model_dir import ModelDir
from runtime.windows import Patch


@dataclass(frozen=True)
class Where:
    """A backend and its device."""

    name: BackendName
    device: str

    def __str__(self) -> str:
        return self.name if self.device == "cpu" else f"{self.name}-gpu"


EVERYWHERE: Final = (
    Where("openvino", "cpu"),
    Where("ort", "cpu"),
    Where("ort", "cuda:0"),
    Where("trt", "cuda:0"),
)


def open_or_skip(
    model: ModelDir,
    where: Where | None = None,
    precision: Precision = "auto",
    threads: int = THREADS,
    patch: Patch | None = None,
) -> Backend:
    """Open a backend for windows of a shape, or "box" for those of many; the default one where
    ``where`` is None. The caller closes it.
    """
    name, device = (where.name, where.device) if where else ("auto", "auto")
    options = BackendOptions(name, device, precision, threads, uncertified=True, patch=patch)
    try:
        return open_backend(model, options)
    except (BackendUnavailableError, ParityError) as error:
        pytest.skip(str(error))


def graphs_of(*ran: BackendInfo) -> dict[str, str]:
    """The SHA-256 of every graph that was run, by its file."""
    return {info.artefact: info.sha256 for info in ran}
