"""The timing cache on disk: what TensorRT has measured of its kernels, kept for the next build."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime import atomic
from runtime.backends.driver import Gpu
from runtime.backends.tensorrt_library import TensorRt
from runtime.bounded import parse_json

_SCHEMA: Final = 1
_HEADER_BYTES: Final = 4096


@dataclass(frozen=True)
class TimingCacheFile:
    """One line of JSON, then TensorRT's own bytes.

    The line says by which TensorRT, on which GPU, the times were measured, and holds the SHA-256 of
    the bytes, so that TensorRT is never given bytes that are not its own. TensorRT-RTX times
    nothing when it builds an engine (it chooses kernels where the engine runs) and has no use for
    this.

    Attributes:
        path: of the file.
        library: the TensorRT that builds.
        gpu: the device that it builds for.
    """

    path: Path
    library: TensorRt
    gpu: Gpu

    def load(self) -> tuple[bytes | None, str | None]:
        """The cache, and one sentence if there is one that is of no use; never an error, since a
        build without it only takes longer.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None, None
        except OSError as error:
            return None, f"{self.path}: not read ({error.strerror}), timing starts afresh"
        header, newline, body = data.partition(b"\n")
        try:
            said = parse_json(header[:_HEADER_BYTES])
        except ValueError:
            said = None
        if not newline or not isinstance(said, dict) or said.get("schema") != _SCHEMA:
            return None, f"{self.path}: not a timing cache of ours, timing starts afresh"
        if said.get("sha256") != hashlib.sha256(body).hexdigest():
            return None, f"{self.path}: damaged, timing starts afresh"
        if said.get("made_by") != self._maker():
            return None, f"{self.path}: made by {said.get('made_by')}, timing starts afresh"
        return body, None

    def save(self, cache: bytes) -> None:
        """Write the cache.

        Raises:
            OutputError: the file cannot be written.
        """
        header = {
            "schema": _SCHEMA,
            "made_by": self._maker(),
            "sha256": hashlib.sha256(cache).hexdigest(),
        }
        atomic.write_bytes(self.path, json.dumps(header).encode("ascii") + b"\n" + cache)

    def _maker(self) -> str:
        return f"{self.library} on {self.gpu}"
