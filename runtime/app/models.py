"""Models that the page offers: exported directories that are found, what of them works on this
machine, and checkpoints that could be exported.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.backends import BackendName, BackendOptions, open_backend
from runtime.errors import BratsError, InputError
from runtime.manifest import MANIFEST
from runtime.model_dir import BUILT_IN, WRITTEN, ModelDir

BACKENDS: Final[tuple[BackendName, ...]] = ("trt", "ort", "openvino")
_DEPTH: Final = 3
_SKIPPED: Final = ("node_modules", "site-packages", "__pycache__")


@dataclass(frozen=True)
class FoundModel:
    """A model directory that could be opened.

    Attributes:
        title: for people, unlike every other's.
        model: the directory.
    """

    title: str
    model: ModelDir


@dataclass(frozen=True)
class FoundCheckpoint:
    """A trained network that was not exported yet.

    Attributes:
        path: of the checkpoint.
        run: name of its run.
        target: model directory that exporting it would write.
    """

    path: Path
    run: str
    target: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of brats-export."""
        return (str(self.path), "--fp16", "-o", str(self.target))

    @property
    def command(self) -> str:
        """To be typed."""
        return shlex.join(("brats-export", *self.arguments))


@dataclass(frozen=True)
class Trial:
    """Whether a backend works here with a model; ``reason`` says why it does not."""

    backend: BackendName
    works: bool
    reason: str


def find_models(
    root: Path, named: Sequence[Path] = ()
) -> tuple[tuple[FoundModel, ...], tuple[InputError, ...]]:
    """Model directories at and below ``root``, those that were named first, the built-in one last.

    Args:
        root: folder to search, three levels deep; hidden folders are left out.
        named: on the command line; all must be usable.

    Returns:
        The models, and what was wrong with directories that look like one.

    Raises:
        InputError: a named one cannot be used.
    """
    found = [ModelDir.open(path) for path in named]
    problems: list[InputError] = []
    seen = {one.path.resolve() for one in found}
    for path in (root / WRITTEN, *_below(root, _DEPTH), BUILT_IN):
        if path.resolve() in seen or not (path / MANIFEST).is_file():
            continue
        seen.add(path.resolve())
        try:
            found.append(ModelDir.open(path))
        except InputError as error:
            problems.append(error)
    titles = [_title(model, root) for model in found]
    return (
        tuple(FoundModel(title, model) for title, model in zip(titles, found, strict=True)),
        tuple(problems),
    )


def find_checkpoints(root: Path, models: Sequence[FoundModel]) -> tuple[FoundCheckpoint, ...]:
    """Best checkpoints of runs below ``root``/runs, newest first, that no model found is named
    after.
    """
    # A run of the built-in model's name is another one.
    exported = {one.model.card.name for one in models if one.model.path != BUILT_IN}
    paths = sorted(
        (root / "runs").glob("*/checkpoints/best.pt"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    found = []
    for path in paths:
        run = path.parent.parent.name
        if run in exported:
            continue
        target = root / WRITTEN
        if target.exists():
            target = root / "models" / run
        found.append(FoundCheckpoint(path, run, target))
    return tuple(found)


def try_backends(model: ModelDir, device: str, threads: int | None) -> tuple[Trial, ...]:
    """Open every backend with a model: what works here is what could be opened, not what is
    installed.
    """
    trials = []
    for name in BACKENDS:
        try:
            open_backend(model, BackendOptions(name, device, threads=threads)).close()
        except BratsError as error:
            trials.append(Trial(name, False, f"{error.found}; {error.remedy}"))
        else:
            trials.append(Trial(name, True, ""))
    return tuple(trials)


def _below(root: Path, depth: int) -> list[Path]:
    """``root`` and the folders below it, nearest first; links may lead round."""
    level, found = [root], []
    for _ in range(depth):
        found += level
        level = [
            path
            for folder in level
            for path in _folders(folder)
            if not path.name.startswith(".") and path.name not in _SKIPPED
        ]
    return found + level


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        # A folder that may not be read holds no model for us.
        return []


def _title(model: ModelDir, root: Path) -> str:
    if model.path == BUILT_IN:
        return f"{model.card.name} (built in)"
    try:
        where = model.path.resolve().relative_to(root.resolve())
    except ValueError:
        where = model.path
    return f"{model.card.name} ({where})"
