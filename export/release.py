"""Write a model directory, or, where the gate is not passed, its certificate alone beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.atomic import check_writable, write_bytes, write_json, write_text
from runtime.atomic_directory import check_replaceable, replace_directory
from runtime.errors import OutputError, ParityError
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_card import ModelCard
from runtime.model_dir import CARD, PARITY, foreign_files


def check_target(out: Path) -> None:
    """Refuse, before any work is spent, a place that `release` could not write.

    Raises:
        OutputError: ``out`` is something else than a model directory, or its parent cannot be
            written.
    """
    check_replaceable(out, MANIFEST)
    strangers = foreign_files(out)
    if strangers:
        raise OutputError(
            out,
            found=f"files that are no part of an exported model ({', '.join(strangers[:3])})",
            expected="a free name or a model directory as brats-export wrote it",
            remedy="move them away or choose another output with -o",
        )
    check_writable(out.absolute().parent)


def release(
    out: Path,
    card: ModelCard,
    files: Mapping[str, bytes],
    certificate: Mapping[str, Any],
    allow_inconclusive: bool,
) -> None:
    """Put a certified model at ``out``, replacing an earlier one in one step.

    Args:
        out: the model directory.
        card: the contract, also in the metadata of every ONNX file.
        files: name to bytes of the ONNX models, engines and engine records.
        certificate: content of parity.json, from `parity.certify`.
        allow_inconclusive: release although the cases could not decide; recorded in the
            certificate.

    Raises:
        ParityError: the gate failed or could not decide. ``out`` is as it was, and
            ``<out>.rejected/parity.json`` says why.
        OutputError: ``out`` cannot be written or is not a model directory.
    """
    verdict = certificate["verdict"]
    certificate = {**certificate, "allow_inconclusive": allow_inconclusive}
    if verdict == "fail" or (verdict == "inconclusive" and not allow_inconclusive):
        rejected = out.with_name(f"{out.name}.rejected") / PARITY
        write_json(rejected, certificate)
        raise _refused(verdict, certificate, rejected)

    check_target(out)

    def fill(directory: Path) -> None:
        for name, data in files.items():
            write_bytes(directory / name, data)
        write_text(directory / CARD, card.to_json())
        write_json(directory / PARITY, certificate)
        write_bytes(directory / MANIFEST, manifest_of(directory))

    replace_directory(out, fill, owned_by=MANIFEST)


def _refused(verdict: str, certificate: Mapping[str, Any], rejected: Path) -> ParityError:
    entry = next(item for item in certificate["artefacts"] if item["verdict"] == verdict)
    more = len(entry["reasons"]) - 1
    found = f"{_words(entry)}: {entry['reasons'][0]}"
    if more:
        found += f" (and {more} more)"
    if verdict == "fail":
        remedy = f"nothing was released; see the certificate and {_remedy(entry)}"
    else:
        remedy = (
            "give labelled cases that show every region with --data, or release it unproven with "
            "--allow-inconclusive"
        )
    return ParityError(rejected, found=found, expected="a passed parity gate", remedy=remedy)


def _words(entry: Mapping[str, Any]) -> str:
    """An artefact and what ran it; an engine by its graph, since nothing keeps its plan."""
    if "built_from" in entry:
        return f"the fastest engine of {entry['built_from']}"
    return f"{entry['file']} on {entry['backend']}"


def _remedy(entry: Mapping[str, Any]) -> str:
    if "built_from" in entry:
        return "run the ONNX models on this GPU with --backend ort"
    if ".int8." in entry["file"]:
        return "export again without --int8"
    # A search that found nothing says why it gave up; without one, none was allowed.
    if "kept" in entry and "gave_up" not in entry["kept"]:
        return "export again without --strict-fp16"
    for kind in ("fp16", "bf16"):
        if f".{kind}." in entry["file"]:
            return f"export again without --{kind}"
    return "check the checkpoint"
