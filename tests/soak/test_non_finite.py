"""Bar: NaN and infinity, wherever they come from, stop the case; no label map is written.

They come from a voxel of any modality in any dtype that holds them, from a header that scales into
them, from a network at any window, class and voxel, and from weights that overflow.
"""

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from runtime.backends import Backend
from runtime.cli.infer import main
from runtime.labels import MODALITIES
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_dir import ONNX_FP32
from tests.conftest import LPS, WriteCase
from tests.soak.bar import Figures, bar, times
from tests.test_segmenter import FakeBackend, network

Floats = npt.NDArray[np.float32]
Infer = Callable[..., int]
Outcome = tuple[int, list[str]]
"""Exit code, and the files that were written."""

SHAPE = (40, 36, 20)  # eight windows, two at a time
BAD = (np.nan, np.inf, -np.inf)


@pytest.fixture
def case_dir(tmp_path: Path, write_case: WriteCase) -> Path:
    rng = np.random.default_rng(5)
    return write_case(
        tmp_path / "data" / "X",
        {name: rng.integers(1, 900, SHAPE).astype(np.int16) for name in MODALITIES},
    )


@pytest.fixture
def infer(tiny_model: Path, tmp_path: Path, case_dir: Path) -> Callable[..., Outcome]:
    """infer(*flags) -> exit code and files written."""
    out = tmp_path / "out"

    def call(*flags: str, model: Path = tiny_model) -> Outcome:
        shutil.rmtree(out, ignore_errors=True)
        given = [str(case_dir), "--model", str(model), "-o", str(out), "--quiet", "--threads", "1"]
        with contextlib.redirect_stderr(io.StringIO()):
            code = main([*given, *flags])
        files = [path.name for path in out.iterdir()] if out.is_dir() else []
        return code, sorted(name for name in files if not name.startswith("."))

    return call


def told(figures: Figures, found: list[tuple[str, Outcome]], *codes: int) -> None:
    """Count, and hold that every one was detected and nothing was written."""
    figures["runs"] = len(found)
    figures["codes"] = dict(Counter(str(outcome[0]) for _, outcome in found))
    figures["missed"] = [f"{what}: {outcome}" for what, outcome in found if outcome[0] not in codes]
    figures["masks"] = sum(bool(outcome[1]) for _, outcome in found)
    assert figures["missed"] == []
    assert figures["masks"] == 0


def fake(
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[[Floats], Floats],
    spare: Callable[[Floats], Floats] | None,
) -> None:
    """Networks of a few lines in the place of the model's; the first runs in half precision."""

    def opened(model: Any, wanted: Any) -> Backend:
        backend = FakeBackend(function, model.card)
        backend.info = replace(backend.info, precision="fp16")
        return backend

    def spared(model: Any, wanted: Any, failed: Any) -> Backend | None:
        return None if spare is None else FakeBackend(spare, model.card)

    monkeypatch.setattr("runtime.work.open_backend", opened)
    monkeypatch.setattr("runtime.work.open_spare", spared)


def stored(rng: np.random.Generator) -> tuple[str, nib.Nifti1Image]:
    """An image with something in it that is not finite, and what."""
    voxels = rng.integers(1, 900, SHAPE)
    order = "<>"[rng.integers(2)]
    kind = nib.Nifti1Image if rng.random() < 0.7 else nib.Nifti2Image
    way = rng.integers(4)
    if way < 3:
        dtype = np.dtype(f"{order}f{(4, 8)[rng.integers(2)]}")
        array = voxels.astype(dtype)
        count = 1 if way < 2 else int(rng.integers(2, array.size))
        value = BAD[rng.integers(3)]
        array.reshape(-1)[rng.choice(array.size, count, replace=False)] = value
        image = kind(array, LPS, kind.header_class(endianness=order))
        image.header.set_data_dtype(dtype)
        return f"{value} in {count} voxels of {dtype.str}", image
    # Integers that the header's scale takes beyond float32; or float64 that is beyond it already.
    dtype = np.dtype(("u1", "i2", "i4", "u2", "f4", "f8")[rng.integers(6)]).newbyteorder(order)
    image = kind(np.minimum(voxels, 250).astype(dtype), LPS, kind.header_class(endianness=order))
    image.header.set_data_dtype(dtype)
    slope = (3e38, -3e38, 1e37)[rng.integers(3)]
    return f"a scale of {slope} of {dtype.str}", Scaled(image, slope)


class Scaled:
    """nibabel scales what it writes, so that a slope must be put into the file afterwards."""

    def __init__(self, image: nib.Nifti1Image, slope: float) -> None:
        self.image, self.slope = image, slope

    def to_filename(self, path: Path) -> None:
        header = self.image.header.copy()
        header["scl_slope"], header["scl_inter"] = self.slope, 0
        header["vox_offset"] = header.single_vox_offset
        header["magic"] = header.single_magic
        voxels = np.asarray(self.image.dataobj)
        raw = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
        with nib.openers.Opener(path, "wb") as file:
            file.write(raw)


