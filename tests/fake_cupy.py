"""A `cupy` without a GPU: device arrays in host memory, real kernels, and work done late.

Only what this project uses of CuPy, and as strict as it: no array mixes with NumPy by itself, a
kernel takes a NumPy scalar only of its parameter's very type. Kernels are compiled by g++ (see
`cuda_shim`). Work on a stream is put off until somebody waits for it, so that host memory that is
read or overwritten too early gives wrong values here as on a device; fresh memory is full of
garbage; every call is in `FakeCuda.log`.
"""

import ctypes
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda_shim.build import Kernel, KernelError, Library, build, why_not

Bytes = npt.NDArray[np.uint8]
Work = Callable[[], None]

POISON: Final = 0xFF
"""Of memory that nobody wrote: NaN as a float, -1 or the largest as an integer."""
ALIGNMENT: Final = 512
GUARD: Final = 32768
MODULES: Final = ("cupy", "runtime.ops.cupy", "runtime.backends.trt", "runtime.backends.ort_cuda")
"""What imports cupy, and what imports that: imported afresh against the fake."""
SCALARS: Final = {
    "bool": np.bool_,
    "signed char": np.int8,
    "unsigned char": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int": np.int32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "float16": np.float16,
    "float": np.float32,
    "double": np.float64,
}


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""


class CUDADriverError(RuntimeError):
    """As cupy.cuda.driver.CUDADriverError."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,}).")


@dataclass(frozen=True)
class Call:
    """One entry of the log.

    Attributes:
        kind: "alloc", "free", "trim", "memset", "h2d", "d2h", "d2d", "kernel", "graph",
            "record", "wait", "external" (see `FakeCuda.enqueue`), or "synchronise": only this one
            makes the host wait.
        name: of the kernel, or what waits ("stream", "event", "device", "copy").
        stream: handle of the stream; 0 is the default stream.
        size: bytes.
    """

    kind: str
    name: str = ""
    stream: int = 0
    size: int = 0


class _Block:
    """Device memory between two guard zones."""

    def __init__(self, size: int, device: int) -> None:
        self.size, self.device = size, device
        self._raw = np.full(size + 2 * GUARD + ALIGNMENT, POISON, np.uint8)
        start = self._raw.ctypes.data + GUARD
        self._first = GUARD + -start % ALIGNMENT
        self.address = self._raw.ctypes.data + self._first
        self.bytes: Bytes = self._raw[self._first : self._first + size]

    def check(self, writer: str) -> None:
        before, after = self._raw[: self._first], self._raw[self._first + self.size :]
        if np.any(before != POISON) or np.any(after != POISON):
            raise KernelError(f"{writer} wrote outside of an array")


@dataclass
class _Event:
    """What a record of an event left in a stream."""

    stream: "Stream"
    time: float | None = None


@dataclass
class FakeCuda:
    """The devices behind the fake module, and what was asked of them."""

    devices: int = 1
    memory: int = 80 << 30
    order: str = "forward"
    seed: int = 0
    log: list[Call] = field(default_factory=list)
    device: int = 0
    used: dict[int, int] = field(default_factory=dict)
    clock: float = 0.0
    streams: "dict[int, Stream]" = field(default_factory=dict)
    current: "dict[int, list[Stream]]" = field(default_factory=dict)
    blocks: "weakref.WeakValueDictionary[int, _Block]" = field(
        default_factory=weakref.WeakValueDictionary
    )
    pinned: dict[int, Bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Stream.fake = Device.fake = self
        Stream.null = Stream(null=True)
        self.current = {device: [Stream.null] for device in range(self.devices)}

    def note(
        self, kind: str, name: str = "", stream: "Stream | None" = None, size: int = 0
    ) -> None:
        self.log.append(Call(kind, name, stream.ptr if stream else 0, size))

    def kinds(self, *kinds: str) -> list[str]:
        """The log without what is not asked for: "kind name", or "kind" where there is none."""
        return [
            f"{call.kind} {call.name}".strip()
            for call in self.log
            if not kinds or call.kind in kinds
        ]

    def settle(self) -> None:
        """Do all work that was put off."""
        for stream in list(self.streams.values()):
            stream.run()

    def peek(self, array: "ndarray") -> npt.NDArray[Any]:
        """A copy of an array's voxels as they are now: what was put off is not done."""
        return array._view.copy(order="K")

    def enqueue(self, stream: int, work: Work, name: str = "") -> None:
        """Put work of another library, such as a network's, on the stream of this handle."""
        self.note("external", name, self.streams[stream])
        self.streams[stream].put(work)

    def at(self, address: int, shape: Sequence[int], dtype: Any) -> npt.NDArray[Any]:
        """The C-order host view of device memory, for work that got a bare address."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for block in list(self.blocks.values()):
            offset = address - block.address
            if offset >= 0 and offset + size <= block.size:
                return block.bytes[offset : offset + size].view(dtype).reshape(shape)
        raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def allocate(self, size: int) -> _Block:
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        used = self.used.get(self.device, 0)
        if used + rounded > self.memory:
            raise OutOfMemoryError(rounded, used)
        block = _Block(size, self.device)
        self.used[self.device] = used + rounded
        self.blocks[block.address] = block
        self.note("alloc", stream=self.stream, size=size)
        weakref.finalize(block, self._freed, self.device, rounded)
        return block

    def _freed(self, device: int, size: int) -> None:
        self.used[device] -= size

    @property
    def stream(self) -> "Stream":
        """CuPy's current stream of the current device."""
        return self.current[self.device][-1]

    def pinned_at(self, address: int, size: int) -> Bytes | None:
        for start, raw in self.pinned.items():
            if start <= address and address + size <= start + raw.size:
                return raw[address - start : address - start + size]
        return None


