"""Configuration: default < YAML < flag, types, unknown keys, what is refused."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InputError, UsageError
from runtime.model_card import ModelCard
from train.cli import main, parse
from train.config import Config
from train.config_check import check, check_unchanged
from train.config_file import find_config, read_config, to_yaml


def _write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_flag_over_yaml_over_default(tmp_path: Path) -> None:
    path = _write(tmp_path, "train: {lr: 1e-4, batch: 3}\nmodel: {patch: [64, 64, 32]}\n")
    keys = parse(["--config", str(path), "--train.batch", "5"]).keys
    assert (keys.train.lr, keys.train.batch, keys.train.epochs) == (1e-4, 5, 300)
    assert keys.model.patch == (64, 64, 32)
    assert parse(["--config", str(path), "--model.patch", "32,32,32"]).keys.model.patch == (32,) * 3


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the configuration with its default: ("train.lr", 0.003)."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


BOOLEANS = [key for key, value in _keys(Config().to_dict()) if isinstance(value, bool)]


def _value(config: Config, key: str) -> Any:
    return dict(_keys(config.to_dict()))[key]


def test_the_boolean_keys_are_found() -> None:
    assert {"model.residual", "train.compile", "validation.thresholds"} <= set(BOOLEANS)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("in_yaml", [True, False])
@pytest.mark.parametrize("key", BOOLEANS)
def test_boolean_flags_stand_over_yaml(key: str, in_yaml: bool, flag: bool, tmp_path: Path) -> None:
    part, name = key.split(".")
    path = _write(tmp_path, f"{part}: {{{name}: {str(in_yaml).lower()}}}\n")
    given = f"--{part}.{name}" if flag else f"--{part}.no-{name}"
    assert _value(parse(["--config", str(path), given]).keys, key) is flag
    assert _value(parse(["--config", str(path)]).keys, key) is in_yaml


@pytest.mark.parametrize("flag", [True, False])
def test_boolean_flags_stand_over_the_run_that_is_resumed(tmp_path: Path, flag: bool) -> None:
    run = tmp_path / "one"
    run.mkdir()
    (run / "config.yaml").write_text("train: {compile: true, batch: 7}\n")
    (run / "split.json").touch()
    given = "--train.compile" if flag else "--train.no-compile"
    keys = parse(["--resume", "-o", str(tmp_path), given]).keys
    assert (keys.train.compile, keys.train.batch) == (flag, 7)


def test_data_flag_over_environment_over_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, "data: from_yaml\n")
    monkeypatch.delenv("BRATS_DATA", raising=False)
    assert parse(["--config", str(path)]).keys.data == "from_yaml"
    monkeypatch.setenv("BRATS_DATA", "from_environment")
    assert parse(["--config", str(path)]).keys.data == "from_environment"
    assert parse(["--config", str(path), "--data", "flag"]).keys.data == "flag"


def test_short_flags_reach_their_keys() -> None:
    keys = parse(["--exclude", "a,b,c", "--validation-cases", "d"]).keys
    assert keys.split.exclude == ("a", "b", "c")
    assert keys.split.validation_cases == ("d",)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_yaml_numbers_follow_yaml_1_2(tmp_path: Path, text: str) -> None:
    config = read_config(_write(tmp_path, f"train: {{lr: {text}}}\n"))
    assert config.train.lr == 1e-4


def test_an_integer_serves_as_a_number(tmp_path: Path) -> None:
    clip = read_config(_write(tmp_path, "train: {clip: 5}\n")).train.clip
    assert isinstance(clip, float)
    assert clip == 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train: {bach: 2}", "did you mean train.batch?"),
        ("trian: {batch: 2}", "did you mean train?"),
        ("train: {batch: 2.5}", "train.batch: 2.5 (float), expected an integer"),
        ("train: {batch: '2'}", "train.batch: '2' (str), expected an integer"),
        ("train: {lr: fast}", "train.lr: 'fast' (str), expected a number"),
        ("train: {batch: true}", "train.batch: True (bool), expected an integer"),
        ("model: {residual: 1}", "model.residual: 1 (int), expected true or false"),
        ("model: {residual: yes}", "model.residual: 'yes' (str), expected true or false"),
        ("model: {patch: [64, 64]}", "expected a list of 3 values"),
        ("model: {patch: 64}", "expected a list"),
        ("model: {normalisation: minmax}", "expected one of zscore-brain, zscore-volume"),
        ("train: 3", "train: 3 (int), expected a mapping"),
        ("- 1", "expected a mapping"),
        ("train: {", "no readable YAML"),
    ],
)
def test_bad_yaml_names_file_key_and_remedy(tmp_path: Path, text: str, found: str) -> None:
    path = _write(tmp_path, text + "\n")
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert found in str(caught.value)


def test_configurations_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    path = _write(tmp_path, "")
    assert find_config(str(path)) == path
    assert find_config("tutorial").name == "tutorial.yaml"
    with pytest.raises(UsageError, match=r"did you mean tutorial\?"):
        find_config("tutorail")


@pytest.mark.parametrize("name", ["brats2020", "tutorial", "demo", "small_cpu"])
def test_shipped_configurations_are_usable(name: str) -> None:
    config = read_config(find_config(name))
    check(config)
    card = config.card(name)
    assert all(size % card.divisor == 0 for size in card.patch)
    assert ModelCard.from_json(card.to_json(), name) == card


def test_the_tutorial_is_kept_as_published() -> None:
    config = read_config(find_config("tutorial"))
    train, sampling = config.train, config.sampling
    assert (train.epochs, train.batch, train.patience) == (16, 2, 3)
    assert (train.lr, train.weight_decay, train.schedule) == (1e-5, 1e-5, "constant")
    assert (train.cross_entropy, train.dice) == (0.5, 0.5)
    assert config.model.patch == (128, 128, 64)
    assert config.model.dropout == 0.2
    assert config.model.normalisation == "zscore-volume"
    assert (sampling.sampler, sampling.stride) == ("grid", (64, 64, 32))
    assert sampling.background_ratio == 0.1
    assert (config.augment.flip, config.augment.noise_std) == (0.5, (0.0, 0.1))
    assert config.augment.affine == config.augment.gamma == config.augment.bias_field == 0
    assert not config.validation.thresholds


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = read_config(find_config("small_cpu"))
    config = replace(config, data="x: y", split=replace(config.split, exclude=("a", "1")))
    assert read_config(_write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--model.patch", "100,128,64"], "multiples of 16"),
        (["--model.patch", "1048576,1048576,1048576"], "134217728 voxels at most"),
        (["--threads", "1025"], "0 to 1024"),
        (["--threads", "99999999999999999999"], "0 to 1024"),
        (["--model.features", "8"], "two widths or more"),
        (["--model.features", f"8,{2**63}"], "two widths or more, from 1 to 8192"),
        (["--sampling.sampler", "grid", "--sampling.stride", "0,64,32"], "1 to the patch"),
        (["--train.batch", "0"], "at least 1"),
        (["--augment.flip", "2"], "0 to 1"),
        (["--augment.noise-std", "0.2,0.1"], "a range LOW,HIGH"),
        (["--sampling.patches-per-epoch", "0"], "random sampler"),
        (["--train.lr", "nan"], "at least 0"),
        (["--train.lr", "inf"], "at least 0"),
        (
            ["--augment.noise", "1", "--augment.noise-std", "0,inf"],
            "noise-std: found inf",
        ),
        (
            ["--augment.gamma", "1", "--augment.log-gamma", "0,inf"],
            "log-gamma: found inf",
        ),
        (["--augment.log-gamma", "-1e308,1e308"], "-10 to 10"),
        (["--max-minutes", "inf"], "--max-minutes: found inf"),
        (["--seed", f"1{'0' * 400}"], "0 to 9"),
        (["--folds", "1"], "two folds or more"),
        (["--folds", "3", "--fold", "3"], "3 of 3 folds"),
        (["--folds", "3", "--validation-cases", "A"], "one of these ways to split"),
        (["--config", "tutorial", "--augment.blur", "0.1"], "only flip and noise suit"),
        (
            ["--model.tolerates-missing", "t1", "--augment.modality-dropout", "0"],
            "never leaves out",
        ),
        (["--model.tolerates-missing", "t3"], "modalities among flair"),
        (["--model.tolerates-missing", "flair,t1,t1ce,t2"], "at least one that is needed"),
        (["--model.deep-supervision", "4"], "at most 3"),
        (["--augment.where", "device", "--augment.blur-std", "2,1"], "a range LOW,HIGH"),
        (
            ["--train.cross-entropy", "0", "--train.dice", "0", "--train.region-dice", "0"],
            "above 0",
        ),
    ],
)
def test_senseless_values_are_usage_errors(
    flags: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert found in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--train.lr", "fast"], ["--trian.lr", "1"], ["stray"]])
def test_argument_errors_exit_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2


def test_defaults_pass_their_own_check() -> None:
    check(Config())


def _floats() -> Iterator[tuple[str, Any]]:
    for key, value in _keys(Config().to_dict()):
        if isinstance(value, float):
            yield key, float
        elif isinstance(value, list) and value and isinstance(value[0], float):
            yield key, tuple


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_every_number_must_be_finite(number: float) -> None:
    found = list(_floats())
    assert len(found) > 25
    assert ("augment.noise_std", tuple) in found
    for key, kind in found:
        part, name = key.split(".")
        inside = getattr(Config(), part)
        # The end of a range that leaves it one.
        pair = (number, 0.0) if number == -math.inf else (0.0, number)
        changed = replace(inside, **{name: number if kind is float else pair})
        with pytest.raises(UsageError) as caught:
            check(replace(Config(), **{part: changed}))
        assert str(caught.value).startswith(f"--{key.replace('_', '-')}: found "), key


def test_numbers_that_are_not_finite_may_stand_in_yaml_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, "augment: {noise: 1, noise_std: [0, .inf]}\n")
    assert main(["--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --augment.noise-std: found inf, expected 0 to ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "changed",
    [{"labels": "msd"}, {"channels": ("t1", "t1ce", "t2", "flair")}, {"seed": 1}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_a_run_is_trained_on_stays(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(changed))}: .*the run was begun"):
        check_unchanged(Config(), replace(Config(), **changed))
    check_unchanged(Config(), replace(Config(), data="elsewhere", threads=3))
