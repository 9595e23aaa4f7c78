"""Generated blocks of a results page are replaced, and nothing else is touched."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import plots
from benchmarks.render import BLOCKS, QuickRunError, main, render
from benchmarks.results_page import RESULTS, replace_block
from tests.run_records import PEER, modes_of, run_of, stages_of, together


def test_only_the_block_changes() -> None:
    text = "a\n<!-- x -->\nold\nlines\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    assert replace_block(text, "x", r"new \1") == (
        "a\n<!-- x -->\nnew \\1\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    )


def test_a_missing_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block z"):
        replace_block("text", "z", "new")


def test_a_page_gets_tables_and_pictures(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    shutil.copy(RESULTS, page)
    run = together(
        run_of(stages_of("cold", 3.0), 3.0),
        run_of(stages_of("warm", 2.0), 2.0),
        run_of(PEER, 11.0),
        run_of(modes_of(truth=True), 1.0),
    )
    assert render(run, page) == ["stages", "peers", "modes"]
    for name in ("stages", "peers", "modes"):
        picture = tmp_path / "pictures" / f"bench_{name}.png"
        draw = {"stages": plots.stages, "peers": plots.peers, "modes": plots.modes}[name]
        # What it shows: see the tests of the pictures.
        assert picture.read_bytes() == draw(run)
        assert f"(pictures/bench_{name}.png)" in page.read_text()
    # All else is as it was.
    assert "<!-- parity -->\n| artefact" in page.read_text()


def test_every_block_that_is_rendered_stands_on_the_page() -> None:
    text = RESULTS.read_text()
    for name in BLOCKS:
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- /{name} -->") == 1


def test_a_quick_run_never_becomes_a_result(tmp_path: Path) -> None:
    run = run_of(PEER | {"scale": "quick"}, 11.0)
    before = RESULTS.read_bytes()
    with pytest.raises(QuickRunError, match="holds no results"):
        render(run, RESULTS)
    marked = run_of(PEER, 11.0)
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
    good.write_text(json.dumps(run_of(PEER, 11.0)))
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
    path.write_text(json.dumps(run_of(record, 11.0)))
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
