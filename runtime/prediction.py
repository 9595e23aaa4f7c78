"""Put a prediction on disk: label map, whatever else was asked for, and last the sidecar, which is
the commit record.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from runtime import DISCLAIMER, __version__
from runtime.atomic import as_json, remove, together
from runtime.bounded import digest_of, read_json
from runtime.labels import to_convention
from runtime.lock import Held
from runtime.model_dir import sha256_of
from runtime.nifti_writer import Write, write_label_map, write_probabilities
from runtime.output_plan import OutputPlan, check_places, input_entry
from runtime.ownership import SIDECAR_SCHEMA, owner_of, written_by, written_of
from runtime.segmented import Prediction
from runtime.volumes import volumes_ml


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


def save(
    prediction: Prediction,
    plan: OutputPlan,
    settings: dict[str, Any] | None = None,
    load_seconds: float | None = None,
    look: Look | None = None,
    held: Held | None = None,
) -> dict[str, Any]:
    """Write label map, probabilities if there are any, pages if there are to be, then the sidecar.

    Args:
        prediction: what was segmented.
        plan: from `plan_output`.
        settings: the options that shape the result, for `is_complete`.
        load_seconds: time spent reading the case.
        look: draws the pages.
        held: the output folder, which is then to be in its place.

    Returns:
        The sidecar's content; its run.removed names what an earlier result has lost although the
        plan keeps what it can.

    Raises:
        OutputError: a file cannot be written, or the folder is not the one that is held.
        UsageError: something has come into its place since `plan_output` that may not be replaced;
            it is left as it is, and nothing is written.
    """
    if held is not None:
        held.check()  # or it would be made anew, without what is in it
    with together() as files, together() as record:
        sidecar = _written(prediction, plan, settings or {}, load_seconds, look, files.write)
        vouched = written_of(sidecar)
        leftovers = [
            path
            for path in plan.beside()
            if path.name not in vouched
            and os.path.lexists(path)
            and owner_of(path, plan.sidecar) is None
        ]
        if leftovers and plan.keeps:
            sidecar["run"]["removed"] = [path.name for path in leftovers]
        record.write(plan.sidecar, as_json(sidecar))
        if held is not None:
            held.check()
        check_places(plan)
        # Until here nothing of an earlier result has been touched. Its sidecar would vouch for the
        # new label map until it is replaced; so it goes first.
        for path in (plan.sidecar, *leftovers):
            remove(path)
        files.place()
        record.place()
    return sidecar


def _written(
    prediction: Prediction,
    plan: OutputPlan,
    settings: dict[str, Any],
    load_seconds: float | None,
    look: Look | None,
    write: Write,
) -> dict[str, Any]:
    """Write all but the sidecar, and return that."""
    grid = prediction.volume.grid
    started = datetime.now(UTC)
    labels = to_convention(prediction.labels, plan.convention)
    digest = write_label_map(plan.labels, labels, grid, write)
    output: dict[str, Any] = {"file": plan.labels.name, "sha256": digest}
    if prediction.probabilities is not None:
        digest = write_probabilities(plan.probabilities, prediction.probabilities, grid, write)
        output["probabilities"] = {"file": plan.probabilities.name, "sha256": digest}
    save_seconds = (datetime.now(UTC) - started).total_seconds()
    info = prediction.backend
    windows = prediction.plan
    timings = {} if load_seconds is None else {"load": load_seconds}
    timings |= asdict(prediction.timings) | {"save": save_seconds}
    timings = {stage: round(seconds, 4) for stage, seconds in timings.items()}
    run: dict[str, Any] = {
        "version": __version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    sidecar = {
        "schema": SIDECAR_SCHEMA,
        "research_use": DISCLAIMER,
        "case_id": prediction.volume.case.case_id,
        "inputs": {
            modality: input_entry(prediction.volume.case.images[modality], image.sha256)
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
        "settings": settings,
        "volumes_ml": volumes_ml(prediction.labels, grid.spacing),
        "timings_s": timings,
        "warnings": [*prediction.warnings, *plan.warnings, *_late(timings, plan.budget_s)],
        "run": run,
    }
    pages = Pages() if look is None else look(prediction, sidecar)
    for kind, path, page in (
        ("preview", plan.preview, pages.preview),
        ("report", plan.report, pages.report),
    ):
        if page is not None:
            write(path, page)
            # Under "run": a page tells when it was made, and so differs between equal runs.
            run[kind] = {"file": path.name, "sha256": sha256_of(page)}
            run["truth"] = plan.truth
    if plan.keeps:
        _keep(plan, sidecar)
    return sidecar


def _late(timings: Mapping[str, float], budget_s: float | None) -> list[str]:
    seconds = sum(timings.values())
    if budget_s is None or seconds <= budget_s:
        return []
    return [f"took {seconds:.2f} s, longer than the budget of {budget_s:g} s"]


def _keep(plan: OutputPlan, sidecar: dict[str, Any]) -> None:
    """Take over from an earlier sidecar what was made of the same label map and is not now."""
    known = written_by(plan.sidecar)
    if known.get(plan.labels.name) != sidecar["output"]["sha256"]:
        return
    earlier = read_json(plan.sidecar)
    for part, kind, path in (
        ("output", "probabilities", plan.probabilities),
        ("run", "preview", plan.preview),
        ("run", "report", plan.report),
    ):
        if kind in sidecar[part] or path.name not in known:
            continue
        if path.is_file() and digest_of(path) == known[path.name]:
            sidecar[part][kind] = earlier[part][kind]
            if part == "run":
                sidecar["run"].setdefault("truth", earlier["run"].get("truth"))
