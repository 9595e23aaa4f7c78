"""Processes that train one network together, as torchrun starts them; one is a world, too."""

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from time import sleep
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runtime.errors import EXIT_INTERRUPTED, BratsError, ComputeError, UsageError, as_ours
from train.voice import LAST_WORD

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_TIMEOUT: Final = timedelta(hours=4)
"""How long a process waits for the others: they validate cases of very different sizes."""
_VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class _Sum(torch.autograd.Function):
    """The sum over processes; what follows is the same in each, so that its gradient is theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


@dataclass(frozen=True)
class World:
    """One process's place among those that train together.

    Attributes:
        rank: 0 leads: it alone writes, prints and decides about time.
        size: number of processes.
        local_rank: rank among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """What ``make`` gives the leader, for everybody; called there alone.

        Raises:
            BratsError: what ``make`` raised, in the leader.
            SystemExit: with that error's exit code, in the others.
        """
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        failure: BratsError | None = None
        if self.leads:
            try:
                box[0] = make()
            except BratsError as error:
                failure, box[1] = error, error.exit_code
        dist.broadcast_object_list(box, src=0)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise SystemExit(box[1])
        shared: T = box[0]
        return shared

    def together(self, make: Callable[[], T]) -> T:
        """What ``make`` gives this process; where it fails in one, everybody leaves.

        Raises:
            BratsError: what ``make`` raised, in the first process in which it did.
            SystemExit: with that error's exit code, in the others.
        """
        if self.size == 1:
            return make()
        failure: BratsError | None = None
        made: T | None = None
        try:
            made = make()
        except BratsError as error:
            failure = error
        codes = self.gather(None if failure is None else failure.exit_code)
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return made  # type: ignore[return-value]
        if failure is not None and failed[0] == self.rank:
            raise failure
        raise SystemExit(codes[failed[0]])

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank, for everybody."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of everybody's tensor, the same bits everywhere; ``tensor`` holds it as well."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def sum_with_gradient(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor, which passes gradients back to all of them.

        Their mean over processes, which is what is stepped along, then is the gradient of one
        process with all of the batch.
        """
        if self.size == 1:
            return tensor
        total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
        return total

    def average_buffers(self, module: nn.Module) -> None:
        """Make the running statistics of a network everybody's mean."""
        if self.size == 1:
            return
        statistics = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if statistics:
            flat = self.mean(torch.cat([buffer.flatten() for buffer in statistics]))
            sizes = [buffer.numel() for buffer in statistics]
            for buffer, values in zip(statistics, torch.split(flat, sizes), strict=True):
                buffer.copy_(values.view_as(buffer))

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of ``items``."""
        return items[self.rank :: self.size]


ALONE: Final = World()
"""One process."""


def place() -> World:
    """This process's place, from what torchrun says in the environment.

    Raises:
        UsageError: the environment says half of it.
    """
    given = [name for name in _VARIABLES if name in os.environ]
    if not given:
        return ALONE
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in _VARIABLES)
    except (KeyError, ValueError) as error:
        raise UsageError(
            "the environment",
            found=f"{', '.join(given)} without a number in each of {', '.join(_VARIABLES)}",
            expected="all of them, as torchrun sets them, or none",
            remedy="start brats-train with torchrun, or clear them",
        ) from error
    return World(rank, size, local_rank)


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Meet the other processes, and part from them at the end; nothing to do for one alone.

    Where one fails the others, who find its connections closed wherever they wait for it, leave
    without a word, with its exit code. On GPUs a process may wait for gradients for hours: that one
    is ended by torchrun.

    Raises:
        SystemExit: another process has failed.
        ComputeError: another process has ended and has not said why.
    """
    if world.size == 1:
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    # Where it is first imported while there is a group, which DistributedDataParallel would do, its
    # functions' defaults hold that group for ever: its threads would run into the end of the
    # interpreter, which now and then aborts the process.
    import_module("torch.distributed.nn.functional")
    # Not every build of PyTorch has them.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=_TIMEOUT))
    dist.init_process_group(
        # Objects travel between hosts, gradients between GPUs.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=_TIMEOUT,
    )
    notes = PrefixStore("notes", store)
    silent = False
    try:
        with warnings.catch_warnings():
            # Of 1x1x1 convolutions, whose strides say nothing: channels last is the same memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield
    except SystemExit:
        silent = True
        raise
    except (Exception, KeyboardInterrupt) as error:
        _let_go(error)
        code = _failed_before(error, notes, world.rank)
        if code is None:
            raise
        silent = True
        raise SystemExit(code) from None
    finally:
        # What trained must be gone first: were it the last to hold the group, it would wait for the
        # group's thread with the interpreter's lock, which that thread may be waiting for.
        gc.collect()
        dist.destroy_process_group()
        if silent:
            sleep(LAST_WORD)


def _failed_before(error: BaseException, notes: "Store", rank: int) -> int | None:
    """Note that this process has failed, unless another was the first.

    Returns:
        The exit code of the first; None where this process is it, and is to say why.

    Raises:
        ComputeError: none was, and yet a connection to another process is lost.
    """
    lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
    if isinstance(error, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    elif lost:
        code = ComputeError.exit_code
    elif isinstance(error, BratsError | MemoryError | OSError):
        code = as_ours(error).exit_code
    else:
        code = 1
    first = rank
    # Without torchrun the leader holds the notes: where it has gone, they have.
    with suppress(RuntimeError):
        written = notes.compare_set("failed", "", f"{rank} {code}").decode()
        first, code = map(int, written.split())
    if first != rank:
        return code
    if lost:
        raise ComputeError(
            f"process {rank}",
            found=f"another process gone without a word ({str(error).splitlines()[0]})",
            expected="all that train together",
            remedy="see whether the system ended it for want of memory; --resume goes on from the "
            "last checkpoint",
        ) from error
    return None


def _let_go(error: BaseException | None) -> None:
    """Forget what the functions that failed held: what trained is among it."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
