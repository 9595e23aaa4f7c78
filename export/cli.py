"""brats-export: checkpoint -> model directory with ONNX files and a parity certificate."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from runtime.cli.console import optional, parse, rest_idle_threads, run
from runtime.errors import UsageError


@dataclass(frozen=True)
class ExportArgs:
    """Arguments of brats-export."""

    checkpoint: Annotated[tyro.conf.Positional[Path | None], optional("[CHECKPOINT]")] = None
    """Checkpoint to export; the newest run's best.pt by default."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("model")
    """Model directory to write."""
    fp16: bool = False
    """Also write an fp16 graph for GPUs, certified by emulating its arithmetic."""
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
        "Export a checkpoint to ONNX and certify that nothing was lost on the way.",
        args,
    )
    return run(lambda console: _export(options, console), quiet=options.quiet)


def _export(options: ExportArgs, console: Console) -> int:
    import torch

    from export.build import ONNX_FP16, build
    from export.cases import parity_cases
    from export.parity import Gate, ParityCase, certify
    from export.release import check_target, release
    from train.backend import TorchBackend
    from train.checkpoint import load_model, newest_run

    if not 0 < options.gate <= 1:
        raise UsageError(
            "--gate", found=str(options.gate), expected="0 < gate <= 1", remedy="0.999 is usual"
        )
    if options.cases < 1:
        raise UsageError(
            "--cases", found=str(options.cases), expected="1 or more", remedy="drop --cases"
        )
    if options.threads is not None and options.threads < 1:
        raise UsageError(
            "--threads", found=str(options.threads), expected="1 or more", remedy="drop --threads"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    # A link stays a link: what it points to is replaced.
    out = Path(os.path.realpath(options.output))
    check_target(out)
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint = newest_run(options.runs) / "checkpoints" / "best.pt"
    elif checkpoint.is_dir():
        checkpoint = checkpoint / "checkpoints" / "best.pt"
    console.print(f"checkpoint {checkpoint}", markup=False)
    network, card = load_model(checkpoint)
    if options.name:
        card = replace(card, name=options.name)
    with console.status("tracing and rewriting the graph"):
        built = build(network, card, fp16=options.fp16, threads=options.threads)
    console.print(
        f"graph: {built.report.folded} batch norms folded, {built.report.composed} up branches "
        "composed into one transposed convolution each"
    )
    for note in built.report.left_alone:
        console.print(f"left alone: {note}", markup=False)
    source = "phantoms" if options.data is None else "data"

    with console.status("parity") as status:

        def told() -> Iterator[ParityCase]:
            for number, case in enumerate(parity_cases(options.data, options.cases), 1):
                status.update(f"parity: case {number}, {case.volume.case.case_id}")
                yield case

        certificate = certify(
            TorchBackend(network, card),
            built.candidates,
            told(),
            Gate(truth=options.gate),
            source,
        )
    console.print(_table(certificate))
    release(out, card, built.files, certificate, options.allow_inconclusive)
    console.print(f"model directory {options.output}: {', '.join(built.files)}", markup=False)
    if ONNX_FP16 in built.files:
        console.print(
            "no TensorRT engine was built: engines are made on the GPU that runs them; "
            f"{ONNX_FP16} is what `trtexec --onnx` and --backend ort --device cuda:0 take",
            markup=False,
        )
    return 0


def _table(certificate: dict[str, object]) -> Table:
    table = Table(title="Parity with fp32 PyTorch", title_justify="left")
    for name in ("artefact", "backend", "arithmetic", "least Dice", "changed labels", "verdict"):
        table.add_column(name)
    artefacts = certificate["artefacts"]
    if not isinstance(artefacts, list):
        raise TypeError("a certificate lists its artefacts")
    for entry in artefacts:
        records = [case for case in entry["cases"] if not case["non_finite"]]
        table.add_row(
            entry["file"],
            entry["backend"],
            entry["arithmetic"],
            f"{min(min(record['dice_to_fp32'].values()) for record in records):.5f}"
            if records
            else "not finite",
            f"{max(record['changed_labels'] for record in records):.1e}" if records else "",
            entry["verdict"],
        )
    return table
