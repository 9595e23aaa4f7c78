"""One optimisation step, and what is done when it goes wrong."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from runtime.errors import ComputeError
from train.config import TrainConfig
from train.device import Compute
from train.loss import CombinedLoss
from train.unet import UNet3D

MAX_SKIPPED: Final = 10
"""Steps in a row without a finite loss and gradient after which a run is given up."""
_STREAM: Final = 4


class Stepper:
    """Owns the network's optimizer; the network itself stays the caller's.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(self, model: UNet3D, config: TrainConfig, compute: Compute, seed: int) -> None:
        self._model = model.to(compute.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._config = config
        self._compute = compute
        self._seed = seed
        self._loss = CombinedLoss(config.cross_entropy, config.dice, model.classes)
        # Decay shrinks what convolves; scales and shifts of the normalisation are left alone.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        self._scaler = torch.amp.GradScaler(
            compute.device.type, enabled=compute.autocast is torch.float16
        )
        self._in_a_row = 0
        self.skipped = 0

    def step(
        self, voxels: Tensor, labels: Tensor, lr: float, epoch: int, index: int
    ) -> float | None:
        """Train on one batch.

        Args:
            voxels: float32 (N, C, X, Y, Z).
            labels: uint8 (N, X, Y, Z).
            lr: learning rate of this step.
            epoch, index: with the seed they decide the dropout.

        Returns:
            The loss; None where it or its gradient was not finite and the step was skipped.

        Raises:
            ComputeError: too many skipped in a row, or out of memory.
        """
        try:
            loss = self._attempt(voxels, labels, lr, epoch, index)
        except torch.OutOfMemoryError as error:
            raise ComputeError(
                str(self._compute.device),
                found=f"not enough memory for {len(voxels)} patches",
                expected="room for a step",
                remedy="lower --train.batch or --model.patch",
            ) from error
        if loss is not None:
            self._in_a_row = 0
            return loss
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= MAX_SKIPPED:
            raise ComputeError(
                "training",
                found=f"{MAX_SKIPPED} steps in a row with a loss or gradient that is not finite",
                expected="finite ones",
                remedy="lower --train.lr, or use --train.precision fp32; the last good checkpoint "
                "is kept",
            )
        return None

    def _attempt(
        self, voxels: Tensor, labels: Tensor, lr: float, epoch: int, index: int
    ) -> float | None:
        device, autocast = self._compute.device, self._compute.autocast
        seed = np.random.SeedSequence([self._seed, _STREAM, epoch, index])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._model.train()
        voxels = voxels.to(device, memory_format=torch.channels_last_3d, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        # A batch that is not finite would spoil the running statistics for good.
        before = [buffer.clone() for buffer in self._model.buffers()]
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            logits = self._model(voxels)
        loss = self._loss(logits, labels)
        value = float(loss.detach())
        if not isfinite(value):
            self._restore(before)
            return None
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self._model.parameters(), self._config.clip or float("inf")
        )
        finite = isfinite(float(norm))
        if finite or self._scaler.is_enabled():
            # The scaler skips a step that overflowed by itself, and lowers its scale.
            self._scaler.step(self._optimizer)
            self._scaler.update()
        if not finite:
            self._restore(before)
            return None
        return value

    @torch.no_grad()
    def _restore(self, buffers: list[Tensor]) -> None:
        for buffer, value in zip(self._model.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def state(self) -> dict[str, Any]:
        """What resuming needs beside the weights; tensors are copies on the CPU."""
        return {
            "optimizer": _on_cpu(self._optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it belongs to another network.
        """
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(member) for member in value]
    return value
