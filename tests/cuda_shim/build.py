"""Compile a CUDA source for the host and call its kernels through ctypes."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

_HERE = Path(__file__).parent
_HEADER = _HERE / "cuda_shim.h"
_RUNTIME = _HERE / "cuda_shim.cpp"
# No contraction: a product and a sum are rounded apart, as the kernels' intrinsics ask for.
# What is undefined in C++ traps, and the shim makes an error of it.
# _longjmp leaves a fiber for another stack, which the fortified one takes for an error.
_OPTIONS: Final = (
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE"),
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)
_KERNEL = re.compile(r'extern "C"\s+void\s+(\w+)\(([^)]*)\)\s*\{')
ORDERS: Final = {"forward": 0, "reverse": 1, "shuffled": 2}


class CompileError(Exception):
    """g++ refuses the source; its messages."""


class KernelError(Exception):
    """A kernel did what a device would not survive."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, as C++ spells it: "const short*" -> ("short", True)."""

    type: str
    pointer: bool
    size: int


@dataclass(frozen=True)
class Kernel:
    name: str
    parameters: tuple[Parameter, ...]


class Library:
    """A compiled source. `kernels` maps names to signatures."""

    def __init__(self, path: Path, signatures: dict[str, tuple[tuple[str, bool], ...]]) -> None:
        self._library = ctypes.CDLL(os.fspath(path))
        self._library.shim_message.restype = ctypes.c_char_p
        self.kernels = {
            name: Kernel(
                name,
                tuple(
                    Parameter(kind, pointer, self._size(name, i))
                    for i, (kind, pointer) in enumerate(parameters)
                ),
            )
            for name, parameters in signatures.items()
        }

    def _size(self, name: str, index: int) -> int:
        return int(getattr(self._library, f"shim_size_{name}")(index))

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes],
        order: str = "forward",
        seed: int = 0,
    ) -> None:
        """Run a kernel to its end.

        Args:
            name: of the kernel.
            grid: blocks (x, y, z).
            block: threads (x, y, z).
            arguments: the bytes of each parameter's value.
            order: in which threads and blocks take their turns: a key of `ORDERS`.
            seed: of the order "shuffled".

        Raises:
            KernelError: a barrier was not reached by all threads of a block, or one of them
                crashed.
        """
        values = [ctypes.create_string_buffer(value, len(value)) for value in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        failed = getattr(self._library, f"shim_launch_{name}")(
            (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ORDERS[order], seed, pointers
        )
        if failed:
            raise KernelError(f"{name}: {self._library.shim_message().decode()}")


def why_not() -> str | None:
    """Why kernels cannot be compiled for this host; None where they can."""
    if sys.platform != "linux":
        return "the CUDA shim needs Linux's linker"
    return None if shutil.which("g++") else "no g++ to compile the kernels for the host"


@lru_cache(maxsize=8)
def build(source: str) -> Library:
    """Compile CUDA C++ for the host, once for all processes that ask for the same.

    Raises:
        CompileError: g++ refuses it, or there is none.
    """
    reason, gxx = why_not(), shutil.which("g++")
    if reason is not None or gxx is None:
        raise CompileError(reason)
    version = subprocess.run([gxx, "--version"], capture_output=True, check=True).stdout
    parts = (source.encode(), _HEADER.read_bytes(), _RUNTIME.read_bytes(), version)
    digest = hashlib.sha256(b"\0".join((*parts, " ".join(_OPTIONS).encode(), _ENTRY.encode())))
    folder = Path(tempfile.gettempdir()) / f"brats-deploy-cuda-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise CompileError(f"{folder} is someone else's")
    library = folder / f"{digest.hexdigest()[:32]}.so"
    preprocessed = _run(
        [gxx, "-std=c++17", "-E", "-P", "-include", str(_HEADER), "-x", "c++", "-"], source
    )
    signatures = {
        name: tuple(_parameter(text) for text in parameters.split(","))
        for name, parameters in _KERNEL.findall(preprocessed)
    }
    if not library.exists():
        entries = "".join(_entry(name, signature) for name, signature in signatures.items())
        whole = f"{source}\n{_RUNTIME.read_text()}\n{entries}"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "kernels.so"
            command = [gxx, *_OPTIONS, "-include", str(_HEADER), "-x", "c++", "-", "-o", str(made)]
            _run(command, whole)
            made.replace(library)
    return Library(library, signatures)


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(done.stderr)
    return done.stdout


def _parameter(text: str) -> tuple[str, bool]:
    """("short", True) for "const short* voxels"."""
    words = text.replace("*", " * ").replace("const ", "").split()
    return " ".join(word for word in words[:-1] if word != "*"), "*" in words


_ENTRY = """
extern "C" int shim_size_{name}(int index) {{
    const int sizes[] = {{{sizes}}};
    return sizes[index];
}}
extern "C" int shim_launch_{name}(const unsigned* grid, const unsigned* block, int order,
                                  unsigned seed, void** values) {{
    try {{
        shim::run(grid, block, order, seed, [&] {{ {name}({arguments}); }});
        return 0;
    }} catch (const std::exception& error) {{
        message = error.what();
        return 1;
    }}
}}
"""


def _entry(name: str, parameters: tuple[tuple[str, bool], ...]) -> str:
    types = [kind + ("*" if pointer else "") for kind, pointer in parameters]
    return _ENTRY.format(
        name=name,
        sizes=", ".join(f"sizeof({kind})" for kind in types),
        arguments=", ".join(f"*static_cast<{kind}*>(values[{i}])" for i, kind in enumerate(types)),
    )