class Stream:
    """As cupy.cuda.Stream."""

    fake: ClassVar[FakeCuda]
    null: "ClassVar[Stream]"

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        self.is_non_blocking = non_blocking
        self.device_id = -1 if null else self.fake.device
        self.ptr = 0 if null else 0x51000 + len(self.fake.streams)
        self.fake.streams[self.ptr] = self
        self._queue: deque[Work] = deque()
        self._captured: list[Work] | None = None

    def put(self, work: Work) -> None:
        (self._queue if self._captured is None else self._captured).append(work)

    def step(self) -> None:
        work = self._queue.popleft()
        self.fake.clock += 1.0
        work()

    def run(self) -> None:
        while self._queue:
            self.step()

    def refuse_while_capturing(self) -> None:
        if self._captured is not None:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is "
                "capturing"
            )

    @property
    def done(self) -> bool:
        return not self._queue

    def synchronize(self) -> None:
        self.refuse_while_capturing()
        self.fake.note("synchronise", "stream", self)
        self.run()

    def record(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        self.fake.note("wait", stream=self)
        mark = event.mark
        if mark is not None:
            self.put(lambda: _reach(mark))

    def launch_host_func(self, callback: Callable[[Any], None], argument: Any) -> None:
        self.put(lambda: callback(argument))

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the default stream")
        self.refuse_while_capturing()
        self._captured = []

    def is_capturing(self) -> bool:
        return self._captured is not None

    def end_capture(self) -> "Graph":
        if self._captured is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream does not capture")
        work, self._captured = self._captured, None
        return Graph(work)

    def use(self) -> "Stream":
        self._check_device()
        self.fake.current[self.fake.device][-1] = self
        return self

    def __enter__(self) -> "Stream":
        self._check_device()
        self.fake.current[self.fake.device].append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.fake.current[self.fake.device].pop()

    def _check_device(self) -> None:
        if self.device_id not in (-1, self.fake.device):
            raise RuntimeError(
                f"the stream is of device {self.device_id}, current is {self.fake.device}"
            )


def _reach(mark: _Event) -> None:
    while mark.time is None:
        mark.stream.step()


class Graph:
    """As cupy.cuda.Graph."""

    def __init__(self, work: list[Work]) -> None:
        self._work = work

    def launch(self, stream: Stream | None = None) -> None:
        stream = stream or Stream.fake.stream
        Stream.fake.note("graph", stream=stream)
        for work in self._work:
            stream.put(work)

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing is kept back here that could be freed."""
        self._fake.note("trim", stream=stream)


class Event:
    """As cupy.cuda.Event."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self._timed = not disable_timing
        self.mark: _Event | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or Stream.fake.stream
        mark = self.mark = _Event(stream)
        Stream.fake.note("record", stream=stream)

        def pass_by() -> None:
            mark.time = Stream.fake.clock

        stream.put(pass_by)

    @property
    def done(self) -> bool:
        return self.mark is None or self.mark.time is not None

    def synchronize(self) -> None:
        # An event that has passed, or was never recorded, keeps nobody waiting.
        if self.mark is not None and self.mark.time is None:
            self.mark.stream.refuse_while_capturing()
            Stream.fake.note("synchronise", "event", self.mark.stream)
            _reach(self.mark)

    def time(self) -> float:
        if not self._timed or self.mark is None:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
        if self.mark.time is None:
            raise CUDARuntimeError("cudaErrorNotReady: device not ready")
        return self.mark.time


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds; every piece of work takes one."""
    return end_event.time() - start_event.time()


class Device:
    """As cupy.cuda.Device."""

    fake: ClassVar[FakeCuda]

    def __init__(self, device: int | None = None) -> None:
        self.id = self.fake.device if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def use(self) -> None:
        if not 0 <= self.id < self.fake.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.fake.device = self.id

    def __enter__(self) -> "Device":
        self._before.append(self.fake.device)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        self.fake.device = self._before.pop()

    def synchronize(self) -> None:
        self.fake.note("synchronise", "device")
        self.fake.settle()

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "ComputeCapabilityMajor": 9,
            "ComputeCapabilityMinor": 0,
            "MultiProcessorCount": 132,
        }

    @property
    def mem_info(self) -> tuple[int, int]:
        return self.fake.memory - self.fake.used.get(self.id, 0), self.fake.memory


class MemoryPointer:
    """As cupy.cuda.MemoryPointer: an address within a block of device memory."""

    def __init__(self, mem: _Block, offset: int) -> None:
        self.mem, self.offset = mem, offset

    @property
    def ptr(self) -> int:
        return self.mem.address + self.offset

    @property
    def device_id(self) -> int:
        return self.mem.device

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.offset + offset)

    def bytes(self, size: int) -> Bytes:
        if self.offset < 0 or self.offset + size > self.mem.size:
            raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")
        return self.mem.bytes[self.offset : self.offset + size]

    def copy_from_host_async(self, mem: Any, size: int, stream: Stream | None = None) -> None:
        fake, stream = Stream.fake, stream or Stream.fake.stream
        target, source = self.bytes(size), _host(mem, size)
        fake.note("h2d", stream=stream, size=size)
        if fake.pinned_at(_address(mem), size) is None:
            # Pageable memory is staged by the driver before the call returns.
            source = source.copy()
        stream.put(lambda: np.copyto(target, source))

    def copy_to_host_async(self, mem: Any, size: int, stream: Stream | None = None) -> None:
        fake, stream = Stream.fake, stream or Stream.fake.stream
        source, target = self.bytes(size), _host(mem, size)
        fake.note("d2h", stream=stream, size=size)
        stream.put(lambda: np.copyto(target, source))
        if fake.pinned_at(_address(mem), size) is None:
            stream.refuse_while_capturing()
            fake.note("synchronise", "copy", stream)
            stream.run()

    def copy_from_device_async(
        self, src: "MemoryPointer", size: int, stream: Stream | None = None
    ) -> None:
        stream = stream or Stream.fake.stream
        source, target = src.bytes(size), self.bytes(size)
        Stream.fake.note("d2d", stream=stream, size=size)
        stream.put(lambda: np.copyto(target, source))

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        stream = stream or Stream.fake.stream
        target = self.bytes(size)
        Stream.fake.note("memset", stream=stream, size=size)
        stream.put(lambda: target.fill(value))


def _address(mem: Any) -> int:
    return int(mem.value if isinstance(mem, ctypes.c_void_p) else mem)


def _host(mem: Any, size: int) -> Bytes:
    """The memory at a host address. A pinned buffer stays alive while work still needs it, full of
    garbage once it is freed.
    """
    pinned = Stream.fake.pinned_at(_address(mem), size)
    if pinned is not None:
        return pinned
    return np.frombuffer((ctypes.c_ubyte * size).from_address(_address(mem)), np.uint8)


class ndarray:  # noqa: N801 - CuPy's name
    """As cupy.ndarray: geometry and views; whatever touches voxels is a kernel's work."""

    __array_ufunc__ = None
    __array_priority__ = 100

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: Sequence[int] | None = None,
        order: str = "C",
    ) -> None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memptr = memptr or alloc(size)
        self._block = memptr.mem
        buffer: Any = memptr.mem.bytes if memptr.mem.size else np.empty(1, np.uint8)
        self._view: npt.NDArray[Any] = np.ndarray(
            shape, dtype, buffer, memptr.offset, strides, None if strides else order
        )

    def _same(self, view: npt.NDArray[Any]) -> "ndarray":
        made = object.__new__(ndarray)
        made._block, made._view = self._block, view
        return made

    shape = property(lambda self: self._view.shape)
    dtype = property(lambda self: self._view.dtype)
    strides = property(lambda self: self._view.strides)
    ndim = property(lambda self: self._view.ndim)
    size = property(lambda self: self._view.size)
    nbytes = property(lambda self: self._view.nbytes)
    itemsize = property(lambda self: self._view.itemsize)
    flags = property(lambda self: self._view.flags)
    device = property(lambda self: Device(self._block.device))

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self._block, self._view.ctypes.data - self._block.address)

    @property
    def T(self) -> "ndarray":  # noqa: N802
        return self._same(self._view.T)

    def transpose(self, *axes: Any) -> "ndarray":
        return self._same(self._view.transpose(*axes))

    def reshape(self, *shape: Any) -> "ndarray":
        view = self._view.reshape(*shape)
        if not np.shares_memory(view, self._view) and view.size:
            raise NotImplementedError("a reshape that copies: CuPy would launch a kernel")
        return self._same(view)

    def view(self, dtype: Any) -> "ndarray":
        return self._same(self._view.view(dtype))

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> "Iterator[ndarray]":
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> "ndarray":
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, int | slice | type(...) | None) for part in parts):
            raise NotImplementedError("advanced indexing: CuPy would launch a kernel")
        if ... not in parts:
            parts = (*parts, ...)
        return self._same(self._view[parts])

    def __setitem__(self, key: Any, value: Any) -> None:
        raise NotImplementedError("assignment: CuPy would launch a kernel of its own")

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def get(self, stream: Stream | None = None) -> npt.NDArray[Any]:
        stream = stream or Stream.fake.stream
        stream.refuse_while_capturing()
        Stream.fake.note("d2h", stream=stream, size=self.nbytes)
        Stream.fake.note("synchronise", "copy", stream)
        stream.run()
        return self._view.copy(order="K")

    def set(self, arr: npt.NDArray[Any], stream: Stream | None = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(f"{arr.dtype} {arr.shape} set to {self.dtype} {self.shape}")
        stream, values, view = stream or Stream.fake.stream, arr.copy(), self._view
        Stream.fake.note("h2d", stream=stream, size=self.nbytes)
        stream.put(lambda: np.copyto(view, values))


def alloc(size: int) -> MemoryPointer:
    """As cupy.cuda.alloc."""
    return MemoryPointer(Stream.fake.allocate(size), 0)


def empty(shape: int | Sequence[int], dtype: Any = float, order: str = "C") -> ndarray:
    """As cupy.empty; full of garbage."""
    return ndarray(shape, dtype, order=order)


def zeros(shape: int | Sequence[int], dtype: Any = float, order: str = "C") -> ndarray:
    """As cupy.zeros: on the current stream, and as late as everything there."""
    array = ndarray(shape, dtype, order=order)
    array.data.memset_async(0, array.nbytes)
    return array


def alloc_pinned_memory(size: int) -> Any:
    """As cupy.cuda.alloc_pinned_memory: a buffer that may be larger than asked for."""
    fake = Stream.fake
    rounded = max(-(-size // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
    raw = np.full(rounded, POISON, np.uint8)
    kind: Any = type(
        "PinnedMemoryPointer",
        (ctypes.Array,),
        {
            "_type_": ctypes.c_ubyte,
            "_length_": rounded,
            "ptr": property(ctypes.addressof),
            "size": lambda self: rounded,
        },
    )
    memory = kind.from_buffer(raw)
    fake.pinned[memory.ptr] = raw
    fake.note("alloc", "pinned", size=size)

    def free(address: int) -> None:
        fake.pinned.pop(address).fill(POISON)

    weakref.finalize(memory, free, memory.ptr)
    return memory


class RawModule:
    """As cupy.RawModule, with g++ for NVRTC."""

    def __init__(self, code: str, *, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        if not isinstance(options, tuple):
            raise TypeError("options is a tuple")
        self._code = code

    def compile(self, log_stream: Any = None) -> None:
        build(self._code)

    def get_function(self, name: str) -> "Function":
        library = build(self._code)
        if name not in library.kernels:
            raise RuntimeError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        return Function(library, library.kernels[name])


class Function:
    """As cupy.RawKernel: launches on the current stream."""

    def __init__(self, library: Library, kernel: Kernel) -> None:
        self._library, self._kernel = library, kernel

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
    ) -> None:
        fake, name = Stream.fake, self._kernel.name
        grid, block = _geometry(grid, block)
        if len(args) != len(self._kernel.parameters):
            raise TypeError(f"{name} takes {len(self._kernel.parameters)}, not {len(args)}")
        values = [
            _argument(f"{name}, argument {i}", parameter.type, parameter, value)
            for i, (parameter, value) in enumerate(zip(self._kernel.parameters, args, strict=True))
        ]
        stream = fake.stream
        blocks = {
            _pointer(value).mem for value in args if isinstance(value, ndarray | MemoryPointer)
        }
        fake.note("kernel", name, stream)

        def work() -> None:
            self._library.launch(name, grid, block, values, fake.order, fake.seed)
            for touched in blocks:
                touched.check(name)

        stream.put(work)


def _geometry(
    grid: tuple[int, ...], block: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not isinstance(grid, tuple) or not isinstance(block, tuple):
        raise TypeError("grid and block are tuples")
    grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
    if not all(isinstance(size, int) for size in (*grid, *block)):
        raise TypeError(f"a grid {grid} of {block} is not one of Python's integers")
    largest = ((2**31 - 1, 65535, 65535), (1024, 1024, 64))
    for sizes, limits in zip((grid, block), largest, strict=True):
        if not all(1 <= size <= limit for size, limit in zip(sizes, limits, strict=True)):
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {grid} blocks of {block}")
    if np.prod(block) > 1024:
        raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {block} threads")
    return grid, block


def _pointer(value: Any) -> MemoryPointer:
    return value.data if isinstance(value, ndarray) else value


def _argument(where: str, kind: str, parameter: Any, value: Any) -> bytes:
    """The bytes of an argument that is just what the parameter asks for."""
    if parameter.pointer:
        if not isinstance(value, ndarray | MemoryPointer):
            raise TypeError(f"{where}: {type(value).__name__} for a device pointer")
        expected = SCALARS.get(kind)
        if isinstance(value, ndarray) and expected and value.dtype != expected:
            raise TypeError(f"{where}: an array of {value.dtype} for {kind}*")
        if _pointer(value).mem.device != Stream.fake.device:
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: memory of another device")
        return np.uint64(_pointer(value).ptr).tobytes()
    if kind not in SCALARS:
        if not isinstance(value, np.ndarray) or value.size != 1:
            raise TypeError(f"{where}: {type(value).__name__} for a {kind} by value")
        if value.itemsize != parameter.size:
            raise TypeError(f"{where}: {value.itemsize} bytes for {kind} of {parameter.size}")
        return value.tobytes()
    scalar = SCALARS[kind]
    # CuPy passes a Python int as 64 bits and a float as a double, whatever the kernel takes.
    if type(value) is int and scalar in (np.int64, np.uint64):
        value = scalar(value)
    if type(value) is float and scalar is np.float64:
        value = scalar(value)
    if type(value) is not scalar:
        raise TypeError(f"{where}: {type(value).__name__} for {kind}")
    return bytes(value.tobytes())


class _Pool:
    """As the memory pools of CuPy; nothing is kept back here."""

    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        """Nothing is kept back here that could be freed."""
        self._fake.note("trim", stream=stream)

    def used_bytes(self) -> int:
        return self._fake.used.get(self._fake.device, 0)

    def free_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return self.used_bytes()


def _module(fake: FakeCuda) -> ModuleType:
    """The module `cupy`, on these devices."""

    def count() -> int:
        if fake.devices == 0:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return fake.devices

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=lambda: fake.device,
        getDeviceCount=count,
        getDeviceProperties=lambda device: {
            "name": b"Fake H100",
            "major": 9,
            "minor": 0,
            "totalGlobalMem": fake.memory,
            "multiProcessorCount": 132,
        },
        memGetInfo=lambda: Device().mem_info,
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
        deviceSynchronize=lambda: Device().synchronize(),
    )
    memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError, MemoryPointer=MemoryPointer)
    pool = _Pool(fake)
    cupy = ModuleType("cupy", "A fake; see tests/fake_cupy.py.")
    cupy.__spec__ = ModuleSpec("cupy", None)  # find_spec, asked whether it is installed, says yes
    vars(cupy).update(
        __version__="14.2.0",
        ndarray=ndarray,
        empty=empty,
        zeros=zeros,
        asnumpy=lambda array: array.get(),
        RawModule=RawModule,
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pool,
        cuda=SimpleNamespace(
            runtime=runtime,
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            memory=memory,
            Stream=Stream,
            Event=Event,
            Graph=Graph,
            Device=Device,
            MemoryPointer=MemoryPointer,
            alloc=alloc,
            alloc_pinned_memory=alloc_pinned_memory,
            get_current_stream=lambda: fake.stream,
            get_elapsed_time=get_elapsed_time,
        ),
    )
    return cupy


@contextmanager
def installed(
    devices: int = 1, memory: int = 80 << 30, order: str = "forward", seed: int = 0
) -> Iterator[FakeCuda]:
    """Make `import cupy` give the fake; what imports cupy is imported afresh, and forgotten after.

    Args:
        devices: how many there are.
        memory: bytes of each.
        order: of a kernel's threads: "forward", "reverse" or "shuffled".
        seed: of the order "shuffled".
    """
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    outer = vars(Stream).get("fake"), vars(Stream).get("null")
    fake = FakeCuda(devices, memory, order, seed)
    before = {name: module for name, module in sys.modules.items() if name.startswith(MODULES)}
    _forget()
    sys.modules["cupy"] = _module(fake)
    try:
        yield fake
    finally:
        Stream.fake, Stream.null = outer
        Device.fake = outer[0]
        _forget()
        for name, module in before.items():
            sys.modules[name] = module
            _attach(name, module)


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith(MODULES)]:
        del sys.modules[name]
        _attach(name, None)


def _attach(name: str, module: ModuleType | None) -> None:
    """An import also sets a submodule as an attribute of its package."""
    package, _, own = name.rpartition(".")
    if package in sys.modules:
        if module is not None:
            setattr(sys.modules[package], own, module)
        elif hasattr(sys.modules[package], own):
            delattr(sys.modules[package], own)
