"""Which files a case becomes, whether they may be written, and whether they are there already."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.atomic import unwritable
from runtime.bounded import digest_of, read_json
from runtime.case import Case, Source, holds_images
from runtime.errors import InputError, UsageError
from runtime.labels import Convention
from runtime.nifti import INTENT_NAME, is_ours
from runtime.nifti_bytes import stored_digest
from runtime.ownership import SIDECAR_SCHEMA, owner_of, written_by

_LONGEST_NAME: Final = 255
_PNG: Final = b"\x89PNG\r\n"
_PNG_MARK: Final = b"tEXtSoftware\0" + INTENT_NAME.encode()
_HTML_MARK: Final = b'<meta name="generator" content="' + INTENT_NAME.encode()


@dataclass(frozen=True)
class OutputOptions:
    """Where and how predictions are written.

    Attributes:
        directory: the output folder.
        submission: name label maps <case>.nii.gz, as challenge servers want them, not
            <case>_seg.nii.gz.
        convention: numbering of the labels; None follows the input's naming.
        overwrite: replace files that are ours.
        resume: leave out cases whose sidecar matches input, model and output.
        preview, report: whether a picture and a page are to lie beside the label map.
        truth_convention: numbering of the truth that they show; None is what its naming implies.
    """

    directory: Path
    submission: bool = False
    convention: Convention | None = None
    overwrite: bool = False
    resume: bool = False
    preview: bool = False
    report: bool = False
    truth_convention: Convention | None = None


@dataclass(frozen=True)
class OutputPlan:
    """The files of one case, decided and checked before any work is spent on them.

    Attributes:
        looked_at: those among ``preview`` and ``report`` that were asked for.
        truth: what they show beside the prediction: the label map's hash and its numbering, as far
            as the command says; None without truth, or where they were not asked for.
        keeps: whether what an earlier run has made of the same label map stays beside it, though
            nobody has asked for it again.
        overwrite: whether files that are ours may be replaced, edited ones too; with ``keeps``
            those that are as they were written.
    """

    labels: Path
    probabilities: Path
    sidecar: Path
    preview: Path
    report: Path
    other_labels: Path
    looked_at: tuple[Path, ...]
    convention: Convention
    warnings: tuple[str, ...]
    truth: dict[str, str | None] | None = None
    keeps: bool = False
    overwrite: bool = False

    def files(self) -> tuple[Path, ...]:
        """Every file that a run on this case writes, or removes as a leftover of an earlier one."""
        return (*self.written(), self.other_labels)

    def written(self) -> tuple[Path, ...]:
        """Every file that this case may become."""
        return (self.labels, self.probabilities, self.preview, self.report, self.sidecar)

    def beside(self) -> tuple[Path, ...]:
        """What an earlier run may have left that a new label map and sidecar do not replace."""
        return (self.other_labels, self.probabilities, self.preview, self.report)


def plan_output(case: Case, options: OutputOptions) -> OutputPlan:
    """Decide where a case's prediction goes; see `plan_outputs`."""
    return plan_outputs([case], options)[0]


def plan_outputs(cases: Sequence[Case], options: OutputOptions) -> list[OutputPlan]:
    """Decide where the predictions of cases go.

    Raises:
        UsageError: the place is a case's own folder, holds a file that is not ours, or holds
            ours and neither ``overwrite`` nor ``resume`` is set.
        OutputError: the place cannot be looked at.
    """
    # Once: after thousands of cases the folder is long.
    target = Path(os.path.realpath(options.directory))
    try:
        among_images = holds_images(target)
    except OSError as error:
        raise unwritable(options.directory, error) from error
    plans = []
    for case in cases:
        _refuse_input_folders(case, options.directory, target, among_images)
        plans.append(_plan(case, options))
    return plans


def _plan(case: Case, options: OutputOptions) -> OutputPlan:
    names = [f"{case.case_id}_seg.nii.gz", f"{case.case_id}.nii.gz"]
    name, other = reversed(names) if options.submission else names
    warnings: tuple[str, ...] = ()
    convention = options.convention or case.convention
    if convention is None:
        convention = Convention.BRATS2023
        warnings = ("the case does not say how its labels are numbered; written as brats2023",)
    preview = options.directory / f"{case.case_id}_preview.png"
    report = options.directory / f"{case.case_id}_report.html"
    wanted = ((preview, options.preview), (report, options.report))
    plan = OutputPlan(
        labels=options.directory / name,
        probabilities=options.directory / f"{case.case_id}_prob.nii.gz",
        sidecar=options.directory / f"{case.case_id}.json",
        preview=preview,
        report=report,
        other_labels=options.directory / other,
        looked_at=tuple(path for path, asked in wanted if asked),
        convention=convention,
        warnings=warnings,
        truth=_truth(case, options) if options.preview or options.report else None,
        keeps=options.resume and not options.overwrite,
        overwrite=options.overwrite,
    )
    check_places(plan)
    return plan


def check_places(plan: OutputPlan) -> None:
    """Look at what lies where a case's files are to go: once more right before they do, as a run
    may take hours.

    Raises:
        UsageError: as for `plan_output`.
        OutputError: it cannot be looked at.
    """
    known = written_by(plan.sidecar)
    for path in plan.files():
        try:
            _check_place(path, plan, known)
        except OSError as error:
            raise unwritable(path, error) from error


