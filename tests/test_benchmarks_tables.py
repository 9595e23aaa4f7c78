"""The tables of RESULTS.md hold a run's figures, and say of what and by what they were made."""

import json
from pathlib import Path

import pytest

from benchmarks import conftest
from benchmarks.bench_patient import by_the_clock
from benchmarks.figures import figure
from benchmarks.results_page import machine
from benchmarks.scores_table import scores
from benchmarks.tables import (
    cohort,
    loading,
    memory,
    modes,
    parity,
    patient,
    peers,
    scaling,
    stages,
    startup,
    training,
)
from tests.run_records import (
    MEMORY,
    PARITY,
    PATIENT,
    PEER,
    SCALING,
    modes_of,
    run_of,
    stages_of,
    together,
)

SUBJECT = "Case A (8x8x8), weights w."


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
    assert row in loading(run_of(common | loads, 1.0)).splitlines()
    steps = {
        "question": "a training step against MONAI",
        "precision": "bf16",
        "peer_s": 3.0,
        "ours_s": 1.0,
        "ratio_min": 2.9,
        "ratio_median": 3.0,
        "ratio_max": 3.2,
        "figures": {"ratio": figure([2.9, 3.0, 3.2], "ratio")},
    }
    row = "| 8-16, 96x96x80 | bf16 | 3.00 | 1.00 | **3.00** (2.90-3.20) |"
    assert row in training(run_of(common | steps, 1.0)).splitlines()
    # Ours in two kinds of arithmetic against the same rounds of MONAI.
    ours = [{"precision": name, "ours_s": 1.5} for name in ("bf16", "fp32")]
    ours = [one | {f"ratio_{end}": 2.0 for end in ("min", "median", "max")} for one in ours]
    both = {key: steps[key] for key in ("question", "peer_s")} | {"rows": ours, "rounds": 2}
    assert training(run_of(common | both, 1.0)).splitlines()[2:4] == [
        "| 8-16, 96x96x80 | bf16 | 3.00 | 1.50 | **2.00** (2.00-2.00) |",
        "| 8-16, 96x96x80 | fp32 | 3.00 | 1.50 | **2.00** (2.00-2.00) |",
    ]


def test_peers_shows_the_ratio_with_its_spread() -> None:
    lines = peers(run_of(PEER, 11.0)).splitlines()
    row = "volume | openvino, fitted | 99.0 | 11.0 | **9.00** (8.50-9.50) | 3 | 1.0e-02 |"
    assert f"| MONAI, eager | {row}" in lines
    fast = peers(run_of(PEER | {"quality": "fast"}, 11.0))
    assert "| MONAI, eager | volume | openvino, fast | 99.0" in fast
    assert lines[-1].startswith("Case A (240x240x155), weights w.")
    assert "2026-01-02, commit 0123456789." in lines[-1]


def test_a_peer_has_a_row_for_each_of_ours() -> None:
    """Ours on another backend, and in another mode, against the same rounds of the peer."""
    shared = {key: PEER[key] for key in ("question", "peer", "input", "placement", "peer_s")}
    shared |= {key: PEER[key] for key in ("rounds", "case", "shape", "weights")}
    other = {"backend": "ort", "ours_s": 33.0, "ratio_median": 3.0}
    ends = {"ratio_min": 2.9, "ratio_max": 3.1, "weights_stored": "float32"}
    rows = [PEER, PEER | other | ends]
    lines = peers(run_of(shared | {"rows": rows}, 11.0)).splitlines()
    assert (
        "| MONAI, eager | volume | openvino, fitted | 99.0 | 11.0 | **9.00** (8.50-9.50) |"
        in (lines[2][:82])
    )
    assert lines[3].startswith(
        "| MONAI, eager | volume | ort, fitted | 99.0 | 33.0 | **3.00** (2.90-3.10) | 3 |"
    )
    assert "fp16" not in lines[-1]
    rows[0] = PEER | {"weights_stored": "float16"}
    assert (
        "Ours stores its weights in fp16; those of the peers are not rounded. P, 2 threads"
        in peers(run_of(shared | {"rows": rows}, 11.0))
    )


