"""`ArrayOps` on an NVIDIA GPU: CuPy for arrays and streams, `kernels.cu` for what touches voxels.

Only this module and its parts, `cupy_kernels` and `cupy_staging`, import cupy; `runtime.backends`
imports it once a GPU is wanted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any, Final, Literal

import cupy
import numpy as np
import numpy.typing as npt

from runtime.errors import BackendUnavailableError, ComputeError, DeviceLostError
from runtime.ops import Box, Statistics
from runtime.ops.cupy_kernels import Kernels
from runtime.ops.cupy_staging import Staging
from runtime.ops.geometry import (
    MAX_CHANNELS_LAST,
    MAX_WINDOWS,
    batch_of,
    blocks_for,
    channels_of,
    launches_of,
    slowest_first,
    tiles_of,
    volume_of,
    widest_store,
)

_VOXEL_DTYPES: Final = frozenset(
    ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
)


class CupyOps:
    """Array operations on one GPU; see `runtime.ops.ArrayOps`.

    Everything happens in order on `stream`, which the ops own; nothing waits for it but
    `download`, `extent`, `statistics`, `seconds`, `close`, and an `upload` that is several staging
    buffers ahead of the copies. Whoever hands these arrays to another stream orders the two with
    an event. Not for use by two threads at once.
    """

    on_host = False

    def __init__(self, device: int = 0) -> None:
        """
        Args:
            device: CUDA's index.

        Raises:
            BackendUnavailableError: there is no such device, or CuPy cannot compile for it.
        """
        count = _device_count()
        if not 0 <= device < count:
            raise BackendUnavailableError(
                "--device",
                found=f"{count} CUDA devices",
                expected=f"cuda:{device}",
                remedy="check nvidia-smi, or use --device cpu",
            )
        self.device = device
        with cupy.cuda.Device(device):
            # Non-blocking: work that others put on the default stream does not hold ours up.
            self.stream = cupy.cuda.Stream(non_blocking=True)
        with self.here():
            self._kernels = Kernels(device)
            self._staging = Staging(self.stream)

    def upload(self, array: npt.NDArray[Any]) -> Any:
        with self.here():
            target = self._allocated(cupy.empty, array.shape, array.dtype, _order(array))
            self._staging.send(_bytes(array), target.data)
        return target

    def download(self, array: Any) -> npt.NDArray[Any]:
        # Through the staging buffers into ordinary memory: what a caller keeps then pins nothing,
        # and copying out of one buffer overlaps with filling the next.
        host = np.empty(array.shape, array.dtype, _order(array))
        with self.here():
            self._staging.receive(array.data, _bytes(host))
        return host

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic], fortran: bool = False) -> Any:
        with self.here():
            return self._allocated(cupy.zeros, shape, np.dtype(dtype), "F" if fortran else "C")

    def extent(self, volumes: Sequence[Any]) -> Box | None:
        with self.here():
            reach = self._allocated(cupy.zeros, (len(volumes), 6), np.dtype(np.int32), "C")
            for volume, target in zip(volumes, reach, strict=True):
                geometry = volume_of(volume, slowest_first(volume))
                blocks = blocks_for(volume.size)
                self._kernels.rows(f"extent_{_name(volume)}", blocks, volume, geometry, target)
        low = np.full(3, np.iinfo(np.int64).max)
        high = np.zeros(3, np.int64)
        for volume, found in zip(volumes, self.download(reach), strict=True):
            if found.any():
                axes = slowest_first(volume)
                shape = np.array(volume.shape)[axes]
                low[axes] = np.minimum(low[axes], shape - found[:3])
                high[axes] = np.maximum(high[axes], found[3:])
        if not high.any():
            return None
        x, y, z = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
        return (x, y, z)

    def statistics(self, volumes: Sequence[Any], nonzero_only: bool) -> list[Statistics]:
        double = np.dtype(np.float64)
        chosen = np.int32(nonzero_only)
        count = len(volumes)
        parts = blocks_for(volumes[0].size)
        with self.here():
            partials = self._allocated(cupy.empty, (count, parts, 2), double, "C")
            squares = self._allocated(cupy.empty, (count, parts), double, "C")
            summaries = self._allocated(cupy.empty, (count, 3), double, "C")
            for volume, sums, deviations in zip(volumes, partials, squares, strict=True):
                source = (volume, volume_of(volume, slowest_first(volume)), chosen, sums)
                self._kernels.rows(f"moments_{_name(volume)}", parts, *source)
                self._kernels.rows(f"squares_{_name(volume)}", parts, *source, deviations)
            self._kernels.rows("summarise", count, partials, squares, np.int32(parts), summaries)
        return [
            Statistics(int(number), float(mean), sqrt(deviations / number) if number else 0.0)
            for number, mean, deviations in self.download(summaries)
        ]

    def normalise(self, voxels: Any, statistics: Statistics, nonzero_only: bool, out: Any) -> None:
        _require(out, np.float32)
        if any(inner > outer for inner, outer in zip(voxels.shape, out.shape, strict=True)):
            raise ValueError(f"voxels {voxels.shape} do not fit into {out.shape}")
        tiles = tiles_of(voxels)
        with self.here():
            self._kernels.tiles(
                f"normalise_{_name(voxels)}",
                out.shape,
                tiles,
                voxels,
                volume_of(voxels),
                out,
                volume_of(out),
                *tiles,
                np.float64(statistics.mean),
                np.float64(statistics.std),
                np.int32(nonzero_only),
            )

    def gather(self, volume: Any, starts: npt.NDArray[np.int64], out: Any) -> None:
        _require(volume, np.float32)
        itemsize = out.itemsize
        # Side by side, and not merely alone in their axis.
        last = (
            out.strides[1] == itemsize
            and abs(out.strides[4]) > itemsize
            and out.shape[1] <= MAX_CHANNELS_LAST
        )
        with self.here():
            for first, windows in launches_of(starts, out.shape, volume.shape):
                part = out[first : first + MAX_WINDOWS]
                name = "gather_last" if last else "gather"
                wide = (np.int32(widest_store(part)),) if last else ()
                self._kernels.planes(
                    f"{name}_{out.dtype.name}",
                    part.shape,
                    volume,
                    channels_of(volume),
                    windows,
                    part,
                    batch_of(part),
                    *wide,
                )

    def accumulate(
        self,
        total: Any,
        values: Any,
        importance: Any,
        starts: npt.NDArray[np.int64],
        non_finite: Any,
    ) -> None:
        for array in (total, values, importance):
            _require(array, np.float32)
        _require(non_finite, np.uint64)
        with self.here():
            for first, windows in launches_of(starts, values.shape, total.shape):
                self._kernels.box(
                    "accumulate",
                    windows["size"],
                    total,
                    channels_of(total),
                    values[first : first + MAX_WINDOWS],
                    importance,
                    windows,
                    non_finite,
                )

    def argmax(self, total: Any, out: Any) -> None:
        _require(total, np.float32)
        if out.dtype != np.uint8:
            raise TypeError(f"labels are uint8, not {out.dtype}")
        if any(inner > outer for inner, outer in zip(out.shape, total.shape[1:], strict=True)):
            raise ValueError(f"labels {out.shape} reach beyond {total.shape[1:]}")
        tiles = tiles_of(out)
        with self.here():
            self._kernels.tiles(
                "argmax", out.shape, tiles, total, channels_of(total), out, volume_of(out), *tiles
            )

    def divide(self, total: Any, weight: Any) -> None:
        _require(total, np.float32)
        _require(weight, np.float32)
        if total.shape[1:] != weight.shape:
            raise ValueError(f"weights {weight.shape} do not fit {total.shape}")
        with self.here():
            self._kernels.line(
                "divide", weight.size, total, weight, np.int32(len(total)), np.int64(weight.size)
            )

    def mark(self) -> Any:
        with self.here():
            event = cupy.cuda.Event()
            event.record(self.stream)
        return event

    def seconds(self, first: Any, last: Any) -> float:
        with self.here():
            last.synchronize()
            return float(cupy.cuda.get_elapsed_time(first, last)) / 1000.0

    def capture(self, enqueue: Callable[[], bool]) -> Any | None:
        """Record what ``enqueue`` puts on the stream as a CUDA graph, without doing it.

        Args:
            enqueue: says whether it succeeded; allocates nothing and waits for nothing.

        Returns:
            A graph for ``launch(ops.stream)``; None where this cannot be captured.
        """
        with self.here():
            graph, accepted = None, False
            try:
                self.stream.begin_capture()
                try:
                    accepted = enqueue()
                finally:
                    graph = self.stream.end_capture()
            except cupy.cuda.runtime.CUDARuntimeError:
                return None
            return graph if accepted else None

    def close(self) -> None:
        """Wait for the device, then give staging buffers and pooled device memory back; nothing
        may be called after it.
        """
        with self.here():
            self.stream.synchronize()
            self._staging.close()
            cupy.get_default_memory_pool().free_all_blocks(self.stream)
            cupy.get_default_pinned_memory_pool().free_all_blocks()

    def trim(self) -> None:
        """Give back to the device what the pool holds and nothing uses, for libraries that allocate
        by themselves; waits for the stream.
        """
        with self.here():
            self.stream.synchronize()
            cupy.get_default_memory_pool().free_all_blocks(self.stream)

    def free_memory(self) -> int:
        """Bytes of device memory that nothing uses, our pool's among them."""
        with self.here():
            free, _ = cupy.cuda.runtime.memGetInfo()
            return int(free) + int(cupy.get_default_memory_pool().free_bytes())

    @contextmanager
    def here(self) -> Iterator[None]:
        """Make the device and the stream CuPy's current ones.

        Raises:
            DeviceLostError: what is done there ends in an error of CUDA's, which may be that of
                earlier work; after most of them the device is of no use to this process.
        """
        try:
            # CuPy allocates from the current stream's part of its pool: what is freed here is then
            # given out again only behind the work that still uses it.
            with cupy.cuda.Device(self.device), self.stream:
                yield
        except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
            raise DeviceLostError(
                f"cuda:{self.device}",
                found=f"an error of CUDA ({(str(error).strip() or 'unnamed').splitlines()[0]})",
                expected="work that comes to its end",
                remedy="look at the GPU with nvidia-smi and run again, or use --device cpu",
            ) from error

    def _allocated(
        self, allocate: Any, shape: tuple[int, ...], dtype: np.dtype[Any], order: str
    ) -> Any:
        try:
            return allocate(shape, dtype, order=order)
        except cupy.cuda.memory.OutOfMemoryError as error:
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            free, _ = cupy.cuda.runtime.memGetInfo()
            raise ComputeError(
                f"cuda:{self.device}",
                found=f"{free >> 20} MiB of free GPU memory",
                expected=f"{-(-size >> 20)} MiB more",
                remedy="choose a smaller --patch or --batch, or another GPU with --device",
            ) from error


def make_current(device: int) -> None:
    """Make a CUDA device the calling thread's current one, for libraries that ask for no index."""
    cupy.cuda.Device(device).use()


def _device_count() -> int:
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:  # no driver, or none that this CUDA can use
        return 0


def _order(array: Any) -> Literal["C", "F"]:
    if array.flags.c_contiguous:
        return "C"
    if array.flags.f_contiguous:
        return "F"
    raise ValueError("only contiguous arrays travel between host and device")


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A contiguous array's memory, in its own order."""
    flat: npt.NDArray[Any] = array.ravel(order="K")
    return flat.view(np.uint8)


def _name(voxels: Any) -> str:
    """The suffix of the kernels that read a volume."""
    if voxels.dtype.name not in _VOXEL_DTYPES or not voxels.dtype.isnative:
        raise TypeError(f"no kernel reads voxels of {voxels.dtype}")
    return str(voxels.dtype.name)


def _require(array: Any, dtype: type[np.generic]) -> None:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"expected a C-order {np.dtype(dtype)} array, not {array.dtype}")
