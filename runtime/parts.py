"""A part of a cohort: what one of n jobs takes, so that together they take each case once."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.case import Case


@dataclass(frozen=True)
class Part:
    """The ``index``-th of ``count`` parts, counted from 1."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"there is no part {self.index} of {self.count}")

    def of(self, cases: Sequence[Case]) -> list[Case]:
        """Every ``count``-th case by name: of the same cases always the same ones."""
        return sorted(cases, key=lambda case: case.case_id)[self.index - 1 :: self.count]

    @property
    def suffix(self) -> str:
        """-2-of-8, for names of files."""
        return f"-{self.index}-of-{self.count}"
