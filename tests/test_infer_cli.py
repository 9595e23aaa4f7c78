"""brats-infer from its command line: exit codes, one sentence per error, nothing half written."""

import gzip
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import runtime.cohort
from runtime import __version__
from runtime.backends import BackendOptions, open_backend
from runtime.case import Case
from runtime.cli.infer import main
from runtime.errors import BackendUnavailableError, OutputError
from runtime.labels import MODALITIES
from runtime.lock import only_writer
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_dir import CARD, ONNX_FP32, PARITY, ModelDir
from runtime.nifti import load
from runtime.segmenter import Segmenter, SegmentOptions

WriteCase = Callable[..., Path]
Change = Callable[[Path], object]

SHAPE = (40, 18, 14)
TRUTH = b"the truth of this case"


def voxels(seed: int, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.int16]:
    return np.random.default_rng(seed).integers(1, 900, shape).astype(np.int16)


@pytest.fixture
def case_dir(tmp_path: Path, write_case: WriteCase) -> Path:
    """A case that is smaller than the patch on one axis, with bytes in the place of truth."""
    images = {name: voxels(index) for index, name in enumerate(MODALITIES)}
    folder = write_case(tmp_path / "data" / "X", images)
    (folder / "X_seg.nii.gz").write_bytes(TRUTH)
    return folder


@pytest.fixture
def infer(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, Path]]:
    """infer(case, *flags) -> exit code, standard error, output folder."""

    def call(case: Path, *flags: object, model: Path = tiny_model) -> tuple[int, str, Path]:
        out = tmp_path / "out"
        given = list(map(str, flags))
        if "--backend" not in given:
            given += ["--backend", "ort"]
        if "-o" not in given:
            given += ["-o", str(out)]
        capsys.readouterr()
        code = main([str(case), "--model", str(model), "--threads", "1", *given])
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err, out

    return call


def sentence(err: str, *parts: str) -> None:
    """One line, which names the fault and holds a remedy, and no traceback."""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert err.endswith(line + "\n")
    assert ": found " in line
    assert ", expected " in line
    remedy = line.rpartition("; ")[2]
    assert len(remedy) > 5
    assert remedy.endswith(".")
    for part in parts:
        assert part in line, line


def nothing_in(out: Path) -> None:
    assert not out.exists() or list(out.iterdir()) == []


