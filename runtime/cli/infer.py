"""brats-infer: segment one case or a folder of cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from runtime.backends import MAX_THREADS, BackendName, Precision
from runtime.cli.arguments import BytesFlag, PartFlag, PatchFlag, SecondsFlag, ShapeFlag
from runtime.cli.console import ConventionFlag, optional, parse, run
from runtime.errors import InputError, UsageError
from runtime.modes import Quality
from runtime.windows import Placement

if TYPE_CHECKING:
    from runtime.case import Case


@dataclass(frozen=True)
class InferArgs:
    """Arguments of brats-infer."""

    case: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CASE_OR_FOLDER")]
    """A case folder, a folder of cases at any depth, or one 4D file."""
    model: Annotated[Path | None, optional("PATH")] = None
    """Model directory; by default model/ (brats-export writes it), else the built-in model."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("predictions")
    """Folder for label maps and sidecars."""
    backend: BackendName = "auto"
    """auto takes the fastest that works here."""
    device: str = "auto"
    """auto, cpu, or cuda:N; several, as in cuda:0,cuda:1, take a process each."""
    precision: Precision = "auto"
    """auto is fp32 on a CPU and certified fp16 on a GPU."""
    overlap: Annotated[float | None, optional("F")] = None
    """Part of a patch that windows share, 0 <= F < 1; the model's own by default."""
    stride: ShapeFlag = None
    """Stride in voxels instead of --overlap."""
    placement: Placement = "fitted"
    """fitted spreads the windows evenly; stride is MONAI's plan."""
    patch: PatchFlag = None
    """Window shape; the model's own by default; box is one window over the brain,
    by the certificate of --quality balanced or, in int8, fast."""
    quality: Annotated[Quality | None, optional("exact|balanced|fast")] = None
    """exact, the default, runs the model as its card says; its certificate says what the other two
    lose."""
    budget: SecondsFlag = None
    """Time for a case, such as 10s: take the best quality that keeps to it on this
    machine, as measured on the first case that can be read. It is for each case once
    planning, which takes seconds itself, is over: from its files to its label map,
    without --preview and --report. Cases that take longer say so."""
    batch: Annotated[int | None, optional("N")] = None
    """Windows per step; a backend may take fewer."""
    threads: Annotated[int | None, optional("N")] = None
    """CPU threads; by default all cores that the control group, Slurm and OMP_NUM_THREADS allow."""
    memory: BytesFlag = None
    """Most memory to take, such as 8GB: fewer cases are read ahead and written behind."""
    ray: Annotated[str | None, optional("auto|ADDRESS")] = None
    """Run on a Ray cluster: auto takes the one this machine belongs to, or starts one on it."""
    workers: Annotated[int | None, optional("N")] = None
    """Workers on the cluster; by default as many as its GPUs, or its cores, have room for."""
    part: PartFlag = None
    """Take the I-th of N parts of the cases only, as one of N jobs on a cluster does."""
    probabilities: bool = False
    """Also write the class probabilities, float32 (X, Y, Z, 4)."""
    preview: bool = False
    """Also write a picture of the result, beside the truth where there is one."""
    report: bool = False
    """Also write a page with pictures, volumes and provenance (HTML)."""
    submission: bool = False
    """Name label maps <case>.nii.gz, as challenge servers want them."""
    labels: ConventionFlag = None
    """brats2015, brats2020, brats2023, brats2024 or msd; the input's own by default."""
    truth_labels: ConventionFlag = None
    """Convention of the truth, for --check and --preview; by default what its naming implies."""
    channels: Annotated[str | None, optional("A,B,C,D")] = None
    """Modalities of numbered channels in order, such as flair,t1,t1ce,t2."""
    force_spacing: bool = False
    """Run on a spacing that is not the model's, with a warning."""
    no_postprocess: bool = False
    """Leave label maps as after argmax, whatever the model's card asks for."""
    uncertified: bool = False
    """Run an artefact or --patch box without a certificate; the sidecar records it."""
    overwrite: bool = False
    """Replace earlier predictions (only files that this toolkit wrote)."""
    resume: bool = False
    """Leave out cases that are done: same input, model and settings, and all files asked for."""
    check: bool = False
    """Look at the case files and say what is wrong with them; segment nothing."""
    log_json: bool = False
    """Tell what happens as one JSON object per line on stderr, for machines."""
    json: Annotated[Path | None, optional("FILE")] = None
    """With --check: also write everything that was found as JSON."""
    quiet: bool = False
    """Print nothing but errors."""
    version: bool = False
    """Print the version and exit."""

    @property
    def devices(self) -> list[str]:
        """Those that --device names."""
        return self.device.split(",")


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse(
        InferArgs,
        "brats-infer",
        "Segment BraTS cases with an exported model: overlap-weighted sliding windows.",
        args,
    )
    quiet = options.quiet or options.log_json
    return run(lambda console: _infer(options, console), quiet=quiet, as_json=options.log_json)


def _infer(options: InferArgs, console: Console) -> int:
    from runtime.case import find_cases
    from runtime.cli.infer_cohort import check_cohort_flags
    from runtime.cli.infer_mode import check_mode_flags
    from runtime.strangers import refusal, set_apart

    if options.overlap is not None and options.stride is not None:
        raise UsageError(
            "--stride",
            found="both --overlap and --stride",
            expected="one of them",
            remedy="drop one",
        )
    if options.check and options.log_json:
        raise UsageError(
            "--log-json",
            found="it beside --check",
            expected="segmenting, which has events",
            remedy="use --json FILE for what --check finds",
        )
    if options.batch is not None and options.batch < 1:
        raise UsageError(
            "--batch", found=str(options.batch), expected="1 or more", remedy="drop --batch"
        )
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise UsageError(
            "--threads",
            found=str(options.threads),
            expected=f"1 to {MAX_THREADS}",
            remedy="drop --threads",
        )
    if options.json is not None and not options.check:
        raise UsageError(
            "--json",
            found="no --check",
            expected="both, as it takes what the check finds",
            remedy="add --check, or drop --json",
        )
    check_cohort_flags(options)
    check_mode_flags(options)
    channels = options.channels.split(",") if options.channels else None
    problems: list[InputError] = []
    # Other machines do not know in which folder this command was begun.
    root = options.case if options.ray is None else options.case.absolute()
    cases = find_cases(root, channels, problems)
    if options.check:
        return _check(options, cases, problems, console)
    cases, strangers = set_apart(cases)
    problems += [refusal(one) for one in strangers]
    if problems and not cases:
        raise problems[0]
    from runtime.cli.infer_run import segment

    return segment(options, cases, problems, console)


def _check(
    options: InferArgs, cases: "list[Case]", problems: list[InputError], console: Console
) -> int:
    from runtime.check import check_cases
    from runtime.model_dir import find_model

    card = find_model(options.model).card if options.model is not None else None
    return check_cases(
        cases, console, problems, options.truth_labels, card, options.json, options.force_spacing
    )
