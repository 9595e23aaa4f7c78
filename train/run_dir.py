"""The run directory: where everything a training run writes has its name."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from runtime.atomic import unwritable, write_text
from runtime.errors import UsageError
from runtime.lock import held
from runtime.metrics import SCORED

COLUMNS: Final = (
    "epoch",
    "seconds",
    "patches",
    "skipped",
    "lr",
    "loss",
    *(f"dice_{name}" for name in SCORED),
    "dice_mean",
)
"""Of history.csv: one row per epoch; Dice is empty in epochs without a validation."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunDir:
    """Paths of one run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def split(self) -> Path:
        return self.path / "split.json"

    @property
    def environment(self) -> Path:
        """Versions, revision, machine, command."""
        return self.path / "environment.json"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def evaluation_text(self) -> Path:
        return self.path / "evaluation_metrics.txt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def last(self) -> Path:
        """The only checkpoint that holds the optimizer: the one to resume from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    def epoch(self, number: int) -> Path:
        """Checkpoint after ``number`` epochs."""
        return self.path / "checkpoints" / f"epoch_{number:03d}.pt"

    def evaluated(self) -> bool:
        """Whether the evaluation is there, and of best.pt as it is."""
        try:
            # best.pt is written for the last time when its card is completed, before the figures.
            return self.evaluation.stat().st_mtime_ns >= self.best.stat().st_mtime_ns
        except FileNotFoundError:
            return False

    def write_history(self, rows: Sequence[Row]) -> None:
        """Write history.csv.

        Raises:
            OutputError: it cannot be written.
        """
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _shown(row.get(key)) for key in COLUMNS})
        write_text(self.history, stream.getvalue())

    def sweep(self) -> None:
        """Remove what a killed process had begun to write: no other writes to this run."""
        for path in self.path.rglob(".*.tmp"):
            path.unlink(missing_ok=True)

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` epoch_NNN.pt; a negative number keeps all."""
        if keep < 0:
            return
        found = self.path.glob("checkpoints/epoch_*.pt")
        numbered = sorted(found, key=lambda path: (len(path.name), path.name))
        for path in numbered[: max(0, len(numbered) - keep)]:
            path.unlink(missing_ok=True)


def new_run(output: Path, name: str) -> RunDir:
    """A run directory that does not exist yet; nothing is made.

    Raises:
        UsageError: it exists, or the name is not one of a directory.
    """
    if Path(name).name != name or name.startswith("."):
        raise UsageError(
            "--name", found=name, expected="a plain name", remedy="use -o for the parent folder"
        )
    path = output / name
    if path.exists():
        raise _taken(path)
    return RunDir(path)


@contextmanager
def claimed(run: RunDir, fresh: bool, may_rename: bool = False) -> Iterator[RunDir]:
    """Hold a run directory, so that no other process writes to it meanwhile.

    A fresh one is made, and removed again if nothing has been written to it.

    Args:
        run: the directory.
        fresh: it must not be there yet.
        may_rename: where another process has just taken the name, take NAME-2, NAME-3, ...

    Raises:
        UsageError: it is there, or another process holds it.
        OutputError: it cannot be made.
    """
    path, number = run.path, 1
    made_parent = not path.parent.exists()
    while fresh:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            break
        except FileExistsError as error:
            if not may_rename or not path.parent.is_dir():
                raise _taken(path) if path.exists() else unwritable(path, error) from error
            number += 1
            path = run.path.with_name(f"{run.path.name}-{number}")
        except OSError as error:
            raise unwritable(path, error) from error
    lock = path / ".lock"
    try:
        with lock.open("a") as file:
            _lock(path, file)
            try:
                yield RunDir(path)
            finally:
                lock.unlink(missing_ok=True)
    finally:
        if fresh:
            with suppress(OSError):
                path.rmdir()
                if made_parent:
                    path.parent.rmdir()


def _lock(path: Path, file: IO[str]) -> None:
    """Until the file is closed; the system forgets it with the process, however that ends."""
    if not held(file.fileno()):
        raise UsageError(
            path,
            found="a run that another process is training",
            expected="one that nobody writes to",
            remedy="wait for it, or choose another with --name",
        )


def _taken(path: Path) -> UsageError:
    return UsageError(
        path,
        found="a run of that name",
        expected="a free name",
        remedy=f"choose another with --name, or go on with --resume --name {path.name}"
        if (path / "split.json").is_file()
        else "choose another with --name, or remove it: it ended before it began",
    )


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
