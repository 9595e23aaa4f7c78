"""Open the backend that is wanted, or the fastest that works here."""

import shlex
from dataclasses import dataclass, replace
from typing import Final, Literal

from runtime.backends.cupy_device import cupy_ops
from runtime.backends.driver import cuda_devices, gpu
from runtime.backends.loading import loading, require
from runtime.backends.seam import Backend, BackendInfo
from runtime.errors import (
    BackendUnavailableError,
    BratsError,
    ParityError,
    UsageError,
)
from runtime.model_dir import ONNX_BF16, ONNX_FP16, ONNX_FP32, ONNX_INT8, ModelDir
from runtime.windows import Patch

BackendName = Literal["auto", "trt", "ort", "openvino", "triton"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]

_GRAPHS: Final = {"fp32": ONNX_FP32, "fp16": ONNX_FP16, "bf16": ONNX_BF16, "int8": ONNX_INT8}
_VOUCHED: Final = ("pass", "inconclusive")


@dataclass(frozen=True)
class BackendOptions:
    """Which backend is wanted.

    Attributes:
        backend: "auto" takes the fastest that works here: a GPU first, then openvino, then ort.
        device: "auto", "cpu", or "cuda:N"; of "triton" the server, HOST:PORT/MODEL.
        precision: "auto" is fp32 on a CPU and certified fp16 on a GPU; "int8" is for CPUs.
        threads: CPU threads; None means one per core.
        uncertified: run an artefact that no parity certificate covers.
        patch: shape (X, Y, Z) of the windows that are to be run, which an engine must be built
            for; None means the card's; no engine is built for a "box".
    """

    backend: BackendName = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    uncertified: bool = False
    patch: Patch | None = None


def open_backend(model: ModelDir, options: BackendOptions | None = None) -> Backend:
    """Open the backend that ``options`` ask for.

    Args:
        model: an opened model directory; the artefact's bytes are verified against its manifest.
        options: what is wanted.

    Returns:
        A backend that the caller closes.

    Raises:
        UsageError: device and backend or precision do not go together.
        BackendUnavailableError: the backend's library, driver, device or engine is not here.
        ParityError: no certificate covers the artefact and ``uncertified`` is not set.
        InputError: the artefact is missing, changed, not loadable or of another card.
        ComputeError: others have taken the device's memory.
    """
    options = options or BackendOptions()
    if options.backend == "triton":
        return _open_triton(model, options)
    index = _gpu_index(options)
    tried: list[str] = []
    for name in _candidates(options, index is not None):
        on_cpu = name == "openvino" and options.backend == "auto"
        try:
            return _open(model, name, None if on_cpu else index, options, "; ".join(tried) or None)
        except BackendUnavailableError as error:
            if options.backend != "auto":
                raise
            tried.append(f"{name} ({error.found})")
    raise BackendUnavailableError(
        "--backend auto",
        found="none that works here: " + "; ".join(tried),
        expected="openvino or onnxruntime" if index is None else "trt or ort on a GPU",
        remedy="install brats-deploy again"
        if index is None
        else f"build an engine with brats-export {shlex.quote(str(model.path))}, "
        "install brats-deploy[gpu], or use --device cpu",
    )


def open_spare(model: ModelDir, options: BackendOptions, failed: BackendInfo) -> Backend | None:
    """A backend in fp32 on the device of one that gave values that are not finite; None if there is
    none.

    The same backend where its fp32 artefact is there, otherwise ONNX Runtime with the fp32 graph,
    which every model directory holds.
    """
    if failed.precision == "fp32":
        return None
    # int8 chooses the CPU, where fp32 would choose a GPU; a server's name is no device of ours.
    device = "cpu" if failed.device == "cpu" else options.device
    device = "auto" if failed.name == "triton" else device
    wanted = replace(options, precision="fp32", device=device)
    names: tuple[BackendName, ...] = ("trt", "openvino", "ort")
    for name in (name for name in names if name in (failed.name, "ort")):
        try:
            return open_backend(model, replace(wanted, backend=name))
        except BratsError:
            # The error that the user must see is the one that made a spare necessary.
            continue
    return None


