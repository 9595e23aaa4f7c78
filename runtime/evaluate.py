"""Score predictions against truth on disk: match by case id, check the grids, tabulate.

Nothing is matched by position or by order, and nothing is resampled.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

from runtime.atomic import write_json as write_json_file
from runtime.atomic import write_text
from runtime.case import Case, find_cases
from runtime.errors import InputError, UsageError
from runtime.grid import check_same_grid
from runtime.labels import REGIONS, Convention
from runtime.metrics import METRICS, SCORED, Profile, Scores, score_case, summarise, to_json
from runtime.truth import read_labels

_SUFFIXES: Final = (".nii.gz", ".nii")
_LABEL_ENDINGS: Final = ("_seg", "-seg")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases.

    Attributes:
        profile: by which they were scored.
        cases: case id to the scores of each of `runtime.metrics.SCORED`, sorted by case id.
        missing: cases of the truth that had no prediction and were scored as empty ones.
    """

    profile: Profile
    cases: Mapping[str, Mapping[str, Scores]]
    missing: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """``{profile, cases{id:{region:{dice, hd95, ...}}}, summary, missing}``."""
        return {**to_json(self.profile, self.cases), "missing": list(self.missing)}


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
        truth: one label map, a case folder, or a folder of cases.
        profile: see `runtime.metrics.PROFILES`.
        prediction_convention: label numbering of the predictions; by default what the sidecar
            ``<case>.json`` says, and without one the truth's.
        truth_convention: label numbering of the truth; by default what its names say.
        on_case: called with the case id and the number of cases as each begins.

    Returns:
        The scores. Two files are compared whatever their names; one file is looked up in the
        other's folder by its case id. In a folder, a case without prediction counts as an empty
        one.

    Raises:
        InputError: no truth, a prediction without truth, two predictions of one case, different
            grids, labels outside the convention, or a damaged file.
        UsageError: neither a name nor an argument tells the truth's convention.
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
    cases = {}
    for case_id, one in truths.items():
        if on_case is not None:
            on_case(case_id, len(truths))
        convention = truth_convention or one.convention
        if convention is None:
            raise UsageError(
                one.path,
                found="names that leave the label convention open",
                expected=f"one of {', '.join(Convention)}",
                remedy="name the truth's convention",
            )
        truth_labels, grid = read_labels(one.path, convention, implied=truth_convention is None)
        if case_id in predictions:
            path = predictions[case_id]
            own = prediction_convention or _sidecar_convention(path, case_id) or convention
            labels, own_grid = read_labels(path, own, implied=prediction_convention is None)
            remedy = "score a label map on the grid of its own case"
            check_same_grid(path, own_grid, one.path, grid, remedy)
        else:
            labels = np.zeros_like(truth_labels)
        cases[case_id] = score_case(labels, truth_labels, grid.spacing, profile)
    return Evaluation(profile, cases, tuple(name for name in truths if name not in predictions))


def render_table(evaluation: Evaluation) -> Table:
    """Dice and HD95 of the regions: a row per case, then mean, median and standard deviation."""
    table = Table(title=f"{len(evaluation.cases)} cases, profile {evaluation.profile.name}")
    table.add_column("case", overflow="fold")
    for metric in ("Dice", "HD95 mm"):
        for region in REGIONS:
            table.add_column(f"{metric} {region}", justify="right")
    for case_id, scores in evaluation.cases.items():
        name = f"{case_id} (no prediction)" if case_id in evaluation.missing else case_id
        values = [getattr(scores[r], metric) for metric in ("dice", "hd95") for r in REGIONS]
        table.add_row(name, *_cells(values))
    table.add_section()
    summary = summarise(evaluation.cases)
    for statistic in ("mean", "median", "std"):
        values = [
            summary[region][metric][statistic] for metric in ("dice", "hd95") for region in REGIONS
        ]
        table.add_row(statistic, *_cells(values), style="bold")
    return table


def write_csv(path: Path, evaluation: Evaluation) -> None:
    """Write a row per case and region or label: ``case,region,predicted,dice,hd95,...``.

    Raises:
        OutputError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "region", "predicted", *METRICS))
    for case_id, scores in evaluation.cases.items():
        predicted = "no" if case_id in evaluation.missing else "yes"
        for name in SCORED:
            figures = (getattr(scores[name], metric) for metric in METRICS)
            writer.writerow((case_id, name, predicted, *(f"{figure:.6g}" for figure in figures)))
    write_text(path, text.getvalue())


def write_json(path: Path, evaluation: Evaluation) -> None:
    """Write `Evaluation.to_json`.

    Raises:
        OutputError: it cannot be written.
    """
    write_json_file(path, evaluation.to_json())


def _cells(values: list[float]) -> list[str]:
    half = len(values) // 2
    return [f"{v:.4f}" for v in values[:half]] + [f"{v:.2f}" for v in values[half:]]


def _case_id(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    for ending in _LABEL_ENDINGS:
        name = name.removesuffix(ending)
    return name


def _predictions(root: Path) -> dict[str, Path]:
    if root.is_file():
        return {_case_id(root): root}
    if not root.is_dir():
        raise InputError(root, found="nothing", expected="predictions", remedy="check the path")
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        name = path.name.lower()
        if name.startswith(".") or not name.endswith(_SUFFIXES):
            continue
        case_id = _case_id(path)
        if case_id.endswith("_prob"):
            continue
        if case_id in found:
            raise InputError(
                path,
                found=f"a second prediction of case {case_id} (also {found[case_id].name})",
                expected="one prediction a case",
                remedy="remove one of the two files",
            )
        found[case_id] = path
    return found


def _truths(root: Path) -> dict[str, _Truth]:
    if root.is_file():
        one = _truth_of_file(root)
        return {one.case_id: one}
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


def _truth_of_file(path: Path) -> _Truth:
    """The file as the label map of the case whose images lie beside it, else by its own name."""
    try:
        case = Case.from_dir(path.parent)
    except (InputError, UsageError):
        pass  # It lies alone, or among other label maps.
    else:
        if case.labels is not None and case.labels.samefile(path):
            return _Truth(case.case_id, path, case.convention)
    case_id = _case_id(path)
    stored = _sidecar_convention(path, case_id)
    if stored is None and path.name.lower().startswith(f"{case_id.lower()}_seg."):
        stored = Convention.BRATS2020
    if stored is None and path.name.lower().startswith(f"{case_id.lower()}-seg."):
        stored = Convention.BRATS2023
    return _Truth(case_id, path, stored)


def _sidecar_convention(path: Path, case_id: str) -> Convention | None:
    sidecar = path.with_name(f"{case_id}.json")
    if not sidecar.is_file():
        return None
    try:
        return Convention(json.loads(sidecar.read_text())["convention"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            sidecar,
            found=f"no usable key convention ({type(error).__name__})",
            expected=f"one of {', '.join(Convention)}",
            remedy="mend or remove the sidecar, or name the predictions' convention",
        ) from error