def test_of_one_round_no_spread_is_shown() -> None:
    once = {"ratio_min": 9.0, "ratio_max": 9.0, "rounds": 1}
    assert "| **9.00** (1 round) | 1 |" in peers(run_of(PEER | once, 11.0))
    assert "**9.00** (1 round)" in training(
        run_of(
            PEER
            | once
            | {"question": "a training step", "features": [8], "patch": [8, 8, 8]}
            # The peers' other facts are those of a step.
            | {"precision": "fp32", "figures": {"ratio": figure([9.0], "ratio")}},
            1.0,
        )
    )
    alone = modes_of(truth=True)
    for row in alone["rows"]:
        row |= {"seconds": row["seconds"][:1], "faster": row["faster"][:1] * 3}
    assert "| **2.00** (1 round) |" in modes(run_of(alone, 1.0))
    points = [{"at": 1, "seconds": [2.0]}, {"at": 2, "seconds": [1.0, 1.1]}]
    text = scaling(run_of(SCALING | {"points": points}, 1.0))
    assert "| batch | 1 | 2.00 (1 round) | 1.00 |" in text
    assert "| batch | 2 | 1.05 (1.00-1.10) | 0.53 |" in text
    first = {"question": "first result", "backend": "ort", "figures": {"all": figure([2.0], "s")}}
    assert "| first result, ort: all | 2.00 s (1 round) |" in startup(
        together(
            run_of({"question": "imports", "figures": {}, "left_out": {}}, 1), run_of(first, 1)
        )
    )


def test_of_a_peer_that_is_timed_once_the_row_says_so() -> None:
    once = PEER | {"rounds": 1, "once": True}
    assert "| 1 (too slow for more; 2 with --rounds 2) |" in peers(run_of(once, 11.0))
    assert "| 2 |" in peers(run_of(once | {"rounds": 2}, 11.0))


def test_stages_shows_median_and_percentile_cold_and_warm() -> None:
    run = together(run_of(stages_of("cold", 3.0), 3.0), run_of(stages_of("warm", 2.0), 2.0))
    lines = stages(run).splitlines()
    assert lines[0] == "| stage, ms | cold: p50 (p95) | warm: p50 (p95) |"
    assert "| infer | 3000.0 (6000.0) | 2000.0 (4000.0) |" in lines
    assert "| open | 400.0 (500.0) |  |" in lines
    assert "| **around the network** | **70** | **70** |" in lines


def test_a_patients_time_is_by_the_clock_with_spread_and_rounds() -> None:
    """It was a sum of stages, none of which places the files, beside the clock's under one name."""
    lines = patient(run_of(PATIENT, 99.0)).splitlines()
    assert lines[0] == (
        "| backend | load s | network s | save s | rest s | around the network | in all |"
    )
    assert lines[2] == (
        "| openvino | 0.040 | 8.000 | 0.010 | 0.030 | **0.090 s** (0.080-0.180) | "
        "8.10 s (8.08-8.20) |"
    )
    assert "Rounds: 3. Case A." in lines[-1]


def test_what_no_stage_claims_is_around_the_network() -> None:
    stages = [
        {"load": 0.1, "network": 8.0, "save": 0.2},
        {"load": 0.1, "network": 7.0, "save": 0.1},
    ]
    found = by_the_clock(stages, [8.5, 7.25])
    assert found["in all"] == [8.5, 7.25]
    assert found["around the network"] == pytest.approx([0.5, 0.25])
    assert found["rest"] == pytest.approx([0.2, 0.05])
    assert found["save"] == [0.2, 0.1]


def test_a_cohort_is_given_a_case() -> None:
    """Of 16 cases and of 17 the seconds in all said nothing of each other."""
    ratio = figure([1.5, 1.6], "ratio")
    names = ("one by one over pipeline", "network over pipeline", "forecast over pipeline")
    figures = dict.fromkeys(names, ratio) | {"pipeline, a case": figure([0.25, 0.27], "s")}
    record = PATIENT | {
        **{"question": "a cohort", "network": "stub", "cohort": 16, "figures": figures},
        "shape": [8, 8, 8],
    }
    lines = cohort(run_of(record, 1.0)).splitlines()
    assert lines[0].endswith("| pipeline, a case |")
    assert lines[2].endswith("| 0.260 s (0.250-0.270) |")


