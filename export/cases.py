"""Cases for the parity certificate and for calibration: a data set's own, or phantoms where none is
given.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from export.calibrate import CalibrationCases
from export.parity import ParityCase
from runtime.case import Case, find_cases
from runtime.labels import Convention
from runtime.nifti import Volume, load
from runtime.phantom import Enhancement, write_phantom
from runtime.truth import load_truth

# Not the series that users train on.
PHANTOM_SEED: Final = 20_201
CALIBRATION_SEED: Final = 20_202
CALIBRATION: Final = 4
"""Most cases to calibrate on."""
GATE: Final = 3
"""Cases that the gate needs at least."""


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


def calibration_cases(data: Path | None, given: Path | None) -> CalibrationCases:
    """Cases to calibrate int8 on, at most `CALIBRATION` of them, and other ones than the gate reads
    first.

    Args:
        data: the folder of the gate's cases; None where these are phantoms.
        given: a folder of cases to calibrate on; None takes the last ones of ``data``, which leaves
            the first `GATE` to the gate, or phantoms of another series. Where ``data`` holds no
            more than the gate needs, they are the same cases.

    Raises:
        InputError: a folder holds no case.
    """
    folder = given or data
    if folder is None:
        return CalibrationCases(_calibration_phantoms(), "phantoms")
    cases = sorted(find_cases(folder), key=lambda case: (case.labels is None, case.case_id))
    shared = given is None and len(cases) <= GATE
    count = CALIBRATION if given is not None or shared else min(CALIBRATION, len(cases) - GATE)
    source = "data" if given is None else "cases of its own"
    return CalibrationCases((load(case) for case in cases[-count:]), source, shared)


def _calibration_phantoms() -> Iterator[Volume]:
    with tempfile.TemporaryDirectory(prefix="brats-calibration-") as folder:
        for number in range(1, CALIBRATION + 1):
            case_dir = write_phantom(
                Path(folder), number, CALIBRATION_SEED, enhancement=Enhancement.RIM
            )
            yield load(Case.from_dir(case_dir))
