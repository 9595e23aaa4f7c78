"""The decoder's up branch, up-convolution + concatenation + convolution, in three equal forms.

Up-convolution, concatenation and convolution are linear in a row. For output voxel j,
low-resolution voxel i, an up-convolution U (kernel 2, stride 2) and a convolution C (kernel 3,
padding 1), per axis

    y[j] = sum_i x[i] * sum_{a - t + 2 = k} U[a] C[t],   k = j + 1 - 2 i

which is a transposed convolution of kernel 4, stride 2, padding 1: the form "k4". What the
convolution pads with zeros are values of the up-sampled tensor that no x[i] reaches, so that the
identity holds at the borders too, as long as nothing stands between the two (a bias would be cut
off at the border by the padding, but not by the composed kernel). The concatenation's other half,
the skip, keeps its own share of C, and the two are added.

The form "interleave" computes the same kernel W = W[k] without a transposed convolution. Split
k = 2 c - 2 t + s with t in {0, 1}, s in {0, 1} and the padding c = 1. Then i = q - c + t, for the
uncropped output voxel p = 2 q + s and j = p - c:

    y[2 q + s - c] = sum_t x[q - c + t] * W[2 (c - t) + s]

For each s this is a plain convolution of kernel 2 and padding 1, giving L + 1 voxels of L. All
eight (s_x, s_y, s_z) together are one such convolution with eight times the channels. A reshape and
a transposition put s beside q (a pixel shuffle in space), which gives 2 L + 2 voxels, of which the
outermost one at each end is cropped away. With a 1x1x1 convolution after the concatenation the
composed kernel is 2, c = 0, t = 0, and nothing is cropped. The multiplications are those of k4 and,
at the border, up to ((L + 1) / L)^3 as many. A transposed convolution by sub-pixels: Shi et al.,
"Is the deconvolution layer the same as a convolutional layer?", 2016.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import helper

from export.graph import Float64, Graph, attributes_of, layer_of

UpBranch = Literal["k4", "unfused", "interleave"]
_AXES: Final = 3


def compose_up_branches(graph: Graph, form: UpBranch) -> tuple[int, list[str]]:
    """Give every up branch of the graph the wanted form; "unfused" changes nothing.

    Returns:
        How many were composed, and for each reason why some cannot be composed exactly a sentence
        that names them. Those are left as they are, whatever the form.
    """
    composed = 0
    left_alone: dict[str, list[str]] = {}
    for concat in [node for node in graph.nodes if node.op_type == "Concat"]:
        up = _up_convolution(graph, concat)
        if up is None:
            continue
        reason = _why_not(graph, concat, up)
        if reason:
            left_alone.setdefault(reason, []).append(layer_of(up))
            continue
        if form == "unfused":
            continue
        for conv in graph.consumers(concat.output[0]):
            graph.replace(conv, _composed(graph, up, concat, conv, _FORMS[form]))
        composed += 1
    return composed, [f"{', '.join(names)}: {reason}" for reason, names in left_alone.items()]


def _up_convolution(graph: Graph, concat: onnx.NodeProto) -> onnx.NodeProto | None:
    """The up-convolution that feeds ``concat``, directly or through element-wise nodes;
    None if none does.
    """
    for tensor in concat.input:
        node = graph.producer(tensor)
        while node is not None and node.op_type in (
            "Relu",
            "LeakyRelu",
            "PRelu",
            "BatchNormalization",
            "InstanceNormalization",
            "Add",
        ):
            node = graph.producer(node.input[0])
        if node is not None and node.op_type == "ConvTranspose":
            return node
    return None


def _why_not(graph: Graph, concat: onnx.NodeProto, up: onnx.NodeProto) -> str:
    """Why this up branch does not compose exactly; empty if it does."""
    if up.output[0] not in concat.input:
        return (
            "a bias, normalisation or non-linearity stands between up-convolution and concatenation"
        )
    if not graph.used_once(up.output[0]):
        return "its output is used elsewhere too"
    attributes = attributes_of(up)
    if (
        list(attributes.get("kernel_shape", [])) != [2] * _AXES
        or list(attributes.get("strides", [])) != [2] * _AXES
        or any(attributes.get("pads", []))
        or any(attributes.get("output_padding", []))
        or any(step != 1 for step in attributes.get("dilations", []))
        or attributes.get("group", 1) != 1
    ):
        return "it is not a plain kernel 2, stride 2 up-convolution"
    if np.any(graph.bias(up, 1)):
        return "it has a bias, which zero padding cuts off at the border"
    if len(concat.input) != 2 or attributes_of(concat).get("axis") != 1:
        return "the concatenation is not of two tensors along the channels"
    for conv in graph.consumers(concat.output[0]):
        if conv.op_type != "Conv" or not _same_size(graph, conv):
            return "the concatenation feeds something other than a size-keeping convolution"
    if concat.output[0] in graph.outputs:
        return "the concatenation is an output"
    return ""


def _same_size(graph: Graph, conv: onnx.NodeProto) -> bool:
    """Whether ``conv`` is 3x3x3 with padding 1 or 1x1x1 with none, dense and unstrided."""
    attributes = attributes_of(conv)
    kernel = graph.constants[conv.input[1]].shape[2:]
    pads = list(attributes.get("pads", [0] * 2 * _AXES))
    return (
        kernel in ((3,) * _AXES, (1,) * _AXES)
        and pads == [kernel[0] // 2] * 2 * _AXES
        and all(step == 1 for step in attributes.get("strides", []))
        and all(step == 1 for step in attributes.get("dilations", []))
        and attributes.get("group", 1) == 1
    )


@dataclass(frozen=True)
class _Up:
    """The composed up-convolution that one node or a row of them is to compute.

    Attributes:
        x: low-resolution tensor, (N, low, X, Y, Z).
        kernel: (low, out, K, K, K), K 4 or 2, of a transposed convolution of stride 2 and padding
            ``crop``.
        crop: K // 2 - 1.
        weight: name for the kernel as it is stored.
        node: name for the nodes.
        y: tensor to make, (N, out, 2X, 2Y, 2Z).
        like: a tensor of the shape of ``y``.
    """

    x: str
    kernel: Float64
    crop: int
    weight: str
    node: str
    y: str
    like: str


def _composed(
    graph: Graph,
    up: onnx.NodeProto,
    concat: onnx.NodeProto,
    conv: onnx.NodeProto,
    up_nodes: Callable[[Graph, _Up], list[onnx.NodeProto]],
) -> list[onnx.NodeProto]:
    """conv(concat(up(x), skip)) as up'(x) + conv'(skip), the bias on conv'."""
    up_weight, weight = graph.weight(up), graph.weight(conv)
    middle = up_weight.shape[1]
    up_first = concat.input[0] == up.output[0]
    skip = concat.input[1 if up_first else 0]
    split = middle if up_first else weight.shape[1] - middle
    parts = weight[:, :split], weight[:, split:]
    of_up, of_skip = parts if up_first else parts[::-1]
    name = conv.input[1]
    low, high = f"{conv.output[0]}_up", f"{conv.output[0]}_skip"
    composed = _Up(
        x=up.input[0],
        kernel=compose_kernels(up_weight, of_up),
        crop=weight.shape[2] // 2,
        weight=f"{name}.up",
        node=f"{conv.name}_up",
        y=low,
        like=high,
    )
    return [
        helper.make_node(
            "Conv",
            [
                skip,
                graph.store(f"{name}.skip", of_skip),
                graph.store(f"{name}.skip_bias", graph.bias(conv, len(weight))),
            ],
            [high],
            name=f"{conv.name}_skip",
            **attributes_of(conv),
        ),
        *up_nodes(graph, composed),
        helper.make_node("Add", [low, high], [conv.output[0]], name=f"{conv.name}_sum"),
    ]


