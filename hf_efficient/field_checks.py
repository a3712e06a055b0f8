"""Checks of arguments and of the fields of configs against their types: both can come from a program too."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from hf_efficient.errors import UserError

NAMES = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text", list: "a list"}
MAX_WHOLE_NUMBER = 2**63 - 1


def check_field_types(config: Any) -> None:
    """Raise UserError if a field of the dataclass `config` holds a value of another type than it is annotated with.

    A number must be finite. Whole numbers pass for numbers, and True and False for neither. Numbers of other
    libraries, such as those of NumPy, become numbers of Python, which JSON can hold.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kind = next((each for each in allowed if _is_of(value, each)), None)
        if kind is None:
            names = " or ".join(_name(each) for each in allowed if (get_origin(each) or each) in NAMES)
            raise UserError(f"{field.name}={reprlib.repr(value)} is not possible: give {names}")
        if kind in (int, float) and not isinstance(value, (int, float)):
            object.__setattr__(config, field.name, int(value) if isinstance(value, Integral) else float(value))


def check_argument(name: str, value: Any, kind: type | tuple[type, ...], example: str) -> None:
    """Raise UserError unless the argument `name` is a `kind`, or one of several; `example` is what to give."""
    if not isinstance(value, kind):
        raise UserError(f"{name}={reprlib.repr(value)} is a {type(value).__name__}: give {example}")


def _is_of(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        expected = Integral if kind is int else Real
        return not isinstance(value, bool) and isinstance(value, expected) and _is_finite(value)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(item, get_args(kind)[0]) for item in value)
    return isinstance(value, kind)


def _is_finite(value: Real) -> bool:
    if isinstance(value, Integral):
        return abs(int(value)) <= MAX_WHOLE_NUMBER
    return math.isfinite(value)


def _name(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"a list, each {NAMES[get_args(kind)[0]]}"
    return NAMES[kind]
