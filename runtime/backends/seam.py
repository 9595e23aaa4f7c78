"""The seam between a segmenter and whatever runs the network: one model on one device."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from runtime.errors import InputError, UsageError
from runtime.model_card import CARD_KEY, ModelCard, Shape3
from runtime.ops import Array, ArrayOps

Fill = Callable[[int, int, Array], None]
"""fill(i, j, inputs): write windows i..j into ``inputs``, (j - i, C, X, Y, Z), float32, or on a
device float16 or float32 with strides of its own; `ArrayOps.gather` takes either.
"""
Take = Callable[[int, int, Array], None]
"""take(i, j, probabilities): read windows i..j, float32 (j - i, classes, X, Y, Z), valid only
inside the call.
"""


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
    """

    name: str
    device: str
    precision: str
    artefact: str = ""
    sha256: str = ""
    certificate: str = "none"
    fell_back_from: str | None = None


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

        Raises:
            ComputeError: the network cannot be run, or memory runs out at batch 1.
        """

    def close(self) -> None:
        """Release buffers and the model; nothing may be called after it."""


def check_window(card: ModelCard, window: Shape3) -> None:
    """Refuse a window that the network's poolings cannot halve.

    Raises:
        UsageError: a size is not a positive multiple of the card's divisor.
    """
    if any(size < 1 or size % card.divisor for size in window):
        raise UsageError(
            "--patch",
            found=",".join(map(str, window)),
            expected=f"multiples of {card.divisor}",
            remedy=f"the model's own patch is {','.join(map(str, card.patch))}",
        )


def check_card(card: ModelCard, stored: str | None, artefact: str) -> None:
    """Refuse a graph that is not known to keep the contract it is run by.

    Args:
        card: the contract, from card.json.
        stored: what the graph's metadata holds under `CARD_KEY`; None if there is nothing.
        artefact: the graph's file, for errors.

    Raises:
        InputError: the graph holds no card, or another one.
    """
    try:
        same = stored is not None and json.loads(stored) == json.loads(card.to_json())
    except ValueError:
        same = False
    if not same:
        raise InputError(
            artefact,
            found="no model card" if stored is None else "the card of another model",
            expected=f"the content of card.json under the metadata key {CARD_KEY}",
            remedy="export the model with brats-export, which stores its card in it",
        )
