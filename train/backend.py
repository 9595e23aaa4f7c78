"""A live PyTorch network as a `runtime.backends.Backend`: it validates as it is served."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from runtime.backends import BackendInfo, Fill, Take, check_window
from runtime.errors import ComputeError
from runtime.model_card import ModelCard, Shape3
from runtime.ops.numpy import NumpyOps
from train.memory import is_out_of_memory, room_for


class TorchBackend:
    """Runs a network that gives logits; see `runtime.backends.Backend`.

    The network is borrowed: its weights may change between runs, and after each run it is in
    train or eval mode as before. The input buffer, float32 (batch, C, X, Y, Z), is ours.

    Args:
        model: float (N, C, X, Y, Z) to logits (N, classes, X, Y, Z); moved to ``device``.
        card: its contract.
        device: where it runs, such as "cpu" or "cuda:0".
        autocast: dtype of its convolutions; None for float32 throughout.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        device: str | torch.device = "cpu",
        autocast: torch.dtype | None = None,
    ) -> None:
        self.card = card
        self.ops = NumpyOps()
        self._device = torch.device(device)
        with room_for("the weights", str(self._device), "choose another device"):
            self._model: nn.Module | None = model.to(self._device)
        self._autocast = autocast
        names = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        self.info = BackendInfo("torch", str(self._device), names[autocast])
        self._batch = 0
        self._inputs: npt.NDArray[np.float32] = np.empty(0, np.float32)

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self.card, window)
        shape = (batch, len(self.card.modalities), *window)
        if self._inputs.shape != shape:
            self._inputs = np.empty(shape, np.float32)
        self._batch = batch

    def run(self, n: int, fill: Fill, take: Take) -> None:
        if self._model is None:
            raise RuntimeError("the backend is closed")
        training = self._model.training
        self._model.eval()
        try:
            first = 0
            while first < n:
                last = min(first + self._batch, n)
                fill(first, last, self._inputs[: last - first])
                try:
                    probabilities = self._infer(self._model, last - first)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    self._halve(error)
                    continue
                take(first, last, probabilities)
                first = last
        finally:
            self._model.train(training)

    def close(self) -> None:
        self._model = None
        self._inputs = np.empty(0, np.float32)

    @torch.inference_mode()
    def _infer(self, model: nn.Module, count: int) -> npt.NDArray[np.float32]:
        inputs = torch.from_numpy(self._inputs[:count]).to(
            self._device, memory_format=torch.channels_last_3d
        )
        dtype = self._autocast
        with torch.autocast(self._device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(inputs)
        probabilities = torch.softmax(logits.float(), dim=1)
        result: npt.NDArray[np.float32] = probabilities.cpu().contiguous().numpy()
        return result

    def _halve(self, error: RuntimeError) -> None:
        if self._batch <= 1:
            raise ComputeError(
                str(self._device),
                found="not enough memory for a single window",
                expected=f"room for a window of {'x'.join(map(str, self._inputs.shape[2:]))}",
                remedy="choose a smaller patch or another device",
            ) from error
        self._batch //= 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
