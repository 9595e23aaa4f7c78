"""What brats-app tells the page, in the page's own argument."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class AppOptions:
    """Of the server, the same for everybody who opens the page.

    Attributes:
        root: folder that is searched for models and runs.
        model: a model directory, offered first; None where none was named.
        data: folder whose cases may be opened from the page; None offers none.
        device: auto, cpu, or cuda:N.
        threads: CPU threads; None means all cores.
        max_upload_mb: largest file to take, in MiB.
        max_cases: segmented cases that a visit keeps for comparison.
        grace_s: how long after its browser has gone a visit's files are kept.
    """

    root: str = "."
    model: str | None = None
    data: str | None = None
    device: str = "auto"
    threads: int | None = None
    max_upload_mb: int = 512
    max_cases: int = 4
    grace_s: float = 60.0

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> "AppOptions":
        """The options in a script's arguments; the defaults where it was started by hand."""
        return cls(**json.loads(arguments[0])) if arguments else cls()

    @property
    def named(self) -> tuple[Path, ...]:
        return () if self.model is None else (Path(self.model),)
