"""What the README shows must run: its Python blocks, its commands' flags, its promises on files."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from runtime.cli.evaluate import main as evaluate
from runtime.cli.infer import main as infer
from runtime.cli.phantom import main as phantom

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHECKED = [README, (ROOT / "benchmarks" / "RESULTS.md").read_text()]
MAKEFILE = (ROOT / "Makefile").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(_blocks("python"))))
def test_python_blocks_run(
    number: int,
    tmp_path: Path,
    phantom_dir: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(phantom_dir, tmp_path / "case_dir")
    shutil.copytree(tiny_model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(_blocks("python")[number], "README.md", "exec"), names)
    if "prediction" in names:
        prediction = names["prediction"]
        assert prediction.probabilities.shape == (*prediction.labels.shape, 4)  # type: ignore[attr-defined]
        assert abs(prediction.probabilities.sum(-1) - 1).max() < 1e-5  # type: ignore[attr-defined]


def _commands() -> list[str]:
    found = []
    for text in CHECKED:
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            joined = block.replace("\\\n", " ")
            found += [line.partition("#")[0].strip() for line in joined.splitlines()]
    found += [line.replace("$(BIN)/", "").strip() for line in MAKEFILE.splitlines()]
    return sorted({line for line in found if line.startswith("brats-")})


_PROGRAMS = (
    *("brats-infer", "brats-eval", "brats-phantom"),
    *("brats-export", "brats-train", "brats-app"),
)


def _help(program: str, capsys: pytest.CaptureFixture[str]) -> str:
    from export.cli import main as export
    from runtime.cli.app import main as app
    from train.cli import main as train

    mains = {
        "brats-infer": infer,
        "brats-eval": evaluate,
        "brats-phantom": phantom,
        "brats-app": app,
        "brats-export": export,
        "brats-train": train,
    }
    with pytest.raises(SystemExit) as stopped:
        mains[program](["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", _commands())
def test_commands_use_flags_that_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    text = _help(program, capsys)
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s,]){re.escape(word)}\b", text), f"{program} has no {word}"


def test_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_disclaimer_stands_in_readme_and_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from runtime import DISCLAIMER

    assert DISCLAIMER in README
    for program in _PROGRAMS:
        assert DISCLAIMER in " ".join(_help(program, capsys).split()), program
