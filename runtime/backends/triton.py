"""A network on a Triton Inference Server, over gRPC; windows and stitching stay here."""

import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from runtime.backends.seam import BackendInfo, Fill, Take, Tensor, check_tensors, check_window
from runtime.errors import (
    BackendUnavailableError,
    ComputeError,
    InputError,
    UsageError,
    first_line,
)
from runtime.model_card import CARD_KEY, ModelCard, Shape3, check_card
from runtime.ops.numpy import NumpyOps
from runtime.serving import PRECISION_KEY, SHA256_KEY, split_address

_AHEAD: Final = 2
"""Requests under way: the next batch is cut while the server works on one."""
_NUMPY: Final = {"FP32": "float32"}
_TIMEOUT_S: Final = 120.0
"""For one batch; a server loads a model before it is ready, not at the first request."""
_ASKED_S: Final = 20.0
"""For what a server tells of a model."""
_MESSAGE_BYTES: Final = 1 << 30
"""Of the tensor in a request: gRPC and protobuf take no message of 2 GiB."""


class TritonBackend:
    """Runs a model that a Triton server holds; see `runtime.backends.Backend`.

    Owns the connection and the input buffers. The server's model says which card it was exported
    with, and is refused if that is another one.
    """

    def __init__(
        self,
        address: str,
        card: ModelCard,
        artefacts: Mapping[str, tuple[str, str]],
        threads: int | None = None,
    ) -> None:
        """
        Args:
            address: HOST:PORT/MODEL.
            card: the contract, from the model directory.
            artefacts: SHA-256 to file name and verdict of the certificate of every graph and engine
                of the directory, one of which the server runs.
            threads: CPU threads for what is done here; None means one per core.

        Raises:
            BackendUnavailableError: the server or its model is not there or not ready.
            InputError: the server's model is of another card, or no artefact of the directory.
            UsageError: a graph in reduced precision is served on a CPU.
        """
        host, self._name = split_address(address)
        self._card = card
        self._client = grpc.InferenceServerClient(host)
        try:
            config, metadata = self._described(address)
        except InferenceServerException as error:
            self._client.close()
            raise _unavailable(address, first_line(error)) from error
        except BackendUnavailableError:
            self._client.close()
            raise
        try:
            told = {
                key: str(value.get("string_value", ""))
                for key, value in config.get("parameters", {}).items()
            }
            check_card(card, told.get(CARD_KEY), address)
            inputs, outputs = (
                [
                    Tensor(_NUMPY.get(one["datatype"], one["datatype"]), _shape(one["shape"]))
                    for one in metadata.get(side, [])
                ]
                for side in ("inputs", "outputs")
            )
            check_tensors(card, inputs, outputs, address)
            sha256 = told.get(SHA256_KEY, "")
            if sha256 not in artefacts:
                raise InputError(
                    address,
                    found="a graph that the model directory does not hold",
                    expected="the one that brats-export --triton made of it",
                    remedy="write the repository again from this model",
                )
            precision = told.get(PRECISION_KEY, "")
            groups = config.get("instance_group", [])
            if precision != "fp32" and any(one.get("kind") == "KIND_CPU" for one in groups):
                raise UsageError(
                    f"--device {address}",
                    found=f"a server that runs {precision} on a CPU, which computes in fp32",
                    expected="a GPU for that graph",
                    remedy="name the server's model in fp32",
                )
        except (InputError, UsageError):
            self._client.close()
            raise
        file, verdict = artefacts[sha256]
        self._info = BackendInfo("triton", address, precision, file, sha256, verdict)
        self.ops = NumpyOps(threads)
        self._input, self._output = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]
        self._most = int(config.get("max_batch_size", 0)) or 1
        self._only = (inputs[0].shape or (None,) * 5)[2:]
        self._buffers: list[npt.NDArray[np.float32]] = []
        self._window: Shape3 | None = None

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def info(self) -> BackendInfo:
        return self._info

    def bind(self, window: Shape3, batch: int) -> None:
        check_window(self._card, window)
        if any(size not in (None, wanted) for size, wanted in zip(self._only, window, strict=True)):
            raise UsageError(
                "--patch",
                found=",".join(map(str, window)),
                expected=f"{','.join(map(str, self._only))}, for which the engine on "
                f"{self._info.device} was built",
                remedy="drop --patch, or name the server's model in fp32, which takes any",
            )
        self._window = window
        channels = max(len(self._card.modalities), len(self._card.labels))
        fit = max(1, _MESSAGE_BYTES // (4 * channels * math.prod(window)))
        shape = (min(batch, self._most, fit), len(self._card.modalities), *window)
        if not self._buffers or self._buffers[0].shape != shape:
            self._buffers = [np.zeros(shape, np.float32) for _ in range(_AHEAD)]

    def run(self, n: int, fill: Fill, take: Take) -> None:
        if not self._buffers:
            raise RuntimeError("run() before bind()")
        free = deque(self._buffers)
        sent: deque[tuple[int, int, Any, Future[Any]]] = deque()
        first = 0
        try:
            while first < n or sent:
                while free and first < n:
                    buffer = free.popleft()
                    last = min(first + len(buffer), n)
                    fill(first, last, buffer[: last - first])
                    sent.append((first, last, buffer, self._asked(buffer[: last - first])))
                    first = last
                begin, end, buffer, answer = sent.popleft()
                outputs = self._answered(answer)
                given = Tensor.of(outputs)
                taken = Tensor.of(buffer[: end - begin])
                check_tensors(self._card, [taken], [given], self._info.device, self._window)
                take(begin, end, outputs)
                free.append(buffer)
        finally:
            # Answers that nobody waits for any more may still come: their buffers are left to them.
            if sent:
                self._buffers = [np.zeros_like(buffer) for buffer in self._buffers]

    def close(self) -> None:
        self._client.close()
        self._buffers = []
        self.ops.close()

    def _described(self, address: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's configuration and its tensors, as the server tells them."""
        client, name = self._client, self._name
        if not client.is_model_ready(name, client_timeout=_ASKED_S):
            index = client.get_model_repository_index(as_json=True, client_timeout=_ASKED_S)
            ready = sorted(
                {one["name"] for one in index.get("models", []) if one.get("state") == "READY"}
            )
            raise _unavailable(
                address,
                f"no model {name} that is ready; ready are: {', '.join(ready)[:200] or 'none'}",
            )
        config = client.get_model_config(name, as_json=True, client_timeout=_ASKED_S)
        metadata = client.get_model_metadata(name, as_json=True, client_timeout=_ASKED_S)
        return config["config"], metadata

    def _asked(self, windows: npt.NDArray[np.float32]) -> Future[Any]:
        tensor = grpc.InferInput(self._input, list(windows.shape), "FP32")
        tensor.set_data_from_numpy(windows)
        wanted = grpc.InferRequestedOutput(self._output)
        answer: Future[Any] = Future()

        def told(result: Any, error: Any) -> None:
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        try:
            self._client.async_infer(
                self._name, [tensor], told, outputs=[wanted], client_timeout=_TIMEOUT_S
            )
        except InferenceServerException as error:
            answer.set_exception(error)
        return answer

    def _answered(self, answer: Future[Any]) -> npt.NDArray[np.float32]:
        try:
            found = answer.result(2 * _TIMEOUT_S).as_numpy(self._output)
        except (InferenceServerException, TimeoutError) as error:
            raise ComputeError(
                self._info.device,
                found=f"a server that did not run the network ({first_line(error)})",
                expected="probabilities",
                remedy="look at the server's log; --batch 1 asks for less memory",
            ) from error
        if found is None:
            raise ComputeError(
                self._info.device,
                found=f"an answer without {self._output}",
                expected="probabilities",
                remedy="write the repository again with brats-export --triton",
            )
        probabilities: npt.NDArray[np.float32] = found
        return probabilities


def _shape(sizes: list[Any]) -> tuple[int | None, ...]:
    """Sizes as JSON of protobuf gives them, 64-bit integers as text; -1 is open."""
    return tuple(None if int(size) < 0 else int(size) for size in sizes)


def _unavailable(address: str, found: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"--device {address}",
        found=found,
        expected="a Triton server with that model, ready",
        remedy="start tritonserver --model-repository with what brats-export --triton wrote, and "
        "name its gRPC port, which is 8001 unless it was told otherwise",
    )
