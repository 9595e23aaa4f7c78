"""The tests marked `gpu`, in a process of their own, counted."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

ROOT: Final = Path(__file__).parents[1]
GPU_TESTS: Final = ("tests/test_backends.py", "tests/test_cupy_ops.py")


def run_contract(files: Sequence[str], log: Path, index: int, timeout_s: float) -> dict[str, Any]:
    """Run the tests of ``files`` that are marked `gpu`.

    Args:
        files: relative to the checkout; only these, since a test file that cannot be imported on
            that machine is none of this check's business.
        log: gets what pytest printed.
        index: CUDA device, which the tests see as their first.
        timeout_s: after that they are ended.

    Returns:
        passed, failed and skipped; ``skips`` counts the skipped by reason, ``failures`` names the
        failed. With "error" unless at least one passed and none failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-m", "gpu"]
        # No warning is an error: the libraries are that machine's.
        command += ["-q", "-rs", "-W", "default", f"--junitxml={results}", *files]
        with log.open("w") as file:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=_environment(index),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    check=False,
                    timeout=timeout_s,
                ).returncode
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {timeout_s:.0f} s; see {log.name}"}
        if not results.is_file():
            return {"error": f"pytest left with {code} and no results; see {log.name}"}
        found = counted(results.read_text())
    if found["failed"] or code not in (0, 5):
        found["error"] = f"{found['failed']} failed, pytest left with {code}; see {log.name}"
    elif not found["passed"]:
        found["error"] = f"no test passed, {found['skipped']} skipped; see {log.name}"
    return found


def counted(text: str) -> dict[str, Any]:
    """What a JUnit file of pytest holds; an error counts as a failure."""
    passed, failures, skips = 0, [], Counter[str]()
    for case in ElementTree.fromstring(text).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            skips[skipped.get("message") or "no reason given"] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        else:
            passed += 1
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": skips.total(),
        "skips": dict(skips.most_common()),
        "failures": failures,
    }


def _environment(index: int) -> dict[str, str]:
    """This process's, in which the first CUDA device is the one that is named here."""
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    # Only where another is named: a list of one hides what tests with two devices need.
    if not index:
        return dict(os.environ)
    chosen = visible[index] if index < len(visible) else str(index)
    return {**os.environ, "CUDA_VISIBLE_DEVICES": chosen}
