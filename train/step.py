"""One optimisation step, and what is done when it goes wrong."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import ComputeError
from train.augment_torch import DeviceAugment
from train.average import WeightAverage
from train.config import TrainConfig
from train.device import Compute
from train.distributed import ALONE, World
from train.loss import CombinedLoss, Objective
from train.memory import is_out_of_memory, room_for
from train.patches import Batch
from train.unet import UNet3D

MAX_SKIPPED: Final = 10
"""Steps in a row without a finite loss and gradient after which a run is given up."""
# Sets dropout apart from the augmentation of the same patch.
_STREAM: Final = 0x5EED
# Where the errors of torch.compile are defined.
_COMPILERS: Final = ("torch._dynamo", "torch._inductor")


class Stepper:
    """Owns the network's optimizer and its average; the network itself stays the caller's.

    Where several processes train together, each steps with its share of a batch, and all of them
    arrive at the same weights, running statistics and average, bit for bit.

    Args:
        model: moved to the device; its batch norms are replaced by synchronised ones where several
            GPUs train together.
        config: how to optimise.
        compute: device and arithmetic.
        augment: what is done to patches on the device; None where their loaders have done it.
        world: the processes that train together.
        kept: what a run that fails here has kept, for its error; empty where nothing has begun.

    Attributes:
        skipped: steps skipped so far.

    Raises:
        ComputeError: the device has no room for the network.
    """

    def __init__(
        self,
        model: UNet3D,
        config: TrainConfig,
        compute: Compute,
        augment: DeviceAugment | None = None,
        world: World = ALONE,
        kept: str = "",
    ) -> None:
        self._world = world
        self._kept = f"; {kept}" if kept else ""
        if world.size > 1 and compute.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self._config = config
        self._compute = compute
        self._augment = augment
        remedy = "lower --model.features, or choose another device with --device"
        with room_for("the network", str(compute.device), remedy):
            self._model = model.to(compute.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            self._average = WeightAverage(self._model, config.ema) if config.ema > 0 else None
        loss = CombinedLoss(
            config.cross_entropy,
            config.dice,
            model.classes,
            region_dice=config.region_dice,
            reduce=world.sum_with_gradient if world.size > 1 else None,
        )
        self._objective: nn.Module = Objective(self._model, loss)
        if world.size > 1:
            with room_for("the gradients of the network", str(compute.device), remedy):
                self._objective = DistributedDataParallel(self._objective)
        self._run: Callable[[Tensor, Tensor], Tensor] = self._objective
        if config.compile:
            self._run = torch.compile(self._objective)
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

    @property
    def served(self) -> UNet3D:
        """The network to validate and to serve: the average where there is one."""
        return self._model if self._average is None else self._average.network

    def step(self, batch: Batch, lr: float) -> float | None:
        """Train on one batch.

        Args:
            batch: this process's N patches; N is the batch times the accumulation, or less at the
                end of an epoch. Their seeds decide dropout as well.
            lr: learning rate of this step.

        Returns:
            The loss, the mean over all processes; None where it or its gradient was not finite and
            the step was skipped.

        Raises:
            ComputeError: too many skipped in a row, out of memory, or torch.compile fails.
        """
        try:
            loss = self._attempt(batch, lr)
        except RuntimeError as error:
            if self._config.compile and type(error).__module__.startswith(_COMPILERS):
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise ComputeError(
                    "--train.compile",
                    found=f"a step that torch.compile cannot make ({first})",
                    expected="a C++ compiler, and on a GPU Triton",
                    remedy="install them, or drop the flag",
                ) from error
            if not is_out_of_memory(error):
                raise
            raise ComputeError(
                str(self._compute.device),
                found=f"not enough memory for a step of {len(batch.voxels)} patches",
                expected="room for one",
                remedy="lower --train.batch (--train.accumulate makes up for it)"
                + (", or begin another run with a smaller" if self._kept else " or")
                + f" --model.patch{self._kept}",
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
                remedy="lower --train.lr, or use --train.precision fp32" + self._kept,
            )
        return None

    def _attempt(self, batch: Batch, lr: float) -> float | None:
        device, autocast = self._compute.device, self._compute.autocast
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._model.train()
        voxels, labels = self._on_device(batch)
        # A batch that is not finite would spoil the running statistics for good.
        before = [buffer.clone() for buffer in self._model.buffers()]
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for first in range(0, len(voxels), self._config.batch):
            micro = slice(first, first + self._config.batch)
            # A function of the patch, wherever and by whomever it is trained on.
            torch.manual_seed(int(batch.seeds[first]) ^ _STREAM)
            part = len(voxels[micro]) / len(voxels)
            with (
                self._gradients_later(first + self._config.batch < len(voxels)),
                torch.autocast(
                    device.type, autocast or torch.bfloat16, enabled=autocast is not None
                ),
            ):
                loss = part * self._run(voxels[micro], labels[micro])
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self._model.parameters(), self._config.clip or float("inf")
        )
        # The only moment at which the host waits for a device. Everybody sees the same: what is not
        # finite in one process has reached the others with its gradient.
        value, length = map(float, torch.stack((self._world.mean(total), norm)).tolist())
        finite = isfinite(value) and isfinite(length)
        if finite or self._scaler.is_enabled():
            # The scaler skips a step that overflowed by itself, and lowers its scale.
            self._scaler.step(self._optimizer)
            self._scaler.update()
        if not finite:
            self._restore(before)
            return None
        with torch.no_grad():
            self._world.average_buffers(self._model)
        if self._average is not None:
            self._average.update(self._model)
        return value

    def _gradients_later(self, later: bool) -> AbstractContextManager[None]:
        """Leave gradients in each process until the last part of a batch."""
        if later and isinstance(self._objective, DistributedDataParallel):
            held: AbstractContextManager[None] = self._objective.no_sync()
            return held
        return nullcontext()

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self._compute.device
        voxels = batch.voxels.to(device, non_blocking=True).float()
        labels = batch.labels.to(device, non_blocking=True)
        if self._augment is not None:
            voxels, labels = self._augment(voxels, labels, batch.seeds.tolist())
        return voxels.contiguous(memory_format=torch.channels_last_3d), labels

    @torch.no_grad()
    def _restore(self, buffers: list[Tensor]) -> None:
        for buffer, value in zip(self._model.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def check_finite(self) -> None:
        """Refuse to save what is spoilt: a step of a finite loss and gradient may still overflow.

        Raises:
            ComputeError: a weight or a running statistic is not finite.
        """
        for network in {id(net): net for net in (self._model, self.served)}.values():
            for name, tensor in network.state_dict().items():
                if not bool(torch.isfinite(tensor).all()):
                    raise ComputeError(
                        "training",
                        found=f"values of {name} that are not finite",
                        expected="finite ones",
                        remedy="lower --train.lr, or use --train.precision fp32" + self._kept,
                    )

    def state(self) -> dict[str, Any]:
        """What resuming needs beside the weights that are served; tensors are copies on the CPU."""
        state = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        if self._average is not None:
            state |= {"average": self._average.state(), "weights": self._model.state_dict()}
        copied: dict[str, Any] = _on_cpu(state)
        return copied

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; the weights that are served are the caller's to load.

        Raises:
            KeyError, RuntimeError, ValueError: it belongs to another network, or to a run that did
                or did not average its weights.
            ComputeError: the device has no room for it.
        """
        with room_for("the state of the optimizer", str(self._compute.device), "free some of it"):
            self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state(state["average"])
            self._model.load_state_dict(state["weights"])


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(member) for member in value]
    return value
