"""What `brats-infer --check` prints: a table per case for a few, a line per case for many."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from runtime.doctor.dataset import totals
from runtime.doctor.examine import CaseReport
from runtime.doctor.findings import Finding, Severity, in_short
from runtime.labels import MODALITIES, as_text
from runtime.printable import printable

FEW: Final = 5
"""So many cases are shown with a table each."""
_STYLES: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_COLUMNS: Final = ("", "shape", "mm", "axes", "dtype", "min", "max", "not 0", "mean", "std")
_LONGEST_ID: Final = 40


class CheckView:
    """Tells what was found as it is found; errors also where the console is quiet."""

    def __init__(self, console: Console, case_ids: Sequence[str]) -> None:
        """
        Args:
            console: where it is told.
            case_ids: of all cases that will be shown.
        """
        self._console = console
        self._loud = Console(stderr=True, soft_wrap=True) if console.quiet else console
        self._many = len(case_ids) > FEW
        self._width = min(_LONGEST_ID, max((len(printable(one)) for one in case_ids), default=0))

    def problem(self, text: str) -> None:
        """Files of which no case could be made."""
        self._loud.print(
            f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True
        )

    def case(self, report: CaseReport) -> None:
        """One case, when it has been looked at."""
        case_id = report.case.case_id
        if self._console.quiet:
            for finding in report.of(Severity.ERROR):
                self.problem_of(case_id, finding)
        elif self._many:
            self._line(report)
        else:
            self._console.print(_heading(report), soft_wrap=True)
            self._console.print(_table(report))
            for finding in report.findings:
                self._finding(finding)
            self._console.print()

    def problem_of(self, case_id: str, finding: Finding) -> None:
        text = printable(f"{case_id} {finding.severity}: {finding.text}")
        self._loud.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def data_set(
        self, reports: Sequence[CaseReport], unread: int, findings: Sequence[Finding]
    ) -> None:
        """The whole data set, after its cases."""
        for finding in findings:
            self._finding(finding, indent=0)
        found = totals(reports, unread)
        text = (
            f"{_count(found['cases'], 'case')}: {found['usable']} usable, {found['with_errors']} "
            f"with errors, {found['with_warnings']} with warnings"
        )
        for word in ("dialects", "conventions"):
            counts = found[word]
            if isinstance(counts, dict) and counts:
                text += f"; {word} " + ", ".join(f"{key} {n}" for key, n in counts.items())
        self._console.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)

    def _line(self, report: CaseReport) -> None:
        worst = "error" if not report.usable else "ok"
        style = "red" if not report.usable else ""
        if report.usable and report.of(Severity.WARNING):
            worst, style = "warning", "yellow"
        line = Text.assemble(
            (f"{worst:<8}", style),
            f"{_cut(printable(report.case.case_id)):<{self._width}}  ",
            (f"{_content(report)}  ", "dim"),
            # Errors follow in full.
            (in_short(report.of(Severity.WARNING)), "yellow"),
        )
        line.rstrip()
        self._console.print(line, soft_wrap=not self._console.is_terminal)
        for finding in report.of(Severity.ERROR):
            self._finding(finding)

    def _finding(self, finding: Finding, indent: int = 2) -> None:
        style = _STYLES[finding.severity]
        head, told = f"{finding.severity}: ", printable(finding.text)
        if not self._console.is_terminal:
            self._console.print(Text(" " * indent + head + told, style), soft_wrap=True)
            return
        row = Table.grid()
        row.add_row(Text(head, style), Text(told, style, overflow="fold"))
        self._console.print(Padding(row, (0, 0, 0, indent)))


def _heading(report: CaseReport) -> Text:
    case = report.case
    text = f"  {case.dialect} naming"
    if case.labels is not None:
        text += f", labels {report.convention or 'of no known numbering'}"
    if report.labels is not None:
        text += f" ({_values(report)} {report.labels.dtype})"
    return Text.assemble((printable(case.case_id), "bold"), (text, "dim"))


def _table(report: CaseReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in _COLUMNS:
        right = name in ("min", "max", "not 0", "mean", "std")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for name in MODALITIES:
        if name not in report.case.images:
            continue
        facts = report.images.get(name)
        if facts is None:
            table.add_row(name, "unreadable")
            continue
        table.add_row(
            name,
            "x".join(map(str, facts.grid.shape)),
            "x".join(f"{size:.3g}" for size in facts.grid.spacing),
            facts.axes,
            facts.dtype,
            f"{facts.minimum:.4g}",
            f"{facts.maximum:.4g}",
            f"{facts.nonzero:.0%}",
            f"{facts.mean:.4g}",
            f"{facts.std:.4g}",
        )
    return table


def _content(report: CaseReport) -> str:
    """Dialect, what images there are, where they lie, and labels, in a few words."""
    parts = [str(report.case.dialect)]
    shapes = {(facts.grid.shape, facts.axes) for facts in report.images.values()}
    if len(shapes) == 1:
        ((shape, axes),) = shapes
        parts.append(f"{'x'.join(map(str, shape))} {axes}")
    if report.labels is not None:
        parts.append(f"{report.convention or '?'} {_values(report)}")
    return " ".join(parts)


def _values(report: CaseReport) -> str:
    return ",".join(map(as_text, report.labels.values)) if report.labels else ""


def _cut(case_id: str) -> str:
    return case_id if len(case_id) <= _LONGEST_ID else f"{case_id[: _LONGEST_ID - 3]}..."


def _count(number: object, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
