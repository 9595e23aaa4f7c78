"""A data set: what only shows when its cases are held beside each other."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Final

from runtime.doctor.examine import CaseReport
from runtime.doctor.findings import Finding, Severity, info, warning
from runtime.naming import patient_of

_SHOWN: Final = 5


def dialects(reports: Sequence[CaseReport]) -> dict[str, int]:
    """How many cases are named in each dialect, the most frequent first."""
    return _counted(report.case.dialect.value for report in reports)


def conventions(reports: Sequence[CaseReport]) -> dict[str, int]:
    """How many label maps there are of each convention, the most frequent first."""
    return _counted(
        report.convention.value if report.convention is not None else "unknown"
        for report in reports
        if report.case.labels is not None
    )


def totals(reports: Sequence[CaseReport], unread: int) -> dict[str, object]:
    """Figures of a data set.

    Args:
        reports: of its cases.
        unread: how many more could not be put together from their files.
    """
    usable = sum(report.usable for report in reports)
    return {
        "cases": len(reports) + unread,
        "usable": usable,
        "with_errors": len(reports) + unread - usable,
        "with_warnings": sum(bool(report.of(Severity.WARNING)) for report in reports),
        "dialects": dialects(reports),
        "conventions": conventions(reports),
    }


def compare(reports: Sequence[CaseReport]) -> list[Finding]:
    """Doubled cases and images, patients with several visits, names and numberings that differ."""
    return [*_doubled(reports), *_mixed(reports), *_visits(reports)]


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _doubled(reports: Sequence[CaseReport]) -> list[Finding]:
    """Images of two cases that are the same, byte for byte or voxel for voxel."""
    holders: dict[Hashable, list[tuple[CaseReport, str]]] = defaultdict(list)
    for report in reports:
        for name, facts in report.images.items():
            if facts.std > 0:
                holders[facts.voxel_key()].append((report, name))
    shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    of_case = {report.case.case_id: report for report in reports}
    for group in holders.values():
        first, name = group[0]
        for other, other_name in group[1:]:
            if other is not first:
                pair = (first.case.case_id, other.case.case_id)
                shared[pair].append((name, other_name))
    found: list[Finding] = []
    for (one, two), names in shared.items():
        whole = all(name == other for name, other in names) and len(names) == max(
            len(of_case[one].images), len(of_case[two].images)
        )
        same = all(
            of_case[one].images[name].sha256 == of_case[two].images[other].sha256
            for name, other in names
        )
        how = "the same bytes" if same else "the same voxels"
        if whole:
            text = f"{one} and {two} are one case twice ({how}); remove one of them"
            found.append(warning("duplicate-case", text))
            continue
        listed = ", ".join(
            name if name == other else f"{name} of the one and {other} of the other"
            for name, other in names
        )
        text = f"{one} and {two} share {listed} ({how}); one of them has another patient's image"
        found.append(warning("duplicate-image", text))
    return found


def _mixed(reports: Sequence[CaseReport]) -> list[Finding]:
    found: list[Finding] = []
    if len(named := dialects(reports)) > 1:
        text = f"several ways to name files: {_listed(named)}; are these parts of one data set?"
        found.append(warning("mixed-dialects", text))
    if len(numbered := conventions(reports)) > 1:
        text = (
            f"label maps of several conventions: {_listed(numbered)}; is each what its names say? "
            "--truth-labels names one for all"
        )
        found.append(warning("mixed-conventions", text))
    return found


def _visits(reports: Sequence[CaseReport]) -> list[Finding]:
    visits: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        visits[patient_of(report.case.case_id)].append(report.case.case_id)
    several = {patient: cases for patient, cases in visits.items() if len(cases) > 1}
    if not several:
        return []
    shown = ", ".join(
        f"{patient} ({len(cases)})" for patient, cases in list(several.items())[:_SHOWN]
    )
    more = f" and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
    return [info("several-visits", f"patients with several cases: {shown}{more}")]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
