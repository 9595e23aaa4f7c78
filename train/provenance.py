"""What a run was made with: versions, revision, machine, command."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from runtime import __version__
from train.device import Compute
from train.distributed import World

_PACKAGES: Final = ("torch", "torchio", "numpy", "nibabel", "scipy", "openvino", "onnxruntime-gpu")


def provenance(args: Sequence[str], compute: Compute, world: World) -> dict[str, Any]:
    """As stored in environment.json.

    Args:
        args: the command line without the program's name.
        compute: device and arithmetic.
        world: the processes that train together.
    """
    device = compute.device
    on_gpu = device.type == "cuda"
    return {
        "brats_deploy": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "precision": compute.precision,
        "processes": world.size,
        "arguments": list(args),
    }


def revision() -> str | None:
    """The git commit of the source tree, "-dirty" where files were changed; None if unknown."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        # A tag would stand in for the commit.
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
