"""Configuration: dataclasses filled from plain mappings (YAML, JSON), with every key and type checked."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from deformer_core.errors import InputError

T = TypeVar("T")


def load_config(cls: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Build the dataclass `cls` from `mapping`, nested dataclasses from nested mappings.

    Lists become tuples where the field is one, integers become floats where it is a float; nothing else is
    converted. `where` names the source in errors. Errors: `InputError` for an unknown key (naming the nearest
    known one), a missing key without default, or a value of another type.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"{where} must be a mapping of keys to values, not {_describe(mapping)}")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            hint = f"did you mean '{near[0]}'?" if near else "it takes no keys"
            raise InputError(f"{where} has no key '{key}': {hint}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"{where} is incomplete: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise InputError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {_describe(value)}")
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else load_config(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise InputError(f"{where} must have {len(arguments)} entries, not {len(value)}")
        items = zip(arguments, value, strict=True)
        return tuple(_convert(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(items))
    if origin is list and isinstance(value, list | tuple):
        return [_convert(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {key: _convert(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    plain = origin or hint
    if plain is float and type(value) is int:
        return float(value)
    # bool is a subclass of int, but `layers: true` is a mistake.
    if isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool):
        return value
    hint_text = (
        " (YAML reads 1e-4 as a text: write 1.0e-4)" if plain is float and isinstance(value, str) else ""
    )
    raise InputError(f"{where} must be {_name(hint)}, not {_describe(value)}{hint_text}")


def _convert_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    real = [choice for choice in choices if choice is not type(None)]
    if len(real) == 1:
        return _convert(real[0], value, where)
    for choice in real:
        try:
            return _convert(choice, value, where)
        except InputError:
            continue
    raise InputError(f"{where} must be {' or '.join(map(_name, real))}, not {_describe(value)}")


def _name(hint: Any) -> str:
    names: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    if get_origin(hint) in (tuple, list):
        return "a list"
    return names.get(hint, "a mapping" if get_origin(hint) is dict else getattr(hint, "__name__", str(hint)))


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"
