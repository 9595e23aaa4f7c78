"""Which device trains, and in which arithmetic."""

from dataclasses import dataclass

import torch

from runtime.errors import BackendUnavailableError, UsageError


@dataclass(frozen=True)
class Compute:
    """Where and how the network trains.

    Attributes:
        device: of the network and its batches.
        autocast: dtype of convolutions; None for float32 throughout.
    """

    device: torch.device
    autocast: torch.dtype | None

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        if self.autocast is None:
            return "fp32"
        return "bf16" if self.autocast is torch.bfloat16 else "fp16"


def choose(device: str, precision: str, threads: int = 0, local_rank: int = 0) -> Compute:
    """Resolve "auto".

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16" or "fp16". auto is bf16 where the hardware multiplies it,
            else fp16 on a GPU and fp32 on a CPU.
        threads: CPU threads; 0 leaves PyTorch's own choice, all cores.
        local_rank: of this process on this machine: it takes the GPU of that number.

    Raises:
        UsageError: no such device name, or fp16 on a CPU.
        BackendUnavailableError: the device is not here.
    """
    chosen = _device(device, local_rank)
    if threads > 0:
        torch.set_num_threads(threads)
    if chosen.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        with torch.cuda.device(chosen):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        half = torch.bfloat16 if fast else torch.float16
        return Compute(
            chosen,
            {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, half),
        )
    if precision == "fp16":
        raise UsageError(
            "--train.precision",
            found="fp16 on a CPU",
            expected="fp32 or bf16",
            remedy="leave it at auto",
        )
    wanted = precision == "bf16" or (precision == "auto" and cpu_has_bf16())
    return Compute(chosen, torch.bfloat16 if wanted else None)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; elsewhere it is emulated, slower than fp32."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            "--device", found=name, expected="auto, cpu or cuda:N", remedy="choose one of them"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            "--device", found=name, expected="auto, cpu or cuda:N", remedy="choose one of them"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailableError(
            name,
            found=f"{torch.cuda.device_count()} CUDA devices",
            expected="one of that number",
            remedy="choose --device cpu, or install a CUDA build of PyTorch and a driver",
        )
    return device