def test_modes_are_rows_with_their_dice() -> None:
    row = "| overlap 0 | fp32 | 8 | 2.10 | **2.05** (2.00-2.10) | 0.9000 / 0.8000 / 0.7000 |"
    assert any(
        line.startswith(row) for line in modes(run_of(modes_of(truth=True), 1.0)).splitlines()
    )
    assert "| **2.05** (2.00-2.10) |  | 1.0000" in modes(run_of(modes_of(truth=False), 1.0))


def test_every_table_says_of_what_and_by_what_it_was_made() -> None:
    made = "P, 2 threads, Python 3.11; torch 2; 2026-01-02, commit 0123456789."
    text = memory(run_of(MEMORY, 1.0))
    assert text.splitlines()[-3:] == ["| openvino | 664 |  |", "", f"{SUBJECT} {made}"]
    # Records of two runs, of two cases.
    other = run_of(MEMORY | {"case": "B"}, 1.0)
    text = memory(together(run_of(MEMORY, 1.0), other))
    assert text.endswith(f"\n\n{SUBJECT} Case B (8x8x8), weights w. {made}")
    assert parity(run_of(PARITY, 1.0)).endswith(f"\n\nOver A, B, weights w. {made}")
    volumes = SCALING | {"question": "scaling: volume", "case": "phantoms"}
    del volumes["shape"]
    text = scaling(together(run_of(SCALING, 1.0), run_of(volumes, 1.0)))
    random = "Case A (8x8x8), weights random. Over phantoms, weights random."
    assert text.endswith(f"\n\n{random} {made}")


def test_scores_say_what_the_predictions_were_made_with(tmp_path: Path) -> None:
    """As far as the sidecars know."""
    found = {name: {"dice": 0.5, "hd95": 2.0} for name in ("WT", "TC", "ET", "NCR", "ED")}
    mean = {name: {"dice": {"mean": 0.5}, "hd95": {"mean": 2.0}} for name in found}
    evaluation = {"profile": "brats2020", "cases": {"A": found, "B": found}, "summary": mean}
    for case in "AB":
        sidecar = {
            "model": {"name": "small", "sha256": "ab" * 32},
            "backend": {"name": "ort", "device": "cpu", "precision": "fp32"},
            "windows": {"patch": [96, 96, 80], "overlap": [0.5, 0.5, 0.5], "placement": "fitted"},
            "timings_s": {"network": 5.0, "load": 0.25},
            "run": {"version": "1.2", "finished": f"2026-01-02T03:04:0{'AB'.index(case)}"},
        }
        (tmp_path / f"{case}.json").write_text(json.dumps(sidecar))
    lines = scores(evaluation, tmp_path).splitlines()
    assert lines[2].endswith("| 2.0 | 5.0 | 0.25 |")
    assert lines[-2:] == [
        "",
        "Profile brats2020. Weights small (ababababab), ort on cpu in fp32, windows of 96x96x80, "
        "overlap 0.5, fitted; brats-deploy 1.2, 2026-01-02.",
    ]


def test_the_footer_says_what_was_not_committed_and_names_everyrun_of() -> None:
    run = run_of(PEER, 11.0)
    run["commit_info"]["dirty"] = True
    assert machine(run) == (
        "P, 2 threads, Python 3.11; torch 2; 2026-01-02, commit 0123456789 with uncommitted "
        "changes."
    )
    other = run_of(PEER | {"peer": "nnU-Net"}, 11.0)
    other["machine_info"]["libraries"] = {"torch": "2", "monai": "absent", "nnunetv2": "2.8"}
    for one in (run, other):
        conftest.pytest_benchmark_update_json(one)
    assert machine(together(other, run)) == (
        "P, 2 threads, Python 3.11; torch 2, nnunetv2 2.8; 2026-01-02, commit 0123456789; "
        "torch 2; 2026-01-02, commit 0123456789 with uncommitted changes."
    )
    assert machine(other).count("2026") == 1
