"""A case: its files one by one, then what is wrong between them, then its label map."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from runtime.case import Case, Dialect
from runtime.doctor.findings import Finding, Severity, error, info, warning
from runtime.doctor.images import Facts, Look, look_at
from runtime.doctor.swaps import swapped
from runtime.doctor.truths import LabelFacts, look_at_labels
from runtime.errors import InputError
from runtime.grid import Grid, check_same_grid
from runtime.labels import MODALITIES, Convention
from runtime.model_card import ModelCard
from runtime.naming import is_nifti
from runtime.nifti import check_depth
from runtime.preprocess import SPACING_TOLERANCE, check_spacing
from runtime.threads import Threads

# Cosine of 5 degrees: BraTS's images lie along the anatomical axes.
_OBLIQUE: Final = 0.9962
# Brains of one case overlap by 0.983 or more in 25 real cases (1.000 in 24 of them), those of two
# patients in one space by 0.951 or less.
_SAME_BRAIN: Final = 0.965
_SHOWN: Final = 5


@dataclass(frozen=True)
class CaseReport:
    """What was found about a case; it holds no voxels.

    Attributes:
        case: that was looked at.
        images: modality to what is in its file, for those that can be read.
        labels: what is in its label map; None where there is none, or none to be read.
        convention: of the label map, as named or implied.
        findings: about files, then between them, then about labels.
    """

    case: Case
    images: Mapping[str, Facts]
    labels: LabelFacts | None
    convention: Convention | None
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        return not self.of(Severity.ERROR)

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity is severity]


def examine(
    case: Case,
    convention: Convention | None = None,
    card: ModelCard | None = None,
    force_spacing: bool = False,
) -> CaseReport:
    """Read a case and judge it; damage and too little memory are told, never raised.

    Whatever keeps a case from being segmented is an error here too.

    Args:
        case: to be read.
        convention: of its label map; None takes what names and dataset.json imply.
        card: of the model that it is meant for; None for any of four modalities at 1 mm.
        force_spacing: take a spacing that is not the model's, with a warning.
    """
    try:
        return _examine(case, convention, card, force_spacing)
    except MemoryError:
        text = "too little memory to look at it; close other programs, or crop the images"
        found = (error("memory", text),)
        return CaseReport(case, {}, None, convention or case.convention, found)


def _examine(
    case: Case, convention: Convention | None, card: ModelCard | None, force_spacing: bool
) -> CaseReport:
    findings = _missing(case, card)
    looks: dict[str, Look] = {}
    with Threads(len(case.images)) as pool:
        seen = pool.map(lambda image: look_at(*image), case.images.items())
        for name, look in zip(case.images, seen, strict=True):
            if isinstance(look, Finding):
                findings.append(look)
            else:
                looks[name] = look
                findings += look.findings
    facts = {name: look.facts for name, look in looks.items()}
    findings += _same_images(case, facts)
    apart = _grids(case, facts)
    findings += apart
    findings += _grid(case, facts, card, force_spacing)
    on_one_grid = {} if apart else looks
    labels = look_at_labels(case, on_one_grid, convention)
    findings += _brains(on_one_grid)
    findings += swapped(on_one_grid, labels.truth)
    findings += labels.findings
    findings += _unused(case)
    return CaseReport(case, facts, labels.facts, convention or case.convention, tuple(findings))


def _missing(case: Case, card: ModelCard | None) -> list[Finding]:
    """Modalities that the model, or without one any model, looks for."""
    wanted = card.modalities if card is not None else MODALITIES
    there = any(name in case.images for name in wanted)
    tolerated = card.tolerates_missing if card is not None and there else ()
    return [
        warning("missing", f"no {name} image; the model does without it", name)
        if name in tolerated
        else error("missing", f"no {name} image", name)
        for name in wanted
        if name not in case.images
    ]


def _same_images(case: Case, images: Mapping[str, Facts]) -> list[Finding]:
    found: list[Finding] = []
    files: dict[str, str] = {}
    voxels: dict[tuple[object, ...], str] = {}
    for name, facts in images.items():
        if case.images[name].channel is None and facts.sha256 in files:
            text = f"{name} and {files[facts.sha256]} are the same file; give each its own image"
            found.append(error("same-image", text))
        elif facts.std > 0 and facts.voxel_key() in voxels:
            other = voxels[facts.voxel_key()]
            text = f"{name} and {other} hold the same voxels; give each its own image"
            found.append(error("same-image", text))
        files.setdefault(facts.sha256, name)
        voxels.setdefault(facts.voxel_key(), name)
    return found


def _grids(case: Case, images: Mapping[str, Facts]) -> list[Finding]:
    """Images that do not lie where most of the others do."""
    groups: list[list[str]] = []
    for name in images:
        for group in groups:
            if not _difference(case, images, name, group[0]):
                group.append(name)
                break
        else:
            groups.append([name])
    if len(groups) < 2:
        return []
    most = max(groups, key=len)
    reasons = [
        f"{', '.join(group)} has {_difference(case, images, group[0], most[0])}"
        for group in groups
        if group is not most
    ]
    text = (
        f"not co-registered: {'; '.join(reasons)}, unlike {', '.join(most)}; co-register and "
        "resample all to one grid"
    )
    return [error("not-co-registered", text)]


def _difference(case: Case, images: Mapping[str, Facts], name: str, other: str) -> str:
    """How the grid of an image differs from that of another; nothing where it does not."""
    one, two = case.images[name].path, case.images[other].path
    try:
        check_same_grid(one, images[name].grid, two, images[other].grid, "")
    except InputError as differs:
        return differs.found
    return ""


def _grid(
    case: Case, images: Mapping[str, Facts], card: ModelCard | None, force_spacing: bool
) -> list[Finding]:
    """What is odd about where the voxels lie, told once for all images."""
    found: dict[str, Finding] = {}
    for name, facts in images.items():
        one = _spacing(case.images[name].path, facts.grid, card, force_spacing)
        try:
            check_depth(case.images[name].path, facts.grid)
        except InputError as refused:
            one.append(error("single-slice", f"{refused.found}; {refused.remedy}"))
        directions = np.abs(facts.grid.affine[:3, :3]) / np.array(facts.grid.spacing)
        cosine = float(directions.max(axis=0).min())
        if cosine < _OBLIQUE:
            angle = np.degrees(np.arccos(min(1.0, cosine)))
            text = f"axes turned by {angle:.0f} degrees from the anatomical ones; reorient the case"
            one.append(warning("oblique", text))
        for finding in one:
            found.setdefault(finding.text, finding)
    return list(found.values())


def _spacing(path: Path, grid: Grid, card: ModelCard | None, force: bool) -> list[Finding]:
    """Held against the model's, or else against BraTS's."""
    if card is not None:
        try:
            return [warning("spacing", text) for text in check_spacing(path, grid, card, force)]
        except InputError as refused:
            text = f"{refused.found}, expected {refused.expected}; {refused.remedy}"
            return [error("spacing", text)]
    if max(abs(size - 1) for size in grid.spacing) > SPACING_TOLERANCE:
        shown = "x".join(f"{size:.3g}" for size in grid.spacing)
        text = f"spacing {shown} mm, BraTS models expect 1x1x1; resample the case"
        return [warning("spacing", text)]
    return []


def _brains(looks: Mapping[str, Look]) -> list[Finding]:
    """Images on one grid whose brains lie elsewhere: of another patient, or moved."""
    found: list[Finding] = []
    names = list(looks)
    thin = {name: looks[name].brain[:: looks[name].step, :: looks[name].step] for name in names}
    for name in names[1:]:
        one, other = thin[names[0]], thin[name]
        together = np.count_nonzero(one) + np.count_nonzero(other)
        dice = 2 * np.count_nonzero(one & other) / together if together else 1.0
        empty = not looks[names[0]].facts.brain or not looks[name].facts.brain
        if dice < _SAME_BRAIN and not empty:
            text = (
                f"{names[0]} and {name} cover different brains (Dice {dice:.2f}); are they of one "
                "patient, stripped alike and co-registered?"
            )
            found.append(warning("different-brains", text))
    return found


def _unused(case: Case) -> list[Finding]:
    """Images beside the case's own that no name explains."""
    sources = case.images.values()
    # Other folders may hold many cases.
    own = case.dialect in (Dialect.BARE, Dialect.MODALITY_FIRST) or case.case_id == case.folder.name
    if not own or any(source.channel is not None for source in sources):
        return []
    used = {source.path for source in sources} | {case.labels}
    others = sorted(
        path.name for path in case.folder.iterdir() if is_nifti(path) and path not in used
    )
    if not others:
        return []
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return [info("unused", f"not used: {', '.join(others[:_SHOWN])}{more}")]
