"""Files of one folder that would make a case if their names had anything in common.

Four images under four unrelated names may be four patients, so that nothing ever joins them to a
case that is segmented. What a scanner or an archive gives often looks so: four errors of four
missing modalities each would not say what is wrong with it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.case import Case, Source
from runtime.errors import ComputeError, InputError
from runtime.grid import Grid, check_same_grid
from runtime.labels import MODALITIES
from runtime.nifti import read_image


@dataclass(frozen=True)
class Strangers:
    """Cases of one folder, none of them complete, that together have each modality once."""

    folder: Path
    cases: tuple[Case, ...]

    def names(self) -> str:
        """The case ids, shortened, and sorted by modality."""
        by_modality = sorted(self.cases, key=lambda case: MODALITIES.index(next(iter(case.images))))
        return ", ".join(_short(case.case_id) for case in by_modality)

    def as_one(self) -> Case:
        """All of them under the folder's name: to be looked at, never to be segmented."""
        images = _images(self.cases)
        first = self.cases[0]
        return Case(self.folder.name, images, None, first.dialect, first.convention)


def set_apart(cases: Sequence[Case]) -> tuple[list[Case], list[Strangers]]:
    """Tell real cases from files that have only their folder in common.

    Returns:
        The real cases, in order, and what was taken from among them.
    """
    by_folder: dict[Path, list[Case]] = defaultdict(list)
    for case in cases:
        by_folder[case.folder].append(case)
    found = [
        Strangers(folder, tuple(members))
        for folder, members in by_folder.items()
        if len(members) > 1
        and all(source.channel is None for case in members for source in case.images.values())
        and sum(len(case.images) for case in members) == len(MODALITIES)
        and len(_images(members)) == len(MODALITIES)
    ]
    taken = {id(case) for strangers in found for case in strangers.cases}
    return [case for case in cases if id(case) not in taken], found


def refusal(strangers: Strangers) -> InputError:
    """Why they are no case, which depends on whether their grids agree; reads them for that."""
    grids = _grids(strangers)
    expected = "one case on one grid, such as X_flair, X_t1, X_t1ce and X_t2"
    if any(not _agree(path, grid, *grids[0]) for path, grid in grids[1:]):
        shapes = ", ".join(dict.fromkeys("x".join(map(str, grid.shape)) for _, grid in grids))
        return InputError(
            strangers.folder,
            found="one image of each modality under unrelated names and on different grids "
            f"({shapes}), that is, not co-registered",
            expected=expected,
            remedy="if they are one patient's, co-register and resample them to one grid, as BraTS "
            "does, and name them alike",
        )
    return InputError(
        strangers.folder,
        found=f"one image of each modality under names of different cases ({strangers.names()})",
        expected=expected,
        remedy="name them alike if they are one patient's, or give each patient a folder",
    )


def _images(cases: Sequence[Case]) -> dict[str, Source]:
    found = {name: source for case in cases for name, source in case.images.items()}
    return {name: found[name] for name in MODALITIES if name in found}


def _grids(strangers: Strangers) -> list[tuple[Path, Grid]]:
    grids = []
    for source in _images(strangers.cases).values():
        try:
            grids.append((source.path, read_image(source)[1]))
        except (InputError, ComputeError):
            continue  # Their names are wrong already; once mended, the damage is told.
    return grids


def _agree(path: Path, grid: Grid, first_path: Path, first: Grid) -> bool:
    try:
        check_same_grid(path, grid, first_path, first, "")
    except InputError:
        return False
    return True


def _short(case_id: str) -> str:
    return case_id if len(case_id) <= 24 else f"{case_id[:21]}..."
