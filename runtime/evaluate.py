"""Score predictions against truth on disk: match by case id, check the grids.

Nothing is matched by position or by order, and nothing is resampled.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime.bounded import read_json
from runtime.case import Case, find_cases
from runtime.dataset_json import ALIASES, convention_of, read_dataset_json
from runtime.errors import InputError, UsageError
from runtime.grid import Grid, check_same_grid
from runtime.labels import Convention, LabelMap
from runtime.metrics import Missing, Profile, Scores, score_case
from runtime.naming import SUFFIXES, files_below, is_channel, is_nifti, take_apart
from runtime.summary import summarise, to_json
from runtime.truth import read_labels

_LABEL_ENDINGS: Final = ("_seg", "-seg")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases.

    Attributes:
        profile: by which they were scored.
        cases: case id to the scores of each of `runtime.metrics.SCORED`, sorted by case id.
        missing: cases of the truth that had no prediction; the profile says what they count as.
        warnings: what had to be corrected to read label maps, each with its file's name.
    """

    profile: Profile
    cases: Mapping[str, Mapping[str, Scores]]
    missing: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    @cached_property
    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """`runtime.summary.summarise` of the cases."""
        return summarise(self.cases)

    def to_json(self) -> dict[str, Any]:
        """`runtime.summary.to_json` and ``{missing, missing_count_as, warnings}``."""
        return {
            **to_json(self.profile, self.cases),
            "missing": list(self.missing),
            "missing_count_as": self.profile.missing.value,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Truth:
    case_id: str
    path: Path
    convention: Convention | None


def evaluate(
    prediction: Path,
    truth: Path,
    profile: Profile,
    prediction_convention: Convention | None = None,
    truth_convention: Convention | None = None,
    on_case: Callable[[str, int], None] | None = None,
) -> Evaluation:
    """Score label maps against truth.

    Args:
        prediction: one label map, or a folder of ``<case>_seg.nii.gz`` or ``<case>.nii.gz``.
        truth: one label map, a case folder, a folder of cases, or one that holds label maps only.
        profile: see `runtime.metrics.PROFILES`.
        prediction_convention: label numbering of the predictions; by default what the sidecar
            ``<case>.json`` says, and without one the truth's, as far as that leaves no doubt.
        truth_convention: label numbering of the truth; by default what its names say, and where
            they leave it open the profile's.
        on_case: called with the case id and the number of cases as each begins.

    Returns:
        The scores. Two files are compared whatever their names; one file is looked up in the
        other's folder by its case id. In a folder, a case without prediction counts as the
        profile says.

    Raises:
        InputError: no truth, a prediction without truth, two label maps of one case, different
            grids, labels outside the convention or in doubt (`runtime.truth.read_labels`), a
            damaged file, or a case without prediction where the profile refuses that.
        UsageError: neither a name nor an argument nor the profile tells the truth's convention.
    """
    predictions, truths = _predictions(prediction), _truths(truth)
    if prediction.is_file() and truth.is_file():
        predictions = {next(iter(truths)): prediction}
    elif prediction.is_file():
        truths = {name: one for name, one in truths.items() if name in predictions}
    elif truth.is_file():
        predictions = {name: path for name, path in predictions.items() if name in truths}
    for case_id, path in predictions.items():
        if case_id not in truths:
            raise InputError(
                path,
                found=f"a prediction of case {case_id}, which has no truth in {truth}",
                expected="truth for every prediction",
                remedy="remove the prediction or add its case",
            )
    if not predictions:
        raise InputError(
            prediction,
            found="no label map of any of these cases",
            expected="files such as X_seg.nii.gz or X.nii.gz",
            remedy="check the path",
        )
    missing = tuple(case_id for case_id in truths if case_id not in predictions)
    if missing and profile.missing is Missing.REFUSE:
        raise InputError(
            prediction,
            found=f"no prediction of {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            expected="one for every case of the truth",
            remedy="add what is missing, or say with --missing what it counts as",
        )
    if profile.missing is Missing.LEAVE_OUT:
        truths = {case_id: one for case_id, one in truths.items() if case_id in predictions}
    cases = {}
    told: list[str] = []
    for case_id, one in truths.items():
        if on_case is not None:
            on_case(case_id, len(truths))
        convention = truth_convention or one.convention or profile.convention
        if convention is None:
            raise UsageError(
                one.path,
                found="names that leave the label convention open",
                expected=f"one of {', '.join(Convention)}",
                remedy="name the truth's convention with --truth-labels",
            )
        assumed = None
        # Neither names nor profile imply 2024: what does, says what its 4 is.
        if truth_convention is None and convention is not Convention.BRATS2024:
            assumed = "the naming" if one.convention else "the profile"
        truth_labels, grid = read_labels(
            one.path, convention, assumed=assumed, flag="--truth-labels", told=told
        )
        if case_id in predictions:
            path = predictions[case_id]
            labels, own_grid = _read_prediction(path, prediction_convention, convention, told)
            remedy = "score a label map on the grid of its own case"
            check_same_grid(path, own_grid, one.path, grid, remedy)
        else:
            labels = np.zeros_like(truth_labels)
        cases[case_id] = score_case(labels, truth_labels, grid.spacing, profile)
    return Evaluation(profile, cases, missing, tuple(told))


def _read_prediction(
    path: Path, named: Convention | None, of_truth: Convention, told: list[str]
) -> tuple[LabelMap, Grid]:
    """A prediction as network labels, by the convention that was named, else the sidecar's.

    Without either it is the truth's, which is a guess, however surely the truth's is known.
    """
    named = named or _sidecar_convention(path, case_id_of(path))
    if named is not None:
        return read_labels(path, named, told=told)
    return read_labels(path, of_truth, assumed="the truth", told=told)


def case_id_of(path: Path) -> str:
    """The case that a label map is of: X for X.nii.gz, X_seg.nii.gz and X-seg.nii."""
    name = path.name
    for suffix in SUFFIXES:
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    for ending in _LABEL_ENDINGS:
        name = name.removesuffix(ending)
    return name


def _predictions(root: Path) -> dict[str, Path]:
    if root.is_file():
        return {case_id_of(root): root}
    if not root.is_dir():
        raise InputError(root, found="nothing", expected="predictions", remedy="check the path")
    return _by_case(sorted(path for path in root.iterdir() if is_nifti(path)), "prediction")


def _by_case(paths: Iterable[Path], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        case_id = case_id_of(path)
        if case_id.endswith("_prob"):
            continue
        if case_id in found:
            raise InputError(
                path,
                found=f"a second {what} of case {case_id} (also {found[case_id].name})",
                expected=f"one {what} a case",
                remedy="remove one of the two files",
            )
        found[case_id] = path
    return found


def _truths(root: Path) -> dict[str, _Truth]:
    if root.is_file():
        one = _truth_of_file(root)
        return {one.case_id: one}
    if paths := _lone_label_maps(root):
        implied = convention_of(read_dataset_json(root))
        lone = _by_case(paths, "label map")
        return {
            case_id: _Truth(case_id, path, _named_convention(path, case_id) or implied)
            for case_id, path in sorted(lone.items())
        }
    truths = {
        case.case_id: _Truth(case.case_id, case.labels, case.convention)
        for case in find_cases(root)
        if case.labels is not None
    }
    if not truths:
        raise InputError(
            root,
            found="cases, and no label map in any",
            expected="truth such as X_seg.nii.gz beside the images",
            remedy="give the folder of the annotated cases",
        )
    return truths


def _lone_label_maps(root: Path) -> list[Path]:
    """All NIfTI files below ``root`` if no image is among them, else none."""
    paths = sorted(path for path in files_below(root, recursive=True) if is_nifti(path))
    for path in paths:
        named = take_apart(path)
        if (
            named.token in ALIASES
            or is_channel(named)
            or path.parent.name in ("imagesTr", "imagesTs")
        ):
            return []
    return paths


def _truth_of_file(path: Path) -> _Truth:
    """The file as the label map of the case whose images lie beside it, else by its own name."""
    try:
        case = Case.from_dir(path.parent)
    except (InputError, UsageError):
        pass  # It lies alone, or among other label maps.
    else:
        if case.labels is not None and case.labels.samefile(path):
            return _Truth(case.case_id, path, case.convention)
    case_id = case_id_of(path)
    return _Truth(case_id, path, _named_convention(path, case_id))


def _named_convention(path: Path, case_id: str) -> Convention | None:
    """What a label map's sidecar or its own name says of its numbering."""
    stored = _sidecar_convention(path, case_id)
    if stored is None and path.name.lower().startswith(f"{case_id.lower()}_seg."):
        stored = Convention.BRATS2020
    if stored is None and path.name.lower().startswith(f"{case_id.lower()}-seg."):
        stored = Convention.BRATS2023
    return stored


def _sidecar_convention(path: Path, case_id: str) -> Convention | None:
    sidecar = path.with_name(f"{case_id}.json")
    if not sidecar.is_file():
        return None
    try:
        return Convention(read_json(sidecar)["convention"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            sidecar,
            found=f"no usable key convention ({type(error).__name__})",
            expected=f"one of {', '.join(Convention)}",
            remedy="mend or remove the sidecar, or name the predictions' convention",
        ) from error