def _transposed_convolution(graph: Graph, up: _Up) -> list[onnx.NodeProto]:
    return [
        helper.make_node(
            "ConvTranspose",
            [up.x, graph.store(up.weight, up.kernel)],
            [up.y],
            name=up.node,
            kernel_shape=list(up.kernel.shape[2:]),
            strides=[2] * _AXES,
            pads=[up.crop] * 2 * _AXES,
        )
    ]


def _interleaved_convolution(graph: Graph, up: _Up) -> list[onnx.NodeProto]:
    """Convolution, reshape, transposition, reshape, crop; one copy for the transposition and one
    for the crop.

    Sizes are known at run time only. Those of the shuffled tensor are the convolution's own, and
    those of the result the skip's, so that the shape arithmetic is two nodes each.
    """
    channels = up.kernel.shape[1]
    weight = interleaved_kernel(up.kernel)
    phased, sizes, split = f"{up.y}_phases", f"{up.y}_phase_sizes", f"{up.y}_split"
    beside, whole = f"{up.y}_beside", f"{up.y}_whole"

    def integers(name: str, values: list[int]) -> str:
        return graph.store_integers(f"{up.weight}_{name}", values)

    def node(kind: str, inputs: list[str], output: str, name: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], name=f"{up.node}{name}", **attributes)

    nodes = [
        node(
            "Conv",
            [up.x, graph.store(up.weight, weight)],
            phased,
            "",
            kernel_shape=list(weight.shape[2:]),
            pads=[up.crop] * 2 * _AXES,
        ),
        node("Shape", [phased], sizes, "_phase_sizes", start=2),
        node(
            "Concat",
            # 0 keeps the batch.
            [integers("split_channels", [0, channels, 2, 2, 2]), sizes],
            f"{split}_shape",
            "_split_shape",
            axis=0,
        ),
        node("Reshape", [phased, f"{split}_shape"], split, "_split"),
        node("Transpose", [split], beside, "_interleave", perm=[0, 1, 5, 2, 6, 3, 7, 4]),
        node("Shape", [up.like], f"{up.y}_shape", "_shape"),
    ]
    if not up.crop:
        return [*nodes, node("Reshape", [beside, f"{up.y}_shape"], up.y, "_merge")]
    return [
        *nodes,
        node(
            "Add",
            [f"{up.y}_shape", integers("margin", [0, 0, *[2 * up.crop] * _AXES])],
            f"{whole}_shape",
            "_whole_shape",
        ),
        node("Reshape", [beside, f"{whole}_shape"], whole, "_merge"),
        node(
            "Slice",
            [
                whole,
                integers("first", [up.crop] * _AXES),
                integers("end", [-up.crop] * _AXES),
                integers("axes", [2, 3, 4]),
            ],
            up.y,
            "_crop",
        ),
    ]


