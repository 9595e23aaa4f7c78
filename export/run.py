"""What brats-export does, in order: load, rewrite, reduce, build engines, certify, release."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.status import Status
from rich.table import Table

from export.build import build
from export.cases import parity_cases
from export.cli import ExportArgs
from export.engine_choice import add_engines
from export.engine_view import EngineView
from export.engines import EngineDevice, EngineOptions
from export.parity import CaseList, Gate, Reference
from export.precision import Reduced
from export.produce import Parity, Product, Reductions, from_model, from_network
from export.release import check_target, release
from export.timing_cache import TimingCacheFile
from export.up_branch import UpBranch
from runtime.backends import Backend, BackendInfo
from runtime.backends.driver import cuda_devices, gpu
from runtime.backends.ort import OrtBackend
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.errors import BackendUnavailableError, BratsError, UsageError
from runtime.model_card import ModelCard
from runtime.model_dir import MANIFEST, ONNX_FP32, ModelDir
from train.backend import TorchBackend
from train.checkpoint import load_model, newest_run


def export(options: ExportArgs, console: Console) -> None:
    """Write a model directory, or add engines to one.

    Raises:
        BratsError: of every kind; nothing is released then.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    given = options.checkpoint
    into_model = given is not None and (given / MANIFEST).is_file()
    # A link stays a link: what it points to is replaced.
    out = Path(
        os.path.realpath(options.output or (given if into_model and given else Path("model")))
    )
    check_target(out)
    device = _engine_device(options, console)
    with console.status("starting") as status:
        told = _teller(status, console)
        if into_model and given is not None:
            if device is None:
                raise _no_engines(options)
            model = ModelDir.open(given)
            product = from_model(model)
            parity = _parity(options, _fp32_of(model, options.threads), told)
        else:
            product, parity = _from_checkpoint(options, device, told, console)
        if device is not None:
            _add_engines(product, device, options, parity, status, console)
    console.print(table(product.certificate))
    for note in product.notes:
        console.print(note, style="yellow", markup=False)
    release(out, product.card, product.files, product.certificate, options.allow_inconclusive)
    shown = options.output or out.name
    console.print(f"model directory {shown}: {', '.join(sorted(product.files))}", markup=False)


def _from_checkpoint(
    options: ExportArgs, device: EngineDevice | None, told: Callable[[str], None], console: Console
) -> tuple[Product, Parity]:
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint = newest_run(options.runs) / "checkpoints" / "best.pt"
    elif checkpoint.is_dir():
        checkpoint = checkpoint / "checkpoints" / "best.pt"
    console.print(f"checkpoint {checkpoint}", markup=False)
    network, card = load_model(checkpoint)
    if options.name:
        card = replace(card, name=options.name)
    forms: tuple[UpBranch, ...] = ("k4",)
    if options.up_branch == "all" or (options.up_branch == "auto" and device is not None):
        forms = ("k4", "unfused", "interleave")
    told("tracing and rewriting the graph")
    built = build(network, card, forms, options.threads)
    console.print(
        f"graph: {built.report.folded} batch norms folded, {built.report.composed} up branches "
        "composed into one transposed convolution each"
    )
    for note in built.report.left_alone:
        console.print(f"left alone: {note}", markup=False)
    kinds: list[Reduced] = []
    if options.fp16:
        kinds.append("fp16")
    if options.bf16:
        kinds.append("bf16")
    parity = _parity(options, _reference(network, card, options.device), told)
    wanted = Reductions(
        tuple(kinds), options.strict_fp16, _on_gpu(card, device) if device is not None else None
    )
    return from_network(built, card, parity, wanted), parity


def _parity(options: ExportArgs, reference: Backend, told: Callable[[str], None]) -> Parity:
    return Parity(
        Reference(reference),
        CaseList(parity_cases(options.data, options.cases)),
        Gate(truth=options.gate),
        "phantoms" if options.data is None else "data",
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


def _engine_device(options: ExportArgs, console: Console) -> EngineDevice | None:
    """The GPU and the TensorRT that engines are built with; None where none are to be built.

    Raises:
        BackendUnavailableError: engines are required, and cannot be built here.
    """
    if options.engines == "no":
        return None
    try:
        # The driver first: TensorRT without one can crash the process.
        if not cuda_devices():
            raise _no_engines(options)
        return EngineDevice(load_tensorrt(), options.device, gpu(options.device))
    except BackendUnavailableError as error:
        if options.engines == "require":
            raise
        if options.fp16 or options.bf16:
            console.print(f"no TensorRT engines: {error.found}", markup=False)
        return None


def _no_engines(options: ExportArgs) -> BratsError:
    if options.engines == "no":
        return UsageError(
            "--engines",
            found="no, for a model directory",
            expected="a checkpoint, or engines to be built",
            remedy="drop --engines",
        )
    return BackendUnavailableError(
        "--engines",
        found="no CUDA device here",
        expected="the GPU that the engines are for",
        remedy="run brats-export with the model directory on the machine with that GPU",
    )


def _add_engines(
    product: Product,
    device: EngineDevice,
    options: ExportArgs,
    parity: Parity,
    status: Status,
    console: Console,
) -> None:
    cache = TimingCacheFile(options.timing_cache or _default_cache(), device.library, device.gpu)
    timings, problem = cache.load()
    if problem:
        console.print(problem, style="yellow", markup=False)
    engine_options = EngineOptions(
        options.engine_batch, options.engine_level, int(options.workspace_gib * 2**30)
    )
    # Two live displays cannot share a terminal.
    status.stop()
    with EngineView(console) as view:
        renewed = add_engines(product, device, engine_options, parity, timings, view)
    if renewed is not None and renewed != timings:
        cache.save(renewed)
    if options.engines == "require" and not any(name.endswith(".plan") for name in product.files):
        raise BackendUnavailableError(
            "--engines",
            found=f"no engine that could be built and passes ({'; '.join(product.notes[:2])})",
            expected="one",
            remedy="drop --engines require to release the ONNX files alone",
        )


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "brats-deploy" / "timing_cache"


def _teller(status: Status, console: Console) -> Callable[[str], None]:
    def told(line: str) -> None:
        status.update(line)
        if not console.is_terminal:
            console.print(line, markup=False)

    return told


def table(certificate: dict[str, Any]) -> Table:
    """The certificate for people: one row per artefact and what ran it."""
    shown = Table(title="Parity with fp32 PyTorch", title_justify="left")
    for name in ("artefact", "backend", "arithmetic", "least Dice", "changed labels", "verdict"):
        shown.add_column(name)
    for entry in certificate["artefacts"]:
        records = [case for case in entry["cases"] if not case["non_finite"]]
        kept = entry.get("kept", {}).get("kept_fp32", [])
        arithmetic = str(entry["arithmetic"])
        if kept:
            arithmetic += f", {len(kept)} layers in fp32"
        shown.add_row(
            entry["file"],
            entry["backend"],
            arithmetic,
            f"{min(min(record['dice_to_fp32'].values()) for record in records):.5f}"
            if records
            else "not finite",
            f"{max(record['changed_labels'] for record in records):.1e}" if records else "",
            entry["verdict"],
        )
    return shown