def image(folder: Path, name: str, array: npt.NDArray[Any], affine: Any = None) -> None:
    affine = np.diag([-1.0, -1, 1, 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(array, affine), folder / f"X_{name}.nii.gz")


def with_nan(folder: Path) -> None:
    array = voxels(0).astype(np.float32)
    array[3, 4, 5] = np.nan
    image(folder, "t1", array)


def truncated(folder: Path) -> None:
    data = (folder / "X_t2.nii.gz").read_bytes()
    (folder / "X_t2.nii.gz").write_bytes(data[: len(data) // 2])


def flipped(folder: Path) -> None:
    data = bytearray((folder / "X_t2.nii.gz").read_bytes())
    data[-6] ^= 4
    (folder / "X_t2.nii.gz").write_bytes(data)


def empty(folder: Path) -> None:
    for name in MODALITIES:
        image(folder, name, np.zeros(SHAPE, np.int16))


BAD_CASES: list[tuple[Change, str]] = [
    (lambda folder: (folder / "X_t1ce.nii.gz").unlink(), "t1ce"),
    (lambda folder: shutil.copy(folder / "X_t1.nii.gz", folder / "X_t1n.nii.gz"), "X_t1n.nii.gz"),
    (lambda folder: image(folder, "t2", voxels(9, (40, 18, 15))), "X_t2.nii.gz"),
    (lambda folder: image(folder, "t1ce", voxels(9), np.diag([-1.0, -1, 1.2, 1])), "X_t1ce.nii.gz"),
    (lambda folder: image(folder, "t1ce", voxels(9), np.diag([1.0, -1, 1, 1])), "X_t1ce.nii.gz"),
    (truncated, "X_t2.nii.gz"),
    (flipped, "X_t2.nii.gz"),
    (with_nan, "X_t1.nii.gz"),
    (empty, "X_flair.nii.gz"),
    (lambda folder: image(folder, "t1", np.full(SHAPE, 5, np.int16)), "X_t1.nii.gz"),
    (lambda folder: image(folder, "t1", np.zeros((*SHAPE, 2), np.int16)), "X_t1.nii.gz"),
    (lambda folder: (folder / "X_t1.nii.gz").write_bytes(b"no image"), "X_t1.nii.gz"),
    (lambda folder: shutil.rmtree(folder), "X"),
    (lambda folder: [path.unlink() for path in folder.iterdir()], "X"),
]
NAMES = ["missing", "doubled", "shape", "affine", "flip", "truncated", "crc", "nan", "empty brain",
    "constant", "4D", "no image", "no folder", "empty folder"]  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), BAD_CASES, ids=NAMES)
def test_a_bad_case_exits_3(infer: Any, case_dir: Path, damage: Change, named: str) -> None:
    damage(case_dir)
    for flags in ((), ("--quiet",)):
        code, err, out = infer(case_dir, *flags)
        assert code == 3
        sentence(err, named)
        nothing_in(out)
    assert err.count("\n") == 1


def vouched(model: Path) -> None:
    (model / MANIFEST).write_bytes(manifest_of(model))


def no_network(model: Path) -> None:
    (model / ONNX_FP32).write_bytes(b"no network" * 100)
    vouched(model)


BAD_MODELS: list[tuple[Change, int, str]] = [
    (shutil.rmtree, 3, "model"),
    (lambda model: (model / CARD).unlink(), 3, CARD),
    (lambda model: ((model / CARD).unlink(), vouched(model)), 3, CARD),
    (lambda model: (model / MANIFEST).unlink(), 3, MANIFEST),
    (lambda model: (model / PARITY).unlink(), 3, PARITY),
    (lambda model: (model / ONNX_FP32).unlink(), 3, ONNX_FP32),
    (lambda model: (model / CARD).write_text("{}"), 3, CARD),
    (lambda model: ((model / CARD).write_text("{}"), vouched(model)), 3, CARD),
    (lambda model: (model / ONNX_FP32).write_bytes(b"changed"), 3, ONNX_FP32),
    (lambda model: (model / MANIFEST).write_text("{"), 3, MANIFEST),
    (no_network, 5, ONNX_FP32),
]


@pytest.mark.parametrize(("damage", "code", "named"), BAD_MODELS)
def test_a_bad_model_directory_is_named(
    infer: Any,
    case_dir: Path,
    tiny_model: Path,
    tmp_path: Path,
    damage: Change,
    code: int,
    named: str,
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copied model"))
    damage(model)
    found, err, out = infer(case_dir, model=model)
    assert found == code
    sentence(err, named)
    nothing_in(out)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_corrupt_network_exits_3(
    infer: Any, case_dir: Path, tiny_model: Path, tmp_path: Path, backend: str
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copied model"))
    no_network(model)
    code, err, out = infer(case_dir, "--uncertified", "--backend", backend, model=model)
    assert code == 3
    sentence(err, ONNX_FP32)
    nothing_in(out)


def test_a_network_that_overflows_exits_8(
    infer: Any, case_dir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copied model"))
    proto = onnx.load(model / ONNX_FP32)
    weights = max(proto.graph.initializer, key=lambda item: len(item.dims))
    weights.CopyFrom(
        numpy_helper.from_array(np.full(tuple(weights.dims), np.nan, np.float32), weights.name)
    )
    onnx.save(proto, model / ONNX_FP32)
    vouched(model)
    code, err, out = infer(case_dir, "--uncertified", model=model)
    assert code == 8
    sentence(err, "X", "NaN")
    nothing_in(out)


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--overlap", "0.5", "--stride", "16,16,8"], 2, "--stride"),
        (["--overlap", "1.5"], 2, "--overlap"),
        (["--stride", "40,16,8"], 2, "--stride"),
        (["--patch", "30,32,16"], 2, "--patch"),
        (["--patch", "0,32,16"], 2, "--patch"),
        (["--patch", "1048576,1048576,1048576"], 2, "--patch"),
        (["--patch", "99999999999999999984,16,16"], 2, "--patch"),
        (["--patch", "1024,1024,1024"], 2, "134217728 voxels at most"),
        (["--stride", "99999999999999999984,16,16"], 2, "--stride"),
        (["--batch", "0"], 2, "--batch"),
        (["--threads", "99999999999999999999"], 2, "--threads"),
        (["--threads", "1025"], 2, "1 to 1024"),
        (["--threads", "0"], 2, "1 to 1024"),
        (["--device", "gpu"], 2, "--device"),
        (["--precision", "fp16", "--device", "cpu"], 2, "--precision"),
        (["--precision", "int8", "--device", "cpu"], 3, "model.int8.onnx"),
        (["--channels", "a,b"], 2, "--channels"),
        (["--backend", "trt", "--device", "cpu"], 2, "--device"),
        (["--backend", "trt"], 4, "--backend trt"),
        (["--device", "cuda:77"], 4, "--device"),
    ],
)
def test_flags_that_cannot_be_met(
    infer: Any, case_dir: Path, flags: list[str], code: int, named: str
) -> None:
    found, err, out = infer(case_dir, *flags)
    assert found == code
    sentence(err, named)
    nothing_in(out)


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-such-flag"],
        ["--patch", "32,32"],
        ["--patch", "a,b,c"],
        ["--stride", "1,2,3,4"],
        ["--overlap", "half"],
        ["--backend", "tensorflow"],
        ["--labels", "brats2019"],
        ["--placement", "even"],
    ],
)
def test_flags_that_are_none_exit_2(
    infer: Any, case_dir: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        infer(case_dir, *flags)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"brats-infer {__version__}\n"


def test_an_output_that_cannot_be_written_exits_7(
    infer: Any, case_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        code, err, _ = infer(case_dir, "-o", target)
        assert code == 7
        sentence(err, str(target))
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["a" * 300, "b/" + "a" * 300])
def test_a_name_that_the_system_does_not_take_is_an_output_that_cannot_be_written(
    infer: Any, case_dir: Path, tmp_path: Path, name: str
) -> None:
    for flags in (("-o", tmp_path / name), ("--check", "--json", tmp_path / name)):
        code, err, _ = infer(case_dir, *flags)
        assert code == 7, err
        sentence(err, name, "a place that can be written")


def test_a_disk_that_fills_up_exits_7_and_leaves_nothing(
    infer: Any, case_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.atomic.os.fsync", full)
    code, err, out = infer(case_dir)
    assert code == 7
    sentence(err, "No space left on device")
    nothing_in(out)


@pytest.fixture
def four_d(tmp_path: Path) -> Path:
    """A 4D file of four frames in a folder of the decathlon's, without its dataset.json."""
    path = tmp_path / "Task01" / "imagesTr" / "BRATS_001.nii.gz"
    path.parent.mkdir(parents=True)
    frames = np.stack([voxels(index) for index in range(4)], axis=-1)
    nib.save(nib.Nifti1Image(frames, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


def test_resuming_does_a_4d_file_again_whose_channels_were_corrected(
    infer: Any, four_d: Path
) -> None:
    right, wrong = ("--channels", "t2,t1ce,t1,flair"), ("--channels", "flair,t1,t1ce,t2")
    code, err, out = infer(four_d, *right, "-o", four_d.parents[2] / "expected")
    assert code == 0, err
    expected = (out.parent / "expected" / "BRATS_001_seg.nii.gz").read_bytes()
    assert infer(four_d, *wrong)[0] == 0
    labels, sidecar = out / "BRATS_001_seg.nii.gz", out / "BRATS_001.json"
    assert labels.read_bytes() != expected
    assert infer(four_d, *right, "--resume")[0] == 0
    assert labels.read_bytes() == expected
    digest = hashlib.sha256(four_d.read_bytes()).hexdigest()
    assert json.loads(sidecar.read_text())["inputs"] == {
        name: {"sha256": digest, "channel": channel}
        for name, channel in zip(MODALITIES, (3, 2, 1, 0), strict=True)
    }
    finished = sidecar.read_bytes()
    assert infer(four_d, *right, "--resume")[0] == 0
    assert sidecar.read_bytes() == finished  # nothing to do
    # What an earlier version wrote does not say which frame was which.
    record = json.loads(finished)
    for entry in record["inputs"].values():
        del entry["channel"]
    sidecar.write_text(json.dumps(record))
    assert infer(four_d, *right, "--resume")[0] == 0
    assert json.loads(sidecar.read_text())["inputs"]["t2"]["channel"] == 0


def test_resuming_does_a_4d_file_again_whose_dataset_json_was_corrected(
    infer: Any, four_d: Path
) -> None:
    described = four_d.parents[1] / "dataset.json"

    def says(*names: str) -> None:
        table = {str(number): name for number, name in enumerate(names)}
        described.write_text(json.dumps({"modality": table}))

    says("T2w", "t1gd", "T1w", "FLAIR")
    code, err, out = infer(four_d, "-o", four_d.parents[2] / "expected")
    assert code == 0, err
    says("FLAIR", "T1w", "t1gd", "T2w")
    assert infer(four_d)[0] == 0
    says("T2w", "t1gd", "T1w", "FLAIR")
    assert infer(four_d, "--resume")[0] == 0
    name = "BRATS_001_seg.nii.gz"
    assert (out / name).read_bytes() == (out.parent / "expected" / name).read_bytes()


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"], ["--resume"]])
def test_the_folder_of_the_case_is_never_written(
    infer: Any, case_dir: Path, tmp_path: Path, overwrite: list[str]
) -> None:
    (tmp_path / "link").symlink_to(case_dir)
    before = {path.name: path.read_bytes() for path in case_dir.iterdir()}
    for target in (case_dir, tmp_path / "link", case_dir / ".." / "X"):
        code, err, _ = infer(case_dir, "-o", target, *overwrite)
        assert code == 2
        sentence(err, str(target), "-o")
    assert {path.name: path.read_bytes() for path in case_dir.iterdir()} == before
    assert before["X_seg.nii.gz"] == TRUTH


@pytest.mark.parametrize(
    "name", ["X_seg.nii.gz", "X.json", "X_prob.nii.gz", "X_preview.png", "X_report.html"]
)
def test_a_foreign_file_is_never_overwritten(
    infer: Any, case_dir: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    content = gzip.compress(bytes(400)) if name.endswith("gz") else b'{"theirs": 1}'
    (out / name).write_bytes(content)
    for flags in ([], ["--overwrite"], ["--resume"]):
        code, err, _ = infer(case_dir, "--probabilities", *flags)
        assert code == 2
        sentence(err, name)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {name: content}


def test_a_case_smaller_than_the_patch_is_segmented(
    infer: Any, case_dir: Path, tiny_model: Path
) -> None:
    code, err, out = infer(case_dir, "--probabilities")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "X.json",
        "X_prob.nii.gz",
        "X_seg.nii.gz",
    ]
    assert str(out / "X_seg.nii.gz") in err.replace("\n", "")
    written = nib.load(out / "X_seg.nii.gz")
    assert written.shape == SHAPE
    np.testing.assert_array_equal(written.affine, nib.load(case_dir / "X_t1.nii.gz").affine)
    labels = np.asarray(written.dataobj)
    assert 4 in labels
    assert 3 not in labels
    probabilities = np.asarray(nib.load(out / "X_prob.nii.gz").dataobj)
    winners = np.array([0, 1, 2, 4])[probabilities.argmax(axis=-1)]
    np.testing.assert_array_equal(labels, winners)
    backend = open_backend(ModelDir.open(tiny_model), BackendOptions("openvino", threads=1))
    expected = Segmenter(backend, SegmentOptions(probabilities=True)).segment(
        load(Case.from_dir(case_dir))
    )
    backend.close()
    assert expected.probabilities is not None
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-4)
    sidecar = json.loads((out / "X.json").read_text())
    # 40 voxels in patches of 32, and one patch on the other two axes.
    assert sidecar["windows"] == {
        "patch": [32, 32, 16], "overlap": [0.5, 0.5, 0.5], "placement": "fitted", "count": 2,
    }  # fmt: skip
    assert (case_dir / "X_seg.nii.gz").read_bytes() == TRUTH


def test_flags_reach_the_result(infer: Any, case_dir: Path, tmp_path: Path) -> None:
    code, err, out = infer(
        case_dir, "--quiet", "--submission", "--labels", "msd", "--patch", "16,16,8",
        "--stride", "8,16,4", "--placement", "stride", "--batch", "3", "--backend", "openvino",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["X.json", "X.nii.gz"]
    sidecar = json.loads((out / "X.json").read_text())
    # 40 by 16 at stride 8: 4 windows; 18 by 16: 2; 14 by 8 at stride 4: 3.
    assert sidecar["windows"] == {
        "patch": [16, 16, 8], "overlap": [0.5, 0.0, 0.5], "placement": "stride", "count": 24,
    }  # fmt: skip
    assert sidecar["convention"] == "msd"
    assert sidecar["backend"]["name"] == "openvino"
    assert set(np.unique(np.asarray(nib.load(out / "X.nii.gz").dataobj))) <= {0, 1, 2, 3}
    # The same case by numbers: the convention of the first run must be asked for again.
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    for index, name in enumerate(("t2", "t1ce", "flair", "t1")):
        shutil.copy(case_dir / f"X_{name}.nii.gz", numbered / f"X_000{index}.nii.gz")
    code, err, _ = infer(numbered, "-o", tmp_path / "second")
    assert code == 2
    sentence(err, "--channels")
    code, err, _ = infer(
        numbered, "-o", tmp_path / "second", "--channels", "t2w,t1c,t2f,t1n", "--quiet",
        "--labels", "msd", "--patch", "16,16,8", "--stride", "8,16,4", "--placement", "stride",
        "--backend", "openvino",
    )  # fmt: skip
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "second" / "X_seg.nii.gz").dataobj),
        np.asarray(nib.load(out / "X.nii.gz").dataobj),
    )


def test_spacing_can_be_forced(infer: Any, case_dir: Path) -> None:
    for index, name in enumerate(MODALITIES):
        image(case_dir, name, voxels(index), np.diag([-1.0, -1, 2, 1]))
    code, err, out = infer(case_dir)
    assert code == 3
    sentence(err, "1x1x2", "--force-spacing")
    nothing_in(out)
    code, err, out = infer(case_dir, "--force-spacing")
    assert code == 0
    assert "1x1x2" in err
    warnings = json.loads((out / "X.json").read_text())["warnings"]
    assert sum("spacing 1x1x2 mm is not the model's" in text for text in warnings) == 1


def test_an_earlier_result_is_kept_or_replaced_as_asked(infer: Any, case_dir: Path) -> None:
    _, _, out = infer(case_dir)
    first = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    code, err, _ = infer(case_dir)
    assert code == 2
    sentence(err, "--overwrite", "--resume")
    code, err, _ = infer(case_dir, "--resume")
    assert code == 0
    assert "already done" in err
    assert first == {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()
    }
    code, _, _ = infer(case_dir, "--overwrite")
    assert code == 0
    assert (out / "X_seg.nii.gz").read_bytes() == first["X_seg.nii.gz"][0]
    assert (out / "X_seg.nii.gz").stat().st_mtime_ns > first["X_seg.nii.gz"][1]


def test_a_report_is_written_beside_and_goes_with_its_label_map(infer: Any, case_dir: Path) -> None:
    code, err, out = infer(case_dir, "--report", "--preview")
    assert code == 0
    names = ["X.json", "X_preview.png", "X_report.html", "X_seg.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == names
    # What lies in the truth's place is no label map.
    assert "shown without truth" in err
    assert "X_seg.nii.gz" in err
    sidecar = json.loads((out / "X.json").read_text())
    page = (out / "X_report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>\n")
    assert "Against the truth" not in page
    for told in (
        sidecar["output"]["sha256"],
        sidecar["model"]["sha256"],
        *(one["sha256"] for one in sidecar["inputs"].values()),
        f"{sidecar['volumes_ml']['regions']['WT']:.2f}",
        sidecar["run"]["finished"],
    ):
        assert told in page
    for kind, name in (("preview", "X_preview.png"), ("report", "X_report.html")):
        digest = hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert sidecar["run"][kind] == {"file": name, "sha256": digest}
    code, err, _ = infer(case_dir, "--report")
    assert code == 2
    sentence(err, "--overwrite")
    code, _, _ = infer(case_dir, "--overwrite")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["X.json", "X_seg.nii.gz"]


def test_resuming_makes_the_pictures_that_an_earlier_run_left_out(
    infer: Any, case_dir: Path
) -> None:
    _, _, out = infer(case_dir)
    labels = (out / "X_seg.nii.gz").read_bytes()
    code, err, _ = infer(case_dir, "--resume", "--report", "--preview")
    assert code == 0
    assert "already done" not in err
    assert (out / "X_seg.nii.gz").read_bytes() == labels
    assert json.loads((out / "X.json").read_text())["output"]["sha256"] in (
        out / "X_report.html"
    ).read_text(encoding="utf-8")
    assert "already done" in infer(case_dir, "--resume", "--report", "--preview")[1]
    # As after a run that was killed between the two.
    (out / "X_preview.png").unlink()
    assert "already done" in infer(case_dir, "--resume", "--report")[1]
    assert "already done" not in infer(case_dir, "--resume", "--report", "--preview")[1]
    assert (out / "X_preview.png").is_file()
    # A page that says something else than what was written is nobody's to pass over in silence.
    (out / "X_report.html").write_text("<!doctype html> 0 ml")
    code, err, _ = infer(case_dir, "--resume", "--report", "--preview")
    assert code == 2
    sentence(err, "X_report.html", "edited after it was written", "--overwrite")


def test_a_report_that_a_killed_run_left_is_known_as_ours(infer: Any, case_dir: Path) -> None:
    _, _, out = infer(case_dir, "--report", "--quiet")
    (out / "X.json").unlink()
    (out / "X_seg.nii.gz").unlink()
    code, err, _ = infer(case_dir)
    assert code == 2
    sentence(err, "X_report.html", "an earlier prediction")
    code, _, _ = infer(case_dir, "--resume")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["X.json", "X_seg.nii.gz"]


def test_a_report_scores_the_truth(infer: Any, case_dir: Path) -> None:
    image(case_dir, "seg", np.ones(SHAPE, np.uint8))
    code, err, out = infer(case_dir, "--report")
    assert code == 0
    assert "without truth" not in err
    labels = np.asarray(nib.load(out / "X_seg.nii.gz").dataobj)
    dice = 2 * (labels > 0).sum() / ((labels > 0).sum() + labels.size)
    page = (out / "X_report.html").read_text(encoding="utf-8")
    assert "Against the truth" in page
    assert f"<td>{dice:.4f}</td>" in page


def test_one_bad_case_does_not_stop_the_others(
    infer: Any, case_dir: Path, write_case: WriteCase
) -> None:
    root = case_dir.parent
    for case_id in ("A", "Z"):
        images = {name: voxels(index + ord(case_id)) for index, name in enumerate(MODALITIES)}
        write_case(root / "deep" / case_id, images, pattern=case_id + "_{}.nii.gz")
    truncated(case_dir)
    code, err, out = infer(root)
    assert code == 6
    sentence(err, "1 of 3 cases failed", "--resume")
    assert sorted(path.name for path in out.iterdir()) == [
        "A.json", "A_seg.nii.gz", "Z.json", "Z_seg.nii.gz",
        "cohort.csv", "cohort.html", "cohort.json", "failures.csv",
    ]  # fmt: skip
    assert "X_t2.nii.gz" in err
    assert "X_t2.nii.gz" in (out / "failures.csv").read_text()
    # Mended, only the one that failed is done.
    before = (out / "A_seg.nii.gz").stat().st_mtime_ns
    image(case_dir, "t2", voxels(3))
    code, err, out = infer(root, "--resume")
    assert code == 0
    assert (out / "X_seg.nii.gz").exists()
    assert (out / "A_seg.nii.gz").stat().st_mtime_ns == before
    assert not (out / "failures.csv").exists()
    counts = json.loads((out / "cohort.json").read_text())["cases"]
    assert (counts["done"], counts["kept"], counts["failed"]) == (1, 2, 0)


def test_tables_of_another_cohort_are_refused_before_any_work(
    infer: Any, case_dir: Path, write_case: WriteCase, tmp_path: Path
) -> None:
    two_more(case_dir)
    other = tmp_path / "other"
    for case_id in ("A", "B"):
        images = {name: voxels(index + ord(case_id)) for index, name in enumerate(MODALITIES)}
        write_case(other / case_id, images, pattern=case_id + "_{}.nii.gz")
    assert infer(tmp_path / "data")[0] == 0
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, err, _ = infer(other)
    assert code == 2
    sentence(err, "cohort.json", "3 cases", "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # Grown, it is gone on with; shrunk, it is said what the tables no longer tell.
    shutil.copytree(other, tmp_path / "data", dirs_exist_ok=True)
    assert infer(tmp_path / "data", "--resume")[0] == 0
    (out / "cohort.csv").write_text((out / "cohort.csv").read_text().replace("done", "looked at"))
    code, err, _ = infer(other, "--resume")
    assert code == 2
    sentence(err, "cohort.csv", "edited", "--overwrite")
    code, err, _ = infer(other, "--resume", "--overwrite")
    assert code == 0
    assert "no longer tell of 3 cases" in err
    assert sorted(json.loads((out / "cohort.json").read_text())["results"]) == ["A", "B"]
    assert (out / "X_seg.nii.gz").read_bytes() == before["X_seg.nii.gz"]


def test_a_folder_of_cases_that_is_also_the_output_is_refused_before_any_work(
    infer: Any, case_dir: Path, write_case: WriteCase
) -> None:
    images = {name: voxels(index) for index, name in enumerate(MODALITIES)}
    write_case(case_dir.parent / "A", images, pattern="A_{}.nii.gz")
    before = sorted(case_dir.parent.rglob("*"))
    code, err, _ = infer(case_dir.parent, "-o", case_dir)
    assert code == 2
    sentence(err, str(case_dir))
    assert sorted(case_dir.parent.rglob("*")) == before


MOMENTS = ("runtime.cohort.plan_outputs", "runtime.atomic.sync_directory")
"""When the results have been planned, and when their folder has been made."""


def let_in(monkeypatch: pytest.MonkeyPatch, moment: str, other: Callable[[], object]) -> None:
    """Let another writer act right after the first call of a function."""
    module, name = moment.rsplit(".", 1)
    original = getattr(importlib.import_module(module), name)

    acted = []

    def called(*given: Any, **named: Any) -> Any:
        result = original(*given, **named)
        if not acted:
            acted.append(True)
            other()
        return result

    monkeypatch.setattr(moment, called)


@pytest.mark.skipif(os.name != "posix", reason="the system has no such locks")
@pytest.mark.parametrize("there", [True, False])
def test_the_output_folder_is_held_while_cases_are_segmented(
    infer: Any, case_dir: Path, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def second() -> None:
        with pytest.raises(OutputError, match="another process"):
            only_writer(tmp_path / "out").__enter__()
        tried.append(True)

    if there:
        (tmp_path / "out").mkdir()
    let_in(monkeypatch, "runtime.cohort.save", second)
    assert infer(case_dir)[0] == 0
    assert tried


@pytest.mark.skipif(os.name != "posix", reason="the system has no such locks")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_writer_that_begins_while_the_folder_is_made_keeps_it(
    infer: Any, case_dir: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ExitStack()

    def other() -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        held.enter_context(only_writer(tmp_path / "out"))

    with held:
        let_in(monkeypatch, moment, other)
        code, err, out = infer(case_dir)
    assert code == 7
    sentence(err, "another process that writes into it")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_another_writer_finished_meanwhile_is_not_overwritten(
    infer: Any, case_dir: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: dict[str, bytes] = {}

    def other() -> None:
        assert infer(case_dir, "--overlap", 0)[0] == 0
        finished.update((path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir())

    let_in(monkeypatch, moment, other)
    code, err, out = infer(case_dir)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == finished
    assert sorted(finished) == ["X.json", "X_seg.nii.gz"]
    assert code == 2
    sentence(err, "an earlier prediction")


@pytest.mark.parametrize("lost", [True, False])
def test_resuming_says_what_it_removes_beside_a_lost_or_another_label_map(
    infer: Any, case_dir: Path, lost: bool
) -> None:
    (case_dir / "X_seg.nii.gz").unlink()
    beside = ["X_prob.nii.gz", "X_preview.png", "X_report.html"]
    _, err, out = infer(case_dir, "--probabilities", "--preview", "--report")
    assert "removed" not in err
    if lost:
        (out / "X.json").unlink()
    else:
        image(case_dir, "t2", voxels(9))
    code, err, _ = infer(case_dir, "--resume")
    assert code == 0
    (told,) = [line for line in err.splitlines() if "removed" in line]
    assert told.endswith(
        f"removed, as it showed an earlier result that is replaced: {', '.join(beside)}"
    )
    assert sorted(path.name for path in out.iterdir()) == ["X.json", "X_seg.nii.gz"]
    assert json.loads((out / "X.json").read_text())["run"]["removed"] == beside
    code, err, _ = infer(case_dir, "--overwrite", "--report")
    assert "removed" not in err
    image(case_dir, "t1", voxels(10))
    code, err, _ = infer(case_dir, "--resume", "--log-json")
    assert [
        (one["level"], one["event"], one["text"].rpartition(": ")[2])
        for one in map(json.loads, err.splitlines())
        if "removed" in one.get("text", "")
    ] == [("warning", "note", "X_report.html")]


def two_more(case_dir: Path) -> None:
    for name in "YZ":
        folder = Path(shutil.copytree(case_dir, case_dir.parent / name))
        for path in folder.iterdir():
            path.rename(folder / path.name.replace("X_", f"{name}_"))


@pytest.mark.skipif(os.name != "posix", reason="the system opens no folders")
@pytest.mark.parametrize("anew", [False, True])
def test_an_output_folder_that_is_moved_away_ends_the_run(
    infer: Any, case_dir: Path, tmp_path: Path, anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_more(case_dir)

    def moved() -> None:
        (tmp_path / "out").rename(tmp_path / "aside")
        if anew:
            (tmp_path / "out").mkdir()

    let_in(monkeypatch, "runtime.cohort.save", moved)
    code, err, out = infer(tmp_path / "data")
    assert code == 7
    sentence(err, str(out), "no longer the folder that this run began to write into", "--resume")
    # Whichever of the cases was read first.
    left = sorted(path.name for path in (tmp_path / "aside").iterdir())
    assert left in [[f"{case}.json", f"{case}_seg.nii.gz"] for case in ("X", "Y", "Z")]
    assert out.exists() == anew
    assert not anew or list(out.iterdir()) == []


def test_a_file_that_comes_during_a_run_costs_its_case_alone(
    infer: Any, case_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_more(case_dir)
    # Two are read at a time, so that the third is not the first to be written.
    foreign = tmp_path / "out" / "Z_seg.nii.gz"
    let_in(monkeypatch, "runtime.cohort.save", lambda: foreign.write_bytes(b"mine"))
    code, err, out = infer(tmp_path / "data")
    assert code == 6
    assert f"{foreign}: found a file that this toolkit did not write" in err
    assert foreign.read_bytes() == b"mine"
    assert sorted(path.name for path in out.iterdir()) == [
        "X.json", "X_seg.nii.gz", "Y.json", "Y_seg.nii.gz", "Z_seg.nii.gz",
        "cohort.csv", "cohort.html", "cohort.json", "failures.csv",
    ]  # fmt: skip


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """Let the run end with an error of all cases once so many of them are done."""
    from runtime.cli.infer_cohort import segmented

    def ended(*given: Any) -> Iterator[Any]:
        with closing(segmented(*given)) as outcomes:
            for _ in range(after):
                yield next(outcomes)
        raise error

    monkeypatch.setattr("runtime.cli.infer_run.segmented", ended)


GONE = BackendUnavailableError("cuda:1", found="no GPU", expected="one", remedy="look after it")
FULL = OutputError("out", found="a disk that is full", expected="room", remedy="make some")


@pytest.mark.parametrize("table_fails", [False, True])
def test_what_was_done_before_a_run_failed_is_in_its_tables(
    infer: Any, case_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_fails: bool
) -> None:
    two_more(case_dir)
    truncated(case_dir)
    with monkeypatch.context() as patched:
        ending(patched, GONE, after=2)
        if table_fails:
            patched.setattr("runtime.cli.infer_run.write_cohort", lambda *_: 1 // 0)
        code, err, out = infer(tmp_path / "data")
    assert code == 4
    sentence(err, "cuda:1: found no GPU")
    tables = [out / f"cohort.{kind}" for kind in ("csv", "json", "html")] + [out / "failures.csv"]
    assert [path.exists() for path in tables] == [not table_fails] * 4
    if not table_fails:
        counts = json.loads((out / "cohort.json").read_text())["cases"]
        assert counts == {"all": 3, "done": 1, "kept": 0, "failed": 1, "not_begun": 1}
        assert len((out / "cohort.csv").read_text().splitlines()) == 3
    # It is gone on with.
    image(case_dir, "t2", voxels(3))
    assert infer(tmp_path / "data", "--resume")[0] == 0
    counts = json.loads((out / "cohort.json").read_text())["cases"]
    assert counts["done"] + counts["kept"] == 3  # what was in hand was written, too
    assert not (out / "failures.csv").exists()


@pytest.mark.parametrize(
    ("error", "after", "code"), [(FULL, 2, 7), (KeyboardInterrupt(), 2, 130), (GONE, 0, 4)]
)
def test_tables_that_could_not_be_written_or_tell_of_nothing_are_not_tried(
    infer: Any, case_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: BaseException, after: int, code: int,
) -> None:  # fmt: skip
    two_more(case_dir)
    ending(monkeypatch, error, after)
    found, err, out = infer(tmp_path / "data")
    assert found == code
    assert "Traceback" not in err
    assert not list(out.glob("cohort*"))


def test_an_interrupt_exits_130_and_leaves_nothing(
    infer: Any, case_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.segmenter.Stitcher.add", interrupted)
    code, err, out = infer(case_dir)
    assert code == 130
    assert "Traceback" not in err
    nothing_in(out)


def test_help_needs_no_framework() -> None:
    script = """
import sys
from runtime.cli import infer
sys.argv = ["brats-infer", "--help"]
try:
    infer()
except SystemExit as done:
    code = done.code
heavy = {"torch", "onnx", "onnxruntime", "openvino", "scipy", "train", "export"} & set(sys.modules)
print("HEAVY", sorted(heavy), "CODE", code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY [] CODE 0\n")
    assert done.stderr == ""
    for flag in ("--backend", "--overlap", "--stride", "--submission", "--force-spacing", "-o"):
        assert flag in done.stdout
    assert "not a medical device" in done.stdout


def test_the_first_ctrl_c_finishes_what_is_in_hand(
    infer: Any, case_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_more(case_dir)
    run, begun = Segmenter.run, []

    def interrupted(*given: Any) -> Any:
        begun.append(given)
        os.kill(os.getpid(), signal.SIGINT)
        return run(*given)

    monkeypatch.setattr(Segmenter, "run", interrupted)
    code, err, out = infer(tmp_path / "data")
    assert code == 130
    assert len(begun) == 1
    assert "cases in hand are finished" in err
    (done,) = out.glob("[XYZ].json")
    counts = json.loads((out / "cohort.json").read_text())["cases"]
    assert (counts["done"], counts["not_begun"]) == (1, 2)
    assert json.loads(done.read_text())["case_id"] in ("X", "Y", "Z")
    assert not list(out.glob(".*"))
    monkeypatch.setattr(Segmenter, "run", run)
    code, err, _ = infer(tmp_path / "data", "--resume")
    assert code == 0
    assert err.count("already done") == 1
    assert len(list(out.glob("*.nii.gz"))) == 3


def test_a_second_ctrl_c_ends_the_run_at_once(
    infer: Any, case_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_more(case_dir)

    def interrupted(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    monkeypatch.setattr(Segmenter, "run", interrupted)
    code, err, out = infer(tmp_path / "data")
    assert code == 130
    assert "Traceback" not in err
    assert [path.name for path in out.iterdir()] == []


def test_little_memory_takes_one_case_at_a_time(
    infer: Any, case_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_more(case_dir)
    load, save, in_hand, most = runtime.cohort.load, runtime.cohort.save, [0], [0]

    def loaded(*given: Any) -> Any:
        in_hand[0] += 1
        most[0] = max(most[0], in_hand[0])
        return load(*given)

    def saved(*given: Any) -> Any:
        made = save(*given)
        in_hand[0] -= 1
        return made

    monkeypatch.setattr(runtime.cohort, "load", loaded)
    monkeypatch.setattr(runtime.cohort, "save", saved)
    code, err, _ = infer(tmp_path / "data", "--memory", "1MB")
    assert code == 0
    assert most == [1]
    assert " ".join(err.split()).count("where --memory says 1 MB for one case alone") == 1


def test_parts_take_every_case_once_and_an_empty_one_is_none_the_worse(
    infer: Any, case_dir: Path, tmp_path: Path
) -> None:
    two_more(case_dir)
    for part in ("1/4", "2/4", "3/4"):
        code, _, out = infer(tmp_path / "data", "--part", part)
        assert code == 0
    assert sorted(path.name for path in out.glob("*_seg.nii.gz")) == [
        "X_seg.nii.gz", "Y_seg.nii.gz", "Z_seg.nii.gz",
    ]  # fmt: skip
    assert infer(tmp_path / "data", "--part", "4/4")[0] == 0
    assert infer(tmp_path / "data", "--part", "4/4", "--budget", "100s")[0] == 0
    told = json.loads((out / "cohort-4-of-4.json").read_text())
    assert told["cases"]["all"] == 0
    assert not list(out.glob(".*"))


def test_the_only_case_of_a_part_says_why_it_failed(
    infer: Any, case_dir: Path, tmp_path: Path
) -> None:
    two_more(case_dir)
    truncated(case_dir)
    code, err, _ = infer(tmp_path / "data", "--part", "1/3")
    assert code == 6
    assert "X_t2.nii.gz" in err
    assert "1 of 1 cases failed" in err


@pytest.mark.parametrize(
    "flags",
    [
        ("--device", "cpu,"),
        ("--device", "cuda:0,cpu"),
        ("--device", "auto,cpu"),
        ("--device", "cpu,cpu", "--budget", "5s"),
        ("--device", "cpu,cpu", "--ray", "auto"),
        ("--device", "cuda:1", "--ray", "auto"),
        ("--device", "gpu-server:8001/tiny", "--ray", "auto"),
        ("--ray", "auto", "--memory", "4GB"),
        ("--workers", "2"),
        ("--ray", "auto", "--workers", "0"),
    ],
)
def test_flags_of_cohorts_that_do_not_go_together(
    infer: Any, case_dir: Path, flags: tuple[str, ...]
) -> None:
    code, err, out = infer(case_dir, *flags)
    assert code == 2
    assert flags[0] in err or flags[2] in err
    assert not out.exists()
