"""What brats-export does, in order: load, rewrite, reduce, build engines, certify, release."""

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.status import Status

from export.build import build
from export.cases import calibration_cases, parity_cases
from export.cli import ExportArgs, check_adding
from export.engine_choice import EngineChoice, add_engines, drop_unused_forms
from export.engine_view import EngineView
from export.engines import EngineDevice, EngineOptions
from export.export_view import say, show_graph, show_product
from export.modes import add_modes, check_modes
from export.parity import CaseList, Gate, Reference
from export.precision import Reduced
from export.produce import Parity, Product, Reductions, add_reduced, from_model, from_network
from export.release import check_target, release
from export.timing_cache import TimingCacheFile
from export.triton import write_repository
from export.up_branch import UpBranch
from runtime.backends import Backend, BackendInfo
from runtime.backends.driver import cuda_devices, gpu
from runtime.backends.ort import OrtBackend
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.dataset_json import resolve_channels
from runtime.errors import BackendUnavailableError, BratsError, OutputError, UsageError
from runtime.manifest import MANIFEST
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP32, ONNX_INT8, WRITTEN, ModelDir
from runtime.modes import REAL
from train.backend import TorchBackend
from train.checkpoint import load_model, load_tutorial, newest_run
from train.tutorial import PATCH as TUTORIAL_PATCH