def may_take_gpu(options: BackendOptions) -> bool:
    """Whether a GPU is taken where there is one; otherwise a CPU computes, or a server."""
    if options.backend == "triton" or options.device == "cpu":
        return False
    quantized = options.precision == "int8" and options.backend != "trt"
    return options.device != "auto" or not (options.backend == "openvino" or quantized)


def _gpu_index(options: BackendOptions) -> int | None:
    """The CUDA device to use; None for the CPU."""
    if not may_take_gpu(options):
        if options.backend == "trt":
            raise UsageError(
                "--device",
                found="cpu",
                expected="a GPU for --backend trt",
                remedy="use --backend auto",
            )
        return None
    if options.device not in ("auto", "cuda") and not (
        options.device.startswith("cuda:") and options.device[5:].isdecimal()
    ):
        raise UsageError(
            "--device",
            found=options.device,
            expected="auto, cpu or cuda:N",
            remedy="name one of them",
        )
    # The driver is asked before any GPU library is imported.
    devices = cuda_devices()
    if options.precision == "int8":
        raise UsageError(
            "--precision",
            found="int8 on a GPU",
            expected="int8 on a CPU, the only place where it is certified",
            remedy="drop --device and --backend, or use --precision fp16",
        )
    if options.device == "auto" and options.backend != "trt":
        return 0 if devices else None
    wanted = int(options.device.partition(":")[2] or 0)
    if wanted >= devices:
        raise BackendUnavailableError(
            "--backend trt" if options.device == "auto" else "--device",
            found=f"{devices} CUDA devices",
            expected="an NVIDIA GPU and its driver" if not devices else options.device,
            remedy="check nvidia-smi, or use --backend auto --device cpu",
        )
    return wanted


def _candidates(options: BackendOptions, on_gpu: bool) -> tuple[str, ...]:
    if options.backend != "auto":
        return (options.backend,)
    if not on_gpu:
        return ("openvino", "ort")
    # Who names a GPU, or what only a GPU computes in, does not want a CPU in its place.
    on_cpu_too = options.device == "auto" and options.precision in ("auto", "fp32")
    return ("trt", "ort", "openvino") if on_cpu_too else ("trt", "ort")


def _open(
    model: ModelDir,
    name: str,
    index: int | None,
    options: BackendOptions,
    fell_back_from: str | None,
) -> Backend:
    if index is not None and name != "openvino":
        require("cupy", name)
    if name == "trt":
        return _open_trt(model, index or 0, options, fell_back_from)
    library = "openvino" if name == "openvino" else "onnxruntime"
    require(library, name)
    artefact, verdict = _artefact(model, index is not None, options)
    info = BackendInfo(
        name=name,
        device="cpu" if index is None else f"cuda:{index}",
        precision=_precision_of(artefact),
        artefact=artefact,
        sha256=model.hashes[artefact],
        certificate=verdict,
        fell_back_from=fell_back_from,
        directory=model.path,
    )
    data = model.read(artefact)
    if name == "openvino":
        with loading(library, name):
            from runtime.backends.openvino import OpenVinoBackend
        varying = options.patch == "box"
        return OpenVinoBackend(data, model.card, info, options.threads, varying=varying)
    if index is None:
        with loading(library, name):
            from runtime.backends.ort import OrtBackend
        return OrtBackend(data, model.card, info, options.threads)
    with loading(library, name):
        from runtime.backends.ort_cuda import OrtCudaBackend
    return OrtCudaBackend(data, model.card, info, cupy_ops(index))


def _open_triton(model: ModelDir, options: BackendOptions) -> Backend:
    require("tritonclient", "triton")
    with loading("tritonclient", "triton"):
        from runtime.backends.triton import TritonBackend
    artefacts = {sha256: (file, model.verdict(file)) for file, sha256 in model.hashes.items()}
    backend = TritonBackend(options.device, model.card, artefacts, options.threads)
    info = backend.info
    if options.precision not in ("auto", info.precision):
        backend.close()
        raise UsageError(
            "--precision",
            found=f"{options.precision} for {options.device}, which runs in {info.precision}",
            expected="the precision of the served model",
            remedy="name another model of the server with --device, or drop --precision",
        )
    if info.certificate not in _VOUCHED and not options.uncertified:
        backend.close()
        raise ParityError(
            model.path / info.artefact,
            found=_no_certificate(info.certificate),
            expected="a graph or an engine that passed its parity gate",
            remedy="certify it with brats-export, or run it with --uncertified",
        )
    return backend


