"""Generated blocks of a results page are replaced, and nothing else is touched."""

import pytest

from benchmarks.render import peers, replace_block, table


def test_only_the_block_changes() -> None:
    text = "a\n<!-- x -->\nold\nlines\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    assert replace_block(text, "x", r"new \1") == (
        "a\n<!-- x -->\nnew \\1\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    )


def test_a_missing_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block z"):
        replace_block("text", "z", "new")


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
    run = {
        "machine_info": {
            "processor": "P",
            "threads": 2,
            "python_version": "3.11",
            "libraries": {"torch": "2"},
        },
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"extra_info": info, "stats": {"median": 11.0}}],
    }
    head = ["question", "backend", "MONAI s", "ours s", "ratio (spread)", "changed labels"]
    row = [info["question"], "openvino", "99.0", "11.0", "**9.00** (8.50-9.50)", "1.0e-02"]
    expected = table(head, [[str(cell) for cell in row]])
    assert peers(run).startswith(expected)
    assert "2026-01-02, commit 0123456789." in peers(run)
