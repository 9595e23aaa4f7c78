"""An exponential moving average of a network's weights and running statistics."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from train.unet import UNet3D


class WeightAverage:
    """Averages a network after each step; the average is what is validated and served.

    The decay of step n is min(decay, (1 + n) / (10 + n)), so that the first weights, which know
    nothing, are forgotten soon.

    Args:
        network: whose weights are averaged; copied.
        decay: of the average, per step, in [0, 1).
    """

    def __init__(self, network: UNet3D, decay: float) -> None:
        def blend(averages: list[Tensor], values: list[Tensor], steps: Tensor | int) -> None:
            if not averages[0].is_floating_point():
                # The count of batches that a batch norm has seen.
                for average, value in zip(averages, values, strict=True):
                    average.copy_(value)
                return
            n = int(steps)
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))

        self._averaged = AveragedModel(
            network,
            multi_avg_fn=blend,  # type: ignore[arg-type]
            use_buffers=True,
        )

    @property
    def network(self) -> UNet3D:
        """The network with averaged weights; ours, to be read only."""
        return cast(UNet3D, self._averaged.module)

    def update(self, network: UNet3D) -> None:
        """Take in the weights after a step."""
        self._averaged.update_parameters(network)

    def state(self) -> dict[str, Any]:
        """What `load_state` needs; tensors are those in use."""
        return {
            "steps": int(self._averaged.n_averaged),
            "network": self.network.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            RuntimeError, KeyError: it belongs to another network.
        """
        self.network.load_state_dict(state["network"])
        self._averaged.n_averaged.fill_(state["steps"])
