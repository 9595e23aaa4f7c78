"""Generated blocks of a results page are replaced, and nothing else is touched."""

from typing import Any

import pytest

from benchmarks.render import loading, peers, replace_block, table, training


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


def test_peers_shows_the_ratio_with_its_spread() -> None:
    info = {
        "question": "full volume against the default plan",
        "backend": "openvino",
        "peer_s": 99.0,
        "ratio_median": 9.0,
        "ratio_min": 8.5,
        "ratio_max": 9.5,
        "changed_labels": 0.01,
        "case": "A",
        "weights": "w",
    }
    run = _run(info, 11.0)
    head = ["question", "backend", "MONAI s", "ours s", "ratio (spread)", "changed labels"]
    row = [info["question"], "openvino", "99.0", "11.0", "**9.00** (8.50-9.50)", "1.0e-02"]
    expected = table(head, [[str(cell) for cell in row]])
    assert peers(run).startswith(expected)
    assert "2026-01-02, commit 0123456789." in peers(run)
