"""A Triton Inference Server's gRPC service in this process: the real protocol on a real socket,
with ONNX Runtime behind it. It serves a repository as tritonserver does, from its config.pbtxt
alone.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc


def read_config(path: Path) -> Any:
    """A config.pbtxt by Triton's own schema, which refuses fields that it does not know."""
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves the latest version of every model of a repository.

    Attributes:
        batches: windows of each request so far.
        failing: text of the error that every inference ends in; empty for none.
        ready: whether its models are.
        on: where it runs them, as a server says once it has chosen.
        spoiling: whether every probability it gives is NaN.
    """

    def __init__(self, repository: Path) -> None:
        self.batches: list[int] = []
        self.failing = ""
        self.ready = True
        self.on = "KIND_GPU"
        self.spoiling = False
        self.configs: dict[str, Any] = {}
        self.sessions: dict[str, Any] = {}
        for folder in sorted(repository.iterdir()):
            config = read_config(folder / "config.pbtxt")
            assert config.name == folder.name
            (version,) = [one for one in folder.iterdir() if one.name.isdecimal()]
            self.configs[config.name] = config
            self.sessions[config.name] = onnxruntime.InferenceSession(
                version / "model.onnx", providers=["CPUExecutionProvider"]
            )

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        ready = self.ready and request.name in self.configs
        return service_pb2.ModelReadyResponse(ready=ready)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.RepositoryIndexResponse()
        for name in self.configs:
            answer.models.add(name=name, version="1", state="READY" if self.ready else "LOADING")
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.ModelConfigResponse(config=self._config(request.name, context))
        kind = model_config_pb2.ModelInstanceGroup.Kind.Value(self.on)
        answer.config.instance_group.add(name=f"{request.name}_0", kind=kind, count=1)
        return answer

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = self._config(request.name, context)
        answer = service_pb2.ModelMetadataResponse(name=config.name, platform=config.platform)
        for told, side in ((config.input, answer.inputs), (config.output, answer.outputs)):
            for one in told:
                kind = model_config_pb2.DataType.Name(one.data_type).removeprefix("TYPE_")
                side.add(name=one.name, datatype=kind, shape=[-1, *one.dims])
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = self._config(request.model_name, context)
        if self.failing:
            context.abort(grpc.StatusCode.INTERNAL, self.failing)
        (tensor,), (wanted,) = request.inputs, request.outputs
        windows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tensor.shape)
        if len(windows) > config.max_batch_size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "batch above max_batch_size")
        (told,) = config.input
        if any(d not in (-1, n) for d, n in zip(told.dims, windows.shape[1:], strict=True)):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input")
        self.batches.append(len(windows))
        (found,) = self.sessions[config.name].run([wanted.name], {tensor.name: windows})
        if self.spoiling:
            found = np.full_like(found, np.nan)
        answer = service_pb2.ModelInferResponse(model_name=config.name)
        answer.outputs.add(name=wanted.name, datatype="FP32", shape=found.shape)
        answer.raw_output_contents.append(found.tobytes())
        return answer

    def _config(self, name: str, context: Any) -> Any:
        if name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}'")
        return self.configs[name]


@contextmanager
def serving(repository: Path) -> Iterator[tuple[FakeTriton, str]]:
    """A server on a free port of this machine: the service, and its HOST:PORT."""
    service = FakeTriton(repository)
    large = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(4), options=large)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield service, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
