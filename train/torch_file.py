"""The only reader of PyTorch files; nothing that a file holds is run."""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import is_zipfile

import torch

from runtime.errors import InputError
from train.numpy_numbers import numpy_numbers

# How torch.save began its files before PyTorch 1.6: the pickle of a magic number.
_LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Wanted:
    """What a file should be, for the errors of one that is not.

    Attributes:
        what: such a file, in words.
        remedy: against damage.
        cleared: remedy where a file holds more than data.
    """

    what: str
    remedy: str
    cleared: str = ""

    def error(self, path: Path, found: str, remedy: str = "") -> InputError:
        """The error of ``path``, where ``found`` was found."""
        return InputError(path, found=found, expected=self.what, remedy=remedy or self.remedy)


def read_torch_file(path: Path, wanted: Wanted) -> Any:
    """The content of what ``torch.save`` wrote, its tensors on the CPU.

    Tensors, containers, strings and numbers are read; NumPy's scalars become Python numbers.

    Args:
        path: the file.
        wanted: what it should be.

    Raises:
        InputError: missing, truncated, damaged, older than PyTorch 1.6, or with anything else in
            it.
    """
    if not path.is_file():
        raise wanted.error(
            path,
            "a folder" if path.is_dir() else "nothing",
            "check the path, or train a model with brats-train",
        )
    try:
        is_zip = is_zipfile(path)
        with path.open("rb") as file:
            legacy = file.read(len(_LEGACY)) == _LEGACY
    except OSError as error:
        raise wanted.error(path, f"an unreadable file ({error.strerror})") from error
    if legacy:
        raise wanted.error(
            path,
            "a file in the format of PyTorch before 1.6",
            "load it with PyTorch and save it again",
        )
    if not is_zip:
        raise wanted.error(path, "an unreadable file (truncated, or not a PyTorch file)")
    try:
        with numpy_numbers():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        more = "more than tensors and strings"
        found = f"that holds {more} ({named[1]})" if named else f"that is damaged or holds {more}"
        raise wanted.error(path, f"a PyTorch file {found}", wanted.cleared) from error
    except Exception as error:
        # What is not what torch.save wrote fails wherever the damage happens to be.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise wanted.error(path, f"an unreadable file ({first})") from error
