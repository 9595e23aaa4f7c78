"""Generated blocks of a results page are replaced, and nothing else is touched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import conftest
from benchmarks.figures import figure
from benchmarks.render import BLOCKS, QuickRunError, main, render
from benchmarks.results_page import RESULTS, machine, replace_block
from benchmarks.tables import loading, modes, peers, stages, training


def test_only_the_block_changes() -> None:
    text = "a\n<!-- x -->\nold\nlines\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    assert replace_block(text, "x", r"new \1") == (
        "a\n<!-- x -->\nnew \\1\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    )


def test_a_missing_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block z"):
        replace_block("text", "z", "new")


def _run(info: dict[str, Any], median: float) -> dict[str, Any]:
    return {
        "machine_info": {
            "processor": "P",
            "threads": 2,
            "python_version": "3.11",
            "libraries": {"torch": "2"},
        },
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"extra_info": info, "stats": {"median": median}}],
    }


def test_training_tables_name_network_and_patch() -> None:
    common = {"features": [8, 16], "patch": [96, 96, 80]}
    loads = {
        "question": "loading against the step",
        "augmentation": "TorchIO",
        "loader_patches_s": 12.34,
        "step_patches_s": 2.0,
        "processes_to_feed_it": 0.162,
    }
    row = "| 8-16, 96x96x80 | TorchIO | 12.3 | 2.00 | 0.16 |"
    assert row in loading(_run(common | loads, 1.0)).splitlines()
    steps = {
        "question": "a training step against MONAI",
        "precision": "bf16",
        "peer_s": 3.0,
        "ours_s": 1.0,
        "ratio_min": 2.9,
        "ratio_median": 3.0,
        "ratio_max": 3.2,
    }
    row = "| 8-16, 96x96x80 | bf16 | 3.00 | 1.00 | **3.00** (2.90-3.20) |"
    assert row in training(_run(common | steps, 1.0)).splitlines()


PEER = {
    "question": "peers",
    "peer": "MONAI, eager",
    "input": "volume",
    "placement": "fitted",
    "quality": "exact",
    "backend": "openvino",
    "peer_s": 99.0,
    "ours_s": 11.0,
    "ratio_median": 9.0,
    "ratio_min": 8.5,
    "ratio_max": 9.5,
    "rounds": 3,
    "changed_labels": 0.01,
    "case": "A",
    "shape": [240, 240, 155],
    "weights": "w",
}


def test_peers_shows_the_ratio_with_its_spread() -> None:
    lines = peers(_run(PEER, 11.0)).splitlines()
    row = "volume | openvino, fitted | 99.0 | 11.0 | **9.00** (8.50-9.50) | 3 | 1.0e-02 |"
    assert f"| MONAI, eager | {row}" in lines
    fast = peers(_run(PEER | {"quality": "fast"}, 11.0))
    assert "| MONAI, eager | volume | openvino, fast | 99.0" in fast
    assert lines[-1].startswith("Case A (240x240x155), weights w.")
    assert "2026-01-02, commit 0123456789." in lines[-1]


def test_the_footer_says_what_was_not_committed_and_names_every_run() -> None:
    run = _run(PEER, 11.0)
    run["commit_info"]["dirty"] = True
    assert machine(run) == (
        "P, 2 threads, Python 3.11; torch 2; 2026-01-02, commit 0123456789 with uncommitted "
        "changes."
    )
    other = _run(PEER | {"peer": "nnU-Net"}, 11.0)
    other["machine_info"]["libraries"] = {"torch": "2", "monai": "absent", "nnunetv2": "2.8"}
    for one in (run, other):
        conftest.pytest_benchmark_update_json(one)
    assert machine(_together(other, run)) == (
        "P, 2 threads, Python 3.11; torch 2, nnunetv2 2.8; 2026-01-02, commit 0123456789; "
        "torch 2; 2026-01-02, commit 0123456789 with uncommitted changes."
    )
    assert machine(other).count("2026") == 1


def _stages(state: str, infer: float) -> dict[str, Any]:
    p50 = {"decode": 0.05, "infer": infer, "save": 0.02}
    return {
        "question": "stages",
        "state": state,
        "p50_s": p50 | ({"open": 0.4} if state == "cold" else {}),
        "p95_s": {name: 2 * seconds for name, seconds in p50.items()} | {"open": 0.5},
        "figures": {"around the network": figure([0.06, 0.07, 0.09], "s")},
        "backend": "openvino",
        "device": "cpu",
        "case": "A",
        "shape": [8, 8, 8],
        "weights": "w",
    }


def _modes(truth: bool) -> dict[str, Any]:
    dice = {"WT": 0.9, "TC": 0.8, "ET": 0.7}
    rows = [
        {
            "mode": name,
            "precision": "fp32",
            "windows": windows,
            "seconds": [seconds, 1.1 * seconds],
            "faster": [4 / seconds, 4.1 / seconds, 4.2 / seconds],
            "dice_to_truth": dice if truth else None,
            "dice_to_reference": dict.fromkeys(dice, 1.0),
            "changed_labels": 0.001,
        }
        for name, windows, seconds in (("overlap 0", 8, 2.0), ("overlap 0.5", 16, 4.0))
    ]
    return {
        "question": "scaling: modes",
        "rows": rows,
        "reference": "overlap 0.5",
        "scored_cases": ["A"],
        "backend": "openvino",
        "device": "cpu",
        "case": "A",
        "shape": [8, 8, 8],
        "weights": "w",
    }


def test_stages_shows_median_and_percentile_cold_and_warm() -> None:
    run = _together(_run(_stages("cold", 3.0), 3.0), _run(_stages("warm", 2.0), 2.0))
    lines = stages(run).splitlines()
    assert lines[0] == "| stage, ms | cold: p50 (p95) | warm: p50 (p95) |"
    assert "| infer | 3000.0 (6000.0) | 2000.0 (4000.0) |" in lines
    assert "| open | 400.0 (500.0) |  |" in lines
    assert "| **around the network** | **70** | **70** |" in lines


def test_modes_are_rows_with_their_dice() -> None:
    row = "| overlap 0 | fp32 | 8 | 2.10 | **2.05** (2.00-2.10) | 0.9000 / 0.8000 / 0.7000 |"
    assert any(line.startswith(row) for line in modes(_run(_modes(truth=True), 1.0)).splitlines())
    assert "| **2.05** (2.00-2.10) |  | 1.0000" in modes(_run(_modes(truth=False), 1.0))


def _together(*runs: dict[str, Any]) -> dict[str, Any]:
    return runs[0] | {"benchmarks": [one for run in runs for one in run["benchmarks"]]}


def test_a_page_gets_tables_and_pictures(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    shutil.copy(RESULTS, page)
    run = _together(
        _run(_stages("cold", 3.0), 3.0),
        _run(_stages("warm", 2.0), 2.0),
        _run(PEER, 11.0),
        _run(_modes(truth=True), 1.0),
    )
    assert render(run, page) == ["stages", "peers", "modes"]
    for name in ("stages", "peers", "modes"):
        picture = tmp_path / "pictures" / f"bench_{name}.png"
        with Image.open(picture) as image:
            assert image.width > 800
            # Something is drawn: more than a white sheet with a frame.
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
        assert f"(pictures/bench_{name}.png)" in page.read_text()
    # All else is as it was.
    assert "<!-- parity -->\n| artefact" in page.read_text()


def test_every_block_that_is_rendered_stands_on_the_page() -> None:
    text = RESULTS.read_text()
    for name in BLOCKS:
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- /{name} -->") == 1


def test_a_quick_run_never_becomes_a_result(tmp_path: Path) -> None:
    run = _run(PEER | {"scale": "quick"}, 11.0)
    before = RESULTS.read_bytes()
    with pytest.raises(QuickRunError, match="holds no results"):
        render(run, RESULTS)
    marked = _run(PEER, 11.0)
    marked["machine_info"]["settings"] = {"scale": "quick"}
    with pytest.raises(QuickRunError):
        render(marked, RESULTS)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    assert main([str(path)]) == 2
    assert RESULTS.read_bytes() == before
    page = tmp_path / "copy.md"
    shutil.copy(RESULTS, page)
    assert main([str(path), "--page", str(page)]) == 0
    assert "Of a quick run: no results." in page.read_text()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "found no such file or directory"),
        ("no json", "found no JSON (Expecting value"),
        ("[]", "found JSON that is no run of the benchmarks"),
        ('{"cases": {}}', "found JSON that is no run of the benchmarks"),
        ('{"machine_info": {}}', "found JSON that is no run of the benchmarks"),
    ],
)
def test_a_file_that_is_no_run_is_told_in_a_sentence(
    content: str | None, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "run.json", tmp_path / "page.md"
    shutil.copy(RESULTS, page)
    if content is not None:
        path.write_text(content)
    good = tmp_path / "good.json"
    good.write_text(json.dumps(_run(PEER, 11.0)))
    # What is refused is refused before anything is written.
    assert main([str(good), str(path), "--page", str(page)]) == 2
    assert page.read_bytes() == RESULTS.read_bytes()
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"{path}: {found}")
    assert "expected what these benchmarks or brats-eval have written; write it with" in line
    assert printed.out == ""


def test_a_run_of_another_version_and_a_page_that_is_none_are_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "run.json", tmp_path / "page.md"
    record = {key: value for key, value in PEER.items() if key != "quality"}
    path.write_text(json.dumps(_run(record, 11.0)))
    assert main([str(path), "--page", str(page)]) == 2
    assert capsys.readouterr().err.startswith(f"{page}: found no such file, expected RESULTS.md")
    shutil.copy(RESULTS, page)
    assert main([str(path), "--page", str(page)]) == 2
    assert "run.json: found a run that lacks 'quality'" in capsys.readouterr().err
    assert page.read_bytes() == RESULTS.read_bytes()


def test_scores_that_cannot_be_read_are_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, scores = tmp_path / "page.md", tmp_path / "scores.json"
    shutil.copy(RESULTS, page)
    arguments = ["--scores", str(scores), str(tmp_path / "absent"), "--page", str(page)]
    for content, found in (
        (None, "scores.json: found no such file"),
        ("{}", "scores.json: found scores that lack"),
    ):
        if content is not None:
            scores.write_text(content)
        assert main(arguments) == 2
        assert found in capsys.readouterr().err
