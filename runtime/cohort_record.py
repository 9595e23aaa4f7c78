"""What became of a cohort, case by case, and the figures that all of it comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, log, nan
from statistics import median
from typing import Any, Final, Literal

from runtime.cohort import Outcome
from runtime.errors import BratsError
from runtime.labels import REGIONS

Status = Literal["done", "kept", "failed"]
"""Segmented now; done by an earlier run, whose result stands; no result."""

_LABELS: Final = ("NCR", "ED")
STRUCTURES: Final = (*REGIONS, *_LABELS)
"""Whose volumes are told; ET is a region and a label."""
STAGES: Final = (
    "load", "prepare", "bind", "gather", "network", "stitch", "finish", "save",
)  # fmt: skip
"""Of `timings_s` of a sidecar, in the order of the work."""

_FEWEST: Final = 8
"""Cases below which nothing is said of how unusual one of them is."""
_UNUSUAL: Final = 3.5
"""Modified z-score from which a volume is told (Iglewicz and Hoaglin 1993)."""
_NORMAL: Final = 0.6745
"""The median absolute deviation of a normal distribution, in its standard deviations."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One case: about a kilobyte, as there may be a hundred thousand.

    Attributes:
        case_id: of the case; empty where its files could not be put together to one.
        status: what became of it.
        labels: name of its label map.
        shown: name of the page or the picture beside it; empty where there is none.
        volumes_ml: by `STRUCTURES`; empty where it failed.
        seconds: by `STAGES`, as far as they were told.
        warnings: what was told of it.
        backend: name, device and precision of what ran.
        fell_back_from: why it was not what was asked for; empty where it was.
        error: why it failed.
    """

    case_id: str
    status: Status
    labels: str = ""
    shown: str = ""
    volumes_ml: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    backend: tuple[str, str, str] = ("", "", "")
    fell_back_from: str = ""
    error: BratsError | None = None

    @classmethod
    def of(cls, case_id: str, status: Status, sidecar: Mapping[str, Any]) -> "Entry":
        """A case that has a label map, by its sidecar."""
        regions, labels = sidecar["volumes_ml"]["regions"], sidecar["volumes_ml"]["labels"]
        run, backend = sidecar["run"], sidecar["backend"]
        page: Mapping[str, Any] = run.get("report") or run.get("preview") or {}
        return cls(
            case_id,
            status,
            labels=str(sidecar["output"]["file"]),
            shown=str(page.get("file", "")),
            volumes_ml=tuple(float((regions | labels)[name]) for name in STRUCTURES),
            seconds=tuple(float(sidecar["timings_s"].get(stage, nan)) for stage in STAGES),
            warnings=tuple(map(str, sidecar["warnings"])),
            backend=(str(backend["name"]), str(backend["device"]), str(backend["precision"])),
            fell_back_from=str(backend.get("fell_back_from") or ""),
        )

    def volume(self, structure: str) -> float:
        """In ml, of one of `STRUCTURES`."""
        return self.volumes_ml[STRUCTURES.index(structure)]

    @property
    def total_s(self) -> float:
        """Seconds of all stages that were told."""
        return sum(one for one in self.seconds if isfinite(one))


@dataclass(frozen=True)
class Reason:
    """Why a person should look at a case before others.

    Attributes:
        case: to look at.
        weight: the higher, the earlier.
        text: in words.
    """

    case: Entry
    weight: float
    text: str


@dataclass
class Record:
    """The cases so far.

    Attributes:
        total: how many there are to be.
        entries: of those that have ended, in the order in which they did.
    """

    total: int
    entries: list[Entry] = field(default_factory=list)

    def add(self, outcome: Outcome) -> Entry:
        """Take in a case that has ended."""
        case_id, sidecar = outcome.case.case_id, outcome.sidecar
        if outcome.error is not None or sidecar is None:
            entry = Entry(case_id, "failed", error=outcome.error)
        else:
            entry = Entry.of(case_id, "kept" if outcome.kept else "done", sidecar)
        self.entries.append(entry)
        return entry

    def problem(self, error: BratsError) -> None:
        """Take in a case that could not be put together from its files."""
        self.entries.append(Entry("", "failed", error=error))

    def count(self, status: Status) -> int:
        """How many have ended so."""
        return sum(entry.status == status for entry in self.entries)

    def of(self, *statuses: Status) -> list[Entry]:
        """Those that have ended so, by their names."""
        found = [entry for entry in self.entries if entry.status in statuses]
        return sorted(found, key=lambda entry: (entry.case_id, str(entry.error or "")))


def to_look_at(entries: Sequence[Entry]) -> list[Reason]:
    """Cases that a person should look at before others, the most pressing first, each once.

    Pressing is, in this order: no tumour at all; a volume of a region that is far from those of the
    other cases (`modified_z` of its logarithm beyond 3.5, told of 8 cases and more); no
    tumour core; what the run itself warned of.

    Args:
        entries: cases that have a result.
    """
    found: dict[str, list[Reason]] = {}

    def tell(case: Entry, weight: float, text: str) -> None:
        found.setdefault(case.case_id, []).append(Reason(case, weight, text))

    for name in REGIONS:
        present = [case for case in entries if case.volume(name) > 0]
        scores = modified_z([case.volume(name) for case in present])
        for case, score in zip(present, scores, strict=True):
            if abs(score) > _UNUSUAL:
                size = "large" if score > 0 else "small"
                volume = f"{name} of {case.volume(name):.1f} ml"
                tell(case, min(abs(score), 99), f"{volume} is unusually {size}")
    for case in entries:
        if not case.volume("WT"):
            tell(case, 100, "no tumour was found")
        elif not case.volume("TC"):
            tell(case, 3, "no tumour core was found")
        for text in case.warnings:
            tell(case, 2, text)
        if case.fell_back_from:
            tell(case, 1, f"run otherwise than asked: {case.fell_back_from}")
    merged = [
        Reason(told[0].case, max(one.weight for one in told), _sentence(told))
        for told in found.values()
    ]
    return sorted(merged, key=lambda reason: (-reason.weight, reason.case.case_id))


def _sentence(told: Sequence[Reason]) -> str:
    return "; ".join(one.text for one in sorted(told, key=lambda one: -one.weight))


def modified_z(values: Sequence[float]) -> list[float]:
    """How far each value's logarithm lies from the median, in deviations (Iglewicz and Hoaglin,
    *How to Detect and Handle Outliers*, 1993): 0.6745 times the distance over the median absolute
    deviation. 0 for all of them where there are fewer than 8, or where half of them are equal.

    Args:
        values: above 0.
    """
    if len(values) < _FEWEST:
        return [0.0] * len(values)
    logs = [log(value) for value in values]
    middle = median(logs)
    deviation = median(abs(value - middle) for value in logs)
    if not deviation:
        return [0.0] * len(values)
    return [_NORMAL * (value - middle) / deviation for value in logs]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, quartiles, most and mean of some figures, linear between ranks; empty of none."""
    if not values:
        return {}
    ranked = sorted(values)

    def at(part: float) -> float:
        place = part * (len(ranked) - 1)
        low = int(place)
        high = min(low + 1, len(ranked) - 1)
        return ranked[low] + (place - low) * (ranked[high] - ranked[low])

    parts = {"least": 0.0, "lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75, "most": 1}
    return {name: at(part) for name, part in parts.items()} | {"mean": sum(ranked) / len(ranked)}
