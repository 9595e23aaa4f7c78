"""The seam between a segmenter and whatever runs the network: one model on one device."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, Protocol

from runtime.backends.driver import cuda_devices
from runtime.errors import BackendUnavailableError, ParityError, UsageError
from runtime.model_card import ModelCard, Shape3
from runtime.model_dir import ONNX_FP16, ONNX_FP32, ModelDir
from runtime.ops import Array, ArrayOps

Fill = Callable[[int, int, Array], None]
"""fill(i, j, inputs): write windows i..j into ``inputs``, float32 (j - i, C, X, Y, Z)."""
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


BackendName = Literal["auto", "trt", "ort", "openvino"]
Precision = Literal["auto", "fp32", "fp16", "int8"]


@dataclass(frozen=True)
class BackendOptions:
    """Which backend is wanted.

    Attributes:
        backend: "auto" takes the fastest that works here: a GPU first, then openvino, then ort.
        device: "auto", "cpu", or "cuda:N".
        precision: "auto" is fp32 on a CPU and certified fp16 on a GPU.
        threads: CPU threads; None means one per core.
        uncertified: run an artefact that no parity certificate covers.
    """

    backend: BackendName = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    uncertified: bool = False


def open_backend(model: ModelDir, options: BackendOptions | None = None) -> Backend:
    """Open the backend that ``options`` ask for.

    Args:
        model: an opened model directory; the artefact's bytes are verified against its manifest.
        options: what is wanted.

    Returns:
        A backend that the caller closes.

    Raises:
        UsageError: device and backend or precision do not go together.
        BackendUnavailableError: the backend's library, driver or device is not here.
        ParityError: no certificate covers the artefact and ``uncertified`` is not set.
        InputError: the artefact is missing, changed or not loadable.
    """
    options = options or BackendOptions()
    gpu = _wants_gpu(options)
    tried: list[str] = []
    for name in _candidates(options, gpu):
        device = "cpu"
        if gpu and not (name == "openvino" and options.backend == "auto"):
            device = options.device if options.device.startswith("cuda:") else "cuda:0"
        try:
            return _open(model, name, device, options, "; ".join(tried) or None)
        except BackendUnavailableError as error:
            if options.backend != "auto":
                raise
            tried.append(f"{name} ({error.found})")
    raise BackendUnavailableError(
        "--backend auto",
        found="no backend that works here: " + "; ".join(tried),
        expected="openvino or onnxruntime",
        remedy="install brats-deploy again",
    )


def _wants_gpu(options: BackendOptions) -> bool:
    if options.device == "cpu" or (options.device == "auto" and options.backend == "openvino"):
        if options.backend == "trt":
            raise UsageError(
                "--device",
                found="cpu",
                expected="a GPU for --backend trt",
                remedy="use --backend auto",
            )
        return False
    if options.device not in ("auto", "cuda") and not (
        options.device.startswith("cuda:") and options.device[5:].isdigit()
    ):
        raise UsageError(
            "--device",
            found=options.device,
            expected="auto, cpu or cuda:N",
            remedy="name one of them",
        )
    devices = cuda_devices()
    if options.device == "auto":
        return devices > 0 or options.backend == "trt"
    wanted = int(options.device.partition(":")[2] or 0)
    if wanted >= devices:
        raise BackendUnavailableError(
            "--device",
            found=f"{devices} CUDA devices",
            expected=options.device,
            remedy="check nvidia-smi, or use --device cpu",
        )
    return True


def _candidates(options: BackendOptions, gpu: bool) -> tuple[str, ...]:
    if options.backend != "auto":
        return (options.backend,)
    if not gpu:
        return ("openvino", "ort")
    # Who names a GPU does not want a CPU in its place.
    return ("trt", "ort", "openvino") if options.device == "auto" else ("trt", "ort")


def _open(
    model: ModelDir, name: str, device: str, options: BackendOptions, fell_back_from: str | None
) -> Backend:
    if name == "trt":
        raise _no_tensorrt()
    if find_spec("openvino" if name == "openvino" else "onnxruntime") is None:
        raise BackendUnavailableError(
            f"--backend {name}",
            found="it is not installed",
            expected="its package",
            remedy="install brats-deploy again",
        )
    artefact = _artefact(model, device, options.precision)
    verdict = model.verdict(artefact)
    if verdict not in ("pass", "inconclusive") and not options.uncertified:
        raise ParityError(
            model.path / artefact,
            found="a failed parity certificate" if verdict == "fail" else "no parity certificate",
            expected="a verdict in parity.json",
            remedy="export it with brats-export, or run it all the same with --uncertified",
        )
    info = BackendInfo(
        name=name,
        device=device,
        precision="fp32" if device == "cpu" or artefact == ONNX_FP32 else "fp16",
        artefact=artefact,
        sha256=model.hashes[artefact],
        certificate=verdict,
        fell_back_from=fell_back_from,
    )
    if name == "openvino":
        from runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(model.read(artefact), model.card, info, options.threads)
    from runtime.backends.ort import OrtBackend

    return OrtBackend(model.read(artefact), model.card, info, options.threads)


def _artefact(model: ModelDir, device: str, precision: Precision) -> str:
    if precision == "int8":
        raise UsageError(
            "--precision",
            found="int8",
            expected="a model with an int8 graph",
            remedy="use fp32 or fp16: brats-export writes no int8 graph yet",
        )
    if precision == "fp16" and device == "cpu":
        raise UsageError(
            "--precision",
            found="fp16 on a CPU",
            expected="fp32, the arithmetic in which CPUs execute it anyway",
            remedy="drop --precision, or name a GPU with --device cuda:0",
        )
    if precision == "auto" and device != "cpu" and model.verdict(ONNX_FP16) == "pass":
        return ONNX_FP16
    return ONNX_FP16 if precision == "fp16" else ONNX_FP32


def _no_tensorrt() -> BackendUnavailableError:
    if find_spec("tensorrt") is None and find_spec("tensorrt_rtx") is None:
        return BackendUnavailableError(
            "--backend trt",
            found="TensorRT is not installed",
            expected="the tensorrt package",
            remedy="install brats-deploy[trt] beside an NVIDIA GPU, or use --backend auto",
        )
    return BackendUnavailableError(
        "--backend trt",
        found="no engine that this version can run",
        expected="an engine for this device in the model directory",
        remedy="use --backend ort --device cuda:0, or --backend auto",
    )
