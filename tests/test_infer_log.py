"""What brats-infer tells, whatever the files are called: to machines a JSON object per line."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime.cli.infer import main
from runtime.labels import MODALITIES
from runtime.lock import only_writer

SHAPE = (24, 20, 16)
COLOURED = "a\x1b[31mb\nerror: c[bold]"


@pytest.fixture
def named_case(tmp_path: Path, rng: np.random.Generator) -> "tuple[str, Path]":
    """Files whose common name holds a line break, a colour of the terminal and Rich's markup."""
    if os.name != "posix":
        pytest.skip("the system has no such names")
    folder = tmp_path / "data" / "X"
    folder.mkdir(parents=True)
    for modality in MODALITIES:
        voxels = rng.integers(1, 900, SHAPE).astype(np.int16)
        image = nib.Nifti1Image(voxels, np.diag([-1.0, -1, 1, 1]))
        nib.save(image, folder / f"{COLOURED}_{modality}.nii.gz")
    return COLOURED, folder


def run(case: Path, model: Path, out: Path, *flags: str) -> int:
    common = ["--model", str(model), "-o", str(out), "--backend", "ort", "--threads", "1"]
    return main([str(case), *common, *flags])


def events(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_is_an_event(
    named_case: tuple[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case_id, folder = named_case
    out = tmp_path / "out"
    assert run(folder, tiny_model, out, "--log-json") == 0
    told = events(capsys.readouterr().err)
    assert (told[0]["level"], told[0]["event"]) == ("info", "started")
    assert told[0]["model"]["name"] == "tiny"  # type: ignore[index]
    notes = [one for one in told if one["event"] == "note"]
    assert {one["level"] for one in notes} == {"warning"}
    assert any("is the skull on?" in str(one["text"]) for one in notes)
    done = told[-1]
    sidecar = json.loads((out / f"{case_id}.json").read_text())
    assert (done["event"], done["case_id"]) == ("case-done", case_id)
    assert done["sha256"] == sidecar["output"]["sha256"]
    assert done["volumes_ml"] == sidecar["volumes_ml"]
    assert run(folder, tiny_model, out, "--log-json", "--resume") == 0
    assert [one["event"] for one in events(capsys.readouterr().err)] == ["started", "case-kept"]


def test_errors_are_events_too(
    named_case: tuple[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case_id, folder = named_case
    bad = folder / f"{case_id}_t2.nii.gz"
    bad.write_bytes(b"")
    assert run(folder, tiny_model, tmp_path / "out", "--log-json") == 3
    *_, case, last = events(capsys.readouterr().err)
    assert (case["event"], case["case_id"], case["where"]) == ("case-failed", case_id, str(bad))
    assert (last["event"], last["exit_code"], last["kind"]) == ("failed", 3, "InputError")
    assert last["found"] == "an empty file"
    assert run(tmp_path / "none", tiny_model, tmp_path / "out", "--log-json") == 3
    (only,) = events(capsys.readouterr().err)
    assert only["found"] == "nothing"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["X", "--overlp", "0.5"], "Unrecognized options: --overlp, 0.5"),
        (["X", "--backend", "tpu"], "invalid choice 'tpu' for argument '--backend'"),
        ([], "Missing from brats-infer: CASE_OR_FOLDER"),
    ],
)
def test_a_command_line_that_does_not_fit_is_an_event_too(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--log-json"])
    shown = capsys.readouterr()
    assert not shown.out
    (line,) = shown.err.splitlines()
    event = json.loads(line)
    assert (event["event"], event["kind"], event["exit_code"]) == ("failed", "UsageError", 2)
    assert event["found"].startswith(told)
    assert "─" not in event["found"]


def test_help_is_help_beside_log_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help", "--log-json"])
    assert "--log-json" in capsys.readouterr().out


def test_a_name_makes_no_line_and_no_colour_of_its_own(
    named_case: tuple[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder = named_case
    out = tmp_path / "out"
    assert run(folder, tiny_model, out, "--report", "--preview") == 0
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert not [line for line in told.splitlines() if line.startswith("error: c")]
    assert r"a\x1b[31mb\nerror: c[bold]" in told
    for path in out.iterdir():
        if path.suffix in (".json", ".html"):
            assert b"\x1b" not in path.read_bytes()
    assert run(folder, tiny_model, out) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert len([line for line in told.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.skipif(os.name != "posix", reason="the system has no such locks")
def test_a_second_writer_is_told_to_wait(
    named_case: tuple[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:

    _, folder = named_case
    out = tmp_path / "out"
    out.mkdir()
    with only_writer(out):
        assert run(folder, tiny_model, out) == 7
    assert "another process that writes into it" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    (out / ".X.json.0123abcd.brats.tmp").write_bytes(b"of a run that was killed")
    assert run(folder, tiny_model, out) == 0
    assert not list(out.glob(".*"))
