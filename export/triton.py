"""A Triton model repository of an exported model: one served model for each graph and engine."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import onnx

from runtime.atomic import write_bytes, write_text
from runtime.atomic_directory import check_replaceable, replace_directory
from runtime.engine import read_records
from runtime.errors import UsageError
from runtime.model_card import CARD_KEY, ModelCard
from runtime.model_dir import ONNX_BF16, ONNX_FP16, ONNX_FP32, ModelDir
from runtime.serving import PRECISION_KEY, SHA256_KEY

MARK: Final = "brats-deploy.json"
"""By which a served model is known as ours; Triton passes it over."""
_LABELS: Final = "labels.txt"
_VERSION: Final = "1"
# Triton makes a folder of it, and a client an address.
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_-]+")
_GRAPHS: Final = {ONNX_FP32: "fp32", ONNX_FP16: "fp16", ONNX_BF16: "bf16"}


@dataclass(frozen=True)
class Served:
    """One model of the repository.

    Attributes:
        name: on the server.
        artefact: file of the model directory.
        precision: its arithmetic.
        platform: Triton's name of what runs it.
        input, output: names of its tensors.
        window: (X, Y, Z) that it takes; None for any.
        batch: most windows of a request.
        capability: compute capability of the GPU that an engine is for; None for a graph.
    """

    name: str
    artefact: str
    precision: str
    platform: Literal["onnxruntime_onnx", "tensorrt_plan"]
    input: str
    output: str
    window: tuple[int, int, int] | None
    batch: int
    capability: str | None = None

    @property
    def file(self) -> str:
        return "model.plan" if self.platform == "tensorrt_plan" else "model.onnx"


def write_repository(model: ModelDir, root: Path) -> list[Served]:
    """Write ``root``/NAME..., each with config.pbtxt, labels and version 1; ours are replaced.

    Served are the graphs that ONNX Runtime runs on a server, NAME in fp32, NAME_fp16 and NAME_bf16,
    NAME being the model's, and the engines with linear input and any batch as
    NAME_trt_PRECISION_smNN. What failed its certificate is left out.

    Args:
        model: exported.
        root: the repository, as of tritonserver --model-repository.

    Raises:
        UsageError: the model has nothing to serve.
        OutputError: it cannot be written, or another model has such a name.
    """
    served = list(_served(model, _NOT_IN_A_NAME.sub("_", model.card.name)))
    if not served:
        raise UsageError(
            "--triton",
            found=f"nothing in {model.path} that passed its certificate",
            expected="a graph or an engine to serve",
            remedy="export the model again",
        )
    for one in served:
        check_replaceable(root / one.name, MARK)
    for one in served:
        data = model.read(one.artefact)

        def fill(directory: Path, one: Served = one, data: bytes = data) -> None:
            write_bytes(directory / _VERSION / one.file, data)
            write_text(directory / "config.pbtxt", config(one, model.card, model.hashes))
            write_text(directory / _LABELS, "".join(f"{label}\n" for label in model.card.labels))
            write_text(directory / MARK, model.card.to_json() + "\n")

        replace_directory(root / one.name, fill, owned_by=MARK)
    return served


def config(served: Served, card: ModelCard, hashes: Mapping[str, str]) -> str:
    """The text of config.pbtxt, which is Triton's ModelConfig as a protobuf text.

    Args:
        served: the model.
        card: its contract, which goes into it whole, so that a client can tell which model it is.
        hashes: file of the model directory to SHA-256.
    """
    sizes = served.window or (-1, -1, -1)
    inputs = ", ".join(map(str, (len(card.modalities), *sizes)))
    outputs = ", ".join(map(str, (len(card.labels), *sizes)))
    parameters = {
        CARD_KEY: card.to_json(),
        SHA256_KEY: hashes[served.artefact],
        PRECISION_KEY: served.precision,
    }
    lines = [
        f"name: {_text(served.name)}",
        f"platform: {_text(served.platform)}",
        f"max_batch_size: {served.batch}",
        "input [",
        f"  {{ name: {_text(served.input)} data_type: TYPE_FP32 dims: [ {inputs} ] }}",
        "]",
        "output [",
        f"  {{ name: {_text(served.output)} data_type: TYPE_FP32 dims: [ {outputs} ] "
        f"label_filename: {_text(_LABELS)} }}",
        "]",
        # Windows of several patients share a batch, if they come within that time.
        "dynamic_batching { max_queue_delay_microseconds: 2000 }",
    ]
    if served.capability is not None:
        lines += [
            f"default_model_filename: {_text(served.file)}",
            f"cc_model_filenames {{ key: {_text(served.capability)} value: {_text(served.file)} }}",
        ]
    lines += [
        f"parameters {{ key: {_text(key)} value: {{ string_value: {_text(value)} }} }}"
        for key, value in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def _served(model: ModelDir, name: str) -> Iterator[Served]:
    for file, precision in _GRAPHS.items():
        failed = model.verdict(file) == "fail" or model.refused(file, "ort")
        if file in model.hashes and not failed:
            graph = onnx.load_model_from_string(model.read(file)).graph
            yield Served(
                name if precision == "fp32" else f"{name}_{precision}",
                file,
                precision,
                "onnxruntime_onnx",
                graph.input[0].name,
                graph.output[0].name,
                None,
                model.card.inference.batch,
            )
    taken: set[str] = set()
    for record in read_records(model):
        key, capability = record.key, record.key.gpu.compute_capability
        served = f"{name}_trt_{key.precision}_sm{capability.replace('.', '')}"
        # A server's requests are linear and of any size, and it has no backend for TensorRT-RTX.
        any_size = key.profile.min_batch == 1 and not key.profile.static
        fits = any_size and key.input_layout == "linear" and key.flavour == "tensorrt"
        if not fits or served in taken or model.verdict(key.plan) == "fail":
            continue
        taken.add(served)
        graph = onnx.load_model_from_string(model.read(ONNX_FP32)).graph
        yield Served(
            served,
            key.plan,
            key.precision,
            "tensorrt_plan",
            graph.input[0].name,
            graph.output[0].name,
            key.profile.window,
            key.profile.max_batch,
            capability,
        )


def _text(value: str) -> str:
    """A string of protobuf's text format, whose escapes JSON's are among."""
    return json.dumps(value, ensure_ascii=False)
