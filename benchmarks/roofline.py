"""What the network must do for one window, and the time that a GPU's ceilings leave for it.

    python -m benchmarks.roofline [--tflops 790] [--tbytes 4.3] [--patch 128 128 64]

Counted on the exported graphs themselves: multiply-adds of every (transposed) convolution, and the
fewest bytes that device memory must move when each convolution reads its inputs and its weights
once and writes its output once, in fp16; what is added, activated or pooled after a convolution is
taken to be fused into it, except that an addition of two branches reads the other one; what is
concatenated is written where it belongs at once. Caches can do better than these bytes where a
layer's output stays in them.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import onnx
import torch
from onnx import numpy_helper, shape_inference

from export.build import build
from export.up_branch import UpBranch
from runtime.model_card import ModelCard, Shape3
from train.unet import UNet3D

_BYTES: Final = 2
FORMS: Final[tuple[UpBranch, ...]] = ("unfused", "k4", "interleave")


@dataclass(frozen=True)
class Work:
    """What one window asks for.

    Attributes:
        macs: multiply-adds.
        bytes: moved between device memory and the multiprocessors, fp16.
    """

    macs: int
    bytes: int

    def microseconds(self, tflops: float, tbytes: float) -> tuple[float, float]:
        """Time for the arithmetic and for the bytes, at the device's ceilings."""
        return 2 * self.macs / tflops / 1e6, self.bytes / tbytes / 1e6


def work_of(model: onnx.ModelProto, patch: Shape3) -> Work:
    """Count a graph with one input (N, C, X, Y, Z) on one window."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    dims = fixed.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, (1, dims[1].dim_value, *patch), strict=True):
        dim.dim_value = size
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    sizes = {
        item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    weights = {item.name: numpy_helper.to_array(item) for item in inferred.graph.initializer}
    macs = moved = 0
    for node in inferred.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            kernel = weights[node.input[1]]
            # A transposed convolution scatters every input voxel, a convolution gathers for every
            # output voxel.
            voxels = sizes[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]]
            macs += prod(voxels[2:]) * kernel.size
            moved += _BYTES * (
                prod(sizes[node.input[0]]) + kernel.size + prod(sizes[node.output[0]])
            )
        elif node.op_type == "Transpose":
            moved += 2 * _BYTES * prod(sizes[node.output[0]])
        elif node.op_type == "Add":
            moved += _BYTES * prod(sizes[node.output[0]])
        elif node.op_type == "MaxPool":
            # Its input was just written; the smaller output is extra.
            moved += _BYTES * prod(sizes[node.output[0]])
    return Work(macs, moved)


def reference_work(patch: Shape3) -> Mapping[UpBranch, Work]:
    """The reference network in every form of its up branches."""
    torch.manual_seed(0)
    built = build(UNet3D(dropout=0.0).eval(), ModelCard(name="reference"), FORMS)
    for candidate in built.candidates:
        candidate.backend.close()
    return {form: work_of(built.graphs[form], patch) for form in FORMS}


def table(works: Mapping[UpBranch, Work], tflops: float, tbytes: float) -> str:
    """Markdown."""
    lines = [
        "| form of the up branch | GMAC | MB moved | arithmetic, us | memory, us |",
        "|---|---|---|---|---|",
    ]
    for form, work in works.items():
        arithmetic, memory = work.microseconds(tflops, tbytes)
        lines.append(
            f"| {form} | {work.macs / 1e9:.1f} | {work.bytes / 1e6:.0f} "
            f"| {arithmetic:.0f} | {memory:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tflops", type=float, default=790.0, help="fp16 matrix rate")
    parser.add_argument("--tbytes", type=float, default=4.3, help="device memory, read and written")
    parser.add_argument("--patch", type=int, nargs=3, default=(128, 128, 64))
    args: Any = parser.parse_args()
    print(table(reference_work(tuple(args.patch)), args.tflops, args.tbytes))


if __name__ == "__main__":
    main()