_FORMS: Final[Mapping[UpBranch, Callable[[Graph, _Up], list[onnx.NodeProto]]]] = {
    "k4": _transposed_convolution,
    "interleave": _interleaved_convolution,
}


def compose_kernels(up: Float64, conv: Float64) -> Float64:
    """Kernel of the transposed convolution that equals an up-convolution followed by a convolution.

    Args:
        up: (low, middle, 2, 2, 2), weights of a kernel 2, stride 2 transposed convolution.
        conv: (out, middle, K, K, K), weights of a convolution with padding K // 2, K 1 or 3.

    Returns:
        (low, out, K + 1, K + 1, K + 1), for stride 2 and padding K // 2.
    """
    size = conv.shape[2]
    # Taps first: the products are of whole matrices that lie together in memory.
    ups = np.ascontiguousarray(up.transpose(2, 3, 4, 0, 1))
    convs = np.ascontiguousarray(conv.transpose(2, 3, 4, 1, 0))
    kernel = np.zeros((*[size + 1] * _AXES, up.shape[0], conv.shape[0]))
    for a in np.ndindex(2, 2, 2):
        for t in np.ndindex(size, size, size):
            k = tuple(ai - ti + size - 1 for ai, ti in zip(a, t, strict=True))
            kernel[k] += ups[a] @ convs[t]
    return kernel.transpose(3, 4, 0, 1, 2)


def interleaved_kernel(kernel: Float64) -> Float64:
    """Weights of the convolution whose channels, interleaved in space, are a transposed
    convolution of stride 2.

    Args:
        kernel: (low, out, 2 T, 2 T, 2 T), weights of a transposed convolution of stride 2 and
            padding T - 1, T 1 or 2.

    Returns:
        (8 out, low, T, T, T), for padding T - 1. Channel 8 o + 4 s_x + 2 s_y + s_z is output
        channel o at the voxels 2 q + s of the uncropped result.
    """
    low, out, size = kernel.shape[:3]
    taps = size // 2
    split = kernel.reshape(low, out, taps, 2, taps, 2, taps, 2)
    # The tap on x[q - c + t] is W[2 (c - t) + s]: descending in t.
    split = split[:, :, ::-1, :, ::-1, :, ::-1, :]
    return split.transpose(1, 3, 5, 7, 0, 2, 4, 6).reshape(8 * out, low, taps, taps, taps)
