"""The files of a cohort: what is in them, whose they are, what vouches for them, what they show."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from runtime.case import Case
from runtime.cohort import Outcome
from runtime.cohort_files import Facts, Names, write_cohort
from runtime.cohort_places import Replacing, check_places
from runtime.cohort_record import Record
from runtime.errors import InputError, UsageError
from tests.pages import tree_of
from tests.test_cohort_record import sidecar

ERROR = InputError("bad/x_t2.nii.gz", found="an empty file", expected="NIfTI", remedy="copy it")
FACTS = Facts(
    {"name": "tiny", "sha256": "ab" * 32}, {"backend": "ort"}, 60.0,
    {"read": 0.1, "run": 0.9, "write": 0.05},
)  # fmt: skip


EVERYTHING = Replacing(overwrite=True, resume=True)
RESUME = Replacing(resume=True)


def record_of(*names: str, failed: tuple[str, ...] = (), total: int | None = None) -> Record:
    record = Record(total or len(names) + len(failed))
    for number, name in enumerate(names):
        told = sidecar(wt=100.0 + number, run={"report": {"file": f"{name}_report.html"}})
        record.add(Outcome(Case(name, {}), None, told, kept=number == 0))  # type: ignore[arg-type]
    for name in failed:
        record.add(Outcome(Case(name, {}), None, error=ERROR))  # type: ignore[arg-type]
    return record


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def written(folder: Path, record: Record) -> tuple[Names, dict[str, Any]]:
    names = Names(folder)
    cases = {entry.case_id for entry in record.entries}
    check_places(names, cases, Replacing())
    write_cohort(names, record, FACTS)
    return names, json.loads(names.record.read_text())


def test_every_case_is_in_every_table(tmp_path: Path) -> None:
    names, told = written(tmp_path, record_of("b", "a", failed=("c",), total=5))
    found = rows(names.table)
    assert [(row["case_id"], row["status"]) for row in found] == [
        ("a", "done"), ("b", "kept"), ("c", "failed"),
    ]  # fmt: skip
    assert (found[0]["WT_ml"], found[0]["ET_ml"], found[0]["network_s"]) == ("101", "20", "2.0000")
    assert found[0]["prepare_s"] == ""
    assert found[0]["total_s"] == "2.5000"
    assert found[2]["warnings"] == str(ERROR)
    assert told["cases"] == {"all": 5, "done": 1, "kept": 1, "failed": 1, "not_begun": 2}
    assert told["cases_per_min"] == 1
    assert told["results"]["b"]["volumes_ml"] == {
        "WT": 100, "TC": 40, "ET": 20, "NCR": 20, "ED": 60,
    }  # fmt: skip
    assert told["volumes_ml"]["WT"]["mean"] == pytest.approx(100.5)
    (failure,) = rows(names.failures)
    assert failure == told["failures"][0]
    assert failure["found"] == "an empty file"


def test_the_record_vouches_for_the_others(tmp_path: Path) -> None:
    names, told = written(tmp_path, record_of("a", failed=("b",)))
    assert set(told["files"]) == {names.table.name, names.page.name, names.failures.name}
    for name, sha256 in told["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


def test_where_nothing_failed_there_is_no_table_of_failures(tmp_path: Path) -> None:
    names, _ = written(tmp_path, record_of("a", failed=("b",)))
    assert names.failures.is_file()
    _, told = written(tmp_path, record_of("a", "b"))
    assert not names.failures.exists()
    assert names.failures.name not in told["files"]


@pytest.mark.parametrize("name", ["cohort.csv", "cohort.json", "cohort.html", "failures.csv"])
@pytest.mark.parametrize("content", ["", "case_id,mine\n", "{}", "<p>mine</p>", '{"schema": 1}'])
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match="did not write"):
        check_places(Names(tmp_path), set(), EVERYTHING)
    assert (tmp_path / name).read_text() == content


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").mkdir()
    with pytest.raises(UsageError, match="did not write"):
        check_places(Names(tmp_path), set(), EVERYTHING)


def test_an_earlier_cohort_of_other_cases_is_not_replaced_by_the_way(tmp_path: Path) -> None:
    names, _ = written(tmp_path, record_of("a", "b", failed=("c", "")))
    check_places(names, {"a", "b", "c", "new"}, Replacing())
    for cases, found in (({"x"}, "3 cases"), ({"a", "b"}, "1 case"), ({"b", "c"}, "1 case")):
        with pytest.raises(UsageError) as caught:
            check_places(names, cases, Replacing())
        error = caught.value
        assert error.where == str(names.record)
        assert error.found.startswith(f"the results of {found} that this run does not take")
        assert "--overwrite" in error.remedy
        assert len(str(error).splitlines()) == 1
    # A wish to go on is one to have new tables; what they no longer tell is known.
    assert check_places(names, {"b", "new"}, RESUME) == ["a", "c"]
    assert check_places(names, {"x"}, Replacing(overwrite=True)) == ["a", "b", "c"]
    assert check_places(names, {"a", "b", "c"}, RESUME) == []


@pytest.mark.parametrize("name", ["cohort.csv", "cohort.html", "failures.csv", "cohort.json"])
@pytest.mark.parametrize("edit", ["within", "whole"])
def test_an_edited_file_is_replaced_only_when_asked(tmp_path: Path, name: str, edit: str) -> None:
    names, _ = written(tmp_path, record_of("a", failed=("b",)))
    path = tmp_path / name
    text = path.read_text()
    path.write_text(text.replace("empty", "good") if edit == "within" else "case_id;mine\n")
    assert path.read_text() != text
    for replacing in (Replacing(), RESUME):
        with pytest.raises(UsageError) as caught:
            check_places(names, {"a", "b"}, replacing)
        assert caught.value.where == str(path)
        foreign = (name, edit) == ("cohort.json", "whole")
        assert ("did not write" if foreign else "edited") in caught.value.found
        assert "move it away" in caught.value.remedy
    if not foreign:
        check_places(names, {"a", "b"}, Replacing(overwrite=True))


def test_a_run_that_was_killed_among_its_tables_is_resumed(tmp_path: Path) -> None:
    """Before the record is there: nothing vouches for the others."""
    names, _ = written(tmp_path, record_of("a", failed=("b",)))
    names.record.unlink()
    with pytest.raises(UsageError, match="vouches for"):
        check_places(names, {"a", "b"}, Replacing())
    assert check_places(names, {"a", "b"}, RESUME) == []


def test_a_record_that_is_no_json_any_more(tmp_path: Path) -> None:
    names, _ = written(tmp_path, record_of("a"))
    names.record.write_text(names.record.read_text()[:-20])
    with pytest.raises(UsageError, match="edited"):
        check_places(names, {"a"}, RESUME)
    check_places(names, {"a"}, Replacing(overwrite=True))


def test_parts_have_files_of_their_own(tmp_path: Path) -> None:
    written(tmp_path, record_of("a"))
    names = Names(tmp_path, "-2-of-8")
    write_cohort(names, record_of("b", failed=("c",)), FACTS)
    assert {path.name for path in tmp_path.iterdir()} == {
        "cohort.csv", "cohort.json", "cohort.html", "cohort-2-of-8.csv", "cohort-2-of-8.json",
        "cohort-2-of-8.html", "failures-2-of-8.csv",
    }  # fmt: skip


def test_names_are_text_wherever_they_are_shown(tmp_path: Path) -> None:
    name = "=cmd()<script>alert(1)</script>"
    names, told = written(tmp_path, record_of(name, failed=("@x",)))
    assert [row["case_id"] for row in rows(names.table)] == [f"'{name}", "'@x"]
    assert name in told["results"]
    page = names.page.read_text()
    assert "<script" not in page
    policies = [node.attributes.get("content") for node in tree_of(page).all("meta")]
    assert any((policy or "").startswith("default-src 'none'") for policy in policies)


def test_the_page_shows_what_there_is(tmp_path: Path) -> None:
    record = record_of(*(f"c{i:02}" for i in range(30)), failed=("bad",), total=32)
    told = sidecar(wt=0, tc=0, et=0, run={"preview": {"file": "no tumour_preview.png"}})
    record.add(Outcome(Case("empty", {}), None, told))  # type: ignore[arg-type]
    names, _ = written(tmp_path, record)
    root = tree_of(names.page.read_text())
    words = root.words()
    for text in ("32 cases", "no tumour was found", "an empty file", "cases a minute"):
        assert text in words
    links = [node.attributes["href"] for node in root.all("a")]
    assert links == ["no%20tumour_preview.png"]
    assert len(root.all("svg")) == 3
    assert words.count("Research use only") == 2
    assert "\\n" not in words


def test_a_part_without_cases_has_files_too(tmp_path: Path) -> None:
    _, told = written(tmp_path, Record(0))
    assert told["cases"]["all"] == 0
    assert told["volumes_ml"] == {} == told["results"]


def test_a_name_that_is_no_text_does_not_cost_the_whole_cohort_its_files(tmp_path: Path) -> None:
    name = "a\udcff"
    record = Record(1)
    told = sidecar(wt=0, tc=0, et=0, run={"preview": {"file": f"{name}_preview.png"}})
    record.add(Outcome(Case(name, {}), None, told))  # type: ignore[arg-type]
    names, _ = written(tmp_path, record)
    (link,) = tree_of(names.page.read_text()).all("a")
    assert link.attributes["href"] == "a%FF_preview.png"
