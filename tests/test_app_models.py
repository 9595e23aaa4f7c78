"""Which models the page finds, and what works here with them."""

import os
import shutil
from pathlib import Path

import pytest

from runtime.app.models import find_checkpoints, find_models, try_backends
from runtime.errors import InputError
from runtime.model_dir import ModelDir


@pytest.fixture
def root(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model in model/, and one built in."""
    built_in = Path(shutil.copytree(tiny_model, tmp_path / "package" / "reference"))
    for name in ("runtime.model_dir.BUILT_IN", "runtime.app.models.BUILT_IN"):
        monkeypatch.setattr(name, built_in)
    place = tmp_path / "place"
    shutil.copytree(tiny_model, place / "model")
    return place


def test_models_below_the_folder_come_before_the_built_in_one(root: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, root / "models" / "other")
    for hidden in (".cache", "node_modules"):
        shutil.copytree(tiny_model, root / hidden / "model")
    found, problems = find_models(root)
    assert [one.title for one in found] == [
        *("tiny (model)", "tiny (models/other)", "tiny (built in)")
    ]
    assert problems == ()


def test_a_named_one_comes_first_and_only_once(root: Path, tiny_model: Path) -> None:
    found, _ = find_models(root, [root / "model"])
    assert [one.title for one in found] == ["tiny (model)", "tiny (built in)"]
    found, _ = find_models(root, [tiny_model])
    assert [one.model.path for one in found][:2] == [tiny_model, root / "model"]
    with pytest.raises(InputError, match="nowhere"):
        find_models(root, [root / "nowhere"])


def test_a_damaged_one_is_told_and_does_not_hide_the_others(root: Path) -> None:
    (root / "model" / "card.json").write_text("{}")
    found, problems = find_models(root)
    assert [one.title for one in found] == ["tiny (built in)"]
    assert ["card.json" in str(one) for one in problems] == [True]


def test_a_link_that_leads_round_is_not_followed(root: Path) -> None:
    (root / "loop").symlink_to(root)
    found, _ = find_models(root)
    assert len(found) == 2


def test_checkpoints_that_no_model_is_named_after_are_offered_newest_first(root: Path) -> None:
    for age, run in enumerate(("new", "tiny", "old")):
        path = root / "runs" / run / "checkpoints" / "best.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (1000 - age, 1000 - age))
    found = find_checkpoints(root, find_models(root)[0])
    assert [one.run for one in found] == ["new", "old"]
    target = root / "models" / "new"
    assert found[0].command == f"brats-export {found[0].path} --fp16 -o {target}"
    shutil.rmtree(root / "model")
    # Only the built-in model is left, and a run of its name is another network.
    found = find_checkpoints(root, find_models(root)[0])
    assert [one.run for one in found] == ["new", "tiny", "old"]
    (first, *_) = find_checkpoints(root, ())
    assert first.target == root / "model"


def test_what_works_is_what_could_be_opened(tiny_model: Path, tmp_path: Path) -> None:
    trials = {one.backend: one for one in try_backends(ModelDir.open(tiny_model), "cpu", 1)}
    assert (trials["ort"].works, trials["openvino"].works) == (True, True)
    assert not trials["trt"].works
    assert "; " in trials["trt"].reason
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"")
    assert not any(one.works for one in try_backends(ModelDir.open(broken), "cpu", 1))