def test_voxels_that_are_not_finite(
    infer: Callable[..., Outcome], case_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, network, None)
    rng = np.random.default_rng(1)
    found = []
    sound = {path: path.read_bytes() for path in case_dir.iterdir()}
    with bar("non_finite_input") as figures:
        for _ in range(times(40, 240)):
            name = MODALITIES[rng.integers(len(MODALITIES))]
            (case_dir / f"X_{name}.nii.gz").unlink()
            ending = (".nii", ".nii.gz")[rng.integers(2)]
            what, image = stored(rng)
            image.to_filename(case_dir / f"X_{name}{ending}")
            found.append((f"{name}: {what}", infer()))
            (case_dir / f"X_{name}{ending}").unlink()
            path = case_dir / f"X_{name}.nii.gz"
            path.write_bytes(sound[path])
        told(figures, found, 3)
    # It was the damage: without it the case runs.
    assert infer() == (0, ["X.json", "X_seg.nii.gz"])


def test_a_network_that_returns_what_is_not_finite(
    infer: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    shapes: list[tuple[int, ...]] = []

    def counting(inputs: Floats) -> Floats:
        shapes.append(inputs.shape)
        return network(inputs)

    fake(monkeypatch, counting, None)
    assert infer()[0] == 0
    steps = list(shapes)
    windows = sum(shape[0] for shape in steps)
    assert windows > 3
    found = []
    with bar("non_finite_network") as figures:
        for number in range(times(40, 200)):
            step = int(rng.integers(len(steps)))
            shape = steps[step]
            place = tuple(int(rng.integers(size)) for size in shape)
            value = BAD[rng.integers(3)]
            calls: list[None] = []

            def broken(
                inputs: Floats,
                step: int = step,
                place: tuple[int, ...] = place,
                value: float = value,
                calls: list[None] = calls,
            ) -> Floats:
                outputs = network(inputs)
                if len(calls) == step:
                    outputs[place] = value
                calls.append(None)
                return outputs

            # A spare one that is no better is no way out, either.
            def also(inputs: Floats, value: float = value) -> Floats:
                return np.full_like(inputs, value)

            fake(monkeypatch, broken, also if number % 4 == 0 else None)
            flags = ("--probabilities",) if number % 5 == 0 else ()
            found.append((f"{value} at {place} of step {step}", infer(*flags)))
        told(figures, found, 8)


def overflowing(rng: np.random.Generator, model: onnx.ModelProto, ways: tuple[str, ...]) -> str:
    """Weights that are not finite, or so large that what they make is not."""
    way = ways[rng.integers(len(ways))]
    # An addend that is huge, or minus infinity, has a sound meaning: a rectifier makes 0 of it.
    weights = [
        item
        for item in model.graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT
        and len(item.dims) >= (1 if way in ("nan", "inf") else 2)
    ]
    item = weights[rng.integers(len(weights))]
    values = numpy_helper.to_array(item).copy()
    values[...] = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 3e38}[way]
    if way == "huge":
        values *= np.where(rng.random(values.shape) < 0.5, -1, 1).astype(np.float32)
    item.CopyFrom(numpy_helper.from_array(values, item.name))
    return f"{way} in {item.name}{list(item.dims)}"


def with_weights(
    infer: Callable[..., Outcome], tiny_model: Path, folder: Path, backend: str, *ways: str
) -> list[tuple[str, Outcome]]:
    """Runs of one backend on networks with such weights."""
    rng = np.random.default_rng(3)
    sound = onnx.load(tiny_model / ONNX_FP32)
    found = []
    for _ in range(times(4, 30)):
        model = onnx.ModelProto()
        model.CopyFrom(sound)
        what = overflowing(rng, model, ways)
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        onnx.save(model, folder / ONNX_FP32)
        (folder / MANIFEST).write_bytes(manifest_of(folder))
        flags = ("--uncertified", "--backend", backend, "--overlap", "0")
        found.append((what, infer(*flags, model=folder)))
    return found


def test_weights_that_overflow(
    infer: Callable[..., Outcome], tiny_model: Path, tmp_path: Path
) -> None:
    ways = ("nan", "inf", "-inf", "huge")
    with bar("non_finite_weights") as figures:
        found = with_weights(infer, tiny_model, tmp_path / "model", "ort", *ways)
        told(figures, found, 8)


def test_weights_that_are_not_finite_are_told_by_openvino(
    infer: Callable[..., Outcome], tiny_model: Path, tmp_path: Path
) -> None:
    """Where they overflow inside of OpenVINO nothing shows it from outside: that is for the export,
    whose gate compares OpenVINO's label maps with PyTorch's.
    """
    with bar("non_finite_weights_openvino") as figures:
        found = with_weights(infer, tiny_model, tmp_path / "model", "openvino", "nan", "inf")
        told(figures, found, 3, 8)
