"""What the rows of `gpu_check` share: its arguments, the case, the model, the settings."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import tyro

from benchmarks.gpu_measure import Setting, device_index, open_setting
from benchmarks.gpu_run import Budget, LeftOutError
from runtime.case import Case
from runtime.errors import InputError
from runtime.labels import LabelMap
from runtime.model_dir import ModelDir
from runtime.nifti import Volume, load
from runtime.segmenter import Segmenter, SegmentOptions

if TYPE_CHECKING:
    from benchmarks.gpu_peers import PeerBench

SETTINGS: Final = tuple(
    Setting(f"{backend} {precision}", backend, precision)
    for precision in ("fp16", "fp32")
    for backend in ("trt", "ort")
)
"""Backends and precisions at the model's own window plan, the one that matters most first."""


@dataclass(frozen=True)
class CheckArgs:
    """Arguments of the check."""

    checkpoint: tyro.conf.Positional[Path | None] = None
    """Checkpoint of the network to check; the peers need it."""
    model: Path | None = None
    """Exported model directory that only engines are added to, which spares its export."""
    data: Path | None = None
    """Folder of cases; phantoms by default."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("gpu_check")
    """Folder for gpu_check.json, and the model directory."""
    device: str = "cuda:0"
    """Which GPU."""
    minutes: float = 8.0
    """Time for all of it; what no longer fits is left out, the least valuable first."""
    rounds: int = 20
    """Times each latency is taken, after warm-up."""
    cohort: int = 30
    """Cases of the throughput measurement."""
    up_branch: Literal["k4", "all"] = "k4"
    """Forms of the graph that engines are built from: all of them cost minutes of the CPU."""
    engine_level: int = 3
    """TensorRT's optimisation level, 0 to 5."""
    skip: tuple[str, ...] = ()
    """Sections to leave out."""
    rehearse: bool = False
    """Run on fakes, without a GPU."""


@dataclass
class Bench:
    """What the rows share.

    Attributes:
        args: of the check.
        data: folder of the cases.
        cases: in it.
        budget: of the whole check.
        model_path: the model directory to measure; None until there is one.
        agreed: the settings whose labels were within the gate, by title.
        broken: those that gave no labels at all.
    """

    args: CheckArgs
    data: Path
    cases: list[Case]
    budget: Budget
    model_path: Path | None = None
    agreed: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)

    @property
    def headline(self) -> Setting:
        """The setting that matters most of those that work here."""
        return next((one for one in SETTINGS if one.title in self.agreed), SETTINGS[0])

    @property
    def index(self) -> int:
        return device_index(self.args.device)

    @property
    def model(self) -> ModelDir:
        if self.model_path is None:
            raise InputError(
                "export",
                found="no model directory",
                expected="the one that the export writes",
                remedy="see why the export failed, or name one with --model",
            )
        return ModelDir.open(self.model_path)

    @cached_property
    def volume(self) -> Volume:
        return load(self.cases[0])

    @cached_property
    def expected(self) -> LabelMap:
        """Labels of the first case by fp32 ONNX Runtime on the CPU."""
        backend = open_setting(self.model, Setting("cpu", "ort", "fp32"), "cpu")
        try:
            return Segmenter(backend, SegmentOptions()).segment(self.volume).labels
        finally:
            backend.close()

    @cached_property
    def peers(self) -> "PeerBench":
        """
        Raises:
            LeftOutError: there is no checkpoint.
        """
        from benchmarks.gpu_peers import PeerBench

        if self.args.checkpoint is None:
            raise LeftOutError("peers need the checkpoint")
        device = "cpu" if self.args.rehearse else self.args.device
        return PeerBench.of(self.args.checkpoint, self.cases[0], device, self.args.rounds)
