"""Does all of it work on this GPU, and how fast? One command, correctness first.

    python -m benchmarks.gpu_check CHECKPOINT --data CASES [-o OUT]

In the order of their worth, as far as `--minutes` reach: versions; the contract tests marked `gpu`;
an export with engines and their parity certificate on real cases; agreement of every backend with
the CPU; latency of one patient; PyTorch AMP and MONAI on the same; batches, disk to disk,
throughput, torch.compile, switches, the device's ceilings. Everything goes to OUT/gpu_check.json
after every row, so that what was measured survives a cut; a row that fails takes no other with it.
A short table comes last; `python -m benchmarks.gpu_report OUT/gpu_check.json` prints it again.

`--model DIR` adds engines to a model that was exported before, whose expensive part needs no GPU.
`--rehearse` runs the same rows without a GPU, on fakes of CUDA and TensorRT and any network, but
for the contract tests and the device's ceilings: its times mean nothing.

It leaves with 0 if no row failed and the labels of all backends agree within the parity gate; rows
that were left out are named and do no harm, except that correctness must have been checked.
"""

import math
import re
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import tyro

from benchmarks.gpu_bench import Bench, CheckArgs
from benchmarks.gpu_measure import device_index
from benchmarks.gpu_report import report_console, show
from benchmarks.gpu_run import Budget, Run
from benchmarks.gpu_sections import SECTIONS, rows
from runtime.case import find_cases
from runtime.cli.console import rest_idle_threads, run
from runtime.errors import UsageError
from runtime.phantom import Enhancement, write_phantom

REPORT = "gpu_check.json"


def main(args: CheckArgs) -> int:
    """Run all rows that the arguments leave; returns the exit code.

    Raises:
        UsageError: the arguments mean nothing.
        InputError: there are no cases.
    """
    check_args(args)
    budget = Budget(60 * args.minutes)
    console = report_console()
    args.output.mkdir(parents=True, exist_ok=True)
    with machine(args), tempfile.TemporaryDirectory() as scratch:
        data = args.data or _phantoms(Path(scratch), args.rehearse)
        bench = Bench(args, data, find_cases(data), budget)
        if "export" in args.skip:
            bench.model_path = args.model or args.output / "model"
        checked = Run(args.output / REPORT, budget, console)
        checked.report["command"] = " ".join(["python -m benchmarks.gpu_check", *sys.argv[1:]])
        checked.report["rehearsal"] = args.rehearse
        checked.report["minutes"] = args.minutes
        checked.take(row for row in rows(bench) if row.section not in args.skip)
    show(checked.report, console)
    return int(any(row["status"] == "failed" for row in checked.report["rows"]))


def check_args(args: CheckArgs) -> None:
    """Refuse what cannot be checked.

    Raises:
        UsageError: names the flag.
    """
    unknown = [name for name in args.skip if name not in SECTIONS]
    wrong: list[tuple[bool, str, object, str, str]] = [
        (bool(unknown), "--skip", ", ".join(unknown), ", ".join(SECTIONS), "name one of them"),
        (
            args.checkpoint is None and args.model is None and "export" not in args.skip,
            "CHECKPOINT",
            "neither a checkpoint nor --model",
            "a network to check",
            "name one of them",
        ),
        (
            re.fullmatch(r"cuda(:\d+)?", args.device) is None,
            "--device",
            args.device,
            "cuda:N",
            "see nvidia-smi",
        ),
        (not 0 < args.minutes < math.inf, "--minutes", args.minutes, "above 0", "8 is usual"),
        (args.rounds < 1, "--rounds", args.rounds, "1 or more", "20 is usual"),
        (args.cohort < 1, "--cohort", args.cohort, "1 or more", "30 is usual"),
    ]
    for is_wrong, where, found, expected, remedy in wrong:
        if is_wrong:
            raise UsageError(where, found=str(found), expected=expected, remedy=remedy)


def machine(args: CheckArgs) -> AbstractContextManager[Any]:
    """The real machine, or fakes of its GPUs, as many as the device that is named asks for."""
    if not args.rehearse:
        return nullcontext()
    from tests.fake_gpu import fake_gpu

    return fake_gpu(devices=device_index(args.device) + 1)


def _phantoms(folder: Path, small: bool) -> Path:
    shape = (72, 64, 56) if small else (240, 240, 155)
    for number in range(1, 4):
        write_phantom(folder, number, 20_201, shape=shape, enhancement=Enhancement.RIM)
    return folder


if __name__ == "__main__":
    rest_idle_threads()
    given = tyro.cli(CheckArgs, description=__doc__)
    sys.exit(run(lambda console: main(given), quiet=False))
