"""Cases for the parity certificate: a data set's own, or phantoms where none is given."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from export.parity import ParityCase
from runtime.case import Case, find_cases
from runtime.nifti import load
from runtime.phantom import Enhancement, write_phantoms
from runtime.truth import load_truth

# Not the series that users train on.
PHANTOM_SEED: Final = 20_201


def parity_cases(data: Path | None, limit: int) -> Iterator[ParityCase]:
    """Cases one after another, at most ``limit``; labelled ones first.

    Args:
        data: a folder of cases; None makes phantoms in a temporary folder.
        limit: how many at most.

    Raises:
        InputError: a case cannot be read, or its labels are outside its convention.
    """
    if data is not None:
        cases = sorted(find_cases(data), key=lambda case: (case.labels is None, case.case_id))
        for case in cases[:limit]:
            yield _load(case)
        return
    with tempfile.TemporaryDirectory(prefix="brats-parity-") as folder:
        for number in range(limit):
            out = Path(folder) / str(number)
            write_phantoms(out, 1, PHANTOM_SEED + number, enhancement=Enhancement.RIM)
            yield _load(find_cases(out)[0])


def _load(case: Case) -> ParityCase:
    volume = load(case)
    truth = load_truth(case, volume) if case.labels is not None else None
    return ParityCase(volume, truth)
