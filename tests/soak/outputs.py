"""What lies in an output folder: whole or torn, finished or not, as it should be or other."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from PIL import Image

from runtime.case import Case, Source
from runtime.cohort_files import seal_of
from runtime.errors import BratsError
from runtime.nifti import load, load_label_map

CHANGING: Final = ("timings_s", "run")
"""What differs between the sidecars of two runs that did the same."""


def names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def leftovers(folder: Path) -> list[str]:
    """Temporary files of ours, which only a run that is at work may have."""
    return sorted(name for name in names_in(folder) if name.endswith((".tmp", ".old")))


def torn(folder: Path) -> list[str]:
    """Files under a final name that are not whole, each by the reader of its kind."""
    found = []
    for name in sorted(names_in(folder)):
        path = folder / name
        if name.startswith("."):
            continue
        try:
            if name.endswith("_prob.nii.gz"):
                load(Case("X", {"t1": Source(path, 3)}))
            elif name.endswith(".nii.gz"):
                load_label_map(path)
            elif name.endswith(".json"):
                json.loads(path.read_bytes())
            elif name.endswith(".csv"):
                if not path.read_text(encoding="utf-8").endswith("\n"):
                    found.append(f"{name}: no end")
            elif name.endswith(".png"):
                with Image.open(path) as picture:
                    picture.load()
            elif not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
                found.append(f"{name}: no end")
        except (BratsError, OSError, ValueError, SyntaxError) as error:
            found.append(f"{name}: {error}")
    return found


def untrue(folder: Path) -> list[str]:
    """Sidecars that vouch for a file that is not there, or is another one; and a cohort's record
    that does not vouch for itself.
    """
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        told = json.loads(path.read_bytes())
        if "files" in told:  # a cohort's record
            files = [{"file": name, "sha256": sha256} for name, sha256 in told["files"].items()]
            if told.pop("sha256") != seal_of(told):
                found.append(f"{path.name} is another one than it says")
        else:
            output, run = told["output"], told["run"]
            files = [output, output.get("probabilities"), run.get("preview"), run.get("report")]
        for entry in filter(None, files):
            target = folder / entry["file"]
            if not target.is_file():
                found.append(f"{path.name} vouches for {target.name}, which is not there")
            elif hashlib.sha256(target.read_bytes()).hexdigest() != entry["sha256"]:
                found.append(f"{path.name} vouches for another {target.name}")
    return found


def meaning(folder: Path) -> dict[str, Any]:
    """Visible files by name: the bytes, but of a sidecar what does not change from run to run, and
    of a page only that it is there, as it names the time.
    """
    found: dict[str, Any] = {}
    for name in names_in(folder):
        data = b"" if name.endswith(".html") else (folder / name).read_bytes()
        if name.startswith((".", "cohort")):
            continue  # the cohort's own files tell of one run
        if name.endswith(".json"):
            value = json.loads(data)
            found[name] = {key: value[key] for key in value if key not in CHANGING}
        else:
            found[name] = data
    return found
