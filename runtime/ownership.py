"""Whose file in an output folder is: sidecars say what they vouch for."""

from pathlib import Path
from typing import Any, Final

from runtime.bounded import read_json

SIDECAR_SCHEMA: Final = 1


def owner_of(path: Path, own: Path) -> Path | None:
    """The sidecar of another case that vouches for a file: of cases B and B_seg, B's label map is
    called as B_seg's would be for a submission.
    """
    stem = path.name.removesuffix(".nii.gz")
    for case_id in {stem, stem.removesuffix("_seg"), stem.removesuffix("_prob")}:
        sidecar = path.with_name(f"{case_id}.json")
        if sidecar != own and path.name in written_by(sidecar):
            return sidecar
    return None


def written_by(sidecar: Path) -> dict[str, str]:
    """File name to SHA-256 of what the sidecar vouches for; empty where it is not one of ours."""
    try:
        return written_of(read_json(sidecar))
    except (OSError, ValueError):
        return {}


def written_of(value: Any) -> dict[str, str]:
    """The same of a sidecar's content."""
    try:
        output, run = value["output"], value["run"]
        entries = [
            output,
            *(output[kind] for kind in ("probabilities",) if kind in output),
            *(run[kind] for kind in ("preview", "report") if kind in run),
        ]
        if value["schema"] != SIDECAR_SCHEMA or "backend" not in value:
            return {}
        return {str(entry["file"]): str(entry["sha256"]) for entry in entries}
    except (KeyError, TypeError):
        return {}
