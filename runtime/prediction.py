"""Put a prediction on disk: label map, whatever else was asked for, and last the sidecar, which is
the commit record.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime import DISCLAIMER, __version__
from runtime.atomic import remove, unwritable, write_bytes, write_json
from runtime.bounded import read_json
from runtime.case import Case, holds_images
from runtime.errors import InputError, UsageError
from runtime.labels import Convention, to_convention
from runtime.model_dir import sha256_of
from runtime.nifti import INTENT_NAME, is_ours
from runtime.nifti_bytes import stored_digest
from runtime.nifti_writer import write_label_map, write_probabilities
from runtime.ownership import SIDECAR_SCHEMA, owner_of, written_by
from runtime.segmenter import Prediction
from runtime.volumes import volumes_ml


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
    """

    directory: Path
    submission: bool = False
    convention: Convention | None = None
    overwrite: bool = False
    resume: bool = False
    preview: bool = False
    report: bool = False


@dataclass(frozen=True)
class Pages:
    """What shows a prediction to a person; None where it was not asked for.

    Attributes:
        preview: PNG, marked as ours.
        report: HTML, marked as ours.
    """

    preview: bytes | None = None
    report: bytes | None = None


Look = Callable[[Prediction, dict[str, Any]], Pages]
"""look(prediction, sidecar): draw its pages; the sidecar is complete but for their hashes."""


@dataclass(frozen=True)
class OutputPlan:
    """The files of one case, decided and checked before any work is spent on them.

    Attributes:
        looked_at: those among ``preview`` and ``report`` that were asked for.
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
    """Decide where a case's prediction goes.

    Raises:
        UsageError: the place is the case's own folder, holds a file that is not ours, or holds
            ours and neither ``overwrite`` nor ``resume`` is set.
    """
    _refuse_input_folders(case, options.directory)
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
    )
    known = written_by(plan.sidecar)
    for path in plan.files():
        if not path.exists():
            continue
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
                continue
            raise UsageError(
                path,
                found=f"a file of another case, which {owner.name} vouches for",
                expected="a free name",
                remedy="rename one of the two cases, or choose another folder with -o",
            )
        ours = _is_ours(path, plan, known)
        if not ours:
            raise UsageError(
                path,
                found="a file that this toolkit did not write",
                expected="a free name",
                remedy="choose another folder with -o or move the file away",
            )
        if not options.overwrite and not options.resume:
            raise UsageError(
                path,
                found="an earlier prediction",
                expected="a free name",
                remedy="use --overwrite to replace it, --resume to keep it, or another -o",
            )
        changed = path.name in known and known[path.name] != sha256_of(path.read_bytes())
        if changed and not options.overwrite:
            raise UsageError(
                path,
                found="a prediction that was edited after it was written",
                expected="the file that its sidecar names",
                remedy="move it away to keep it, or replace it with --overwrite",
            )
    return plan


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
            and sidecar["settings"] == json.loads(json.dumps(settings))
            and sidecar["output"]["file"] == plan.labels.name
            and all(
                path.name in known and known[path.name] == sha256_of(path.read_bytes())
                for path in (plan.labels, *plan.looked_at, *probabilities)
            )
            and sidecar["inputs"]
            == {
                modality: {"sha256": stored_digest(source.path)}
                for modality, source in case.images.items()
            }
        )
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return False


def save(
    prediction: Prediction,
    plan: OutputPlan,
    settings: dict[str, Any] | None = None,
    load_seconds: float | None = None,
    look: Look | None = None,
) -> dict[str, Any]:
    """Write label map, probabilities if there are any, pages if there are to be, then the sidecar.

    Args:
        prediction: what was segmented.
        plan: from `plan_output`.
        settings: the options that shape the result, for `is_complete`.
        load_seconds: time spent reading the case.
        look: draws the pages.

    Returns:
        The sidecar's content.

    Raises:
        OutputError: a file cannot be written.
    """
    grid = prediction.volume.grid
    started = datetime.now(UTC)
    # An old sidecar would vouch for a new label map until it is replaced; so it goes first.
    # Whatever else an earlier run left would stand beside a result that it does not belong to.
    for path in (plan.sidecar, *plan.beside()):
        if owner_of(path, plan.sidecar) is None:
            remove(path)
    digest = write_label_map(plan.labels, to_convention(prediction.labels, plan.convention), grid)
    output: dict[str, Any] = {"file": plan.labels.name, "sha256": digest}
    if prediction.probabilities is not None:
        digest = write_probabilities(plan.probabilities, prediction.probabilities, grid)
        output["probabilities"] = {"file": plan.probabilities.name, "sha256": digest}
    save_seconds = (datetime.now(UTC) - started).total_seconds()
    info = prediction.backend
    windows = prediction.plan
    timings = {} if load_seconds is None else {"load": load_seconds}
    timings |= asdict(prediction.timings) | {"save": save_seconds}
    run: dict[str, Any] = {
        "version": __version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    sidecar = {
        "schema": SIDECAR_SCHEMA,
        "research_use": DISCLAIMER,
        "case_id": prediction.volume.case.case_id,
        "inputs": {
            modality: {"sha256": image.sha256}
            for modality, image in prediction.volume.images.items()
        },
        "output": output,
        "model": {
            "name": prediction.card.name,
            "sha256": info.sha256,
            "certificate": info.certificate,
        },
        "backend": {
            "name": info.name,
            "device": info.device,
            "precision": info.precision,
            "fell_back_from": info.fell_back_from,
        },
        "convention": str(plan.convention),
        "windows": {
            "patch": list(windows.patch),
            "overlap": [
                round(1 - step / size, 6)
                for step, size in zip(windows.stride, windows.patch, strict=True)
            ],
            "placement": windows.placement,
            "count": len(windows),
        },
        "settings": settings or {},
        "volumes_ml": volumes_ml(prediction.labels, grid.spacing),
        "timings_s": {stage: round(seconds, 4) for stage, seconds in timings.items()},
        "warnings": [*prediction.warnings, *plan.warnings],
        "run": run,
    }
    pages = Pages() if look is None else look(prediction, sidecar)
    for kind, path, page in (
        ("preview", plan.preview, pages.preview),
        ("report", plan.report, pages.report),
    ):
        if page is not None:
            write_bytes(path, page)
            # Under "run": a page tells when it was made, and so differs between equal runs.
            run[kind] = {"file": path.name, "sha256": sha256_of(page)}
    write_json(plan.sidecar, sidecar)
    return sidecar


def _refuse_input_folders(case: Case, directory: Path) -> None:
    """An output folder is never an input's: truth has the same name as what would be written."""
    target = Path(os.path.realpath(directory))
    own = {Path(os.path.realpath(source.path.parent)) for source in case.images.values()}
    try:
        among_images = holds_images(target)
    except OSError as error:
        raise unwritable(directory, error) from error
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
            return INTENT_NAME.encode() in file.read(256)
    return is_ours(path)
