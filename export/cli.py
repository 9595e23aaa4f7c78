"""brats-export: checkpoint -> model directory with ONNX files, engines and a parity certificate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from runtime.cli.console import optional, parse, rest_idle_threads, run
from runtime.errors import UsageError


@dataclass(frozen=True)
class ExportArgs:
    """Arguments of brats-export."""

    checkpoint: Annotated[tyro.conf.Positional[Path | None], optional("[CHECKPOINT]")] = None
    """Checkpoint to export; the newest run's best.pt by default. A model directory instead gets
    engines for the GPU at hand."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"]), optional("DIR")] = None
    """Model directory to write: model, or the model directory that was named."""
    fp16: bool = False
    """Also write an fp16 graph for GPUs, certified by emulating its arithmetic."""
    bf16: bool = False
    """Also write a bf16 graph, likewise."""
    strict_fp16: bool = False
    """Keep no layer in fp32: fail where the reduced graph does not pass as it is."""
    engines: Literal["auto", "no", "require"] = "auto"
    """Build TensorRT engines: where there is a GPU and TensorRT, never, or fail without."""
    up_branch: Literal["auto", "k4", "all"] = "auto"
    """Forms of the decoder that engines are built from and timed; auto is all where engines are
    built, k4 elsewhere."""
    engine_level: int = 3
    """TensorRT's optimisation level, 0 (quick build) to 5 (fastest engine)."""
    engine_batch: int = 16
    """Most windows that an engine takes at a time."""
    workspace_gib: float = 4.0
    """Device memory that one layer of an engine may use."""
    timing_cache: Annotated[Path | None, optional("FILE")] = None
    """What TensorRT has timed, kept for the next build; in the user's cache folder by default."""
    device: int = 0
    """CUDA device that engines are built for."""
    data: Annotated[Path | None, optional("DIR")] = None
    """Cases to certify on; phantoms by default."""
    cases: int = 8
    """Cases to try at most until three of them show every region."""
    gate: float = 0.999
    """Least mean Dice against truth per region, as a fraction of fp32's."""
    allow_inconclusive: bool = False
    """Release although the cases could not decide; recorded in the certificate."""
    name: Annotated[str | None, optional("NAME")] = None
    """Name for the model; the run's by default."""
    runs: Path = Path("runs")
    """Where runs are looked for."""
    threads: Annotated[int | None, optional("N")] = None
    """CPU threads; all cores by default."""
    quiet: bool = False
    """Print nothing but errors."""
    version: bool = False
    """Print the version and exit."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    rest_idle_threads()
    options = parse(
        ExportArgs,
        "brats-export",
        "Export a checkpoint to ONNX and TensorRT and certify that nothing was lost on the way.",
        args,
    )
    return run(lambda console: _export(options, console), quiet=options.quiet)


def _export(options: ExportArgs, console: Console) -> int:
    check(options)
    # Imported here: --help and a mistyped flag need no PyTorch.
    from export.run import export

    export(options, console)
    return 0


def check(options: ExportArgs) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        UsageError: names the flag.
    """
    wrong: list[tuple[bool, str, object, str, str]] = [
        (not 0 < options.gate <= 1, "--gate", options.gate, "0 < gate <= 1", "0.999 is usual"),
        (options.cases < 1, "--cases", options.cases, "1 or more", "drop --cases"),
        (
            options.threads is not None and options.threads < 1,
            "--threads",
            options.threads,
            "1 or more",
            "drop --threads",
        ),
        (
            not 0 <= options.engine_level <= 5,
            "--engine-level",
            options.engine_level,
            "0 to 5",
            "3 is usual",
        ),
        (options.engine_batch < 1, "--engine-batch", options.engine_batch, "1 or more", "try 16"),
        (
            not options.workspace_gib > 0,
            "--workspace-gib",
            options.workspace_gib,
            "more than 0",
            "4 is usual",
        ),
        (options.device < 0, "--device", options.device, "0 or more", "see nvidia-smi"),
        (
            options.strict_fp16 and not (options.fp16 or options.bf16),
            "--strict-fp16",
            "neither --fp16 nor --bf16",
            "a reduced precision to be strict about",
            "add --fp16",
        ),
    ]
    for is_wrong, where, found, expected, remedy in wrong:
        if is_wrong:
            raise UsageError(where, found=str(found), expected=expected, remedy=remedy)
