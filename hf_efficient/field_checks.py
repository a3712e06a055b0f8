"""Checks of the fields of configs against their annotations: a config can be built by a program too."""

from __future__ import annotations

import dataclasses
import math
import types
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from hf_efficient.errors import UserError

NAMES = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text", list: "a list"}


def check_field_types(config: Any) -> None:
    """Raise UserError if a field of the dataclass `config` holds a value of another type than it is annotated with.

    A number must be finite. Whole numbers pass for numbers, and True and False for neither.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kinds = [get_origin(kind) or kind for kind in allowed]
        if not any(_is_of(value, kind) for kind in kinds):
            names = " or ".join(NAMES[kind] for kind in kinds if kind in NAMES)
            raise UserError(f"{field.name}={value!r} is not possible: give {names}")


def _is_of(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        expected = Integral if kind is int else Real
        return not isinstance(value, bool) and isinstance(value, expected) and math.isfinite(value)
    return isinstance(value, kind)
