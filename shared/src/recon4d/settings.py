"""Settings of a run: YAML checked by pydantic; an unknown key or a wrong type is named with its file."""

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from recon4d.files import InputError, write_text

M = TypeVar("M", bound=BaseModel)
MOST_VALUES = 100_000


class Section(BaseModel):
    """What settings are made of: no key that is not declared, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def preset(package: str, name: str) -> Any:
    """The content of `configs/<name>.yaml` of an installed package."""
    return yaml.safe_load(resources.files(package).joinpath("configs", f"{name}.yaml").read_text())


def read(path: str | Path) -> Any:
    """The content of a YAML file; {} of an empty one. Raises InputError for a missing file or bad YAML."""
    try:
        content = Path(path).read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a YAML file") from error
    parsed = parse(content, path)
    return {} if parsed is None else parsed


def parse(text: str, source: str | Path) -> Any:
    """The content of YAML text. Raises InputError for what is none, is too deep, or unfolds to over 100,000 values."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates and numbers that are none
        raise InputError(f"{source} is not readable YAML ({' '.join(str(error).split())[:200]})") from error
    count, waiting = 0, [content]
    while waiting:  # references may unfold without end
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise InputError(f"{source} holds more than {MOST_VALUES} values; it is no config")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return content


def preset_or_file(source: str | Path, package: str, presets: tuple[str, ...]) -> Any:
    """The content of a preset or a YAML file. Raises InputError for anything else."""
    if str(source) in presets:
        return preset(package, str(source))
    if not Path(source).is_file():
        raise InputError(f"--config {source} is neither a file nor one of {', '.join(presets)}")
    return read(source)


def place(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Put a value under a key with dots, `train.batch_size`. Raises InputError when a parent is no section."""
    *parents, last = key.split(".")
    for parent in parents:
        below = values.setdefault(parent, {})
        if not isinstance(below, dict):
            raise InputError(f"{source}: {parent} is a value, not a section")
        values = below
    values[last] = value


def override(values: dict[str, Any], text: str) -> None:
    """Apply `key=value` of a --set option; the value is YAML. Raises InputError for what is not that."""
    key, equals, value_text = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text} must be key=value, for example seed=1 or section.key=1e-3")
    value = parse(value_text, f"--set {text}")
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):  # YAML 1.1 reads 1e-3 as text
        value = float(value)
    place(values, key, value, f"--set {text}")


def check(model: type[M], values: Any, source: str | Path, known: str, overrides: Iterable[str] = ()) -> M:
    """Settings of parsed YAML.

    Args:
        source: names where they come from. known: where a reader finds the keys that there are.
        overrides: texts of --set options that have been applied; one is named where its key is wrong.

    Raises:
        InputError: no dictionary, an unknown key, a wrong type; the message names source and key.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source} holds a {type(values).__name__}, not the keys of a config")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        for text in overrides:
            if f"{key}.".startswith(f"{text.partition('=')[0]}."):
                source = f"--set {text}"
        if first["type"] == "extra_forbidden":
            raise InputError(f"{source}: the key {key} is not known; see {known}") from error
        raise InputError(f"{source}: {key}: {first['msg']}, not {repr(first['input'])[:80]}") from error


def write(path: str | Path, config: BaseModel) -> None:
    """Write all settings as YAML, atomically."""
    write_text(path, yaml.safe_dump(config.model_dump(), sort_keys=False))