def _check_place(path: Path, plan: OutputPlan, known: dict[str, str]) -> None:
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UsageError(
            path,
            found=f"a name of {len(os.fsencode(path.name))} bytes",
            expected=f"{_LONGEST_NAME} at most, as file systems take them",
            remedy="rename the case",
        )
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError(
            path,
            found="something that is no file",
            expected="a free name",
            remedy="choose another folder with -o or move it away",
        )
    owner = owner_of(path, plan.sidecar)
    if owner is not None:
        if path == plan.other_labels:
            return
        raise UsageError(
            path,
            found=f"a file of another case, which {owner.name} vouches for",
            expected="a free name",
            remedy="rename one of the two cases, or choose another folder with -o",
        )
    if not _is_ours(path, plan, known):
        raise UsageError(
            path,
            found="a file that this toolkit did not write",
            expected="a free name",
            remedy="choose another folder with -o or move the file away",
        )
    if not (plan.overwrite or plan.keeps):
        raise UsageError(
            path,
            found="an earlier prediction",
            expected="a free name",
            remedy="use --overwrite to replace it, --resume to keep it, or another -o",
        )
    if path.name in known and not plan.overwrite and known[path.name] != digest_of(path):
        raise UsageError(
            path,
            found="a prediction that was edited after it was written",
            expected="the file that its sidecar names",
            remedy="move it away to keep it, or replace it with --overwrite",
        )


def is_complete(plan: OutputPlan, case: Case, model_sha256: str, settings: dict[str, Any]) -> bool:
    """Whether the sidecar says that this very input, model and settings made the label map that
    lies there, and whatever else was asked for.
    """
    try:
        sidecar = read_json(plan.sidecar)
        known = written_by(plan.sidecar)
        probabilities = (plan.probabilities,) if settings.get("probabilities") else ()
        return bool(
            sidecar["schema"] == SIDECAR_SCHEMA
            and sidecar["model"]["sha256"] == model_sha256
            and sidecar["convention"] == plan.convention
            and _terms(sidecar["settings"]) == _terms(json.loads(json.dumps(settings)))
            and (not plan.looked_at or sidecar["run"].get("truth") == plan.truth)
            and sidecar["output"]["file"] == plan.labels.name
            and _tells(sidecar)
            and all(
                path.name in known and known[path.name] == digest_of(path)
                for path in (plan.labels, *plan.looked_at, *probabilities)
            )
            and sidecar["inputs"]
            == {
                modality: input_entry(source, stored_digest(source.path))
                for modality, source in case.images.items()
            }
        )
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return False


def input_entry(source: Source, sha256: str) -> dict[str, Any]:
    """What a sidecar says of one modality's source, whose bytes have this hash: of a 4D file, which
    all modalities share, the frame as well.
    """
    entry: dict[str, Any] = {"sha256": sha256}
    return entry if source.channel is None else entry | {"channel": source.channel}


def _tells(sidecar: dict[str, Any]) -> bool:
    """Whether what a cohort's files take from a sidecar is in it, as it was written."""
    volumes, backend = sidecar["volumes_ml"], sidecar["backend"]
    numbers = [
        *(volumes["regions"][name] for name in ("WT", "TC", "ET")),
        *(volumes["labels"][name] for name in ("NCR", "ED", "ET")),
        *sidecar["timings_s"].values(),
    ]
    return (
        all(isinstance(one, int | float) for one in numbers)
        and {"name", "device", "precision"} <= set(backend)
        and isinstance(sidecar["warnings"], list)
    )


def _terms(settings: dict[str, Any]) -> dict[str, Any]:
    """What shapes a label map: probabilities are written beside it or not, and a mode's name says
    nothing that its terms do not.
    """
    beside = ("probabilities", "quality")
    return {name: value for name, value in settings.items() if name not in beside}


def _truth(case: Case, options: OutputOptions) -> dict[str, str | None] | None:
    if case.labels is None:
        return None
    try:
        digest: str | None = stored_digest(case.labels)
    except InputError:
        digest = None  # it is told when it is to be shown
    convention = options.truth_convention
    return {"sha256": digest, "labels": None if convention is None else str(convention)}


def _refuse_input_folders(case: Case, directory: Path, target: Path, among_images: bool) -> None:
    """An output folder is never an input's: truth has the same name as what would be written."""
    own = {Path(os.path.realpath(source.path.parent)) for source in case.images.values()}
    if any(folder == target or folder in target.parents for folder in own):
        found = "the folder of the case itself" if target in own else "a place inside the case"
    elif among_images:
        found = "a folder that holds the images of a case"
    else:
        return
    raise UsageError(
        directory,
        found=found,
        expected="an output folder of its own, as the truth may have the same name",
        remedy="choose another one with -o",
    )


def _is_ours(path: Path, plan: OutputPlan, known: dict[str, str]) -> bool:
    if path == plan.sidecar:
        return bool(known)
    if path.name in known:
        return True
    if path in (plan.preview, plan.report):
        with path.open("rb") as file:
            start = file.read(256)
        return (start.startswith(_PNG) and _PNG_MARK in start) or _HTML_MARK in start
    return is_ours(path)
