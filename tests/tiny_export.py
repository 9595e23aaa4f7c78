"""What the tests of brats-export with engines share: a checkpoint, cases, a builder with a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

import export.cli
from export.engine import BuildOptions, BuiltEngine
from export.trace import set_card, trace
from runtime.backends.tensorrt_library import TensorRt
from runtime.engine import InputLayout
from runtime.errors import ComputeError
from runtime.model_card import InferenceDefaults, ModelCard
from runtime.phantom import Enhancement, write_phantoms
from tests.fake_gpu import fake_build
from tests.test_parity import ARCHITECTURE, overflowing, thresholds, without_et
from train.checkpoint import Checkpoint, save_checkpoint

CARD: Final = ModelCard(
    "tiny", patch=(32, 32, 16), divisor=2, inference=InferenceDefaults(overlap=0.0, batch=2)
)
NETWORKS: Final = {"good": thresholds, "overflowing": overflowing, "without_et": without_et}

Combination = tuple[str, InputLayout]
"""An ONNX model of the model directory, and the layout of an engine's input."""


def write_checkpoints(folder: Path) -> None:
    """One for each of the networks, by name."""
    for name, make in NETWORKS.items():
        state = make().state_dict()
        save_checkpoint(folder / f"{name}.pt", Checkpoint(state, ARCHITECTURE, CARD, epoch=1))


def write_cases(folder: Path) -> None:
    """Three phantoms in which every region is large enough to decide."""
    write_phantoms(folder, 3, seed=11, shape=(44, 44, 36), enhancement=Enhancement.RIM)


class Tracer:
    """`export.trace.trace`, which takes seconds, once: the other networks differ in weights only,
    and these are put in.
    """

    def __init__(self) -> None:
        self._traced = trace(thresholds(), CARD)

    def __call__(self, network: torch.nn.Module, card: ModelCard) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._traced)
        state = network.state_dict()
        replaced = 0
        for item in model.graph.initializer:
            name = item.name.removeprefix("network.")
            if name in state:
                item.CopyFrom(numpy_helper.from_array(state[name].numpy(), item.name))
                replaced += 1
        counters = sum(name.endswith("num_batches_tracked") for name in state)
        assert replaced == len(state) - counters
        set_card(model, card)
        return model


@dataclass
class Builder:
    """Stands for `export.engine.build_engine` and `export.engines.window_seconds`.

    Attributes:
        ms: per window, of a combination; 1 where none is planned.
        broken: combinations that cannot be built.
        wrong: combinations whose engine calls everything background.
        error: raised by every build.
        built: what was built, with its options, in order.
        models: the graphs that it was built from.
    """

    ms: Mapping[Combination, float] = field(default_factory=dict)
    broken: frozenset[Combination] = frozenset()
    wrong: frozenset[Combination] = frozenset()
    error: BaseException | None = None
    built: list[tuple[Combination, BuildOptions]] = field(default_factory=list)
    models: list[bytes] = field(default_factory=list)

    def build(
        self,
        model: bytes,
        library: TensorRt,
        options: BuildOptions,
        progress: Any = None,
        source: str = "",
    ) -> BuiltEngine:
        combination = (source, options.input_layout)
        self.built.append((combination, options))
        self.models.append(model)
        if self.error is not None:
            raise self.error
        if combination in self.broken:
            raise ComputeError(
                source, found="no tactic for node_conv3d", expected="one", remedy="use another"
            )
        if combination in self.wrong:
            model = all_background(model)
        if source == "model.bf16.onnx":
            model = widened(model)
        built = fake_build(model, library, options, progress, source)
        count = len(self.built)
        return replace(built, timing_cache=b"timings %d" % count, warnings=(f"warning {count}",))

    def window_seconds(self, backend: Any) -> float:
        """Device time of the engine that was built last."""
        combination, _ = self.built[-1]
        return self.ms.get(combination, 1.0) / 1e3

    @property
    def order(self) -> list[Combination]:
        return [combination for combination, _ in self.built]


def all_background(model: bytes) -> bytes:
    """The graph with a head that prefers background by far."""
    graph = onnx.load_model_from_string(model)
    head = [node for node in graph.graph.node if node.op_type == "Conv"][-1]
    (bias,) = (item for item in graph.graph.initializer if item.name == head.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[0] = 1000
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return bytes(graph.SerializeToString())


def widened(model: bytes) -> bytes:
    """A bf16 graph whose rounded weights are stored in fp32, as no CPU runs bf16 convolutions."""
    graph = onnx.load_model_from_string(model)
    for item in graph.graph.initializer:
        if item.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(item).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(values, item.name))
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    return bytes(graph.SerializeToString())


def exported(*args: object) -> int:
    """brats-export on one thread; its exit code."""
    return export.cli.main([*map(str, args), "--threads", "1"])


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative name."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
