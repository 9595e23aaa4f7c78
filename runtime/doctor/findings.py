"""What the case doctor has to say."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much it matters."""

    ERROR = "error"  # keeps every model from using the case
    WARNING = "warning"  # can be used; should be looked at
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """Something about a case or a data set.

    Attributes:
        severity: how much it matters.
        code: short and stable, for programs.
        text: a sentence for people, with what to do about it.
        modality: whose image it is about; None where it is about several, or the label map.
    """

    severity: Severity
    code: str
    text: str
    modality: str | None = None


def error(code: str, text: str, modality: str | None = None) -> Finding:
    return Finding(Severity.ERROR, code, text, modality)


def warning(code: str, text: str, modality: str | None = None) -> Finding:
    return Finding(Severity.WARNING, code, text, modality)


def info(code: str, text: str) -> Finding:
    return Finding(Severity.INFO, code, text)


def in_short(findings: Iterable[Finding]) -> str:
    """Codes, each once, with the modalities they are about: "missing t1 t2, skull flair"."""
    modalities: dict[str, list[str]] = {}
    for finding in findings:
        named = modalities.setdefault(finding.code, [])
        if finding.modality is not None:
            named.append(finding.modality)
    return ", ".join(" ".join((code, *named)) for code, named in modalities.items())
