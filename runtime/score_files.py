"""Where scores are to be written, looked at before any case is: scoring takes a second a case."""

import os
from collections.abc import Callable
from pathlib import Path

from runtime.atomic import check_writable, sweep, unwritable
from runtime.bounded import read_json
from runtime.errors import OutputError, UsageError
from runtime.evaluate import case_id_of
from runtime.metrics import Profile
from runtime.naming import is_nifti
from runtime.nifti import INTENT_NAME
from runtime.score_plots import plot_names


def check_outputs(
    json_file: Path | None, csv_file: Path | None, plots: Path | None, profile: Profile
) -> None:
    """Refuse places where scores cannot be written, or where something else would be lost.

    Only scores that `brats-eval` wrote itself, known by their content, may be replaced. What killed
    runs left half-written in their folders is removed.

    Args:
        json_file: of --json.
        csv_file: of --csv.
        plots: folder of --plots.
        profile: by which the cases are to be scored; says which plots there will be.

    Raises:
        UsageError: a file that is not ours has the name, or a label map's sidecar would have it,
            or two outputs have the same.
        OutputError: the place cannot be written, or is a folder where a file should be.
    """
    files: list[tuple[str, Path, Callable[[Path], bool]]] = []
    if json_file is not None:
        files.append(("--json", json_file, _is_our_json))
    if csv_file is not None:
        files.append(("--csv", csv_file, _is_our_csv))
    places = [(flag, path) for flag, path, _ in files]
    if plots is not None:
        files += [("--plots", plots / name, _is_our_plot) for name in plot_names(profile)]
        places.append(("--plots", plots))
    _check_distinct([*places, *((flag, path) for flag, path, _ in files if flag == "--plots")])
    for _, path, is_ours in files:
        try:
            _check_file(path, is_ours)
        except OSError as error:
            raise unwritable(path, error) from error
    for folder in {path.parent for _, path, _ in files}:
        check_writable(folder)
        sweep(folder)
    for _, path, _ in files:
        # One output's folder may just have been made where another's file should be.
        _refuse_folder(path)


def _check_distinct(places: list[tuple[str, Path]]) -> None:
    flags: dict[str, str] = {}
    for flag, path in places:
        other = flags.setdefault(os.path.realpath(path), flag)
        if other != flag:
            raise UsageError(
                path,
                found=f"one name for {other} and {flag}",
                expected="a name for each",
                remedy="choose another for one of them",
            )


def _check_file(path: Path, is_ours: Callable[[Path], bool]) -> None:
    _refuse_folder(path)
    if is_nifti(path):
        raise UsageError(
            path,
            found="a name of an image",
            expected="a name for scores, such as scores.json or scores.csv",
            remedy="choose another name",
        )
    if path.parent.is_dir():
        for neighbour in path.parent.iterdir():
            if is_nifti(neighbour) and path.name == f"{case_id_of(neighbour)}.json":
                raise UsageError(
                    path,
                    found=f"the name of the sidecar of {neighbour.name}",
                    expected="a name of its own for scores",
                    remedy="choose another name",
                )
    if path.exists() and not (path.is_file() and is_ours(path)):
        raise UsageError(
            path,
            found="a file that brats-eval did not write",
            expected="a free name, or earlier scores",
            remedy="choose another name or move the file away",
        )


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise OutputError(
            path, found="a folder", expected="a name for a file", remedy="name a file in it"
        )


def _is_our_json(path: Path) -> bool:
    try:
        value = read_json(path)
    except ValueError:
        return False
    # The evaluation of brats-train has all but the last.
    keys = {"profile", "cases", "summary", "missing_count_as"}
    return isinstance(value, dict) and value.keys() >= keys


def _is_our_csv(path: Path) -> bool:
    return _head(path).startswith(b"case,region,predicted,dice,")


def _is_our_plot(path: Path) -> bool:
    return INTENT_NAME.encode() in _head(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)
