"""Rows: model directories that are not as they were exported, and runs that cannot end well."""

import errno
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import onnx

from runtime.lock import only_writer
from runtime.manifest import MANIFEST
from runtime.model_dir import CARD, ONNX_FP32, PARITY
from tests.catalogue.scene import Row, Scene, error, patched, voxels_of

ANY_MODEL = ("--uncertified",)


def file_of(name: str, change: Any, *, vouched: bool = False) -> Any:
    """Change the bytes of a model's file; the manifest then says so, or not."""

    def spoil(s: Scene) -> None:
        path = s.model / name
        path.write_bytes(change(path.read_bytes()))
        if vouched:
            s.manifest()
            s.flags += ANY_MODEL

    return spoil


def graph(change: Any) -> Any:
    """Change the ONNX graph of a model directory that vouches for it."""

    def edited(data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        change(model)
        return bytes(model.SerializeToString())

    return file_of(ONNX_FP32, edited, vouched=True)


def with_external_data(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")


def without_card(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def of_one_channel(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def of_another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "somebody.elses"


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


def other_card(data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"schema": 99}).encode()


def vast_card(data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"patch": [1 << 20] * 3}).encode()


MODELS: list[Row] = [
    error("Models", "a truncated network", file_of(ONNX_FP32, lambda d: d[:-9]), ONNX_FP32),
    error("Models", "one flipped bit in the network", file_of(ONNX_FP32, flipped), ONNX_FP32),
    error("Models", "one flipped bit in the card", file_of(CARD, flipped), CARD),
    error("Models", "one flipped bit in the certificate", file_of(PARITY, flipped), PARITY),
    error("Models", "one flipped bit in the manifest", file_of(MANIFEST, flipped), MANIFEST),
    error("Models", "no manifest", lambda s: (s.model / MANIFEST).unlink(), MANIFEST),
    error("Models", "no card", lambda s: (s.model / CARD).unlink(), CARD),
    error(
        "Models", "a card of a later version", file_of(CARD, other_card, vouched=True), CARD,
        "schema 99",
    ),
    error(
        "Models", "a card with windows of 2^60 voxels", file_of(CARD, vast_card, vouched=True),
        CARD, "134217728 voxels",
    ),
    error(
        "Models", "a network that is none",
        file_of(ONNX_FP32, lambda d: b"no" * 99, vouched=True), ONNX_FP32,
    ),
    error("Models", "a network without a card", graph(without_card), ONNX_FP32),
    error("Models", "weights in another file", graph(with_external_data), ONNX_FP32),
    error("Models", "operators of another domain", graph(of_another_domain), ONNX_FP32),
    error("Models", "a network of other channels", graph(of_one_channel), ONNX_FP32),
    error("Models", "no model directory", lambda s: s.flags.extend(["--model", "none"]), "none"),
]  # fmt: skip


def refused(number: int, path: Any = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def no_byte_written(number: int) -> Any:
    """Files can be made in the output folder, as on a full disk, and no byte goes into them."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise refused(number)

    real = io.open

    def spoil(s: Scene) -> None:
        def opened(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if isinstance(path, int) or not written_below(s.out, path, set(mode) & set("wax+")):
                return real(path, mode, *args, **more)
            return io.BufferedWriter(Full(path, mode.replace("b", "")))

        patched(io, "open", opened)(s)

    return spoil


def read_only(s: Scene) -> None:
    """The output folder is there, and nothing can be made in it or opened for writing."""
    s.out.mkdir()
    real_open, real_file, real_mkdir = os.open, io.open, os.mkdir
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if written_below(s.out, path, flags & writing):
            raise refused(errno.EROFS, path)
        return real_open(path, flags, *args, **more)

    def opened_file(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if not isinstance(path, int) and written_below(s.out, path, set(mode) & set("wax+")):
            raise refused(errno.EROFS, path)
        return real_file(path, mode, *args, **more)

    def made(path: Any, *args: Any, **more: Any) -> None:
        if written_below(s.out, path, True):
            raise refused(errno.EROFS, path)
        real_mkdir(path, *args, **more)

    for target, name, value in (
        (os, "open", opened),
        (io, "open", opened_file),
        (os, "mkdir", made),
    ):
        patched(target, name, value)(s)


def written_below(folder: Path, path: Any, writes: object) -> bool:
    return bool(writes) and Path(os.fsdecode(path)).is_relative_to(folder)


def interrupted(*args: Any, **more: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def output_below_a_file(s: Scene) -> None:
    (s.root / "file").touch()
    s.flags += ["-o", str(s.root / "file" / "out")]


def second_writer(s: Scene) -> None:
    s.out.mkdir()
    s.around.append(only_writer(s.out))


def one_bad_case(s: Scene) -> None:
    other = s.root / "data" / "Y"
    other.mkdir()
    for path in s.case.iterdir():
        (other / path.name.replace("X_", "Y_")).write_bytes(path.read_bytes())
    (other / "Y_t1.nii.gz").write_bytes(b"")
    s.given = s.root / "data"


def earlier(name: str, content: bytes) -> Any:
    def spoil(s: Scene) -> None:
        s.out.mkdir()
        (s.out / name).write_bytes(content)

    return spoil


def too_large_a_batch(s: Scene) -> None:
    s.put(voxels_of("t1"))
    s.flags += ["--patch", "30,30,30"]


RUNS: list[Row] = [
    error("Runs", "a full disk", no_byte_written(errno.ENOSPC), "No space", code=7),
    error("Runs", "a disk that fails", no_byte_written(errno.EIO), "output error", code=7),
    error("Runs", "an output folder that cannot be made", output_below_a_file, "file", code=7),
    error("Runs", "a read-only file system", read_only, "Read-only", code=7),
    error("Runs", "a second writer", second_writer, "another process", code=7),
    error("Runs", "Ctrl-C", patched(os, "fsync", interrupted), code=130),
    error("Runs", "one bad case of many", one_bad_case, "1 of 2 cases failed", code=6),
    error("Runs", "the case's own folder as output",
          lambda s: s.flags.extend(["-o", str(s.case)]), "the folder of the case itself", code=2),
    error("Runs", "somebody else's file in the way", earlier("X_seg.nii.gz", b"theirs"),
          "did not write", code=2),
    error("Runs", "a patch that the network cannot take", too_large_a_batch, "--patch", code=2),
    error("Runs", "a patch of 2^60 voxels",
          lambda s: s.flags.extend(["--patch", "1048576,1048576,1048576"]), "--patch", code=2),
    error("Runs", "a thousand million threads",
          lambda s: s.flags.extend(["--threads", "1000000000"]), "1 to 1024", code=2),
    error("Runs", "a backend that is not here", lambda s: s.flags.extend(["--backend", "trt"]),
          "--backend trt", code=4),
]  # fmt: skip
