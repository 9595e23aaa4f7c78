"""Cases for the parity certificate: a data set's own, or phantoms where none is given."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from export.parity import ParityCase
from runtime.case import Case, find_cases
from runtime.labels import Convention
from runtime.nifti import load
from runtime.phantom import Enhancement, write_phantom
from runtime.truth import load_truth

# Not the series that users train on.
PHANTOM_SEED: Final = 20_201


def parity_cases(
    data: Path | None, limit: int, convention: Convention | None = None
) -> Iterator[ParityCase]:
    """Cases one after another, at most ``limit``; labelled ones first.

    Args:
        data: a folder of cases; None makes phantoms in a temporary folder.
        limit: how many at most.
        convention: of the label maps in ``data``; None as each case says.

    Raises:
        InputError: a case cannot be read, or its labels are outside its convention or in doubt.
    """
    if data is not None:
        cases = sorted(find_cases(data), key=lambda case: (case.labels is None, case.case_id))
        for case in cases[:limit]:
            yield _load(case, convention)
        return
    with tempfile.TemporaryDirectory(prefix="brats-parity-") as folder:
        for number in range(1, limit + 1):
            case_dir = write_phantom(
                Path(folder), number, PHANTOM_SEED, enhancement=Enhancement.RIM
            )
            yield _load(Case.from_dir(case_dir))


def _load(case: Case, convention: Convention | None = None) -> ParityCase:
    volume = load(case)
    truth = load_truth(case, volume, convention) if case.labels is not None else None
    return ParityCase(volume, truth)
