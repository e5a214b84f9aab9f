"""Configurations as YAML files, and as JSON inside a run's saved states."""

import dataclasses
import difflib
import json
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from deqflow.data.writing import write_whole
from deqflow.training.config import TrainConfig
from deqflow.training.stages import PUBLISHED


def read_config(path: str | Path) -> TrainConfig:
    """Read a run's configuration from a YAML file.

    Its keys are fields of :class:`TrainConfig`; the fields of ``scenes`` are a nested mapping. A field that is not
    given has its default value, or, with ``preset: chairs``, the value of that published stage.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a YAML mapping, a key is misspelt, or a value has a wrong type or is out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No configuration at {path}: expected a YAML file such as a run's config.yaml.")
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # impossible numbers and dates; deep nesting
        raise ValueError(f"{path} is no YAML file: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} expects lines such as 'steps: 1500', got {type(content).__name__}.")
    preset = content.pop("preset", None)
    try:
        return _fill(TrainConfig() if preset is None else published_stage(preset), content, "")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def published_stage(name: str) -> TrainConfig:
    """The preset of a published stage.

    Raises:
        ValueError: there is no preset of this name.
    """
    if not isinstance(name, str) or name not in PUBLISHED:
        raise ValueError(f"Unknown preset {name!r}: expected one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def write_config(config: TrainConfig, path: Path) -> Path:
    """Write a configuration as YAML, for :func:`read_config`."""
    return write_whole(path, yaml.safe_dump(plain(config), sort_keys=False))


def plain(config: TrainConfig) -> dict[str, Any]:
    """A configuration as JSON represents it, with lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def complete(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the defaults of all fields that did not exist when it was stored."""
    return _merge(plain(TrainConfig()), stored)


def _merge(defaults: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merge(defaults[name], value)
        for name, value in stored.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return defaults | stored | nested


def _fill(default: Any, content: dict[str, Any], place: str) -> Any:
    """A copy of the dataclass ``default`` with the values of a mapping in place of its own."""
    hints = get_type_hints(type(default))
    names = [entry.name for entry in dataclasses.fields(default)]
    values = {}
    for name, value in content.items():
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}."
            raise ValueError(f"no setting {place}{name}: {hint}")
        before = getattr(default, name)
        if dataclasses.is_dataclass(before) and isinstance(value, dict):
            values[name] = _fill(before, value, f"{place}{name}.")
        else:
            values[name] = _convert(value, hints[name], f"{place}{name}")
    return dataclasses.replace(default, **values)


def _convert(value: Any, kind: Any, place: str) -> Any:
    """Convert a value of YAML to the field's type: a list to a tuple, "1e-4" to a number.

    Raises:
        TypeError: the value cannot be converted.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_convert(item, kind, place) for item, kind in zip(value, kinds, strict=True))
    elif origin is types.UnionType:
        if value is None and types.NoneType in arguments:
            return None
        return _convert(value, next(choice for choice in arguments if choice is not types.NoneType), place)
    elif origin is Literal and value in arguments:
        return value
    elif kind is float and type(value) in (int, float, str):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise TypeError(f"{place} expects {_describe(kind)}, got {value!r}.")


def _describe(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is tuple:
        return f"a list such as [{', '.join(_describe(item) for item in get_args(kind) if item is not ...)}]"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    return getattr(kind, "__name__", str(kind))
