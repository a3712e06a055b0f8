"""Dataclasses from JSON values, with their types checked: a file may come from anyone."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from hf_efficient.errors import UserError


def read_value(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `hint`: a dataclass from a dict, a tuple of dataclasses from a list.

    Raises UserError, which says `where`, if it is of another type.
    """
    if hint is Any:
        return value
    arguments, origin = get_args(hint), get_origin(hint) or hint
    if type(None) in arguments or origin is Union:
        alternatives = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else read_value(alternatives[0], value, where)
    if is_dataclass(hint) and isinstance(value, dict):
        return _read_record(hint, value, where)
    if origin is Mapping and isinstance(value, dict):
        return {key: read_value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (Sequence, tuple) and isinstance(value, (list, tuple)):
        items = [read_value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if is_dataclass(arguments[0]) else items
    plain: Any = {float: (int, float), int: int, str: str, bool: bool}.get(hint, ())
    if isinstance(value, plain) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where} is {reprlib.repr(value)}, which is no {getattr(origin, '__name__', hint)}")


def _read_record(hint: Any, value: dict[str, Any], where: str) -> Any:
    """Return the dataclass `hint` with the fields in `value`."""
    hints = get_type_hints(hint)
    known = {field.name: field for field in fields(hint)}
    if unknown := sorted(value.keys() - known.keys()):
        raise UserError(f"{where} has an unknown key {reprlib.repr(unknown[0])}")
    needed = [name for name, field in known.items() if field.default is field.default_factory is MISSING]
    if missing := [name for name in needed if name not in value]:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    return hint(**{name: read_value(hints[name], item, f"{where}.{name}") for name, item in value.items()})