def _open_trt(
    model: ModelDir, index: int, options: BackendOptions, fell_back_from: str | None
) -> Backend:
    from runtime.backends.tensorrt_library import load_tensorrt
    from runtime.backends.trt import TrtBackend
    from runtime.engine import EngineRecord, find_engine

    window = options.patch or model.card.patch
    if window == "box":
        raise BackendUnavailableError(
            "--backend trt",
            found="one window over the brain box, whose shape differs from case to case",
            expected="windows of the shape that an engine is built for",
            remedy="use --quality exact, or --backend ort",
        )
    library, device = load_tensorrt(), gpu(index)
    found: EngineRecord | None = None
    first: BackendUnavailableError | None = None
    for precision in _engine_precisions(options.precision):
        try:
            record = find_engine(model, library.flavour, library.version, device, precision, window)
        except BackendUnavailableError as error:
            first = first or error
            continue
        if options.uncertified or model.verdict(record.key.plan) in _VOUCHED:
            found = record
            break
        first = first or BackendUnavailableError(
            model.path / record.key.plan,
            found=f"an engine with {_no_certificate(model.verdict(record.key.plan))}",
            expected="one that was run over whole cases on this device",
            remedy=f"certify it with brats-export {model.path}, or run it with --uncertified",
        )
    if found is None:
        raise first or RuntimeError("no precision was tried")
    info = BackendInfo(
        name="trt",
        device=f"cuda:{index}",
        precision=found.key.precision,
        artefact=found.key.plan,
        sha256=found.sha256,
        certificate=model.verdict(found.key.plan),
        fell_back_from=fell_back_from,
        directory=model.path,
    )
    return TrtBackend(
        model.read(found.key.plan), model.card, info, found.key, library, cupy_ops(index)
    )


def _engine_precisions(
    precision: Precision,
) -> tuple[Literal["fp32", "fp16", "bf16"], ...]:
    if precision == "auto":
        return ("fp16", "bf16", "fp32")
    if precision == "int8":
        raise ValueError("refused before")
    return (precision,)


def _artefact(model: ModelDir, on_gpu: bool, options: BackendOptions) -> tuple[str, str]:
    """The ONNX file to run, and what its certificate says of it."""
    precision = options.precision
    if precision in ("fp16", "bf16") and not on_gpu:
        raise UsageError(
            "--precision",
            found=f"{precision} on a CPU",
            expected="fp32, the arithmetic in which CPUs execute it anyway",
            remedy="drop --precision, or name a GPU with --device cuda:0",
        )
    if precision == "auto":
        half = model.verdict(ONNX_FP16) == "pass" and not model.refused(ONNX_FP16, "ort")
        precision = "fp16" if on_gpu and half else "fp32"
    artefact = _GRAPHS[precision]
    verdict = model.verdict(artefact)
    if on_gpu and model.refused(artefact, "ort") and not options.uncertified:
        raise BackendUnavailableError(
            model.path / artefact,
            found="a graph that failed its certificate with ONNX Runtime on a GPU",
            expected="one that passed",
            remedy="use --backend trt or --device cpu, or run it all the same with --uncertified",
        )
    if artefact in model.hashes and verdict not in _VOUCHED and not options.uncertified:
        raise ParityError(
            model.path / artefact,
            found=_no_certificate(verdict),
            expected="a verdict in parity.json",
            remedy="export it with brats-export, or run it all the same with --uncertified",
        )
    if artefact not in model.hashes:
        model.read(artefact)
    return artefact, verdict


def _no_certificate(verdict: str) -> str:
    return "a failed parity certificate" if verdict == "fail" else "no parity certificate"


def _precision_of(artefact: str) -> str:
    return next(precision for precision, file in _GRAPHS.items() if file == artefact)
