"""Plain YAML values into typed, frozen dataclasses. A wrong key or value is a ConfigError of one line."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from metarun.errors import ConfigError, nearest

Instance = TypeVar("Instance")
TARGET = "_target_"


def values_of(plain: Mapping[str, object], group: str) -> Mapping[str, object]:
    """The values of one group."""
    values = plain.get(group)
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{group}={_value_text(values)}: needs a choice, such as {group}=NAME; metarun --help lists the names"
        )
    return values


def target_class(spec: object, key: str, load: Callable[[str], types.ModuleType] = importlib.import_module) -> type:
    """The class that `_target_` names."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get(TARGET), str):
        raise ConfigError(f"{key}={_value_text(spec)}: needs a group file with a {TARGET} class, chosen as {key}=NAME")
    path = spec[TARGET]
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(load(module_name), name)
    except ModuleNotFoundError as error:
        where = "; Python imports from the folders in PYTHONPATH, and `python -m metarun` from the current one too"
        raise ConfigError(f"{key}.{TARGET}={path}: no such class ({error}{where})") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}.{TARGET}={path}: no such class ({error})") from error
    if not isinstance(found, type):
        raise ConfigError(f"{key}.{TARGET}={path}: is not a class")
    return found


def dataclass_from(cls: type[Instance], values: object, key: str) -> Instance:
    """A dataclass from a mapping. Each key must be a field, each field a key, each value of the field's type.

    A ValueError of the dataclass itself becomes a ConfigError with the key.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{key}={_value_text(values)}: is a group of values, set one of {', '.join(field_names(cls))} in it"
        )
    given = {name: value for name, value in values.items() if name != TARGET}
    hints = _field_hints(cls)
    known = field_names(cls)
    for name in given:
        if name not in known:
            raise ConfigError(f"{join(key, name)}: unknown key{nearest(str(name), known)} (known: {', '.join(known)})")
    missing = [name for name in known if name not in given]
    if missing:
        raise ConfigError(f"{join(key, missing[0])}: missing; give it a value")
    converted = {name: convert(value, hints[name], join(key, name)) for name, value in given.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise ConfigError(join(key, str(error))) from error


def call_arguments(cls: type, values: Mapping[str, object], key: str, supplied: tuple[str, ...]) -> dict[str, object]:
    """Keyword arguments for a class that is no dataclass of ours, checked against its signature.

    `supplied`: parameters that metarun passes itself, which the configuration must not have.
    """
    parameters = inspect.signature(cls).parameters
    known = [name for name in parameters if name not in (*supplied, "self")]
    given = {str(name): value for name, value in values.items() if name != TARGET}
    for name in given:
        if name not in known:
            raise ConfigError(f"{join(key, name)}: unknown key{nearest(name, known)} (known: {', '.join(known)})")
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in given:
            raise ConfigError(f"{join(key, name)}: missing; give it a value")
    hints = _init_hints(cls)
    return {name: convert(value, hints.get(name, Any), join(key, name)) for name, value in given.items()}


def convert(value: object, hint: object, key: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any or (hint is not None and not origin and not isinstance(hint, type)):
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, hint, key)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            shown = ", ".join(map(str, choices))
            raise ConfigError(
                f"{key}={_value_text(value)}: no such choice{nearest(str(value), map(str, choices))} ({shown})"
            )
        return value
    if origin in (tuple, list):
        return _convert_sequence(value, hint, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return dataclass_from(hint, value, key)
    return _convert_scalar(value, hint, key)


def _convert_scalar(value: object, hint: object, key: str) -> object:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{key}={value}: need a finite number")
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint in (None, type(None)) and value is None:
        return None
    if isinstance(hint, type) and isinstance(value, hint) and hint not in (int, float):
        return value
    raise ConfigError(f"{key}={_value_text(value)}: need {_type_in_words(hint)}, not {_type_in_words(type(value))}")


def _convert_union(value: object, hint: object, key: str) -> object:
    options = typing.get_args(hint)
    for option in options:
        try:
            return convert(value, option, key)
        except ConfigError as error:
            first = error
    if len([option for option in options if option is not type(None)]) == 1:
        only = next(option for option in options if option is not type(None))
        if value is not None:
            return convert(value, only, key)
        raise first
    wanted = " or ".join(_type_in_words(option) for option in options)
    raise ConfigError(f"{key}={_value_text(value)}: need {wanted}")


def _convert_sequence(value: object, hint: object, key: str) -> object:
    inner = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key}={_value_text(value)}: need a list, such as [{_type_in_words(inner[0])}]")
    origin = typing.get_origin(hint)
    if origin is list or inner[-1] is Ellipsis:
        items = [convert(item, inner[0], f"{key}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if len(value) != len(inner):
        raise ConfigError(f"{key}={_value_text(value)}: need {len(inner)} values, not {len(value)}")
    return tuple(convert(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(value, inner, strict=True)))


def join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def field_names(cls: type) -> list[str]:
    assert dataclasses.is_dataclass(cls), f"{cls} is no dataclass"
    return [field.name for field in dataclasses.fields(cls)]


def _field_hints(cls: type) -> dict[str, object]:
    """Types of the fields alone: other annotations may use names that only a type checker imports."""
    assert dataclasses.is_dataclass(cls), f"{cls} is no dataclass"
    names = field_names(cls)
    hints: dict[str, object] = {}
    for origin in reversed(cls.__mro__):
        notes = {name: note for name, note in vars(origin).get("__annotations__", {}).items() if name in names}
        fields = types.SimpleNamespace(__annotations__=notes)
        hints |= typing.get_type_hints(fields, vars(sys.modules[origin.__module__]))
    return hints


def _init_hints(cls: type) -> dict[str, object]:
    try:
        return typing.get_type_hints(cls.__init__)  # type: ignore[misc]  # reading the annotations of any class at all
    except (NameError, TypeError):
        return {}  # annotations that only its authors' tools can read


def _type_in_words(hint: object) -> str:
    names: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
        dict: "a group of values",
        list: "a list",
    }
    return names.get(hint, hint.__name__ if isinstance(hint, type) else str(hint))


def _value_text(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
