"""The model directory that `gpu_check` measures: how it comes about, and what is in it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from benchmarks.gpu_bench import Bench
from benchmarks.gpu_run import sentence
from benchmarks.roofline import work_of
from export.build import file_of
from export.cli import ExportArgs
from export.cli import check as check_export
from export.half_weights import restored
from export.run import export as brats_export
from runtime.model_dir import ONNX_FP32, ModelDir


def export_model(bench: Bench) -> dict[str, Any]:
    """The model directory to measure, as brats-export makes it.

    Where that fails, what is there instead: the directory that was given, as it is, or the ONNX
    files alone. The failure is recorded, and the report says what was measured.
    """
    args = bench.args
    wanted = ExportArgs(
        checkpoint=args.model or args.checkpoint,
        output=args.output / "model",
        fp16=args.model is None,
        up_branch=args.up_branch,
        engine_level=args.engine_level,
        device=bench.index,
        data=bench.data,
        allow_inconclusive=True,
    )
    found: dict[str, Any] = {}
    try:
        bench.model_path = _exported(wanted)
    except Exception as error:
        found["error"] = sentence(error)
        if args.model is not None:
            found["instead"] = "the model directory that was given, as it is"
            bench.model_path = args.model
        else:
            found["instead"] = "an export without engines"
            try:
                bench.model_path = _exported(replace(wanted, engines="no"))
            except Exception as second:
                found["error"] += f" Without engines: {sentence(second)}"
                found["instead"] = "nothing"
                return found
    return found | {"model": str(bench.model_path), **_summary(bench.model.certificate)}


def _exported(wanted: ExportArgs) -> Path:
    """
    Raises:
        BratsError: of every kind; nothing is released then.
    """
    check_export(wanted)
    brats_export(wanted, Console(stderr=True))
    if wanted.output is None:
        raise ValueError("an output is named")
    return wanted.output


def floor(model: ModelDir, tflops: float, tbytes: float) -> dict[str, Any]:
    """What a window of the graph asks for, and its time at the ceilings of a device."""
    file = graph_of_engine(model)
    graph = onnx.load_from_string(restored(model.read(file)))
    work = work_of(graph, model.card.patch)
    arithmetic, memory = work.microseconds(tflops, tbytes)
    return {"graph": file, "arithmetic_us": arithmetic, "memory_us": memory, **asdict(work)}


def graph_of_engine(model: ModelDir) -> str:
    """The graph that the chosen engine was built from, that of reduced precision first: in fp32
    where the model holds its form in that, as it holds no casts then.
    """
    tried = (model.certificate.get("engines") or {}).get("tried", [])
    chosen = sorted(
        (one for one in tried if one["chosen"]), key=lambda one: one["precision"] == "fp32"
    )
    if not chosen:
        return ONNX_FP32
    plain = file_of("fp32", chosen[0]["up_branch"])
    return plain if plain in model.hashes else str(chosen[0]["file"])


def _summary(certificate: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "engines": certificate.get("engines"),
        "verdict": certificate["verdict"],
        "artefacts": [
            {name: entry.get(name) for name in ("file", "backend", "arithmetic", "verdict")}
            | {"worst": _worst(entry)}
            for entry in certificate["artefacts"]
        ],
    }


def _worst(entry: dict[str, Any]) -> dict[str, float]:
    records = [case for case in entry.get("cases", ()) if not case["non_finite"]]
    if not records:
        return {}
    return {
        "dice": min(min(record["dice_to_fp32"].values()) for record in records),
        "changed_labels": max(record["changed_labels"] for record in records),
        "probability": max(record["max_probability_error"] for record in records),
    }
