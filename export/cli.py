"""brats-export: checkpoint -> model directory with ONNX files, engines and a parity certificate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import tyro
from rich.console import Console

from runtime.backends import MAX_THREADS
from runtime.cli.arguments import ShapeFlag
from runtime.cli.console import ConventionFlag, optional, parse, rest_idle_threads, run
from runtime.errors import UsageError

ENGINE_BATCH: Final = 16
RUNS: Final = Path("runs")


@dataclass(frozen=True)
class ExportArgs:
    """Arguments of brats-export."""

    checkpoint: Annotated[tyro.conf.Positional[Path | None], optional("[CHECKPOINT]")] = None
    """Checkpoint, the newest run's by default; or a model directory, to add engines and graphs."""
    origin: Annotated[Literal["brats-train", "tutorial"], tyro.conf.arg(name="from")] = (
        "brats-train"
    )
    """What trained it: brats-train, or the published BraTS2020 tutorial."""
    channels: Annotated[str | None, optional("A,B,C,D")] = None
    """Channels of a tutorial's network in order; flair,t1,t1ce,t2 by default."""
    patch: ShapeFlag = None
    """Window shape of a tutorial's network; 128,128,64 by default."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"]), optional("DIR")] = None
    """Model directory to write: model, or the one that is added to."""
    fp16: bool = False
    """Also write an fp16 graph for GPUs, certified by emulating its arithmetic."""
    bf16: bool = False
    """Also write a bf16 graph, certified likewise."""
    int8: bool = False
    """Also write an int8 graph for CPUs, certified by running it."""
    calibrate: Annotated[Path | None, optional("DIR")] = None
    """Cases that set the ranges of int8; cases of --data that the gate can spare by default."""
    half_weights: bool = False
    """Store model.onnx's weights in fp16, at half the size; it computes in fp32 all the same."""
    modes: bool = False
    """Also certify the faster ways to run it that brats-infer --quality names, on all --cases."""
    strict_fp16: bool = False
    """Keep no layer of it in fp32: where one is needed, release nothing."""
    engines: Literal["auto", "no", "require"] = "auto"
    """TensorRT engines: where they can be built and pass, none, or nothing without them."""
    up_branch: Literal["auto", "k4", "all"] = "auto"
    """Decoder of the engines: the fastest form, k4, or the fastest and keep all forms."""
    engine_level: int = 3
    """TensorRT's optimisation level, 0 (quick build) to 5 (fastest engine)."""
    engine_batch: int = ENGINE_BATCH
    """Most windows that an engine takes at a time."""
    engine_static: bool = False
    """Engines take exactly the card's batch, instead of any up to --engine-batch."""
    workspace_gib: float = 16.0
    """Device memory that an engine may work in, in GiB; it takes what a batch needs."""
    timing_cache: Annotated[Path | None, optional("FILE")] = None
    """What TensorRT has timed, for the next build; in the user's cache folder by default."""
    device: int = 0
    """CUDA device that engines are built for."""
    data: Annotated[Path | None, optional("DIR")] = None
    """Cases to certify on; phantoms by default."""
    triton: Annotated[Path | None, optional("DIR")] = None
    """Also write the model into this model repository of a Triton Inference Server."""
    labels: ConventionFlag = None
    """Label convention of their label maps; what their naming implies by default."""
    cases: int = 8
    """Cases to try at most until three of them show every region."""
    gate: float = 0.999
    """Least mean Dice against truth per region, as a fraction of fp32's."""
    allow_inconclusive: bool = False
    """Release although the cases could not decide; recorded in the certificate."""
    name: Annotated[str | None, optional("NAME")] = None
    """Name for the model; by default the run's, or that of a tutorial's file."""
    runs: Path = RUNS
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
    """Refuse numbers that mean nothing and flags that contradict each other.

    Raises:
        UsageError: names the flag.
    """
    wrong: list[tuple[bool, str, object, str, str]] = [
        (not 0 < options.gate <= 1, "--gate", options.gate, "0 < gate <= 1", "0.999 is usual"),
        (options.cases < 1, "--cases", options.cases, "1 or more", "drop --cases"),
        (
            options.threads is not None and not 1 <= options.threads <= MAX_THREADS,
            "--threads",
            options.threads,
            f"1 to {MAX_THREADS}",
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
            not 0 < options.workspace_gib < math.inf,
            "--workspace-gib",
            options.workspace_gib,
            "a finite number above 0",
            "16 is usual",
        ),
        (options.device < 0, "--device", options.device, "0 or more", "see nvidia-smi"),
        (
            options.calibrate is not None and not options.int8,
            "--calibrate",
            options.calibrate,
            "an int8 graph to calibrate",
            "add --int8",
        ),
        (
            options.modes and options.data is None,
            "--modes",
            "no --data",
            "cases of patients, on which the faster modes are compared with the exact one",
            "add --data CASES",
        ),
        (
            options.strict_fp16 and not (options.fp16 or options.bf16),
            "--strict-fp16",
            "neither --fp16 nor --bf16",
            "a reduced precision to be strict about",
            "add --fp16",
        ),
        (
            options.engine_static and options.engine_batch != ENGINE_BATCH,
            "--engine-static",
            f"--engine-batch {options.engine_batch} as well",
            "one of the two: a static batch is that of the card",
            "drop one of them",
        ),
        *(
            (
                given is not None and options.origin != "tutorial",
                flag,
                "a checkpoint of brats-train, whose card says that",
                "the flag with --from tutorial only",
                f"drop {flag}, or add --from tutorial",
            )
            for flag, given in (("--channels", options.channels), ("--patch", options.patch))
        ),
    ]
    for is_wrong, where, found, expected, remedy in wrong:
        if is_wrong:
            raise UsageError(where, found=str(found), expected=expected, remedy=remedy)


def check_adding(options: ExportArgs) -> None:
    """Refuse what cannot be asked of a model directory, whose graphs stay as they are, though one
    in reduced precision may be added.

    Raises:
        UsageError: names the flags.
    """
    given = {
        "--from tutorial": options.origin == "tutorial",
        "--half-weights": options.half_weights,
        "--name": options.name is not None,
        "--runs": options.runs != RUNS,
        "--engines no": options.engines == "no"
        and not (options.fp16 or options.bf16 or options.int8 or options.modes),
    }
    wrong = [flag for flag, is_given in given.items() if is_given]
    if wrong:
        raise UsageError(
            " ".join(wrong),
            found=f"the model directory {options.checkpoint}, which gets engines and reduced "
            "graphs and nothing else",
            expected="a checkpoint",
            remedy="name the checkpoint, or drop what does not apply",
        )