def export(options: ExportArgs, console: Console) -> None:
    """Write a model directory, or add engines and graphs in reduced precision to one.

    What "engines are required" means: of every graph, one that passes. Where none can be built the
    backend is unavailable; where one is built and fails, it is the parity gate that has failed.
    Engines are what a model directory is named for, so that there one of them is required anyway.

    A mode that does not pass ends in an error as well, but the model is released with the
    certificate that says so: by that the mode is refused, and everything else may be run.

    Raises:
        BratsError: of every kind; but for that of a mode, nothing is released then.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    given = options.checkpoint
    model = None
    if given is not None and (given / MANIFEST).is_file():
        check_adding(options)
        model = ModelDir.open(given)
    # A link stays a link: what it points to is replaced.
    out = Path(os.path.realpath(options.output or (model.path if model else WRITTEN)))
    check_target(out)
    kinds = _kinds(options)
    adds = bool(kinds) or options.int8 or options.modes
    if model is not None and options.triton is not None and not adds and options.engines == "auto":
        _serve(model, options.triton, console)
        return
    device = _engine_device(options, model is not None and not adds, console)
    with console.status("starting") as status:
        told = _teller(status, console)
        if model is not None:
            _check_not_there(options, model)
            product = from_model(model)
            parity = _parity(options, _fp32_of(model, options.threads), told)
            add_reduced(product, parity, _reductions(options, model.card, device))
        else:
            product, parity = _from_checkpoint(options, device, told, console)
    choice, refusal = None, None
    # A product that fails the gate is not released, whatever its engines do.
    if device is not None and product.certificate["verdict"] != "fail":
        choice = _add_engines(product, device, options, parity, console)
        adding = model is not None and not options.modes
        refusal = _required(product, choice, options, adding=adding)
    if options.modes and product.certificate["verdict"] != "fail":
        with console.status("modes beside the exact way"):
            cases = parity_cases(options.data, options.cases, options.labels)
            add_modes(product, cases, parity.source, options.threads)
    show_product(product, parity.reference.info.name, console)
    if refusal is not None:
        raise refusal
    allowed = options.allow_inconclusive
    if product.undecided_before and choice is not None and not choice.undecided:
        allowed = True
    release(out, product.card, product.files, product.certificate, allowed)
    plans = sum(name.endswith(".plan") for name in product.files)
    named = [name for name in sorted(product.files) if name.endswith(".onnx")]
    if plans:
        named.append(f"{plans} engine{'s' if plans > 1 else ''}")
    shown = options.output or (model.path if model else out.name)
    say(console, f"model directory {shown}: {', '.join(named)}")
    if options.triton is not None:
        _serve(ModelDir.open(out), options.triton, console)
    if options.modes:
        check_modes(product, options.allow_inconclusive)


def _serve(model: ModelDir, repository: Path, console: Console) -> None:
    served = write_repository(model, repository)
    say(console, f"model repository {repository}: {', '.join(one.name for one in served)}")
    if any(name.endswith(".plan") for name in model.hashes) and not any(
        one.capability for one in served
    ):
        say(console, "no engine is served: none takes linear windows of any batch", "yellow")


def _check_not_there(options: ExportArgs, model: ModelDir) -> None:
    """Refuse to calibrate a graph that is there and stays as it is."""
    if options.calibrate is not None and ONNX_INT8 in model.hashes:
        raise UsageError(
            "--calibrate",
            found=f"{model.path / ONNX_INT8}, which is there already and stays as it is",
            expected="a model without one",
            remedy="drop --int8 --calibrate, or export again from the checkpoint",
        )


def _from_checkpoint(
    options: ExportArgs, device: EngineDevice | None, told: Callable[[str], None], console: Console
) -> tuple[Product, Parity]:
    network, card = _loaded(options, console)
    if options.name:
        card = replace(card, name=options.name)
    forms: tuple[UpBranch, ...] = ("k4",)
    if options.up_branch == "all" or (options.up_branch == "auto" and device is not None):
        forms = ("k4", "unfused", "interleave")
    told("tracing and rewriting the graph")
    built = build(network, card, forms, options.threads, half_weights=options.half_weights)
    show_graph(built.report, console)
    parity = _parity(options, _reference(network, card, options.device), told)
    return from_network(built, card, parity, _reductions(options, card, device)), parity


def _kinds(options: ExportArgs) -> tuple[Reduced, ...]:
    wanted: tuple[tuple[Reduced, bool], ...] = (("fp16", options.fp16), ("bf16", options.bf16))
    return tuple(kind for kind, is_wanted in wanted if is_wanted)


def _reductions(options: ExportArgs, card: ModelCard, device: EngineDevice | None) -> Reductions:
    on_gpu = _on_gpu(card, device) if device is not None else None
    calibration = calibration_cases(options.data, options.calibrate) if options.int8 else None
    return Reductions(
        _kinds(options), options.strict_fp16, on_gpu, calibration, threads=options.threads
    )


def _loaded(options: ExportArgs, console: Console) -> tuple[torch.nn.Module, ModelCard]:
    """The network that is to be exported, and its card."""
    checkpoint = options.checkpoint
    if options.origin == "tutorial":
        if checkpoint is None:
            raise UsageError(
                "--from tutorial",
                found="no checkpoint",
                expected="the file that the tutorial's training has saved",
                remedy="name it: brats-export best_model.pth --from tutorial",
            )
        say(console, f"checkpoint {checkpoint} of the tutorial")
        given = options.channels
        names = resolve_channels("--channels", given.split(",")) if given else None
        network, card = load_tutorial(checkpoint, names, options.patch or TUTORIAL_PATCH)
        # The checkpoint cannot say so, and a wrong order shows in nothing but the label maps.
        say(console, f"channels: {', '.join(card.modalities)} (--channels names another order)")
        return network, card
    if checkpoint is None:
        checkpoint = newest_run(options.runs) / "checkpoints" / "best.pt"
    elif checkpoint.is_dir():
        checkpoint = checkpoint / "checkpoints" / "best.pt"
    say(console, f"checkpoint {checkpoint}")
    return load_model(checkpoint)


def _parity(options: ExportArgs, reference: Backend, told: Callable[[str], None]) -> Parity:
    return Parity(
        Reference(reference),
        CaseList(parity_cases(options.data, options.cases, options.labels)),
        Gate(truth=options.gate),
        "phantoms" if options.data is None else REAL,
        told,
    )


def _reference(network: torch.nn.Module, card: ModelCard, index: int) -> Backend:
    """fp32 PyTorch, on the GPU where PyTorch has one."""
    if not torch.cuda.is_available():
        return TorchBackend(network, card)
    # By default cuDNN rounds fp32 products to the 10 bits of TF32: no reference for anything.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return TorchBackend(network, card, f"cuda:{index}")


def _fp32_of(model: ModelDir, threads: int | None) -> Backend:
    """The fp32 graph of an exported model, which its certificate compares with PyTorch."""
    info = BackendInfo("ort", "cpu", "fp32", ONNX_FP32, model.hashes.get(ONNX_FP32, ""))
    return OrtBackend(model.read(ONNX_FP32), model.card, info, threads)


def _on_gpu(card: ModelCard, device: EngineDevice) -> Callable[[bytes, str, str], Backend]:
    def open_on_gpu(data: bytes, file: str, precision: str) -> Backend:
        from runtime.backends.ort_cuda import OrtCudaBackend
        from runtime.ops.cupy import CupyOps

        info = BackendInfo("ort", f"cuda:{device.index}", precision, file)
        return OrtCudaBackend(data, card, info, CupyOps(device.index))

    return open_on_gpu


def _engine_device(options: ExportArgs, needed: bool, console: Console) -> EngineDevice | None:
    """The GPU and the TensorRT that engines are built with; None where none are to be built.

    Raises:
        BackendUnavailableError: engines are required, and cannot be built here; or the device that
            was named is not there.
    """
    # The driver first: TensorRT without one can crash the process.
    devices = cuda_devices()
    if options.device and options.device >= devices:
        raise BackendUnavailableError(
            "--device",
            found=f"{devices} CUDA devices",
            expected=f"cuda:{options.device}",
            remedy="check nvidia-smi, or drop --device",
        )
    if options.engines == "no":
        return None
    try:
        if not devices:
            raise BackendUnavailableError(
                "--engines",
                found="no CUDA device here",
                expected="the GPU that the engines are for",
                remedy="run brats-export with the model directory on the machine with that GPU",
            )
        if find_spec("cupy") is None:
            raise BackendUnavailableError(
                "--engines",
                found="cupy is not installed",
                expected="its package, which runs the engines that are to be certified",
                remedy="install brats-deploy[gpu]",
            )
        return EngineDevice(load_tensorrt(), options.device, gpu(options.device))
    except BackendUnavailableError as error:
        if needed or options.engines == "require":
            raise
        if options.fp16 or options.bf16:
            say(console, f"no TensorRT engines: {error.found}")
        return None


def _add_engines(
    product: Product,
    device: EngineDevice,
    options: ExportArgs,
    parity: Parity,
    console: Console,
) -> EngineChoice:
    cache = TimingCacheFile(options.timing_cache or _default_cache(), device.tensorrt, device.gpu)
    timings, problem = cache.load()
    if problem:
        say(console, problem, "yellow")
    engine_options = EngineOptions(
        options.engine_batch,
        options.engine_static,
        options.engine_level,
        int(options.workspace_gib * 2**30),
    )
    if options.up_branch == "k4":
        product.sources = [source for source in product.sources if source.up_branch == "k4"]
    say(console, f"engines for {device.gpu.name} by {device.tensorrt}")
    # Lines rather than a status: every build and its time are worth reading again.
    told = replace(parity, told=lambda line: say(console, f"  {line}"))
    with EngineView(console) as view:
        choice = add_engines(product, device, engine_options, told, timings, view)
    if options.up_branch != "all":
        drop_unused_forms(product)
    if choice.timing_cache is not None and choice.timing_cache != timings:
        try:
            cache.save(choice.timing_cache)
        except OutputError as error:
            # The next build takes longer; that is no reason to lose this one.
            say(console, f"the timing cache was not kept: {error}", "yellow")
    return choice


def _required(
    product: Product, choice: EngineChoice, options: ExportArgs, *, adding: bool
) -> BratsError | None:
    """Let the release fail where engines are required and there are none: with the certificate of
    one that fails the gate, or with the error that is returned where none could be built.
    """
    wanted = {source.precision for source in product.sources}
    missing = sorted(wanted - set(choice.chosen))
    if not missing or (options.engines != "require" and not (adding and not choice.chosen)):
        return None
    for precision in missing:
        if precision in choice.rejected:
            product.cover(choice.rejected[precision])
            return None
    reasons = [failure.reason for failure in choice.failures]
    return BackendUnavailableError(
        "--engines",
        found=f"no {' and no '.join(missing)} engine that could be built"
        + (f" ({reasons[0]})" if reasons else ""),
        expected="one that passes the parity gate",
        remedy="use --backend ort, which runs the ONNX models on this GPU"
        if adding
        else "drop --engines require to release the ONNX models alone",
    )


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "brats-deploy" / "timing_cache"


def _teller(status: Status, console: Console) -> Callable[[str], None]:
    def told(line: str) -> None:
        status.update(line)
        if not console.is_terminal:
            say(console, line)

    return told
