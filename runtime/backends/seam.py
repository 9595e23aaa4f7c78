"""The seam between a segmenter and whatever runs the network: one model on one device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from runtime.errors import InputError, UsageError
from runtime.model_card import LARGEST_PATCH, ModelCard, Shape3
from runtime.ops import Array, ArrayOps

Fill = Callable[[int, int, Array], None]
"""fill(i, j, inputs): write windows i..j into ``inputs``, (j - i, C, X, Y, Z), float32, or on a
device float16 or float32 with strides of its own; `ArrayOps.gather` takes either.
"""
Take = Callable[[int, int, Array], None]
"""take(i, j, probabilities): read windows i..j, float32 (j - i, classes, X, Y, Z), valid only
inside the call.
"""


MAX_THREADS: Final = 1024
"""CPU threads that may be asked for: more than any machine has use for."""


@dataclass(frozen=True)
class BackendInfo:
    """What really executes.

    Attributes:
        name: backend, such as "openvino".
        device: where, such as "cpu" or "cuda:0".
        precision: arithmetic, such as "fp32".
        artefact: the file of the model directory that runs ("" for a live PyTorch module).
        sha256: of that file.
        certificate: verdict of the parity certificate on that file: "pass", "inconclusive" or
            "none".
        fell_back_from: the backend that `auto` would have preferred, and why it is not used;
            None if there is none.
        directory: where the artefact lies, for errors alone; None if it is in no file yet.
    """

    name: str
    device: str
    precision: str
    artefact: str = ""
    sha256: str = ""
    certificate: str = "none"
    fell_back_from: str | None = None
    directory: Path | None = None

    @property
    def where(self) -> str:
        """What an error about the artefact names."""
        return str(self.directory / self.artefact) if self.directory else self.artefact


class Backend(Protocol):
    """One model on one device; owns its buffers; used by one thread at a time."""

    @property
    def card(self) -> ModelCard:
        """The contract of the model that runs."""

    @property
    def ops(self) -> ArrayOps:
        """Array operations of the device on which ``fill`` and ``take`` find their arrays."""

    @property
    def info(self) -> BackendInfo:
        """What really executes."""

    def bind(self, window: Shape3, batch: int) -> None:
        """Allocate for windows of this shape and up to ``batch`` at a time; may choose a smaller
        batch.

        Raises:
            UsageError: the network does not accept this window shape.
            ComputeError: not enough memory for a single window.
        """

    def run(self, n: int, fill: Fill, take: Take) -> None:
        """Run windows 0..n: ``fill`` is called before and ``take`` after each batch, in order.

        The next batch may be filled before the last one is taken, into a buffer of its own.

        Raises:
            ComputeError: the network cannot be run, or memory runs out at batch 1.
        """

    def close(self) -> None:
        """Release buffers and the model; nothing may be called after it."""


def check_window(card: ModelCard, window: Shape3) -> None:
    """Refuse a window that the network's poolings cannot halve, or that nothing could hold.

    Raises:
        UsageError: a size is not a positive multiple of the card's divisor, or there are more than
            `LARGEST_PATCH` voxels.
    """
    if any(size < 1 or size % card.divisor for size in window) or (
        math.prod(window) > LARGEST_PATCH
    ):
        raise UsageError(
            "--patch",
            found=",".join(map(str, window)),
            expected=f"multiples of {card.divisor}, {LARGEST_PATCH} voxels at most",
            remedy=f"the model's own patch is {','.join(map(str, card.patch))}",
        )


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a graph.

    Attributes:
        dtype: "float32", or whatever the library calls another.
        shape: size of every axis, None where it is open; None where not even their number is known.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        axes = (
            "?"
            if self.shape is None
            else "x".join("?" if n is None else str(n) for n in self.shape)
        )
        return f"{self.dtype} {axes[:80]}"

    @classmethod
    def of(cls, array: Array) -> "Tensor":
        """That of an array."""
        return cls(str(array.dtype), tuple(array.shape))

    def takes(self, other: "Tensor") -> bool:
        """Whether ``other``, open or not, can be of this type and shape."""
        if self.dtype != other.dtype or self.shape is None or other.shape is None:
            return self.dtype == other.dtype
        return len(self.shape) == len(other.shape) and all(
            one is None or two is None or one == two
            for one, two in zip(self.shape, other.shape, strict=True)
        )


def check_tensors(
    card: ModelCard,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    artefact: str,
    window: Shape3 | None = None,
) -> None:
    """Refuse a graph that does not turn the card's modalities into the card's labels.

    Args:
        card: the contract.
        inputs, outputs: of the graph.
        artefact: the graph's file, for errors.
        window: spatial shape (X, Y, Z) that it must take and give; None for any.

    Raises:
        InputError: not one input of a channel per modality and one output of one per label, both
            float32 (N, C, X, Y, Z).
    """
    axes = window or (None, None, None)
    wanted = tuple(
        Tensor("float32", (None, channels, *axes))
        for channels in (len(card.modalities), len(card.labels))
    )
    found = (*inputs, *outputs)
    if (len(inputs), len(outputs)) != (1, 1) or not all(map(Tensor.takes, wanted, found)):
        given, taken = (" and ".join(map(str, side)) or "nothing" for side in (outputs, inputs))
        raise InputError(
            artefact,
            found=f"a graph that turns {taken} into {given}",
            expected=f"one that turns {wanted[0]} into {wanted[1]}, as its card says",
            remedy="export the model again with brats-export",
        )
