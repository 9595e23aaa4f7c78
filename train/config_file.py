"""YAML files to `Config` and back: every key known, every value of its field's type."""

import io
from dataclasses import is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML

from runtime.atomic import write_text
from runtime.errors import InputError, UsageError
from train.config import Config, keys_of
from train.plain_yaml import MOST_BYTES, load_plain_yaml

DEFAULT_CONFIG: Final = "brats2020"
_PACKAGE: Final = Path(__file__).resolve().parent


def find_config(name: str) -> Path:
    """The YAML file that ``--config`` names.

    Args:
        name: a path, or the name of a configuration that comes with the project.

    Raises:
        UsageError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = _shipped()
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1)
    raise UsageError(
        f"--config {name}",
        found="no such file or configuration" + (f" (did you mean {close[0]}?)" if close else ""),
        expected=f"a YAML file, or one of {', '.join(known)}",
        remedy="check the spelling or the path",
    )


def _shipped() -> dict[str, Path]:
    """Configurations by name: those inside the wheel, then those of the checkout."""
    found: dict[str, Path] = {}
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def read_config(path: Path, base: Config | None = None) -> Config:
    """Read a YAML 1.2 file over ``base`` (the defaults).

    Raises:
        InputError: not YAML, or more than `load_plain_yaml` takes; an unknown key (the nearest
            known one is named), or a wrong type.
    """
    value = load_plain_yaml(path)
    config: Config = _dataclass(path, "", base or Config(), {} if value is None else value)
    return config


def write_config(path: Path, config: Config) -> None:
    """Write the resolved configuration; `read_config` gives it back.

    Raises:
        InputError: it is too long to be read again.
        OutputError: it cannot be written.
    """
    text = to_yaml(config)
    if len(text.encode()) > MOST_BYTES:
        raise InputError(
            path,
            found=f"a configuration of {len(text) >> 10} KiB",
            expected=f"{MOST_BYTES >> 10} KiB at most",
            remedy="name the cases in a split file with --split.file instead of in lists",
        )
    write_text(path, text)


def to_yaml(config: Config) -> str:
    """The configuration as YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.width = 100
    # What two keys share is written twice: an alias would not be read again.
    yaml.representer.ignore_aliases = lambda _: True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(config.to_dict(), stream)
    return stream.getvalue()


def _dataclass(path: Path, prefix: str, base: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise _wrong(path, prefix.rstrip(".") or "the file", value, "a mapping of keys to values")
    kind = type(base)
    known = keys_of(kind)
    for key in value:
        if key not in known:
            raise _unknown(path, prefix, str(key), known)
    hints = get_type_hints(kind)
    changed = {
        key: _dataclass(path, f"{prefix}{key}.", getattr(base, key), member)
        if is_dataclass(hints[key])
        else _value(path, f"{prefix}{key}", hints[key], member)
        for key, member in value.items()
    }
    return replace(base, **changed)


def _value(path: Path, key: str, kind: Any, value: Any) -> Any:
    """``value`` as the type ``kind``; an integer is a float, nothing else is bent."""
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and type(None) in members:
            return None
        return _value(path, key, next(m for m in members if m is not type(None)), value)
    if origin is Literal:
        if value in members:
            return value
        raise _wrong(path, key, value, f"one of {', '.join(map(str, members))}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(path, key, value, "a list")
        kinds = [members[0]] * len(value) if members[-1] is Ellipsis else list(members)
        if len(kinds) != len(value):
            raise _wrong(path, key, value, f"a list of {len(kinds)} values")
        return tuple(_value(path, key, k, v) for k, v in zip(kinds, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    raise _wrong(path, key, value, names[kind])


def _unknown(path: Path, prefix: str, key: str, known: tuple[str, ...]) -> InputError:
    close = get_close_matches(key, known, n=1)
    return InputError(
        path,
        found=f"unknown key {prefix}{key[:80]}"
        + (f" (did you mean {prefix}{close[0]}?)" if close else ""),
        expected=f"keys among {', '.join(known)}",
        remedy="correct or remove the key",
    )


def _wrong(path: Path, key: str, value: Any, expected: str) -> InputError:
    return InputError(
        path,
        found=f"{key}: {repr(value)[:80]} ({type(value).__name__})",
        expected=expected,
        remedy=f"correct {key}",
    )
