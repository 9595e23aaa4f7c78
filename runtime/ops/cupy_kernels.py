"""`kernels.cu`, compiled for one GPU, and the geometry of its launches."""

from pathlib import Path
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

from runtime.errors import BackendUnavailableError, first_line
from runtime.ops.geometry import LANES, ROWS, THREADS, blocks_for


class Kernels:
    """The compiled kernels of one device, and their launch geometry."""

    def __init__(self, device: int) -> None:
        self._functions: dict[str, Any] = {}
        source = Path(__file__).with_name("kernels.cu").read_text(encoding="utf-8")
        try:
            self._module = cupy.RawModule(code=source, options=("-std=c++17",))
            self._module.compile()
        except Exception as error:  # NVRTC missing, too old, no context: no common base class
            raise BackendUnavailableError(
                f"cuda:{device}",
                found=f"that CuPy cannot compile for it ({first_line(error)})",
                expected="CuPy, NVRTC and a driver that go together",
                remedy="install brats-deploy[gpu] for this machine's CUDA, or use --device cpu",
            ) from error

    def rows(self, name: str, blocks: int, *arguments: Any) -> None:
        """`blocks` blocks whose warps share out rows, or what else they find to do."""
        self._launch(name, (blocks, 1, 1), (LANES, ROWS, 1), arguments)

    def tiles(
        self,
        name: str,
        shape: tuple[int, ...],
        tiles: tuple[np.int32, np.int32],
        *arguments: Any,
    ) -> None:
        """A block per tile of z and the axis that `tiles` names, along the third axis."""
        across = int(tiles[0])
        grid = (_up(shape[2], LANES), _up(shape[across], LANES), shape[1 - across])
        self._launch(name, grid, (LANES, ROWS, 1), arguments)

    def planes(self, name: str, shape: tuple[int, ...], *arguments: Any) -> None:
        """A thread per voxel of a (n, C, x, y, z) batch, for all of its channels."""
        grid = (_up(shape[3] * shape[4], THREADS), shape[2], shape[0])
        self._launch(name, grid, (THREADS, 1, 1), arguments)

    def box(self, name: str, shape: npt.NDArray[np.int32], *arguments: Any) -> None:
        """A thread per voxel of a box."""
        x, y, z = (int(size) for size in shape)
        self._launch(name, (_up(z, LANES), _up(y, ROWS), x), (LANES, ROWS, 1), arguments)

    def line(self, name: str, count: int, *arguments: Any) -> None:
        """Threads that stride along a flat array."""
        self._launch(name, (blocks_for(count), 1, 1), (THREADS, 1, 1), arguments)

    def _launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[Any, ...],
    ) -> None:
        if 0 in grid:
            return
        if name not in self._functions:
            self._functions[name] = self._module.get_function(name)
        self._functions[name](grid, block, arguments)


def _up(count: int, size: int) -> int:
    return -(-count // size)
